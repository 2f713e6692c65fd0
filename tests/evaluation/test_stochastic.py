"""Networks that draw: gradients averaged, verdicts by fresh draws, both as their definitions say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks, occupancy
from dyn_jax.evaluation import evaluate, stochastic
from dyn_jax.evaluation.subject import subject_of
from tests.evaluation import toy

pytestmark = pytest.mark.usefixtures("quick_programs")
DRAWS = 6


def noisy(x, key):
    return subject_of(toy.noisy, toy.weights()).forward(toy.weights())(x, key)


def keys_of(x, key):
    """[draw] keys of one image, as the module says: from its bits."""
    return jax.random.split(stochastic.key_of(x, key), DRAWS)


def test_the_gradient_is_the_mean_of_the_draws_gradients():
    images, labels = toy.data(3)
    key = jax.random.key(7)
    forward = stochastic.averaged(noisy, key, DRAWS)
    attack = stochastic.expected(attacks.bim(0.1, 0.1, 1))
    got = jax.grad(lambda x: jnp.sum(attack.objective(forward(x), labels, None)))(jnp.asarray(images))

    def by_hand(x, label, keys):
        losses = [-jax.nn.log_softmax(noisy(x[None], k).logits[0])[label] for k in keys]
        return sum(losses) / DRAWS

    for row in range(3):
        keys = keys_of(jnp.asarray(images[row]), key)
        wanted = jax.grad(by_hand)(jnp.asarray(images[row]), labels[row], keys)
        np.testing.assert_allclose(got[row], wanted, rtol=1e-5, atol=1e-6)
    alone = jax.grad(lambda x: jnp.sum(attack.objective(noisy(x, key), labels, None)))(jnp.asarray(images))
    assert np.abs(got - alone).max() > 1e-2, "a single draw must differ for the test to mean something"


def test_another_image_meets_other_draws_and_the_same_the_same():
    images, _ = toy.data(3)
    forward = stochastic.averaged(noisy, jax.random.key(0), 1)
    a, again, b = forward(images), forward(images), forward(jnp.asarray(images).at[0, 0, 0, 0].add(1e-6))
    np.testing.assert_array_equal(a.logits, again.logits)
    noise = lambda out, x: out.logits - toy.static(toy.weights(), x)
    assert np.abs(noise(a, images)[0] - noise(b, images)[0]).max() > 1e-2
    np.testing.assert_array_equal(a.logits[1:], b.logits[1:])
    np.testing.assert_allclose(forward(images[1:]).logits, a.logits[1:], atol=1e-6)  # whatever the batch


def test_votes_are_the_majority():
    images, _ = toy.data(8)
    key = jax.random.key(3)
    got = stochastic.votes(noisy, key, DRAWS)(jnp.asarray(images))
    for row, image in enumerate(jnp.asarray(images)):
        said = [int(jnp.argmax(noisy(image[None], k).logits)) for k in keys_of(image, key)]
        counts = np.bincount(said, minlength=toy.CLASSES)
        assert counts[int(jnp.argmax(got.logits[row]))] == counts.max()
        np.testing.assert_allclose(got.logits[row], counts / DRAWS, atol=0.5 / DRAWS)
    broken = lambda x, key: noisy(x, key).replace(logits=noisy(x, key).logits * jnp.float32(np.inf))
    with jax.debug_nans(False):
        assert np.isnan(stochastic.votes(broken, key, 2)(jnp.asarray(images)).logits).all()


@pytest.mark.parametrize("net", ["noise", "gates"])
def test_an_evaluation_of_a_random_network(net):
    images, labels = toy.data()
    given = {"noise": (toy.noisy, None), "gates": (toy.gated_at_random, occupancy.gumbel_sigmoid(1.0))}[net]
    run = lambda draws: evaluate(
        given[0], toy.weights(), images, labels, eps="16/255", attacks="fgsm,apgd-ce", occupancy=given[1],
        budget=toy.SHORT, draws=draws, batch_size=7,
    )  # fmt: skip
    got = run((3, 15))
    random, rate = got.summary["random"], got.examples["rate"]
    assert random["draws"] == 15 and got.summary["number_forward_passes"] == 15
    assert float(random["adversarial"]["worst_acc"]) <= float(random["adversarial"]["majority_acc"])
    assert ((0 < rate) & (rate < 1)).any(), "some verdict must depend on the draw"
    np.testing.assert_allclose(rate * 15, np.round(rate * 15), atol=1e-5)
    assert float(random["adversarial"]["mean_acc"]) < float(random["clean"]["mean_acc"])
    again = run((3, 15))
    np.testing.assert_array_equal(got.examples["found_by"], again.examples["found_by"])
