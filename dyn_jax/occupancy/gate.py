"""Deterministic occupancies: the step, its sigmoid, and the step with the sigmoid's derivative."""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax import _validate


@flax.struct.dataclass
class Hard:
    """The step itself, with zero derivative: see `hard`."""

    def __call__(self, score: jax.Array) -> jax.Array:
        return _step(score)


@flax.struct.dataclass
class Sigmoid:
    """``1 / (1 + exp(-lam * score))``: see `sigmoid`."""

    lam: jax.typing.ArrayLike

    def __call__(self, score: jax.Array) -> jax.Array:
        return _smooth(jnp.asarray(self.lam, score.dtype), score)


@flax.struct.dataclass
class StraightThrough:
    """Value of the step, derivative of the sigmoid: see `straight_through`."""

    lam: jax.typing.ArrayLike

    def __call__(self, score: jax.Array) -> jax.Array:
        soft = _smooth(jnp.asarray(self.lam, score.dtype), score)
        return (soft - jax.lax.stop_gradient(soft)) + _step(score)


@partial(jax.jit, inline=True)
def _step(score: jax.Array) -> jax.Array:
    return (score >= 0).astype(score.dtype)


@partial(jax.jit, inline=True)
def _smooth(lam: jax.Array, score: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(lam * score)


def hard() -> Hard:
    """Value ``1 if score >= 0 else 0``, derivative 0: the network as it is deployed, and FGM.

    Source: LGM paper eq. 1-3 (the constant occupancy o-bar) and eq. 8.
    """
    return Hard()


def sigmoid(lam: jax.typing.ArrayLike = 10.0) -> Sigmoid:
    """Soft occupancy ``1 / (1 + exp(-lam * score))``, in the forward and the backward pass: LGM.

    Args:
      lam: slope at the boundary is ``lam / 4``; positive. A leaf of the returned pytree, so that a sweep over it
        is a ``vmap`` and a new value does not recompile.

    Raises:
      ValueError: lam is not a finite positive number.

    Source: LGM paper eq. 15 (``gg`` in the released code, which the paper's results use).
    """
    return Sigmoid(_validate.positive("lam", lam))


def straight_through(lam: jax.typing.ArrayLike = 10.0) -> StraightThrough:
    """Value of `hard`, derivative of `sigmoid`, whose `lam` it takes: LGM on the deployed network (BPDA).

    Source: LGM paper section III.B, "either o(x) or its approximation" (``fg`` in the released code).
    """
    return StraightThrough(_validate.positive("lam", lam))
