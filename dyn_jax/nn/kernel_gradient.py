"""Gradient of a 2D convolution to its kernel, in a form that is fast on CPU, inside loops too."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_POSITIONS = 4096  # of one product: what it reads then stays in the cache
_SMALL = 64  # channels of a product that XLA computes in one thread: two such products side by side


def kernel_gradient(x: jax.Array, g: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """``sum over b, i, j of x[b, s i + t - p, s j + u - p, c] g[b, i, j, o]`` for every tap (t, u): the exact gradient.

    With stride 1, the rows of `x` shifted by each t stand side by side as channels, and a product with the columns of
    `g` shifted by u gives the taps of u; otherwise every tap of `x` is a channel. Images are taken some at a
    time: the copies of a whole batch would not stay in the cache. XLA's own form (a convolution with the batch as
    channels) is slower, see `benchmarks/training_step.py`; what else was tried is in `benchmarks/README.md`.

    From x [batch, height, width, in], what was convolved, and g [batch, rows, columns, out], the cotangent of what
    `dyn_jax.nn.conv2d` made of it: [size, size, in, out].
    """
    batch, rows, columns = g.shape[:3]
    few = max(1, min(batch, _beside(x) * _POSITIONS // (rows * columns)))
    images = next(n for n in range(few, 0, -1) if batch % n == 0)
    part = _taps_by_column if stride == 1 else _every_tap
    if images == batch:
        return part(x, g, size, stride, padding)

    def add(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + part(*pair, size, stride, padding), None

    cut = lambda array: array.reshape(batch // images, images, *array.shape[1:])
    start = jnp.zeros((size, size, x.shape[3], g.shape[3]), jnp.result_type(x, g))
    return jax.lax.scan(add, start, (cut(x), cut(g)))[0]


def _taps_by_column(x: jax.Array, g: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    rows, columns, width = g.shape[1], g.shape[2], x.shape[2]
    padded = jnp.pad(x, ((0, 0), (padding, padding), (0, 0), (0, 0)))
    left = jnp.concatenate([padded[:, t : t + rows] for t in range(size)], 3)
    none, zero = (0, 0, 0), jnp.zeros((), g.dtype)
    # column v of x meets column v + p - u of g
    shift = lambda u: jax.lax.pad(g, zero, (none, none, (u - padding, width - columns - u + padding, 0), none))
    parts = next(n for n in (_beside(x), 1) if x.shape[0] * rows % n == 0)
    apart = lambda array: array.reshape(parts, -1, *array.shape[2:])
    products = (
        jax.lax.dot_general(apart(left), apart(shift(u)), (((1, 2), (1, 2)), ((0,), (0,)))) for u in range(size)
    )
    return jnp.stack([jnp.sum(p, 0).reshape(size, x.shape[3], g.shape[3]) for p in products], 1)


def _every_tap(x: jax.Array, g: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    rows, columns = g.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    down, across = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    taps = [padded[:, t : t + down : stride, u : u + across : stride] for t in range(size) for u in range(size)]
    product = jax.lax.dot_general(jnp.concatenate(taps, 3), g, (((0, 1, 2), (0, 1, 2)), ((), ())))
    return product.reshape(size, size, x.shape[3], g.shape[3])


def _beside(x: jax.Array) -> int:
    return 2 if x.shape[3] < _SMALL else 1
