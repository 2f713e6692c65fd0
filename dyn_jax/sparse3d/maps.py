"""Kernel maps: which input row meets which output row under which offset of the kernel.

The pairs of one offset fill whole blocks of a fixed size, so that a convolution is one loop over blocks: gather the
rows of a block, multiply by one kernel slice, add to rows of which no two are equal. The number of blocks in use is
data; the loop's length follows it, and a capacity too large costs memory for the indices only.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.sparse3d.kernel import Size, offsets, triple
from dyn_jax.sparse3d.sites import Sites


class KernelMap(flax.struct.PyTreeNode):
    """Pairs in blocks. Rows of padding are out of range (and distinct), so that they are dropped.

    Attributes:
      rows_in: [blocks, block] int32, ascending inside an offset.
      rows_out: [blocks, block] int32, ascending inside an offset.
      offset: [blocks] int32, the kernel slice of a block.
      blocks: scalar int32, how many blocks are in use; they come first.
      neighbours: [size_out] int32, pairs of every output row (also of those that `mirrored` or `centre` leave out).
      size_in, size_out: rows of the two levels.
      volume: kernel slices.
      mirrored: one level onto itself by a symmetric kernel: only the first half of the offsets is listed; slice
        ``volume - 1 - k`` is the listed pairs of slice k swapped.
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
    mirrored: bool = flax.struct.field(pytree_node=False, default=False)
    centre: int | None = flax.struct.field(pytree_node=False, default=None)

    def swap(self) -> KernelMap:
        """The map of the transposed convolution. `neighbours` then still counts the pairs of the old output rows."""
        return self.replace(rows_in=self.rows_out, rows_out=self.rows_in, size_in=self.size_out, size_out=self.size_in)


def kernel_map(
    source: Sites,
    target: Sites,
    kernel_size: Size,
    *,
    dilation: Size = 1,
    region: str = "cube",
    block: int | None = None,
) -> KernelMap:
    """Pairs (i, j) with ``source[i] = target[j] + offset_k * stride * dilation``, the stride being the source's.

    Args:
      source, target: levels of the input and of the output; the same object for a submanifold convolution.
      kernel_size, dilation: an integer or three.
      region: see `offsets`.
      block: pairs in one block; the default fits the size of the target.
    """
    steps = offsets(kernel_size, region) * (np.array(source.stride) * np.array(triple("dilation", dilation)))
    volume = len(steps)
    centre = int(np.flatnonzero(~steps.any(axis=1))[0]) if source is target and not steps.all(axis=1).all() else None
    mirrored = source is target and np.array_equal(steps, -steps[::-1])
    if mirrored:
        listed = np.arange(volume // 2)
    else:
        listed = np.array([k for k in range(volume) if k != centre], int)
    if block is None:
        block = int(np.clip(2 ** np.floor(np.log2(max(target.capacity, 1) / 8)), 64, 2048))
    shifts = np.concatenate([np.zeros((len(listed), 1), np.int32), steps[listed].astype(np.int32)], axis=1)
    row, there = source.find(target.coordinates[None] + shifts[:, None], target.valid)
    neighbours = jnp.sum(there, axis=0, dtype=jnp.int32)
    if mirrored:
        # the swapped pairs: how often a row is somebody's source (integers: the order of the writes does not matter)
        slot = jnp.where(there, row, target.capacity).reshape(-1)
        neighbours = neighbours.at[slot].add(1, mode="drop")
    if centre is not None:
        neighbours = neighbours + target.valid
    rows_in, rows_out, offset, blocks = _in_blocks(row, there, block, source.capacity, target.capacity)
    return KernelMap(
        rows_in,
        rows_out,
        jnp.asarray(listed, jnp.int32)[offset] if len(listed) else offset,
        blocks,
        neighbours,
        source.capacity,
        target.capacity,
        volume,
        mirrored,
        centre,
    )


def _in_blocks(
    row: jax.Array, there: jax.Array, block: int, size_in: int, size_out: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(rows_in, rows_out, index of the offset per block, blocks in use) of a table [offset, target row]."""
    listed, count = row.shape
    capacity = max(1, listed * -(-count // block))
    pairs = jnp.sum(there, axis=1, dtype=jnp.int32)
    end = jnp.cumsum(-(-pairs // block))  # blocks, inclusive
    start = (end - -(-pairs // block)) * block
    place = start[:, None] + jnp.cumsum(there.astype(jnp.int32), axis=1) - 1
    size = capacity * block
    slot = jnp.where(there, place, size + jnp.arange(listed * count, dtype=jnp.int32).reshape(row.shape)).reshape(-1)
    spare = jnp.arange(size, dtype=jnp.int32)

    def fill(values: jax.Array, rows: int) -> jax.Array:
        flat = (rows + spare).at[slot].set(values.reshape(-1), mode="drop", unique_indices=True)
        return flat.reshape(capacity, block)

    target_row = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), row.shape)
    number = jnp.arange(capacity)
    offset = jnp.searchsorted(end, number, side="right").astype(jnp.int32) if listed else jnp.zeros(capacity, jnp.int32)
    blocks = end[-1].astype(jnp.int32) if listed else jnp.int32(0)
    return fill(row, size_in), fill(target_row, size_out), jnp.minimum(offset, max(listed - 1, 0)), blocks
