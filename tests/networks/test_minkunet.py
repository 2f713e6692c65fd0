"""MinkUNet14A against MinkowskiEngine: logits and gradient. Its weights come from a recipe, not from the file."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dyn_jax
import weights_convert
from dyn_jax.sparse3d import capacity_for, from_numpy

IGNORED = 255


def drawn(key, shape):
    """The tensor called `key`, of a stream that its name seeds."""
    stream = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    leaf = key.rsplit(".", 1)[1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "kernel":
        fan = shape[0] if len(shape) == 2 else shape[1] * (1 + 0.35 * (shape[0] - 1))
        return (stream.standard_normal(shape) * np.sqrt(1 / fan)).astype(np.float32)
    if leaf in ("running_var", "weight"):
        low, width = (0.5, 1.0) if leaf == "running_var" else (0.75, 0.5)
        return (low + width * stream.random_sample(shape)).astype(np.float32)
    scale = 0.2 if leaf == "running_mean" or key.endswith(".bn.bias") else 0.1
    return (scale * stream.standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("mink_MinkUNet14A")


@pytest.fixture(scope="module")
def state(arrays):
    shapes = [tuple(map(int, text.split(","))) if text else () for text in arrays["sd_shapes"].tolist()]
    state = {key: drawn(key, shape) for key, shape in zip(arrays["sd_keys"].tolist(), shapes)}
    sums = [[values.sum(dtype=np.float64), np.abs(values).sum(dtype=np.float64)] for values in state.values()]
    np.testing.assert_allclose(sums, np.stack([arrays["sd_sum"], arrays["sd_abssum"]], axis=1), rtol=1e-6, atol=1e-6)
    return state


@pytest.fixture(scope="module")
def run(arrays):
    """(variables, tensor, labels) -> ((loss, output), gradient in the features), compiled once."""
    net = dyn_jax.networks.create("minkunet-14a-scannet")
    capacity = capacity_for(from_numpy(arrays["coords"], arrays["feats"]), None, 5)

    def loss(features, variables, tensor, labels):
        output = net.apply(variables, tensor.replace(features=features), capacity=capacity)
        counted = labels != IGNORED
        log_probability = jax.nn.log_softmax(output.logits)
        picked = jnp.take_along_axis(log_probability, jnp.where(counted, labels, 0)[:, None], axis=1)[:, 0]
        return -jnp.sum(picked * counted) / jnp.sum(counted), output

    jitted = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    return lambda variables, tensor, labels: jitted(tensor.features, variables, tensor, jnp.asarray(labels, jnp.int32))


@pytest.fixture(scope="module")
def variables(state):
    return weights_convert.convert("minkunet-14a-scannet", state)


def relative(got, want):
    return np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want)


def test_parity_and_repetition(arrays, variables, run):
    tensor = from_numpy(arrays["coords"], arrays["feats"])
    (loss, output), gradient = run(variables, tensor, arrays["labels"])
    assert not output.trace.overflow
    assert relative(output.logits, arrays["logits64"]) < 2e-6
    assert relative(gradient, arrays["grad_feats64"]) < 5e-6
    np.testing.assert_allclose(loss, arrays["loss64"], rtol=1e-6)
    (_, again), second = run(variables, tensor, arrays["labels"])
    np.testing.assert_array_equal(again.logits, output.logits)
    np.testing.assert_array_equal(second, gradient)


def test_order_of_the_rows_does_not_matter(arrays, variables, run):
    order = np.random.default_rng(0).permutation(len(arrays["coords"]))
    straight, mixed = (
        run(variables, from_numpy(arrays["coords"][rows], arrays["feats"][rows]), arrays["labels"][rows])
        for rows in (np.arange(len(order)), order)
    )
    np.testing.assert_array_equal(mixed[0][1].logits, straight[0][1].logits[order])
    assert relative(mixed[1], np.asarray(straight[1][order])) < 1e-5


def test_another_kernel_order_is_noticed(arrays, state, run):
    """Control: the block kernels taken for MinkowskiEngine 0.4's."""
    wrong = weights_convert.convert("minkunet-14a-scannet", state, kernel_order="hybrid")
    (_, output), _ = run(wrong, from_numpy(arrays["coords"], arrays["feats"]), arrays["labels"])
    assert relative(output.logits, arrays["logits64"]) > 0.1
