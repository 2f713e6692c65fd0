"""Sizes against the released networks' own listings, from shapes alone; multiply-adds by formula and by jaxpr."""

import math

import jax
import jax.numpy as jnp
import pytest

from dyn_jax import macs, metrics, networks
from dyn_jax.types import Output

PARAMETERS = {
    "skipnet-sp-rnn-38-cifar10": 571913,
    "skipnet-rl-rnn-74-cifar10": 1162109,
    "skipnet-rl-rnn-110-cifar10": 1752305,
    "skipnet-rl-rnn-152-cifar10": 571913 + 19 * 98366,  # a block more in each group: 98366
    "skipnet-sp-ff-38-cifar10": 1148798,
    "skipnet-sp-ff-110-cifar10": 2609798,
    "skipnet-rl-rnn-18-imagenet": 11709683,
    "skipnet-rl-rnn-34-imagenet": 21836483,
    "skipnet-rl-rnn-50-imagenet": 25709123,
    "skipnet-rl-rnn-101-imagenet": 44875501,
    "skipnet-rl-rnn-152-imagenet": 60672919,
    "dynconv-8-cifar10": 78688,
    "dynconv-32-cifar10": 472056,
    "dynconv-50-imagenet": 25688264,
    "dynconv-101-imagenet": 44854506,
    "resnet-32-cifar10": 464154,
    "resnet-110-cifar10": 464154 + 13 * 97216,  # 1.7 million, as published
    "resnet-18-imagenet": 11689512,
    "resnet-50-imagenet": 25557032,
    "avit-tiny-imagenet": 5717416,  # DeiT's: no gate has parameters
    "avit-small-imagenet": 22050664,
    "evit-small-imagenet": 22050664,
}
UNITS = {
    "skipnet-rl-rnn-110-cifar10": 53,
    "skipnet-rl-rnn-152-cifar10": 74,
    "skipnet-rl-rnn-101-imagenet": 32,
    "dynconv-32-cifar10": 15,
}


def shapes_of(net, size, batch=1):
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    output, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    return variables, images, output


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    size = 224 if name.endswith("imagenet") else 32
    net = networks.create(name)
    variables, _, output = shapes_of(net, size)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]
    assert isinstance(output, Output)
    assert output.logits.shape == (1, 1000 if size == 224 else 10)
    if name in UNITS:
        assert len(output.trace.units) == UNITS[name]


@pytest.mark.parametrize(
    "name, size, unused",
    [
        ("resnet-20-cifar10", 32, 0),
        ("resnet-50-imagenet", 64, 0),
        ("skipnet-sp-rnn-38-cifar10", 32, 64 * 10),  # the last block's embedding: computed, used by nothing
        ("skipnet-rl-rnn-50-imagenet", 224, 2048 * 10),
        ("dynconv-8-cifar10", 32, 0),
        ("dynconv-50-imagenet", 64, 0),
        ("avit-tiny-cifar10", 32, 0),
        ("adavit-tiny-cifar10", 32, 0),
        ("evit-tiny-cifar10", 32, 0),
        ("evit-fused-tiny-cifar10", 32, 0),
    ],
)
def test_formula_equals_the_walk_over_the_jaxpr(name, size, unused):
    net = networks.create(name)
    variables, images, output = shapes_of(net, size)
    counted = macs.of_function(lambda v, x: net.apply(v, x).logits, variables, images)
    dense = metrics.dense_macs(output.trace) if output.trace.units else output.trace.static_macs
    assert counted == dense + unused


def test_published_multiply_adds():
    """ResNet-50 at 224: 4.09 G; ResNet-20 on CIFAR: 40.6 M (He et al. 2016, and every table since)."""
    _, _, output = shapes_of(networks.create("resnet-50-imagenet"), 224)
    assert output.trace.static_macs == pytest.approx(4.09e9, rel=2e-3)
    _, _, output = shapes_of(networks.create("resnet-20-cifar10"), 32)
    assert output.trace.static_macs == pytest.approx(40.55e6, rel=2e-3)


def test_rules_by_hand():
    assert macs.conv2d(3, 2, 5, 7) == 9 * 2 * 5 * 7
    assert macs.dense(3, 4) == 12 and macs.lstm(10, 10) == 4 * 10 * 20
    x = jnp.ones((2, 5, 5, 3))
    kernel = jnp.ones((3, 3, 3, 4))
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert macs.of_function(conv, x, kernel) == 2 * 2 * 2 * 4 * 27
    body = lambda c, _: (c @ jnp.ones((6, 6)), None)
    assert macs.of_function(lambda c: jax.lax.scan(body, c, None, length=10)[0], jnp.ones((4, 6))) == 10 * 4 * 36


def test_a_layer_without_a_rule_is_an_error():
    with pytest.raises(NotImplementedError, match="no rule for the primitive 'cholesky'"):
        macs.of_function(jnp.linalg.cholesky, jnp.eye(3))
    with pytest.raises(NotImplementedError, match="while loop"):
        macs.of_function(lambda x: jax.lax.while_loop(lambda v: v.sum() > 0, lambda v: v - 1, x), jnp.ones(3))
