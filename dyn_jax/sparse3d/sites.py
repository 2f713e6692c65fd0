"""The occupied sites of one level: sorted keys, so that a neighbour is one binary search away.

A site is (batch, x, y, z), four integers. Inside the bounding box of the level, its key is the number
``((batch * X + x) * Y + y) * Z + z``, an unsigned 32-bit integer; a level is the sorted list of its keys, filled up to
a static capacity. Coordinates are never divided by the stride: a level of stride 8 holds multiples of 8.
"""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.sparse3d.blocked import ROWS
from dyn_jax.sparse3d.kernel import Size, Three, scaled, triple

NO_KEY = np.uint32(0xFFFFFFFF)


class Frame(flax.struct.PyTreeNode):
    """A bounding box: ``low`` [4] int32 and ``extent`` [4] uint32 of (batch, x, y, z); ``fits``: keys are exact."""

    low: jax.Array
    extent: jax.Array
    fits: jax.Array

    @partial(jax.jit, inline=True)
    def keys(self, coordinates: jax.Array, valid: jax.Array) -> jax.Array:
        """Keys of coordinates [..., 4]; `NO_KEY` where not valid or outside the box."""
        axes = (1,) * (coordinates.ndim - 1)
        shifted = coordinates - self.low.reshape(*axes, 4)
        inside = valid & jnp.all((shifted >= 0) & (shifted < self.extent.astype(jnp.int32).reshape(*axes, 4)), axis=-1)
        b, x, y, z = jnp.moveaxis(shifted.astype(jnp.uint32), -1, 0)
        _, width, depth, height = self.extent
        return jnp.where(inside, ((b * width + x) * depth + y) * height + z, NO_KEY)

    def coordinates(self, keys: jax.Array) -> jax.Array:
        """Coordinates [..., 4] of keys."""
        _, width, depth, height = self.extent
        rest, z = jnp.divmod(keys, height)
        rest, y = jnp.divmod(rest, depth)
        b, x = jnp.divmod(rest, width)
        return jnp.stack([b, x, y, z], axis=-1).astype(jnp.int32) + self.low.reshape(*(1,) * keys.ndim, 4)


@partial(jax.jit, inline=True)
def frame_of(coordinates: jax.Array, valid: jax.Array) -> Frame:
    """The bounding box of the valid rows of coordinates [n, 4]."""
    info = jnp.iinfo(jnp.int32)
    low = jnp.min(jnp.where(valid[:, None], coordinates, info.max), axis=0)
    high = jnp.max(jnp.where(valid[:, None], coordinates, info.min), axis=0)
    some = jnp.any(valid)
    low, high = jnp.where(some, low, 0), jnp.where(some, high, 0)
    size = high.astype(jnp.float32) - low.astype(jnp.float32) + 1
    extent = (high.astype(jnp.uint32) - low.astype(jnp.uint32)) + jnp.uint32(1)
    return Frame(low, extent, (jnp.prod(size) < 4.29e9) & jnp.all(extent < jnp.uint32(2**31)))


class Sites(flax.struct.PyTreeNode):
    """The sites of one level, sorted by key; the first ``count`` of ``capacity`` rows are in use.

    Attributes:
      keys: [capacity] uint32, ascending, `NO_KEY` behind the last.
      coordinates: [capacity, 4] int32, (batch, x, y, z).
      count: scalar int32.
      overflow: scalar bool, some sites did not fit (more than the capacity, or a box of 2^32 cells or more).
      frame: what the keys refer to.
      stride: static, three integers.
    """

    keys: jax.Array
    coordinates: jax.Array
    count: jax.Array
    overflow: jax.Array
    frame: Frame
    stride: Three = flax.struct.field(pytree_node=False, default=(1, 1, 1))

    @property
    def capacity(self) -> int:
        """Rows, a static integer."""
        return self.keys.shape[-1]

    @property
    def valid(self) -> jax.Array:
        """[capacity] bool."""
        return jnp.arange(self.capacity) < self.count

    @partial(jax.jit, inline=True)
    def find(self, coordinates: jax.Array, valid: jax.Array | bool = True) -> tuple[jax.Array, jax.Array]:
        """(row, is there): where coordinates [..., 4] are; the row is `capacity` where they are not."""
        wanted = self.frame.keys(coordinates, jnp.broadcast_to(valid, coordinates.shape[:-1]))
        # filled up to a power of two with a key that nothing exceeds, a search by halves needs no ends
        halvings = self.capacity.bit_length()
        keys = jnp.pad(self.keys, (0, 2**halvings - self.capacity), constant_values=NO_KEY)

        def halve(number: jax.Array, row: jax.Array) -> jax.Array:
            half = jnp.int32(2**halvings) >> (number + 1)
            return jnp.where(keys.at[row + half - 1].get(mode="promise_in_bounds", **ROWS) < wanted, row + half, row)

        row = jax.lax.fori_loop(0, halvings, halve, jnp.zeros(wanted.shape, jnp.int32))
        there = (wanted != NO_KEY) & (keys.at[row].get(mode="promise_in_bounds", **ROWS) == wanted)
        return jnp.where(there, row, self.capacity), there

    def cut(self, capacity: int) -> Sites:
        """The first `capacity` rows; `overflow` where more are in use."""
        return self.replace(
            keys=self.keys[:capacity],
            coordinates=self.coordinates[:capacity],
            count=jnp.minimum(self.count, capacity),
            overflow=self.overflow | (self.count > capacity),
        )


def sites_of(coordinates: jax.Array, valid: jax.Array, capacity: int | None = None, stride: Size = 1) -> Sites:
    """The distinct valid rows of `coordinates` as a level.

    Args:
      coordinates: [n, 4] int32.
      valid: [n] bool.
      capacity: rows of the level; default n.
      stride: of the level, for the record.
    """
    return _sites_of(coordinates, valid, len(coordinates) if capacity is None else capacity, triple("stride", stride))


@partial(jax.jit, static_argnames=("capacity", "stride"), inline=True)
def _sites_of(coordinates: jax.Array, valid: jax.Array, capacity: int, stride: Three) -> Sites:
    frame = frame_of(coordinates, valid)
    keys = jnp.sort(frame.keys(coordinates, valid))
    new = (keys != NO_KEY) & (keys != jnp.concatenate([jnp.full(1, NO_KEY, keys.dtype), keys[:-1]]))
    place = jnp.cumsum(new.astype(jnp.int32)) - 1
    found = place[-1] + 1
    slot = jnp.where(new, place, capacity + jnp.arange(keys.shape[0]))
    unique = jnp.full(capacity, NO_KEY, jnp.uint32).at[slot].set(keys, mode="drop", unique_indices=True, **ROWS)
    count = jnp.minimum(found, capacity)
    rows = jnp.where((jnp.arange(capacity) < count)[:, None], frame.coordinates(unique), 0)
    overflow = (found > capacity) | ~frame.fits
    return Sites(unique, rows, count, overflow, frame, stride)


def floor_to(coordinates: jax.Array, stride: Three) -> jax.Array:
    """``floor(c / stride) * stride`` on x, y, z; the batch column stays."""
    steps = jnp.broadcast_to(jnp.array((1, *stride), coordinates.dtype), coordinates.shape)
    return jnp.floor_divide(coordinates, steps) * steps


def coarsen(sites: Sites, factor: Size, capacity: int | None = None) -> Sites:
    """The level below: the distinct ``floor(c / s) * s``, with s the stride of `sites` times `factor`.

    The kernel size of a strided convolution does not matter to its sites (MinkowskiEngine's rule).
    """
    stride = scaled(sites.stride, factor)
    below = sites_of(floor_to(sites.coordinates, stride), sites.valid, capacity or sites.capacity, stride)
    return below.replace(overflow=below.overflow | sites.overflow)


def reached(
    sites: Sites, factor: Size, kernel_size: Size, *, bounds: Size | None = None, capacity: int | None = None
) -> Sites:
    """The level below whose sites are all that a strided kernel reaches: spconv's rule, under which levels may grow.

    An output u, a multiple of the coarser stride, is reached where ``u + offset * stride`` is a site for an offset of
    the centred kernel. With bounds D on an axis this is a dense convolution with padding ``k // 2`` on [0, D): a level
    of stride s has ``ceil(D / s)`` cells there. Nothing wraps.

    Args:
      sites: the finer level.
      factor: of the strides, an integer or three.
      kernel_size: odd, an integer or three.
      bounds: outputs lie in [0, bounds) on every axis; None: anywhere.
      capacity: rows; default as many as `sites` has, which a growing level exceeds.

    Raises:
      ValueError: an even kernel size.
    """
    factors, sizes = triple("factor", factor), triple("kernel_size", kernel_size)
    if any(size % 2 == 0 for size in sizes):
        raise ValueError(f"kernel_size: got {kernel_size}, expected odd sizes where outputs are all that is reached")
    bounds = None if bounds is None else triple("bounds", bounds)
    return _reached(sites, factors, sizes, bounds, capacity or sites.capacity)


@partial(jax.jit, static_argnums=(1, 2, 3, 4), inline=True)
def _reached(sites: Sites, factors: Three, sizes: Three, bounds: Three | None, capacity: int) -> Sites:
    columns, fits = [sites.coordinates[:, :1]], sites.valid[:, None]
    for axis, (f, k, stride) in enumerate(zip(factors, sizes, sites.stride), start=1):
        cell = sites.coordinates[:, axis] // stride
        there = (cell + k // 2)[:, None] // f - jnp.arange(-(-k // f), dtype=jnp.int32)[None]
        near = there * f >= (cell - k // 2)[:, None]
        if bounds is not None:
            near &= (there >= 0) & (there * (f * stride) < bounds[axis - 1])
        columns.append(there * (f * stride))
        fits = (fits[:, :, None] & near[:, None, :]).reshape(sites.capacity, -1)
    batch, xs, ys, zs = columns
    parts = batch[:, :, None, None], xs[:, :, None, None], ys[:, None, :, None], zs[:, None, None, :]
    candidates = jnp.stack([part.reshape(-1) for part in jnp.broadcast_arrays(*parts)], axis=1)
    below = sites_of(candidates, fits.reshape(-1), capacity, scaled(sites.stride, factors))
    return below.replace(overflow=below.overflow | sites.overflow)
