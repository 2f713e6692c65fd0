"""Offsets by hand, against loops, and in the order that MinkowskiEngine stores weights in."""

from __future__ import annotations

import numpy as np
import pytest
import twins

from dyn_jax.sparse3d import offsets
from dyn_jax.sparse3d.kernel import cube_from_hybrid, triple


def test_cubes_by_hand():
    assert offsets(1).tolist() == [[0, 0, 0]]
    two = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert offsets(2).tolist() == two
    three = offsets(3).tolist()
    assert (three[0], three[1], three[3], three[9], three[13]) == (
        *([-1, -1, -1], [0, -1, -1], [-1, 0, -1]),
        *([-1, -1, 0], [0, 0, 0]),
    )
    assert offsets(5)[62].tolist() == [0, 0, 0]
    assert offsets((1, 3, 2)).tolist() == [[0, -1, 0], [0, 0, 0], [0, 1, 0], [0, -1, 1], [0, 0, 1], [0, 1, 1]]


def test_crosses_by_hand():
    x, y, z = np.eye(3, dtype=int).tolist()
    minus = lambda unit: [-c for c in unit]
    assert offsets(3, "cross").tolist() == [[0, 0, 0], x, minus(x), y, minus(y), z, minus(z)]
    assert offsets((5, 1, 1), "cross").tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [-2, 0, 0], [-1, 0, 0]]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, (1, 3, 3), (3, 1, 2), (4, 5, 1)])
def test_cubes_equal_loops(size):
    assert [tuple(site) for site in offsets(size).tolist()] == twins.cube(twins.three(size))


@pytest.mark.parametrize("size", [1, 3, 5, (1, 3, 5)])
def test_crosses_equal_loops(size):
    assert [tuple(site) for site in offsets(size, "cross").tolist()] == twins.cross(twins.three(size))


def test_hybrid_by_hand():
    """After the centre every axis appends -1 and +1 beside each site so far."""
    hybrid = offsets(3, "hybrid").tolist()
    assert hybrid[:9] == [
        *([0, 0, 0], [-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0]),
        *([-1, -1, 0], [-1, 1, 0], [1, -1, 0], [1, 1, 0]),
    ]
    assert sorted(hybrid) == sorted(offsets(3).tolist())


def test_cube_from_hybrid_reorders_a_kernel():
    order = cube_from_hybrid()
    assert sorted(order.tolist()) == list(range(27))
    np.testing.assert_array_equal(offsets(3, "hybrid")[order], offsets(3))
    assert (order != np.arange(27)).any()  # control


def test_golden_hybrid_order(golden):
    arrays = golden("mink_hybrid_order")
    np.testing.assert_array_equal(offsets(3, "hybrid"), arrays["hybrid_offsets"])
    np.testing.assert_array_equal(offsets(3), arrays["cube_offsets"])
    np.testing.assert_array_equal(cube_from_hybrid(), arrays["hybrid_to_cube_perm"])


GOLDEN_OFFSETS = [
    *(("conv_k1s1", 1, "cube"), ("conv_k2s2", 2, "cube"), ("conv_k3s1", 3, "cube"), ("conv_k4s2", 4, "cube")),
    *(("conv_k5s1", 5, "cube"), ("conv_cross_k3s1", 3, "cross"), ("conv_cross_k5s1", 5, "cross")),
]


@pytest.mark.parametrize(("layer", "size", "region"), GOLDEN_OFFSETS)
def test_golden_offsets(golden, layer, size, region):
    np.testing.assert_array_equal(offsets(size, region), golden("mink_layers")[f"{layer}/offsets"])


def test_offsets_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        offsets(3)[0, 0] = 7


@pytest.mark.parametrize(
    ("size", "region", "error", "message"),
    [
        (0, "cube", ValueError, "kernel_size: got 0, expected at least 1"),
        ((3, 3, -1), "cube", ValueError, "kernel_size: got -1"),
        ((3, 3), "cube", ValueError, "expected one integer or three"),
        ((3, 3, 2.0), "cube", TypeError, "expected an integer"),
        (4, "cross", ValueError, "expected odd sizes for a cross"),
        ((3, 2, 3), "cross", ValueError, "expected odd sizes for a cross"),
        (5, "hybrid", ValueError, "expected 3 for the hybrid region"),
        (3, "cubes", ValueError, "region: got 'cubes'.*did you mean 'cube'"),
    ],
)
def test_bad_sizes_and_regions(size, region, error, message):
    with pytest.raises(error, match=message):
        offsets(size, region)


@pytest.mark.parametrize("size", [True, 3.0, "3", None])
def test_a_size_that_is_no_integer(size):
    """Also where an equal integer was asked for before, and with the name of the argument in the message."""
    offsets(1, "cube"), offsets(3, "cube")
    with pytest.raises((TypeError, ValueError), match="kernel_size: got"):
        offsets(size, "cube")


def test_a_list_of_three_is_three():
    np.testing.assert_array_equal(offsets([1, 3, 2]), offsets((1, 3, 2)))


def test_triple():
    assert triple("stride", 2) == (2, 2, 2) and triple("stride", np.int64(2)) == (2, 2, 2)
    assert triple("stride", (1, 2, 3)) == (1, 2, 3) and triple("stride", np.array([1, 2, 3])) == (1, 2, 3)
    assert all(type(v) is int for v in triple("stride", np.array([1, 2, 3])))
