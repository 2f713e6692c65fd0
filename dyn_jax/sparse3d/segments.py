"""Sums and "any of" over groups of rows, without writes that meet: bitwise repeatable on every device.

A group's rows are brought together by one sort; a segmented scan of doubling steps (as many as the longest group
needs) then combines them. The transpose of spreading a group's value over its rows is the sum over the group, and the
other way round; both are given to JAX as such.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax.sparse3d.blocked import ROWS


class Segments(flax.struct.PyTreeNode):
    """Which group every row belongs to.

    Attributes:
      group: [row] int32; `size` for rows that belong to none.
      order: [row] int32, the rows sorted by group, or None where they are sorted as they stand.
      start: [row] int32, in sorted order, the place where the row's group begins.
      last: [size] int32, in sorted order, the place of the group's last row.
      count: [size] int32, rows of the group.
      size: number of groups, static.
    """

    group: jax.Array
    order: jax.Array | None
    start: jax.Array
    last: jax.Array
    count: jax.Array
    size: int = flax.struct.field(pytree_node=False)

    def sorted(self, values: jax.Array) -> jax.Array:
        """Values [row, ...] in sorted order."""
        return values if self.order is None else values[self.order]

    def unsorted(self, values: jax.Array) -> jax.Array:
        """The inverse of `sorted`."""
        return values if self.order is None else jnp.zeros_like(values).at[self.order].set(values, unique_indices=True)


@partial(jax.jit, static_argnames=("size", "is_sorted"), inline=True)
def segments(group: jax.Array, size: int, *, is_sorted: bool = False) -> Segments:
    """Groups rows by ``group`` [row] int32, in [0, size) or anything else for rows that count nowhere.

    No sort is needed where it `is_sorted`: the groups ascend, rows of none at the end.
    """
    rows = jnp.arange(group.shape[0], dtype=jnp.int32)
    group = jnp.where((group >= 0) & (group < size), group, size).astype(jnp.int32)
    in_order, order = (group, None) if is_sorted else jax.lax.sort((group, rows), num_keys=1, is_stable=True)
    end = jnp.searchsorted(in_order, jnp.arange(size), side="right").astype(jnp.int32)
    begin = jnp.concatenate([jnp.zeros(1, jnp.int32), end[:-1]])
    start = jnp.concatenate([begin, end[-1:]])[in_order]
    start = jnp.where(in_order < size, start, rows)
    return Segments(group, order, start, end - 1, end - begin, size)


def _scan(values: jax.Array, start: jax.Array, combine: Callable, identity: float) -> jax.Array:
    """Inclusive scan of values [row, ...] inside each group, in sorted order."""
    count = values.shape[0]
    rows = jnp.arange(count, dtype=jnp.int32)
    longest = jnp.max(rows - start) + 1
    shape = (count,) + (1,) * (values.ndim - 1)

    def step(state: tuple) -> tuple:
        values, distance = state
        padded = jnp.concatenate([jnp.full_like(values, identity), values])
        before = jax.lax.dynamic_slice_in_dim(padded, count - distance, count)
        inside = (rows - distance >= start).reshape(shape)
        return jnp.where(inside, combine(before, values), values), distance * 2

    return jax.lax.while_loop(lambda state: state[1] < longest, step, (values, jnp.int32(1)))[0]


def _total(values: jax.Array, groups: Segments, combine: Callable, identity: float) -> jax.Array:
    scanned = _scan(groups.sorted(values), groups.start, combine, identity)
    total = scanned[jnp.maximum(groups.last, 0)]
    some = (groups.count > 0).reshape((-1,) + (1,) * (values.ndim - 1))
    return jnp.where(some, total, identity)


@jax.custom_vjp
def sum_over(values: jax.Array, groups: Segments) -> jax.Array:
    """Sum of values [row, ...] over the rows of each group, [size, ...]; 0 for an empty group."""
    return _total(values, groups, jnp.add, 0)


@jax.custom_vjp
def spread(values: jax.Array, groups: Segments) -> jax.Array:
    """Every row's group value: values [size, ...] -> [row, ...]; 0 for rows of no group."""
    return values.at[groups.group].get(mode="fill", fill_value=0, **ROWS)


sum_over.defvjp(
    lambda values, groups: (sum_over(values, groups), groups),
    lambda groups, cotangent: (spread(cotangent, groups), None),
)
spread.defvjp(
    lambda values, groups: (spread(values, groups), groups),
    lambda groups, cotangent: (sum_over(cotangent, groups), None),
)


@jax.custom_vjp
def any_of(relation: jax.Array, groups: Segments) -> jax.Array:
    """``1 - prod (1 - r)`` over the rows of each group, [size]; 0 for an empty group.

    The derivative in one r is the product of the other factors, formed from the products before and behind it: exact
    and finite also where some r is exactly 1 (dividing the whole product by a factor is not).

    Args:
      relation: [row], in [0, 1].
      groups: of the rows.

    Source: LGM paper eq. 31.
    """
    return 1 - _total(1 - relation, groups, jnp.multiply, 1)


def _any_of_backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, None]:
    relation, groups = saved
    factor = groups.sorted(1 - relation)
    count = factor.shape[0]
    rows = jnp.arange(count, dtype=jnp.int32)
    before = _scan(factor, groups.start, jnp.multiply, 1)
    before = jnp.where(rows > groups.start, jnp.concatenate([jnp.ones(1, factor.dtype), before[:-1]]), 1)
    # behind: the same scan from the other end
    final = jnp.concatenate([groups.last, jnp.zeros(1, jnp.int32)])[groups.sorted(groups.group)]
    final = jnp.where(groups.sorted(groups.group) < groups.size, final, rows)
    behind = _scan(factor[::-1], (count - 1 - final)[::-1], jnp.multiply, 1)[::-1]
    behind = jnp.where(rows < final, jnp.concatenate([behind[1:], jnp.ones(1, factor.dtype)]), 1)
    return spread(cotangent, groups) * groups.unsorted(before * behind), None


any_of.defvjp(lambda *given: (any_of(*given), given), _any_of_backward)
