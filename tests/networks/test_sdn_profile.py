"""Our multiply-adds and parameters beside what the authors' profiler printed for every exit of their networks.

It counts multiplications and additions one by one, ``2 k k C - 1`` for a number that a convolution without bias gives,
and norms, ReLUs and pools too (by their side, not their area); additions of shortcuts and the mixing of pools are free.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dyn_jax import networks
from dyn_jax.networks import sdn_mobilenet, sdn_vgg

QUARTER = {"widths": tuple(width // 4 for width in sdn_vgg.WIDTHS), "dense_widths": (128, 128)}
NORM, RELU, NO_BIAS = 2, 1, -1  # for each number of a map


def of_exit(channels, size):
    """What an exit has beside its multiply-adds: two pools to 4 x 4; its linear layer's bias is not counted."""
    side = size // 4
    return (16 * channels * (2 * side - 1) if side else 0) - 10


def beside_resnet():
    size, total = 32, 16 * 32**2 * (NO_BIAS + NORM + RELU)
    for number in range(27):
        width, strided = (16, 32, 64)[number // 9], number in (9, 18)
        size //= 1 + strided
        total += width * size**2 * (2 * (NO_BIAS + NORM + RELU) + strided * (NO_BIAS + NORM))
        if number in (3, 7, 11, 15, 19, 23):
            total += of_exit(width, size)
            yield total
    yield total + 64 * 8 - 10  # the mean over 8 x 8


def beside_vgg():
    size, total = 32, 0
    for number, width in enumerate(QUARTER["widths"]):
        total += width * size**2 * (NORM + RELU)  # with a bias
        if number in sdn_vgg.POOL_AFTER:
            size //= 2
            total += width * size**2
        if number in (1, 3, 5, 6, 8, 9):
            total += of_exit(width, size)
            yield total
    first, second = QUARTER["dense_widths"]
    yield total + first * (RELU - 1) - second - 10


def beside_mobilenet():
    """Of C separate channels, each with a kernel of its own, it counts C^2: a fault of the profiler."""
    size, before, total = 32, 32, 32 * 32**2 * (NO_BIAS + NORM + RELU)
    for number, (width, stride) in enumerate(zip(sdn_mobilenet.WIDTHS, sdn_mobilenet.STRIDES)):
        size //= stride
        total += before * size**2 * (before * (2 * 9 - 1) - 2 * 9 + NORM + RELU)
        total += width * size**2 * (NO_BIAS + NORM + RELU)
        before = width
        if number in (2, 4, 6, 8, 11):
            total += of_exit(width, size)
            yield total
    yield total + 1024 * 2 - 10  # the mean over 2 x 2


def work_of(net):
    """(multiply-adds up to every exit, variables), as shapes."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    output, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    return np.cumsum([output.trace.static_macs, *(unit.macs for unit in output.trace.units)]), variables


def test_costs_of_mobilenet():
    """The profiler's shares of the whole, and the whole, to three digits."""
    work, _ = work_of(networks.create("sdn-mobilenet-cifar10"))
    costs = 2 * work + np.array(list(beside_mobilenet()))
    np.testing.assert_allclose(costs[-1], 0.7510e9, atol=5e4)
    np.testing.assert_allclose(costs / costs[-1], [0.168, 0.304, 0.439, 0.652, 0.894, 1], atol=5e-4)


@pytest.mark.parametrize(
    "file, name, fields, beside",
    [
        ("resnet56_sdn_cifar10", "sdn-resnet56-cifar10", {}, beside_resnet),
        ("vgg16_sdn_cifar10_quarter", "sdn-vgg16-cifar10", QUARTER, beside_vgg),
    ],
)
def test_costs_and_sizes_of_the_released_profiler(shared_dir, file, name, fields, beside):
    net = networks.create(name, **fields)
    work, variables = work_of(net)
    with np.load(shared_dir / "golden" / f"{file}.npz") as arrays:
        wanted = {key: arrays[key] for key in ("profile_gops", "profile_mparams", "add_ic")}
    np.testing.assert_array_equal(np.flatnonzero(wanted["add_ic"]), net.exit_after)
    np.testing.assert_allclose(2 * work + np.array(list(beside())), 1e9 * wanted["profile_gops"], rtol=1e-6)

    sizes = np.zeros(len(net.exit_after) + 1, int)
    for (layer, *_, leaf), shape in traverse_util.flatten_dict(dict(variables["params"])).items():
        part, _, number = layer.partition("_")
        block = int(number.split("_")[0]) if part == "layers" else (-1 if layer in ("conv1", "bn1") else 99)
        sizes[sum(block > after for after in net.exit_after)] += 0 if leaf == "alpha" else math.prod(shape.shape)
    np.testing.assert_allclose(np.cumsum(sizes), 1e6 * wanted["profile_mparams"], rtol=1e-6)
