"""Levels: sorted distinct sites, finding them, coarsening, and what does not fit."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import twins
from hypothesis import given
from hypothesis import strategies as st
from levels import below, rows_of, sites_at

from dyn_jax.sparse3d import coarsen, sites_of
from dyn_jax.sparse3d.sites import NO_KEY, floor_to

FOUR = jnp.array([[1, 0, 0, 5], [0, 2, -1, 3], [0, -2, 4, 3], [0, 2, -1, 3], [9, 9, 9, 9]], jnp.int32)
FOUR_VALID = jnp.array([True, True, True, True, False])


def test_by_hand():
    sites = sites_at(FOUR, FOUR_VALID)
    assert rows_of(sites) == [(0, -2, 4, 3), (0, 2, -1, 3), (1, 0, 0, 5)]
    assert (int(sites.count), sites.capacity, bool(sites.overflow), sites.stride) == (3, 5, False, (1, 1, 1))
    # a box of 2 x 5 x 6 x 3 cells from (0, -2, -1, 3)
    assert sites.keys.tolist() == [(0 * 6 + 5) * 3, (4 * 6 + 0) * 3, ((5 + 2) * 6 + 1) * 3 + 2, NO_KEY, NO_KEY]
    assert sites.valid.tolist() == [True, True, True, False, False]
    np.testing.assert_array_equal(sites.coordinates[3:], 0)


def test_find_by_hand():
    sites = sites_at(FOUR, FOUR_VALID)
    wanted = jnp.array([[0, 2, -1, 3], [1, 0, 0, 5], [0, 2, -1, 4], [9, 9, 9, 9], [0, 0, 0, 5], [-1, 0, 0, 5]])
    row, there = sites.find(wanted)
    assert row.tolist() == [1, 2, 5, 5, 5, 5] and there.tolist() == [True, True, False, False, False, False]
    row, there = sites.find(wanted, jnp.array([False, True, True, True, True, True]))
    assert row.tolist() == [5, 2, 5, 5, 5, 5] and not there[0]
    row, there = sites.find(wanted[None, :2].repeat(3, 0))
    assert row.tolist() == [[1, 2]] * 3 and there.all()


def test_no_cell_outside_the_box_is_taken_for_one_inside():
    """Every cell of a box twice as wide is looked up: only the sites themselves are there."""
    coordinates = twins.random_sites(3, 20, low=-2, high=3, batches=2)
    sites = sites_at(jnp.asarray(coordinates), jnp.ones(20, bool), 32)
    every = np.array(list(itertools.product(range(-1, 3), *(range(-5, 6),) * 3)), np.int32)
    row, there = sites.find(jnp.asarray(every))
    where = {site: number for number, site in enumerate(sorted(twins.table(coordinates)))}
    assert row.tolist() == [where.get(tuple(site), 32) for site in every.tolist()]
    assert there.tolist() == [tuple(site) in where for site in every.tolist()]


CELLS = st.lists(st.tuples(st.integers(0, 2), *(st.integers(-4, 4),) * 3), min_size=12, max_size=12)


@given(CELLS, st.lists(st.booleans(), min_size=12, max_size=12))
def test_equals_a_set(cells, valid):
    expected = sorted({c for c, v in zip(cells, valid) if v})
    sites = sites_at(jnp.array(cells, jnp.int32), jnp.array(valid))
    assert rows_of(sites) == expected and not sites.overflow
    assert (np.diff(np.asarray(sites.keys).astype(np.int64)) >= 0).all()


def test_no_valid_row():
    sites = sites_at(FOUR, jnp.zeros(5, bool))
    assert int(sites.count) == 0 and not sites.overflow and not sites.valid.any()
    assert not sites.find(FOUR)[1].any()
    coarse = below(sites, 2)
    assert int(coarse.count) == 0 and not coarse.overflow


def test_a_capacity_one_too_small_is_flagged_and_an_exact_one_is_not():
    for capacity, flagged in ((2, True), (3, False), (4, False), (50, False)):
        sites = sites_at(FOUR, FOUR_VALID, capacity)
        assert (bool(sites.overflow), sites.capacity, int(sites.count)) == (flagged, capacity, min(capacity, 3))
        assert rows_of(sites) == [(0, -2, 4, 3), (0, 2, -1, 3), (1, 0, 0, 5)][:capacity]


def test_a_coarser_level_one_too_small_is_flagged_and_the_flag_is_handed_down():
    line = jnp.stack([jnp.zeros(8, jnp.int32), jnp.arange(8), jnp.zeros(8, jnp.int32), jnp.zeros(8, jnp.int32)], 1)
    sites = sites_at(line, jnp.ones(8, bool))
    assert bool(below(sites, 2, 3).overflow) and not below(sites, 2, 4).overflow
    assert bool(below(below(sites, 2, 3), 2).overflow)


@pytest.mark.parametrize(
    "high",
    [
        (0, 65535, 65536, 0),  # 2^32 cells and a little more
        (0, 2**20, 2**20, 2**20),
        (1, 2**30, 2, 2),
        (3, 2**30, 0, 0),
    ],
)
def test_a_box_of_2_32_cells_is_flagged(high):
    sites = sites_at(jnp.array([[0, 0, 0, 0], high], jnp.int32), jnp.ones(2, bool))
    assert bool(sites.overflow)


@pytest.mark.parametrize("low", [0, -(2**30) + 1])
def test_a_large_box_below_2_32_cells_is_exact(low):
    corner = [[0, low, low, low], [0, low + 2000, low + 2000, low + 1000], [0, low + 2000, low + 1999, low + 1000]]
    sites = sites_at(jnp.array(corner[::-1], jnp.int32), jnp.ones(3, bool))
    assert not sites.overflow and rows_of(sites) == [tuple(corner[i]) for i in (0, 2, 1)]
    assert sites.find(jnp.array(corner, jnp.int32))[0].tolist() == [0, 2, 1]
    line = jnp.array([[0, -(2**30) + 1, 0, 0], [0, 2**30 - 1, 0, 0]], jnp.int32)
    sites = sites_at(line, jnp.ones(2, bool))
    assert not sites.overflow and sites.find(line)[0].tolist() == [0, 1]


def test_an_axis_too_long_for_int32_is_flagged():
    """Its box holds less than 2^32 cells, but the distance from its low end does not fit an int32."""
    far = jnp.array([[0, -(2 * 10**9), 0, 0], [0, 2 * 10**9, 0, 0]], jnp.int32)
    sites = sites_at(far, jnp.ones(2, bool))
    assert bool(sites.overflow) or rows_of(sites) == [(0, -(2 * 10**9), 0, 0), (0, 2 * 10**9, 0, 0)]


def test_floor_to_is_a_floor_and_leaves_the_batch():
    coordinates = jnp.array([[3, -1, -2, -3], [5, 1, 2, 3]], jnp.int32)
    assert floor_to(coordinates, (2, 2, 2)).tolist() == [[3, -2, -2, -4], [5, 0, 2, 2]]
    assert floor_to(coordinates, (2, 1, 3)).tolist() == [[3, -2, -2, -3], [5, 0, 2, 3]]


@pytest.mark.parametrize("factor", [1, 2, 3, (2, 2, 1), (1, 4, 2)])
def test_coarsen_equals_a_set(factor):
    coordinates = twins.random_sites(4, 60)
    sites = sites_at(jnp.asarray(coordinates), jnp.ones(60, bool), 70)
    once = below(sites, factor)
    assert once.stride == twins.three(factor) and rows_of(once) == twins.coarse(coordinates, factor)
    twice = below(once, 2, 64)
    stride = tuple(2 * f for f in twins.three(factor))
    assert twice.stride == stride and twice.capacity == 64 and rows_of(twice) == twins.coarse(coordinates, stride)


@pytest.mark.parametrize("stride", [2, 3])
def test_golden_coarse_sites(golden, stride):
    arrays = golden("mink_layers")
    sites = sites_at(jnp.asarray(arrays["coords"]), jnp.ones(len(arrays["coords"]), bool))
    expected = arrays[f"conv_k3s{stride}/out_coords"]
    assert rows_of(below(sites, stride)) == sorted(twins.table(expected))


def test_bad_stride():
    sites = sites_of(FOUR, FOUR_VALID)
    with pytest.raises(ValueError, match="factor: got 0, expected at least 1"):
        coarsen(sites, 0)
    with pytest.raises(TypeError, match="stride: got 1.5"):
        sites_of(FOUR, FOUR_VALID, stride=(1.5, 1, 1))
