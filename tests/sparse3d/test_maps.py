"""Kernel maps against all pairs of sites, and the promises that the loops over blocks rest on."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from levels import below, level, pairs_of, quick, rows_of, sites_at

from dyn_jax.sparse3d import coarsen, kernel_map, offsets, sites_of
from dyn_jax.sparse3d.maps import Wanted, kernel_maps

CASES = [
    *((size, 1, 1, "cube") for size in (1, 2, 3, 4, 5, (1, 3, 3))),
    *((3, 1, 1, "cross"), ((1, 3, 5), 1, 1, "cross"), (3, 1, 1, "hybrid"), (3, 1, 2, "cube"), (3, 1, 2, "cross")),
    *((1, 2, 1, "cube"), (2, 2, 1, "cube"), (3, 2, 2, "cross"), (4, 2, 1, "cube"), (3, 3, 1, "cube")),
    ((1, 3, 3), (2, 2, 1), (1, 2, 1), "cube"),
]


def used(pairs):
    """(rows_in, rows_out, slice) of every block in use, with padding, on the host."""
    blocks = int(pairs.blocks)
    return np.asarray(pairs.rows_in)[:blocks], np.asarray(pairs.rows_out)[:blocks], np.asarray(pairs.offset)[:blocks]


def listed(pairs) -> list[tuple[int, int, int]]:
    """Every (row in, row out, slice) that the map lists."""
    found = []
    for rows_in, rows_out, k in zip(*used(pairs)):
        for i, j in zip(rows_in.tolist(), rows_out.tolist()):
            assert (i < pairs.size_in) == (j < pairs.size_out)
            if i < pairs.size_in:
                found.append((i, j, int(k)))
    return found


def test_three_voxels_by_hand():
    """Voxels at x = 0, 1, 3 on a line: one pair of neighbours, seen from both."""
    sites = sites_at(jnp.array([[0, 3, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]], jnp.int32), jnp.ones(3, bool))
    pairs = pairs_of(sites, sites, (3, 1, 1))
    assert (pairs.volume, pairs.centre, int(pairs.blocks)) == (3, 1, 2)
    assert sorted(listed(pairs)) == [(0, 1, 0), (1, 0, 2)]
    assert pairs.neighbours.tolist() == [2, 2, 1]
    two = pairs_of(sites, sites, (2, 1, 1))
    assert two.centre == 0 and listed(two) == [(1, 0, 1)]
    assert two.neighbours.tolist() == [2, 1, 1]
    far = pairs_of(sites, sites, (3, 1, 1), dilation=(2, 1, 1))
    assert sorted(listed(far)) == [(1, 2, 0), (2, 1, 2)] and far.neighbours.tolist() == [1, 2, 2]
    down = pairs_of(sites, below(sites, 2), (2, 1, 1))  # coarse voxels 0 and 2
    assert sorted(listed(down)) == [(0, 0, 0), (1, 0, 1), (2, 1, 1)] and down.neighbours.tolist() == [2, 1, 0]
    assert (down.centre, down.size_in, down.size_out) == (None, 3, 3)


@pytest.mark.parametrize(("size", "stride", "dilation", "region"), CASES)
def test_equals_all_pairs(size, stride, dilation, region):
    source = level(7, 90, 100)
    target = source if stride == 1 else below(source, stride)
    pairs = pairs_of(source, target, size, dilation=dilation, region=region, block=16)
    steps = twins.scaled(offsets(size, region).tolist(), dilation)
    expected = twins.pairs(rows_of(source), rows_of(target), steps)
    found = listed(pairs)
    assert pairs.volume == len(steps)
    if pairs.centre is not None:
        assert steps[pairs.centre] == (0, 0, 0) and source is target
        found += [(row, row, pairs.centre) for row in range(90)]
    assert sorted(found) == sorted(expected)
    counts = np.bincount([j for _, j, _ in expected], minlength=target.capacity)
    np.testing.assert_array_equal(pairs.neighbours, counts)


def test_offsets_count_in_strides_of_the_source():
    fine = level(8, 60, 60)
    half = below(fine, 2)
    quarter = below(half, 2)
    found = listed(pairs_of(half, quarter, 3))
    rows = rows_of(half), rows_of(quarter)
    assert sorted(found) == sorted(twins.pairs(*rows, twins.scaled(offsets(3).tolist(), 2)))
    assert sorted(found) != sorted(twins.pairs(*rows, offsets(3).tolist()))  # control


def test_two_levels_with_the_same_sites_are_not_taken_for_one():
    """The centre is left out of the list only where both levels are the same object."""
    one = level(9, 40, 40)
    other = jax.tree.map(lambda leaf: leaf, one)
    apart, together = pairs_of(one, other, 3), pairs_of(one, one, 3)
    assert (apart.centre, together.centre) == (None, 13)
    assert sorted(listed(apart)) == sorted(listed(together) + [(row, row, 13) for row in range(40)])
    np.testing.assert_array_equal(apart.neighbours, together.neighbours)


@pytest.mark.parametrize("block", [1, 3, 16, 64, None])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_the_loops_rest_on(block, stride):
    """In a block: ascending and distinct rows, padding out of range; blocks in use first, padding short of a block."""
    source = level(10, 120, 130)
    target = source if stride == 1 else below(source, stride)
    pairs = pairs_of(source, target, 3, block=block)
    assert pairs.rows_in.shape == pairs.rows_out.shape and int(pairs.blocks) <= pairs.rows_in.shape[0]
    if block is not None:
        assert pairs.rows_in.shape[1] == block
    for rows_in, rows_out, _ in zip(*used(pairs)):
        assert (np.diff(rows_in) > 0).all() and (np.diff(rows_out) > 0).all()
        assert rows_in[0] < pairs.size_in and rows_out[0] < pairs.size_out
    for k in set(used(pairs)[2].tolist()):
        flat = np.concatenate([rows for rows, _, slot in zip(*used(pairs)) if slot == k])
        real = flat < pairs.size_in
        assert real[: real.sum()].all() and (~real).sum() < pairs.rows_in.shape[1]
    behind = np.asarray(pairs.rows_in)[int(pairs.blocks) :]
    assert (behind >= pairs.size_in).all()


def test_maps_made_together_equal_those_made_alone():
    """Also beside a kernel of one, which asks for nothing, and a level without sites."""
    fine, empty = level(13, 50, 60), level(11, 0, 8)
    coarse = below(fine, 2, 30)
    wanted = [(0, 0, 3), (0, 1, 2), (2, 2, 3), (1, 1, 1), (1, 1, (1, 3, 3))]

    @quick
    def both(*levels):
        together = kernel_maps([Wanted(levels[a], levels[b], size) for a, b, size in wanted])
        return together, [kernel_map(levels[a], levels[b], size) for a, b, size in wanted]

    together, alone = both(fine, coarse, empty)
    chex.assert_trees_all_equal(together, alone)
    assert [int(pairs.blocks) > 0 for pairs in together] == [True, True, False, False, True]


def test_a_kernel_of_one_lists_nothing():
    sites = level(11, 10, 12)
    pairs = pairs_of(sites, sites, 1)
    assert (int(pairs.blocks), pairs.centre, pairs.volume) == (0, 0, 1)
    assert pairs.neighbours.tolist() == [1] * 10 + [0, 0]


def test_empty_levels():
    sites = level(11, 0, 8)
    for pairs in (pairs_of(sites, sites, 3), pairs_of(sites, below(sites, 2), 2)):
        assert int(pairs.blocks) == 0 and not pairs.neighbours.any()


def test_swap():
    source = level(12, 30, 32)
    pairs = pairs_of(source, below(source, 2, 20), 2)
    back = pairs.swap()
    assert (back.size_in, back.size_out) == (20, 32)
    assert sorted((j, i, k) for i, j, k in listed(back)) == sorted(listed(pairs))
    chex.assert_trees_all_equal(back.swap(), pairs)


def test_a_batch_item_never_meets_another():
    near = jnp.array([[0, 0, 0, 0], [1, 0, 0, 1]], jnp.int32)
    pairs = pairs_of(*(sites_at(near, jnp.ones(2, bool)),) * 2, 5)
    assert int(pairs.blocks) == 0 and pairs.neighbours.tolist() == [1, 1]
    together = sites_at(near.at[:, 0].set(0), jnp.ones(2, bool))
    assert pairs_of(together, together, 5).neighbours.tolist() == [2, 2]  # control


def test_jit_and_vmap_equal_one_at_a_time():
    scenes = [level(seed, count, 50) for seed, count in ((1, 50), (2, 20), (3, 0))]

    def run(sites):
        sites = sites_of(sites.coordinates, sites.valid)
        coarse = coarsen(sites, 2)
        return sites, coarse, kernel_map(sites, sites, 3, block=8), kernel_map(sites, coarse, 2, block=8)

    once = quick(chex.assert_max_traces(run, 1))
    loop = [once(sites) for sites in scenes]
    assert len({int(pairs.blocks) for _, _, pairs, _ in loop}) == 3
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *scenes)
    together = quick(jax.vmap(run))(stacked)
    chex.assert_trees_all_equal(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, "kernel_size: got 0"),
        ({"kernel_size": 3, "dilation": 0}, ValueError, "dilation: got 0"),
        ({"kernel_size": 2, "region": "cross"}, ValueError, "expected odd sizes"),
        ({"kernel_size": 3, "region": "ball"}, ValueError, "region: got 'ball'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    sites = level(1, 4, 4)
    with pytest.raises(error, match=message):
        kernel_map(sites, sites, **arguments)
