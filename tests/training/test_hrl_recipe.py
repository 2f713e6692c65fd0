"""SkipNet's two stages: what passes between them, and the direction in which the reward moves sampled gates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.occupancy import bernoulli, straight_through
from dyn_jax.training import hrl
from dyn_jax.types import Output, Trace, UnitTrace

NET = SkipNet(depths=(1, 1), widths=(2, 2), image_size=8, num_classes=3, normalization=None)


def variables(weight):
    projection = {"kernel": np.full((2, 1), weight, np.float32), "bias": np.full(1, 0.5, np.float32)}
    return {"params": {"control": {"proj": projection, "rnn": {}}, "fc": {}}, "batch_stats": {}}


def test_hotter_by_hand():
    given = variables(3.0)
    got = hrl.hotter(given, 0.25)["params"]
    np.testing.assert_array_equal(got["control"]["proj"]["kernel"], np.full((2, 1), 12.0))
    np.testing.assert_array_equal(got["control"]["proj"]["bias"], [2.0])
    np.testing.assert_array_equal(given["params"]["control"]["proj"]["bias"], [0.5])  # not in place
    with pytest.raises(ValueError, match="recurrent gates"):
        hrl.hotter({"params": {"fc": {}}}, 0.25)
    with pytest.raises(ValueError, match="temperature"):
        hrl.hotter(given, 0.0)


def test_stages():
    recipe = hrl.skipnet_rl_recipe(3)
    first, second = recipe.stages
    assert (first.epochs, second.epochs) == (3, 3) and second is recipe
    assert (first.occupancy(0), second.occupancy(0)) == (straight_through(1.0), bernoulli())
    got = second.between(variables(2.0))["params"]["control"]["proj"]["kernel"]
    np.testing.assert_allclose(got, np.full((2, 1), 100.0), rtol=1e-6)
    assert [stage.epochs for stage in hrl.skipnet_rl_recipe().stages] == [40, 6]
    with pytest.raises(ValueError, match="temperature"):
        hrl.hrl_recipe(temperature=0.0)


def test_recipe_by_hand():
    """One gate, one example, cross-entropy log 2, action "skip" at score 0: -w (alpha - log 2) log(1/2) on top."""
    recipe = hrl.hrl_recipe(alpha=3.0, rl_weight=0.5)
    assert recipe.occupancy(0) == recipe.occupancy(1) == bernoulli()
    unit = UnitTrace(jnp.zeros(1), jnp.zeros(1), 1)
    value = recipe.loss(Output(jnp.zeros((1, 2)), Trace((unit,))), jnp.array([0]), None)
    np.testing.assert_allclose(value, np.log(2) + 0.5 * (3 - np.log(2)) * np.log(2), rtol=1e-5)


def test_reward_moves_the_gates():
    """Against the gradient, a reward for skipping lowers the gate's bias; a penalty, the control, raises it."""
    rng = np.random.default_rng(0)
    images, labels = rng.random((64, 8, 8, 3)).astype(np.float32), jnp.arange(64) % 3
    fast = {"xla_backend_optimization_level": 0}
    start = jax.jit(NET.init, compiler_options=fast)(jax.random.key(0), images[:1])

    def gradient(alpha):
        recipe = hrl.hrl_recipe(alpha=alpha)

        def loss(params):
            output, _ = NET.apply(
                {**start, "params": params},
                images,
                occupancy=recipe.occupancy(0),
                train=True,
                rngs={"gate": jax.random.key(1)},
                mutable=["batch_stats"],
            )
            actions = jnp.stack([unit.occupancy for unit in output.trace.units])
            return recipe.loss(output, labels, None), (output.trace.units[0].score, actions)

        return jax.grad(loss, has_aux=True)(start["params"])

    compiled = jax.jit(gradient, compiler_options=fast)
    found, (scores, actions) = compiled(60.0)
    bias = {60.0: found, -60.0: compiled(-60.0)[0]}
    assert all(np.sign(got["control"]["proj"]["bias"][0]) == np.sign(alpha) for alpha, got in bias.items())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    chosen = actions[0] != (scores >= 0)  # sampled: not what the hard gate says
    assert 0.1 < np.mean(chosen) < 0.9
