"""A layer's parameters: made once, compared with what the layer expects, not made again to know their shape."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError

import dyn_jax
from dyn_jax import networks
from dyn_jax.networks.checkpoint import target_shapes
from dyn_jax.networks.resnet import ResNet
from dyn_jax.nn import Conv, Dense

X = jnp.ones((1, 4, 4, 3))


def test_what_is_there_is_not_initialised_again():
    made = []

    def init(key, shape):
        made.append(shape)
        return jax.random.normal(key, shape)

    layer = Conv(5, 3, kernel_init=init)
    variables = layer.init(jax.random.key(0), X)
    assert made == [(3, 3, 3, 5)]
    jax.jit(layer.apply)(variables, X)
    assert len(made) == 1


def test_an_initialiser_is_asked_for_every_layer():
    """One with a state of its own gives each layer other numbers."""
    rng = np.random.default_rng(0)
    init = lambda key, shape: jnp.asarray(rng.normal(size=shape), jnp.float32)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dense(3, init, name="second")(Dense(3, init, name="first")(x))

    params = Net().init(jax.random.key(0), X)["params"]
    assert (params["first"]["kernel"] != params["second"]["kernel"]).all()


def test_another_shape_or_none_is_refused():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dense(5, name="fc")(x)

    variables = Net().init(jax.random.key(0), X)
    other = {"params": {"fc": {**variables["params"]["fc"], "kernel": np.ones((3, 4), np.float32)}}}
    with pytest.raises(ScopeParamShapeError, match=r'"kernel" in "/fc".*\(3, 5\).*\(3, 4\)'):
        Net().apply(other, X)
    with pytest.raises(ScopeParamNotFoundError, match="bias"):
        Net().apply({"params": {"fc": {"kernel": variables["params"]["fc"]["kernel"]}}}, X)


def test_boxed_parameters_are_taken_out_of_their_box():
    layer = Dense(5, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "model")))
    variables = layer.init(jax.random.key(0), X)
    np.testing.assert_array_equal(layer.apply(variables, X), np.full((1, 4, 4, 5), 3.0))


def test_shapes_of_a_network_are_ones_own():
    """They are kept for the next question, of every type of number, and of a network that has no hash too."""
    net = networks.create("dynconv-digits")
    shapes = target_shapes(net)
    shapes.clear()
    assert target_shapes(net) and target_shapes(net) == target_shapes(networks.create("dynconv-digits"))
    with jax.enable_x64(True):
        assert jnp.dtype(np.float64) in {leaf.dtype for leaf in target_shapes(net).values()}
    assert jnp.dtype(np.float64) not in {leaf.dtype for leaf in target_shapes(net).values()}
    listed = [ResNet(depths=kind((1, 1)), widths=(4, 8)) for kind in (list, tuple)]
    assert target_shapes(listed[0]) == target_shapes(listed[1])


def test_every_layer_asks_for_its_parameters_this_way():
    root = pathlib.Path(dyn_jax.__file__).parent
    asking = {path.name for path in root.rglob("*.py") if "self.param(" in path.read_text()}
    assert not asking
