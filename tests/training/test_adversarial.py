"""Training on attacked images: which are attacked, by which network, and what it is good for."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Tiny, some

from dyn_jax import attacks, objectives, occupancy, training
from dyn_jax.datasets import ImageData
from dyn_jax.occupancy import hard
from dyn_jax.training import recipe as recipes
from dyn_jax.training.adversarial import Perturb
from dyn_jax.training.loop import fit
from dyn_jax.types import Output, Trace, UnitTrace

PLAIN = recipes.Recipe(3, 8, recipes.SGD(0.1), source=recipes.Images(0))
ATTACK = attacks.bim(0.1, 0.05, 3, attack_all=True)


class Gated(nn.Module):
    """One gated layer over the pixels."""

    @nn.compact
    def __call__(self, images, *, occupancy=None, train=False):
        x = images.reshape(len(images), -1)
        score = nn.Dense(1, name="gate")(x)[:, 0]
        o = (occupancy or hard())(score)
        h = nn.Dense(8, name="in")(x)
        unit = UnitTrace(score, o, 10, extras={"probability": jax.nn.sigmoid(score)})
        return Output(nn.Dense(3, name="out")(jnp.tanh(h) * (1 + o[:, None])), Trace((unit,), 100))


def test_the_first_images_are_attacked_by_the_network_as_it_is():
    net, data = Gated(), some(8)
    variables = net.init(jax.random.key(0), data.images)
    perturb = Perturb(ATTACK, occupancy.straight_through(2.0), 0.5)
    moved = perturb(partial(net.apply, variables), data.images, jnp.asarray(data.labels), jax.random.key(1))
    soft = partial(net.apply, variables, occupancy=occupancy.straight_through(2.0))
    expected = ATTACK(soft, data.images[:4], data.labels[:4]).adversarial
    np.testing.assert_allclose(moved[:4], expected, atol=1e-6)
    np.testing.assert_array_equal(moved[4:], data.images[4:])


def separable(count=64, seed=0):
    """A robust feature (all pixels) and a brittle one (a pixel of two, which follows the label in training)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 2
    images = np.clip(0.5 + 0.12 * (2 * labels - 1)[:, None, None, None] * np.ones((1, 4, 4, 3)), 0, 1)
    return ImageData((images + rng.normal(0, 0.2, images.shape)).clip(0, 1).astype(np.float32), labels, "made up")


def test_it_makes_a_network_robust():
    data = separable()
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    rates = {}
    for name, how in (("plain", PLAIN), ("adversarial", training.adversarial(PLAIN, ATTACK))):
        how = dataclasses.replace(how, epochs=12)
        variables = fit(Gated(), data, how, seed=0)
        rates[name] = float(ATTACK(partial(Gated().apply, variables), images, labels).loss.mean())
    assert rates["adversarial"] < rates["plain"] - 0.01, rates


def test_another_recipe_is_another_run_and_batch_statistics_stay(tmp_path):
    data, path = some(), tmp_path / "run"
    against = training.adversarial(PLAIN, ATTACK)
    first = fit(Tiny(), data, against, seed=1, checkpoint=path)
    again = fit(Tiny(), data, against, seed=1)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again)))
    with pytest.raises(ValueError, match="is of another run"):
        fit(Tiny(), data, PLAIN, seed=1, checkpoint=path)


def test_both_is_the_sum():
    net, data = Gated(), some(4)
    output = net.apply(net.init(jax.random.key(0), data.images), data.images)
    energy = objectives.energy()
    labels = jnp.asarray(data.labels)
    expected = objectives.cross_entropy(output, labels) + 2.0 * energy(output, labels)
    np.testing.assert_allclose(training.both(energy, 2.0)(output, labels), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "call, kind, words",
    [
        (lambda: training.adversarial(PLAIN, "pgd"), TypeError, "attack: got str"),
        (lambda: training.adversarial(PLAIN, ATTACK, share=0.0), ValueError, "share: got 0.0"),
        (lambda: training.adversarial(PLAIN, ATTACK, share=1.5), ValueError, "share: got 1.5, expected at most 1"),
        (lambda: training.both(objectives.energy(), -1.0), ValueError, "weight: got -1.0"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
