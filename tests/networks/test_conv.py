"""The convolution's rewritten forms against XLA's own, values and both gradients."""

import importlib
import itertools
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dyn_jax
from dyn_jax import occupancy
from dyn_jax.networks.dynconv import DynConv
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.nn import add_relu, conv2d, convolutions, relu

conv_module = importlib.import_module("dyn_jax.nn.conv")
kernel_gradients = importlib.import_module("dyn_jax.nn.kernel_gradient")

CASES = [  # height, width, kernel, stride, padding, in, out, winograd
    (8, 8, 3, 1, 1, 16, 16, False),
    (8, 8, 3, 1, 1, 3, 8, False),
    (9, 7, 3, 1, 1, 8, 8, False),
    (8, 12, 3, 2, 1, 16, 32, False),
    (9, 11, 3, 2, 1, 5, 4, False),
    (8, 8, 1, 2, 0, 16, 32, False),
    (16, 16, 7, 2, 3, 3, 8, False),
    (11, 10, 4, 3, 1, 4, 6, False),
    (8, 6, 3, 1, 1, 32, 32, True),
    (4, 5, 3, 1, 1, 16, 40, True),
    (6, 6, 3, 1, 1, 32, 32, True),
]


@pytest.mark.parametrize("height, width, k, stride, padding, fan_in, fan_out, winograd", CASES)
def test_values_and_gradients(height, width, k, stride, padding, fan_in, fan_out, winograd):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, height, width, fan_in)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(k, k, fan_in, fan_out)), jnp.float32)
    pads = ((padding, padding),) * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    plain = lambda x, w: jax.lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=numbers)
    expected, expected_vjp = jax.vjp(plain, x, kernel)
    got, vjp = jax.vjp(lambda x, w: conv2d(x, w, stride, padding, winograd), x, kernel)
    cotangent = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    for a, b in zip((got, *vjp(cotangent)), (expected, *expected_vjp(cotangent))):
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) < (5e-6 if winograd else 1e-6) * np.linalg.norm(b)


@pytest.mark.parametrize("size, stride, padding", [(3, 1, 1), (3, 2, 1), (1, 2, 0), (2, 1, 0)])
def test_kernel_gradient_by_loops(size, stride, padding):
    """Every tap written out; batches of one, of a part and of all images give the same."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(size=(6, 7, 5, 2))
        rows, columns = ((n + 2 * padding - size) // stride + 1 for n in x.shape[1:3])
        g = rng.normal(size=(6, rows, columns, 3))
        padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        expected = np.zeros((size, size, 2, 3))
        for t, u, i, j in itertools.product(range(size), range(size), range(rows), range(columns)):
            expected[t, u] += padded[:, stride * i + t, stride * j + u].T @ g[:, i, j]
        for positions in (1, 2 * rows * columns, 10**6):
            with mock.patch.object(kernel_gradients, "_POSITIONS", positions):
                got = kernel_gradients.kernel_gradient(jnp.asarray(x), jnp.asarray(g), size, stride, padding)
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_what_is_not_asked_for_is_not_traced():
    """An attack differentiates images only: no gradient of a kernel in its program, and the other way round."""
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    loss = lambda x, kernel: jnp.sum(conv2d(x, kernel, 1, 1))
    count = lambda argnum: str(jax.make_jaxpr(jax.grad(loss, argnum))(x, kernel)).count("dot_general")
    assert count(0) == 0 < count(1) == count((0, 1))
    assert str(jax.make_jaxpr(jax.grad(loss, 1))(x, kernel)).count("conv_general_dilated[") == 1


@pytest.mark.parametrize("inline", [False, True])
def test_gradients_of_one_jitted_function_in_turns(inline):
    """What is kept for one of them has the structure of what is kept for the others."""
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    loss = jax.jit(lambda x, kernel: jnp.sum(jnp.square(conv2d(x, kernel, 1, 1))), inline=inline)
    expected = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    for argnum in (1, 0, 1, 0):
        np.testing.assert_allclose(jax.jit(jax.grad(loss, argnum))(x, kernel), expected[argnum], rtol=1e-6)


def test_second_order_reverse_mode_and_vmap():
    with jax.enable_x64(True):
        x, kernel = jnp.ones((1, 4, 4, 2)), jnp.linspace(-1, 1, 36).reshape(3, 3, 2, 2)
        numbers = ("NHWC", "HWIO", "NHWC")
        plain = lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        loss = lambda x, conv: jnp.sum(jnp.sin(conv(x)))
        ours = lambda x: loss(x, lambda x: conv2d(x, kernel, 1, 1))
        hessian, expected = (jax.jit(jax.jacrev(jax.grad(f)))(x) for f in (ours, lambda x: loss(x, plain)))
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(hessian, expected, atol=1e-12)
        batch = jnp.stack([x, 2 * x])
        np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(ours)))(batch)[1], jax.grad(ours)(2 * x), rtol=1e-12)


def test_relu_and_residual_sum():
    a, b = jnp.array([1.0, -2.0, 3.0, -1.0]), jnp.array([-3.0, 2.0, 0.5, -0.25])
    np.testing.assert_array_equal(add_relu(a, b), jnp.maximum(a + b, 0))
    np.testing.assert_array_equal(relu(a), [1, 0, 3, 0])
    grads = jax.grad(lambda a, b: jnp.sum(jnp.arange(1.0, 5.0) * add_relu(a, b)), (0, 1))(a, b)
    np.testing.assert_array_equal(grads[0], [0, 0, 3, 0])  # 0 where the sum is 0
    np.testing.assert_array_equal(grads[0], grads[1])
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu))(jnp.array([-1.0, 0.0, 2.0])), [0, 0, 1])


NETWORKS = {
    "skipnet": SkipNet(depths=(1, 1), widths=(4, 20), num_classes=3, image_size=8),
    "dynconv": DynConv(depths=(1, 1), widths=(4, 20), num_classes=3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_the_forms_of_other_backends(name):
    """What a GPU runs, forced on CPU: answers, scores and every gradient, in double precision (ReLUs have kinks)."""
    net, rng = NETWORKS[name], np.random.default_rng(0)
    images = rng.random((2, 8, 8, 3))
    shapes = jax.eval_shape(net.init, jax.random.key(0), images.astype(np.float32))
    draw = lambda path, s: np.abs(rng.normal(size=s.shape)) if "var" in str(path) else 0.3 * rng.normal(size=s.shape)
    variables = jax.tree_util.tree_map_with_path(draw, shapes)

    def of(form):
        def loss(params, x):
            output = net.apply({**variables, "params": params}, x, occupancy=occupancy.sigmoid(3.0))
            return jnp.sum(jnp.sin(output.logits)), (output.logits, [unit.score for unit in output.trace.units])

        with convolutions(form):
            lowered = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(variables["params"], images)
        quick = lowered.compile({"xla_backend_optimization_level": 0})
        return lowered.as_text(), quick(variables["params"], images)

    with jax.enable_x64(True):
        programs, found = zip(*map(of, ("standard", "rewritten")))
    assert ["grouped_pixels_conv" in program for program in programs] == [False, True]
    for a, b in zip(*map(jax.tree.leaves, found)):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_the_form_is_chosen_in_one_place():
    folder = pathlib.Path(dyn_jax.__file__).parent
    asks = [path.name for path in folder.rglob("*.py") if 'default_backend() == "cpu"' in path.read_text()]
    assert sorted(asks) == ["_compare.py", "conv.py"]  # the first: how hard XLA optimises the checks' programs
    with pytest.raises(ValueError, match="form: got 'gpu', expected"), convolutions("gpu"):
        pass
    with pytest.raises(RuntimeError), convolutions("standard"):
        assert not conv_module.rewritten()
        raise RuntimeError
    assert conv_module.rewritten() == (jax.default_backend() == "cpu")
