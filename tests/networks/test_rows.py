"""Blocks of the rows that are on: logits, traces and gradients of the dense network, whatever is on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks, networks, objectives, occupancy
from dyn_jax.nn import rows

NET = networks.create("skipnet-32-cifar10", depths=(2, 2), widths=(4, 8), image_size=8)
IMAGES = jax.random.uniform(jax.random.key(0), (5, 8, 8, 3))
LABELS = jnp.arange(5)
HARD = occupancy.hard()


@pytest.fixture(scope="module")
def variables():
    """Random weights, and running statistics that are not those of the start."""
    made = NET.init(jax.random.key(1), IMAGES)
    keys = iter(jax.random.split(jax.random.key(2), 99))
    moved = lambda leaf: leaf * jax.random.uniform(next(keys), leaf.shape, minval=0.5, maxval=1.5)
    return {**made, "batch_stats": jax.tree.map(moved, made["batch_stats"])}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 2)  # 5 rows: the last chunk is never full


def shifted(variables, by):
    """Scores moved by `by`."""
    control = variables["params"]["control"]
    proj = {**control["proj"], "bias": control["proj"]["bias"] + by}
    return {**variables, "params": {**variables["params"], "control": {**control, "proj": proj}}}


def answer(net, variables, images, gate=HARD):
    def loss(images):
        output = net.apply(variables, images, occupancy=gate)
        return jnp.sum(objectives.cross_entropy(output, LABELS[: len(images)])), output

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(images)


def scores(variables):
    units = NET.apply(variables, IMAGES).trace.units
    return np.stack([unit.score for unit in units])


@pytest.mark.parametrize("share", ["none", "some", "all"])
def test_rows_answer_as_the_dense_network(variables, share):
    found = scores(variables)
    by = {"none": -found.max() - 1, "some": -np.median(found), "all": 1 - found.min()}[share]
    moved = shifted(variables, by)
    wanted = answer(NET, moved, IMAGES)
    got = answer(NET.clone(execution="rows"), moved, IMAGES)
    on = np.stack([unit.on for unit in wanted[0][1].trace.units])
    assert {"none": not on.any(), "some": on.any(0).any() and not on.all(), "all": on.all()}[share]
    chex.assert_trees_all_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_other_occupancies_are_dense(variables):
    for gate in (occupancy.sigmoid(1.0), occupancy.straight_through(1.0)):
        wanted, got = (answer(net, variables, IMAGES, gate) for net in (NET, NET.clone(execution="rows")))
        chex.assert_trees_all_equal(got, wanted)


def test_in_double_precision_under_vmap_and_in_an_attack(variables):
    moved = shifted(variables, -np.median(scores(variables)))
    by_rows = NET.clone(execution="rows")
    with jax.enable_x64(True):
        images = IMAGES.astype(jnp.float64)
        gradients = [answer(net, moved, images)[1] for net in (NET, by_rows)]
        assert gradients[1].dtype == jnp.float64
        np.testing.assert_allclose(gradients[1], gradients[0], atol=1e-12)
    both = jnp.stack([IMAGES, IMAGES[::-1]])
    logits = [jax.vmap(lambda x, net=net: net.apply(moved, x).logits)(both) for net in (NET, by_rows)]
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-5, atol=1e-6)
    attack = attacks.bim(0.1, 0.05, 2)
    run = lambda net: jax.jit(lambda x: attack(lambda x: net.apply(moved, x), x, LABELS).adversarial)(IMAGES)
    np.testing.assert_allclose(run(by_rows), run(NET), atol=1e-6)


def test_what_rows_cannot_do_is_said(variables):
    by_rows = NET.clone(execution="rows")
    loss = lambda params: jnp.sum(by_rows.apply({**variables, "params": params}, IMAGES).logits)
    with pytest.raises(ValueError, match="execution: got 'rows', expected 'dense' where weights are differentiated"):
        jax.grad(loss)(variables["params"])
    deep = networks.create("skipnet-rl-rnn-50-imagenet", image_size=32, execution="rows")
    with pytest.raises(ValueError, match="execution"):
        jax.eval_shape(deep.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
