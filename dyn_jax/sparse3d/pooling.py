"""Pooling over a kernel map, and over all voxels of a batch item, forward and backward without writes that meet."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.sparse3d.blocked import ROWS, TAKE, UNIQUE
from dyn_jax.sparse3d.maps import KernelMap, check_rows
from dyn_jax.sparse3d.segments import Segments, segments, sum_over
from dyn_jax.sparse3d.sites import Sites
from dyn_jax.sparse3d.voxelize import mean_over, weighted_mean


@jax.custom_vjp
def pool_sum(features: jax.Array, pairs: KernelMap) -> jax.Array:
    """``out[j] = sum_i in[i]`` over the pairs (i, j) of all slices.

    Args:
      features: [size_in, channel].
      pairs: a `kernel_map`.

    Returns:
      [size_out, channel]; 0 without neighbours; rows behind the last valid one hold no information.

    Raises:
      ValueError: features of another level.
    """
    check_rows(features, pairs)
    return _add_rows(features, pairs)


pool_sum.defvjp(
    lambda features, pairs: (pool_sum(features, pairs), pairs),
    lambda pairs, cotangent: (_add_rows(cotangent, pairs.swap()), None),
)


def pool_average(features: jax.Array, pairs: KernelMap) -> jax.Array:
    """`pool_sum` divided by the number of neighbours that are there, not by the kernel's volume.

    Arguments and result as for `pool_sum`, but not of a swapped map, which does not know its neighbours.

    Raises:
      ValueError: features of another level; a swapped map, where the sizes of its levels tell.

    Source: MinkowskiEngine, measured.
    """
    if pairs.neighbours.shape != (pairs.size_out,):
        raise ValueError(
            f"pairs: got {pairs.neighbours.shape[0]} counts of neighbours for {pairs.size_out} rows (a swapped map), "
            "expected a map that is not swapped"
        )
    return pool_sum(features, pairs) / jnp.maximum(pairs.neighbours, 1).astype(features.dtype)[:, None]


@jax.custom_vjp
def pool_max(features: jax.Array, pairs: KernelMap, where: jax.Array | None = None) -> jax.Array:
    """``out[j] = max_i in[i]`` over the pairs (i, j) of all slices, channel by channel.

    The derivative goes to one of equal maxima, the one whose slice comes first in the kernel. A NaN stays a NaN.

    Args:
      where: [size_in] bool, the rows that take part; None: all.
      features, pairs, returns, raises: as for `pool_sum`.
    """
    return _max_forward(features, pairs, where)[0]


def _max_forward(features: jax.Array, pairs: KernelMap, where: jax.Array | None) -> tuple[jax.Array, tuple]:
    check_rows(features, pairs)

    def better(
        value: jax.Array, old: jax.Array, number: jax.typing.ArrayLike, chosen: jax.Array, part: jax.Array
    ) -> jax.Array:
        return part[:, None] & ((value > old) | jnp.isnan(value) | ((value == old) & (number < chosen)))

    part = jnp.ones(pairs.size_in, bool) if where is None else where

    def body(i: jax.Array, state: tuple) -> tuple:
        best, chosen = state
        source, target, number = pairs.rows_in[i], pairs.rows_out[i], pairs.offset[i]
        value, old = features.at[source].get(**TAKE), best.at[target].get(**TAKE)
        before = chosen.at[target].get(**TAKE)
        wins = better(value, old, number, before, part.at[source].get(**TAKE))
        best = best.at[target].set(jnp.where(wins, value, old), **UNIQUE)
        return best, chosen.at[target].set(jnp.where(wins, number, before), **UNIQUE)

    shape = (pairs.size_out, features.shape[1])
    best, chosen = jnp.full(shape, -jnp.inf, features.dtype), jnp.full(shape, pairs.volume, jnp.int32)
    best, chosen = jax.lax.fori_loop(0, pairs.blocks, body, (best, chosen))
    if pairs.centre is not None:
        wins = better(features, best, pairs.centre, chosen, part)
        best, chosen = jnp.where(wins, features, best), jnp.where(wins, pairs.centre, chosen)
    return jnp.where(chosen < pairs.volume, best, 0), (chosen, pairs)


def _max_backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    chosen, pairs = saved
    cotangent = jnp.asarray(cotangent)

    def body(i: jax.Array, to: jax.Array) -> jax.Array:
        target = pairs.rows_out[i]
        value, is_best = cotangent.at[target].get(**TAKE), chosen.at[target].get(**TAKE) == pairs.offset[i]
        return to.at[pairs.rows_in[i]].add(jnp.where(is_best, value, 0), **UNIQUE)

    to = jnp.zeros((pairs.size_in, cotangent.shape[1]), cotangent.dtype)
    to = jax.lax.fori_loop(0, pairs.blocks, body, to)
    if pairs.centre is not None:
        to = to + jnp.where(chosen == pairs.centre, cotangent, 0)
    return to, None, None


pool_max.defvjp(_max_forward, _max_backward)


@jax.custom_vjp
def pool_any(occupancy: jax.Array, pairs: KernelMap) -> jax.Array:
    """``out[j] = 1 - prod_i (1 - o[i])`` over the pairs (i, j) of all slices: "any of" under a kernel.

    The derivative in one o is the product of the other factors, exact also where some o is 1, see `any_of`.

    Args:
      occupancy: [size_in], in [0, 1]; returned: [size_out]; 0 without neighbours.
      pairs: a `kernel_map` between two levels.

    Raises:
      ValueError: values of another level; a map of a level onto itself, which does not list its centre.

    Source: LGM paper eq. 31 on coarser levels; its release on Cylinder3D.
    """
    return _any_forward(occupancy, pairs)[0]


def _any_forward(occupancy: jax.Array, pairs: KernelMap) -> tuple[jax.Array, tuple]:
    check_rows(occupancy[:, None], pairs)
    if pairs.centre is not None:
        raise ValueError("pairs: got a map of a level onto itself, expected one between two levels")
    off = 1 - jnp.asarray(occupancy)
    product, before = _products(off, pairs, jnp.arange(pairs.rows_in.shape[0], dtype=jnp.int32))
    return 1 - product, (off, before, pairs)


def _products(off: jax.Array, pairs: KernelMap, order: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(product of all factors of every output [size_out], of those before each pair [blocks, block])."""

    def body(i: jax.Array, state: tuple) -> tuple:
        product, before = state
        rows = pairs.rows_out[order[i]]
        so_far = product.at[rows].get(**TAKE)
        factor = off.at[pairs.rows_in[order[i]]].get(**TAKE)
        return product.at[rows].multiply(factor, **UNIQUE), before.at[order[i]].set(so_far)

    start = jnp.ones(pairs.size_out, off.dtype), jnp.ones(pairs.rows_in.shape, off.dtype)
    return jax.lax.fori_loop(0, pairs.blocks, body, start)


def _any_backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, None]:
    off, before, pairs = saved
    cotangent = jnp.asarray(cotangent)
    backwards = jnp.maximum(pairs.blocks - 1 - jnp.arange(pairs.rows_in.shape[0], dtype=jnp.int32), 0)
    _, behind = _products(off, pairs, backwards)

    def body(i: jax.Array, to: jax.Array) -> jax.Array:
        value = cotangent.at[pairs.rows_out[i]].get(**TAKE) * before[i] * behind[i]
        return to.at[pairs.rows_in[i]].add(value, **UNIQUE)

    return jax.lax.fori_loop(0, pairs.blocks, body, jnp.zeros_like(off)), None


pool_any.defvjp(_any_forward, _any_backward)


def batch_items(sites: Sites, items: int, where: jax.Array | None = None) -> Segments:
    """The voxels of a level grouped by batch item, 0 to ``items - 1`` (static), for the ``global_*`` functions.

    `where` [voxel] bool says which take part; None: all that are in use.
    """
    _validate.positive_int("items", items)
    part = sites.valid if where is None else sites.valid & where
    return segments(jnp.where(part, sites.coordinates[:, 0], items), items, is_sorted=where is None)


def global_sum(features: jax.Array, items: Segments) -> jax.Array:
    """Sum over the voxels of every batch item: features [voxel, channel] -> [item, channel], in order of the items."""
    return sum_over(features, items)


def global_average(features: jax.Array, items: Segments, weights: jax.Array | None = None) -> jax.Array:
    """Mean over the voxels of every batch item, ``sum w x / sum w``; 0 for an item without voxels.

    Args:
      features, items: [voxel, channel], from `batch_items`; returned: [item, channel].
      weights: [voxel], e.g. occupancies; None: all 1.
    """
    return mean_over(features, items) if weights is None else weighted_mean(features, weights, items)


@jax.custom_vjp
def global_max(features: jax.Array, items: Segments) -> jax.Array:
    """Maximum over the voxels of every batch item, channel by channel; the derivative goes to the first of equals.

    Features [voxel, channel] -> [item, channel]; 0 for an item without voxels.
    """
    return _global_max_forward(features, items)[0]


def _global_max_forward(features: jax.Array, items: Segments) -> tuple[jax.Array, tuple]:
    # neither the maximum nor the minimum depends on the order of the writes
    count, channels = features.shape
    best = jnp.full((items.size, channels), -jnp.inf, features.dtype).at[items.group].max(features, mode="drop", **ROWS)
    row = jnp.arange(count, dtype=jnp.int32)[:, None]
    is_best = (items.group < items.size)[:, None] & (features == best.at[items.group].get(**TAKE))
    first = jnp.full((items.size, channels), count, jnp.int32)
    first = first.at[items.group].min(jnp.where(is_best, row, count), mode="drop", **ROWS)
    return jnp.where((items.count > 0)[:, None], best, 0), (first, items)


def _global_max_backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, None]:
    first, items = saved
    cotangent = jnp.asarray(cotangent)
    row = jnp.arange(items.group.shape[0], dtype=jnp.int32)[:, None]
    chosen = first.at[items.group].get(mode="fill", fill_value=-1, **ROWS) == row
    return jnp.where(chosen, cotangent.at[items.group].get(mode="fill", fill_value=0, **ROWS), 0), None


global_max.defvjp(_global_max_forward, _global_max_backward)


def _add_rows(values: jax.Array, pairs: KernelMap) -> jax.Array:
    values = jnp.asarray(values)

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        return total.at[pairs.rows_out[i]].add(values.at[pairs.rows_in[i]].get(**TAKE), **UNIQUE)

    total = jnp.zeros((pairs.size_out, values.shape[1]), values.dtype)
    total = jax.lax.fori_loop(0, pairs.blocks, body, total)
    return total if pairs.centre is None else total + values
