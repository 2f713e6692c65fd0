"""The two loops under every sparse convolution: rows times kernel slices, and the kernel's gradient.

Both run over the blocks of a `KernelMap`. Inside a block no two rows are equal, so no two writes meet and the result
is the same bits every time. `jax.vmap` of the first loop puts the examples behind one another in one longer loop
(the default rule would run every example for the longest one's blocks and copy the sums each time).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Rows are never negative; for those that could be JAX looks in a kernel of its own, in every turn of a loop.
ROWS: Any = {"wrap_negative_indices": False}
TAKE: Any = {"mode": "clip", **ROWS}
UNIQUE: Any = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True, **ROWS}


@functools.lru_cache(maxsize=1024)
def gather_multiply_add(size_out: int) -> Callable:
    """``(x, kernel, rows_in, rows_out, slices, blocks) -> y``, y [size_out, out].

    x [size_in, in], kernel [slices, in, out], rows [block number, block], slices [block number].
    """

    @jax.custom_batching.custom_vmap
    def loop(
        x: jax.Array, kernel: jax.Array, rows_in: jax.Array, rows_out: jax.Array, slices: jax.Array, blocks: jax.Array
    ) -> jax.Array:
        def body(i: jax.Array, y: jax.Array) -> jax.Array:
            return y.at[rows_out[i]].add(x.at[rows_in[i]].get(**TAKE) @ kernel[slices[i]], **UNIQUE)

        return jax.lax.fori_loop(0, blocks, body, jnp.zeros((size_out, kernel.shape[2]), x.dtype))

    @loop.def_vmap
    def batched(size: int, is_batched: list[bool], *arguments: jax.Array) -> tuple[jax.Array, bool]:
        x, kernel, rows_in, rows_out, slices, blocks = arguments
        if not is_batched[1]:
            number_of_slices = 0
        else:
            number_of_slices = kernel.shape[1]
            kernel = kernel.reshape(-1, *kernel.shape[2:])
        x, rows_in, rows_out, slices, blocks = (
            value if flag else jnp.broadcast_to(value, (size, *value.shape))
            for value, flag in zip((x, *arguments[2:]), (is_batched[0], *is_batched[2:]))
        )
        slices = slices + jnp.arange(size, dtype=jnp.int32)[:, None] * number_of_slices
        used = jnp.arange(rows_in.shape[1])[None] < blocks[:, None]
        first_used = jnp.argsort(~used.reshape(-1), stable=True)
        flat = _shift(rows_in, x.shape[1]), _shift(rows_out, size_out), slices.reshape(-1)
        y = gather_multiply_add(size * size_out)(
            x.reshape(-1, x.shape[2]), kernel, *(value[first_used] for value in flat), jnp.sum(blocks)
        )
        return y.reshape(size, size_out, -1), True

    return jax.jit(loop)  # layers of one shape are traced once


def _shift(rows: jax.Array, size: int) -> jax.Array:
    """Rows [example, block number, block] of levels of `size` rows -> of the levels behind one another."""
    examples = rows.shape[0]
    number = jnp.arange(examples, dtype=jnp.int32)[:, None, None]
    spare = examples * size + jnp.arange(rows[0].size, dtype=jnp.int32).reshape(1, *rows.shape[1:])
    return jnp.where(rows < size, rows + number * size, spare).reshape(-1, rows.shape[2])


@functools.partial(jax.jit, static_argnames="volume")
def kernel_gradient(
    x: jax.Array,
    y: jax.Array,
    rows_in: jax.Array,
    rows_out: jax.Array,
    slices: jax.Array,
    blocks: jax.Array,
    volume: int,
) -> jax.Array:
    """[volume, in, out]: for every slice, the sum of ``x[row_in]^T y[row_out]`` over its pairs."""

    def rows(values: jax.Array, index: jax.Array) -> jax.Array:
        return values.at[index].get(mode="fill", fill_value=0, **ROWS)

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        return total.at[slices[i]].add(rows(x, rows_in[i]).T @ rows(y, rows_out[i]))

    return jax.lax.fori_loop(0, blocks, body, jnp.zeros((volume, x.shape[1], y.shape[1]), x.dtype))
