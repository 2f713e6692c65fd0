"""DynConv's mask unit: a score for every output position of a block, and the dilation of a mask."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import macs
from dyn_jax.nn import Conv, Dense, global_mean
from dyn_jax.occupancy import stochastic
from dyn_jax.types import Occupancy

_EMPTY = 1e-30


class SpatialGate(nn.Module):
    """conv3x3(stride) to one channel, plus a linear unit of the global mean added at every position.

    Source: DynConv section 3.2 (the squeeze unit's spatial and global parts).
    """

    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, channel] -> scores [batch, ceil(height / stride), ceil(width / stride)]."""
        local = Conv(1, 3, self.stride, 1, use_bias=True, name="conv")(x)[..., 0]
        context = Dense(1, name="fc")(global_mean(x))
        return local + context.reshape(-1, 1, 1)

    def macs(self, in_features: int, positions: int) -> int:
        """Multiply-adds of `positions` scores."""
        return macs.conv2d(3, in_features, 1, positions) + macs.dense(in_features, 1)


def dilate(mask: jax.Array, stride: int = 1) -> jax.Array:
    """How many of the 3x3 neighbours of each position are in `mask`.

    Args:
      mask: [batch, height, width], occupancies of the output positions of a 3x3 convolution.
      stride: of that convolution; its input positions are ``stride`` times as many.

    Returns:
      Counts [batch, stride * height, stride * width]; the dilated mask is ``occupancy(count - 1/2)``, which for the
      hard occupancy is "at least one" and for ``sigmoid(lam)`` the released LGM code's soft dilated mask.
    """
    if stride > 1:
        zero = jnp.zeros((), mask.dtype)
        edge = (0, stride - 1, stride - 1)
        mask = jax.lax.pad(mask, zero, ((0, 0, 0), edge, edge))
    padded = jnp.pad(mask, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]


class Dilation(NamedTuple):
    """The dilated mask [batch, stride * height, stride * width], and what one position costs [batch, height, width]."""

    mask: jax.Array
    macs: jax.Array


def dilation(mask: jax.Array, occupancy: Occupancy, first: int, rest: int, stride: int = 1) -> Dilation:
    """What a branch costs where its first convolution must run on the dilated mask and the others on the mask itself.

    A dilated position belongs to the positions that need it, in proportion to their occupancies, so that
    ``sum(mask * macs)`` and its derivatives are those of ``rest * sum(mask) + first * sum(dilated mask)``. Only where
    a neighbourhood's occupancies round to 0 does a soft dilated mask, there ``occupancy(-1/2)``, belong to nobody;
    where they are small, one position that is all but off may cost a multiple of the dense price.

    Args:
      mask: [batch, height, width], occupancies of the output positions.
      occupancy: makes the dilated mask of ``count - 1/2``, see `dilate`; hard in place of a stochastic one.
      first: multiply-adds of the first convolution at one dilated position.
      rest: multiply-adds of the others at one position.
      stride: see `dilate`.

    Source: DynConv section 3.3.
    """
    count = dilate(mask, stride)
    dilated = stochastic.deterministic(occupancy)(count - 0.5)
    shares = dilate(_per_count(dilated, jnp.maximum(count, _EMPTY)))[:, ::stride, ::stride]
    return Dilation(dilated, float(rest) + float(first) * shares)


@jax.custom_jvp
def _per_count(dilated: jax.Array, count: jax.Array) -> jax.Array:
    """``dilated / count``, whose derivative never forms ``1 / count^2``: that overflows from 1e-19 on."""
    return dilated / count


@_per_count.defjvp
def _per_count_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (dilated, count), (by_dilated, by_count) = primals, tangents
    ratio = dilated / count
    return ratio, by_dilated / count - ratio * (by_count / count)
