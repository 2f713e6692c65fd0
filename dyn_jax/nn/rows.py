"""A residual block for the rows of a batch that are on: the others are not evaluated, neither forward nor backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.custom_derivatives import SymbolicZero

from dyn_jax.nn.conv import conv2d, input_gradient, rewritten
from dyn_jax.nn.layers import add_relu, relu
from dyn_jax.nn.norm import BatchNorm

CHUNK = 32
"""Rows of one pass: with fewer there are more passes, with more the last one is filled with more rows that are off."""


def block(
    layers: Mapping[str, Any],
    on: jax.Array,
    x: jax.Array,
    shortcut: jax.Array | None,
    stride: int = 1,
    winograd: bool = False,
) -> jax.Array:
    """``ReLU(shortcut + branch(x))`` of a `BasicBranch` in the rows that are on, the shortcut in the others.

    Rows that are on are gathered, `CHUNK` at a time, as many times as they fill, and written back, so that the time
    goes with their number. The backward pass does the same; it keeps the signs of two ReLUs of every row.

    Args:
      layers: variables of the branch, by kind: ``params`` and ``batch_stats``.
      on: [batch] bool.
      x: [batch, height, width, in].
      shortcut: [batch, height / stride, width / stride, out]; None is x.
      stride, winograd: of the branch.

    Returns:
      Like the shortcut. First derivatives to `x` and `shortcut` only.

    Raises:
      ValueError: when it is differentiated with respect to the layers.
    """
    parts = tuple(_folded(layers, number) for number in "12")
    x, shortcut, *flat = promote_dtype(x, shortcut, *jax.tree.leaves(parts))
    return _block(CHUNK, stride, winograd, jax.tree.unflatten(jax.tree.structure(parts), flat), on, x, shortcut)


def _folded(layers: Mapping[str, Any], number: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(kernel, slope, offset) of a convolution and the batch normalisation behind it."""
    norm, running = layers["params"][f"bn{number}"], layers["batch_stats"][f"bn{number}"]
    slope = norm["scale"] * jax.lax.rsqrt(running["var"] + BatchNorm.stabiliser)
    offset = norm["bias"] - running["mean"] * slope
    along = (1, 1, 1, -1)
    return layers["params"][f"conv{number}"]["kernel"], slope.reshape(along), offset.reshape(along)


def _by_chunks(size: int, on: jax.Array, body: Callable, state: tuple) -> tuple:
    """``state = body(rows, first, state)`` for chunks of rows, those that are on first, while a chunk has one.

    `first` counts the rows of the chunks before; rows beyond the batch fill the last chunk up.
    """
    batch = len(on)
    order = jnp.concatenate([jnp.argsort(~on, stable=True), batch + jnp.arange(-batch % size)])
    chunk = lambda i, state: body(jax.lax.dynamic_slice_in_dim(order, i * size, size), i * size, state)
    return jax.lax.fori_loop(0, (jnp.sum(on) + size - 1) // size, chunk, state)


def _take(array: jax.Array, rows: jax.Array) -> jax.Array:
    return array.at[rows].get(mode="clip", unique_indices=True)


def _put(array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    return array.at[rows].set(values, mode="drop", unique_indices=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _block(size: int, stride: int, winograd: bool, *given: Any) -> jax.Array:
    return _run(size, stride, winograd, *given)[0]


def _run(
    size: int, stride: int, winograd: bool, parts: tuple, on: jax.Array, x: jax.Array, shortcut: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The result, and where both ReLUs let pass, [row in the order of the chunks, 2, height, width, channel]."""
    (k1, a1, b1), (k2, a2, b2) = parts
    off = x if shortcut is None else shortcut

    def chunk(rows: jax.Array, first: jax.Array, state: tuple) -> tuple:
        out, masks = state
        y = relu(conv2d(_take(x, rows), k1, stride, 1, winograd) * a1 + b1)
        identity = _take(off, rows)
        made = add_relu(identity, conv2d(y, k2, 1, 1, winograd) * a2 + b2)
        made = jnp.where(_take(on, rows).reshape(-1, 1, 1, 1), made, identity)
        masks = jax.lax.dynamic_update_slice_in_dim(masks, jnp.stack([y > 0, made > 0], 1), first, 0)
        return _put(out, rows, made), masks

    masks = jnp.zeros((len(on) + -len(on) % size, 2, *off.shape[1:]), bool)
    return _by_chunks(size, on, chunk, (off, masks))


def _forward(size: int, stride: int, winograd: bool, *given: Any) -> tuple:
    parts, on, x, shortcut = given
    if any(leaf.perturbed for leaf in jax.tree.leaves(parts)):
        raise ValueError("execution: got 'rows', expected 'dense' where weights are differentiated")
    parts, on, x, shortcut = jax.tree.map(lambda leaf: leaf.value, (parts, on, x, shortcut))
    out, masks = _run(size, stride, winograd, parts, on, x, shortcut)
    (k1, a1, _), (k2, a2, _) = parts
    return out, (k1, a1, k2, a2, on, masks, None if shortcut is None else jnp.zeros((0, *x.shape[1:3])))


def _backward(size: int, stride: int, winograd: bool, kept: tuple, g: Any) -> tuple:
    k1, a1, k2, a2, on, masks, like = kept
    if isinstance(g, SymbolicZero):
        return None, None, None, None
    shape = g.shape[1:3] if like is None else like.shape[1:]

    def chunk(rows: jax.Array, first: jax.Array, state: tuple) -> tuple:
        given, runs = _take(g, rows), _take(on, rows).reshape(-1, 1, 1, 1)
        inner, outer = jnp.moveaxis(jax.lax.dynamic_slice_in_dim(masks, first, size, 0), 1, 0)
        end = jnp.where(~runs | outer, given, 0)
        back = input_gradient(jnp.where(runs, end, 0) * a2, k2, end.shape[1:3], 1, 1, winograd, rewritten())
        back = input_gradient(jnp.where(inner, back, 0) * a1, k1, shape, stride, 1, winograd, rewritten())
        made = (end + back,) if like is None else (end, back)
        return tuple(_put(into, rows, one) for into, one in zip(state, made))

    into = (g,) if like is None else (g, jnp.zeros((len(g), *shape, k1.shape[2]), g.dtype))
    into = _by_chunks(size, on, chunk, into)
    return None, None, into[-1], None if like is None else into[0]


_block.defvjp(_forward, _backward, symbolic_zeros=True)
