"""Kernel maps: which input row meets which output row under which offset of the kernel.

The pairs of one offset fill whole blocks of a fixed size, so that a convolution is one loop over blocks: gather the
rows of a block, multiply by one kernel slice, add to rows of which no two are equal. The number of blocks in use is
data; the loop's length follows it, and a capacity too large costs memory for the indices only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.sparse3d.blocked import ROWS, TAKE
from dyn_jax.sparse3d.kernel import Size, offsets, triple
from dyn_jax.sparse3d.sites import Sites


class KernelMap(flax.struct.PyTreeNode):
    """Pairs in blocks. Rows of padding are out of range (and distinct), so that they are dropped.

    Attributes:
      rows_in: [blocks, block] int32, ascending inside an offset.
      rows_out: [blocks, block] int32, ascending inside an offset.
      offset: [blocks] int32, the kernel slice of a block.
      blocks: scalar int32, how many blocks are in use; they come first.
      neighbours: [size_out] int32, pairs of every output row, that of `centre` included.
      size_in, size_out: rows of the two levels.
      volume: kernel slices.
      centre: the slice that maps every row to itself and is not listed, or None.
    """

    rows_in: jax.Array
    rows_out: jax.Array
    offset: jax.Array
    blocks: jax.Array
    neighbours: jax.Array
    size_in: int = flax.struct.field(pytree_node=False)
    size_out: int = flax.struct.field(pytree_node=False)
    volume: int = flax.struct.field(pytree_node=False)
    centre: int | None = flax.struct.field(pytree_node=False, default=None)

    def swap(self) -> KernelMap:
        """The map of the transposed convolution. `neighbours` then still counts the pairs of the old output rows."""
        return self.replace(rows_in=self.rows_out, rows_out=self.rows_in, size_in=self.size_out, size_out=self.size_in)


class Wanted(NamedTuple):
    """A kernel map to be made: pairs (i, j) with ``source[i] = target[j] + offset_k * stride * dilation``, the stride
    being the source's.

    Attributes:
      source, target: levels of the input and of the output; the same object for a submanifold convolution.
      kernel_size, dilation: an integer or three.
      region: see `offsets`.
      block: pairs in one block; the default fits the size of the target.
    """

    source: Sites
    target: Sites
    kernel_size: Size
    dilation: Size = 1
    region: str = "cube"
    block: int | None = None


def kernel_map(
    source: Sites,
    target: Sites,
    kernel_size: Size,
    *,
    dilation: Size = 1,
    region: str = "cube",
    block: int | None = None,
) -> KernelMap:
    """One map, see `Wanted`."""
    return kernel_maps([Wanted(source, target, kernel_size, dilation, region, block)])[0]


class _Plan(NamedTuple):
    """What is static of a wanted map; `listed`: the slices whose pairs are looked for."""

    wanted: Wanted
    steps: np.ndarray
    listed: np.ndarray
    centre: int | None
    mirrored: bool
    block: int


def _plan(wanted: Wanted) -> _Plan:
    source, target, kernel_size, dilation, region, block = wanted
    steps = offsets(kernel_size, region) * (np.array(source.stride) * np.array(triple("dilation", dilation)))
    volume = len(steps)
    centre = int(np.flatnonzero(~steps.any(axis=1))[0]) if source is target and not steps.all(axis=1).all() else None
    mirrored = source is target and np.array_equal(steps, -steps[::-1])
    listed = np.arange(volume // 2) if mirrored else np.array([k for k in range(volume) if k != centre], int)
    if block is None:
        block = int(np.clip(2 ** np.floor(np.log2(max(target.capacity, 1) / 8)), 64, 2048))
    return _Plan(wanted, steps, listed, centre, mirrored, block)


def kernel_maps(wanted: Sequence[Wanted]) -> list[KernelMap]:
    """The maps that are wanted, made side by side: the pairs of all are counted in one scan.

    A scan is a tree of small kernels; one for each of twenty maps is most of what XLA has to compile in a network.
    """
    levels = {id(level): level for one in wanted for level in (one.source, one.target)}
    place = {key: number for number, key in enumerate(levels)}
    static = []  # and a submanifold's two levels are the same object inside jit too
    for source, target, kernel_size, dilation, *rest in wanted:
        sizes = triple("kernel_size", kernel_size), triple("dilation", dilation)
        static.append((place[id(source)], place[id(target)], *sizes, *rest))
    return _kernel_maps(tuple(levels.values()), tuple(static))


@partial(jax.jit, static_argnames="static", inline=True)
def _kernel_maps(levels: tuple[Sites, ...], static: tuple[tuple, ...]) -> list[KernelMap]:
    plans = [_plan(Wanted(levels[source], levels[target], *rest)) for source, target, *rest in static]
    found = [_find(plan) for plan in plans]
    number = jnp.cumsum(jnp.concatenate([there.reshape(-1) for _, there in found]), dtype=jnp.int32)
    ends = itertools.accumulate(there.size for _, there in found)
    return [
        _in_blocks(plan, row, there, number[end - there.size : end].reshape(there.shape))
        for plan, (row, there), end in zip(plans, found, ends)
    ]


def _find(plan: _Plan) -> tuple[jax.Array, jax.Array]:
    """(row of the source, whether there is one), [listed slice, target row] each."""
    source, target = plan.wanted.source, plan.wanted.target
    shifts = np.insert(plan.steps[plan.listed].astype(np.int32), 0, 0, axis=1)  # the batch column
    return source.find(target.coordinates[None] + jnp.asarray(shifts)[:, None], target.valid)


def _in_blocks(plan: _Plan, row: jax.Array, there: jax.Array, number: jax.Array) -> KernelMap:
    """The map of what was found, given the number of every pair among those that are there."""
    source, target, block = plan.wanted.source, plan.wanted.target, plan.block
    listed, volume = len(plan.listed), len(plan.steps)
    blocks = max(1, listed * -(-target.capacity // block))
    before = number[:, :1] - there[:, :1]
    end = jnp.cumsum(-(-(number[:, -1:] - before) // block), axis=0)  # blocks, inclusive
    start = jnp.concatenate([jnp.zeros((1, 1), end.dtype), end])[:-1] * block
    unused = jnp.arange(blocks * block, dtype=jnp.int32)
    spare = unused.size + jnp.arange(there.size, dtype=jnp.int32).reshape(there.shape)
    slot = jnp.where(there, start + number - before - 1, spare).reshape(-1)

    def fill(rows: jax.Array, size: int) -> jax.Array:
        flat = (size + unused).at[slot].set(rows.reshape(-1), mode="drop", unique_indices=True, **ROWS)
        return flat.reshape(blocks, block)

    rows_in = fill(row, source.capacity)
    rows_out = fill(jnp.broadcast_to(jnp.arange(target.capacity, dtype=jnp.int32), there.shape), target.capacity)
    index = jnp.sum(jnp.arange(blocks)[:, None] >= end[None, :, 0], axis=1)
    offset = jnp.asarray(plan.listed if listed else [0], jnp.int32).at[index].get(**TAKE)
    used = end[-1, 0].astype(jnp.int32) if listed else jnp.int32(0)
    neighbours = jnp.sum(there, axis=0, dtype=jnp.int32)
    if plan.mirrored:
        # integers: the order of the writes does not matter
        swapped = jnp.where(there, row, target.capacity).reshape(-1)
        neighbours = neighbours.at[swapped].add(1, mode="drop", **ROWS)
        rows_in, rows_out = _in_turns(rows_in, rows_out), _in_turns(rows_out, rows_in)
        offset, used = _in_turns(offset, volume - 1 - offset), 2 * used
    if plan.centre is not None:
        neighbours = neighbours + target.valid
    sizes = source.capacity, target.capacity
    return KernelMap(rows_in, rows_out, offset, used, neighbours, *sizes, volume, plan.centre)


def check_rows(features: jax.Array, pairs: KernelMap) -> None:
    """ValueError for features that are not [size_in, channel]."""
    if features.ndim != 2 or features.shape[0] != pairs.size_in:
        raise ValueError(f"features: got shape {features.shape}, expected [{pairs.size_in}, channels]")


def _in_turns(first: jax.Array, second: jax.Array) -> jax.Array:
    """The rows of two arrays in turns: of a symmetric kernel on one level, a slice's pairs swapped are its mirror's."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])
