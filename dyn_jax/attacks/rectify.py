"""GradAuto's two corrections of a gradient, as functions of arrays [batch, ...]: its length and its direction."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax.attacks.threat import norm, unit

_ROUNDING = 2e-6  # what a projection leaves of a vector that it should remove, relative


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of the angle between a and b per example, [batch]; 0 where either is 0."""
    return jnp.sum(unit(a) * unit(b), axis=tuple(range(1, a.ndim)))


def magnitude(complexity: jax.Array, constant: jax.typing.ArrayLike) -> jax.Array:
    """``K g / ||g||``: the gradient of the rectified complexity loss (GradAuto eq. 17, the norm held constant)."""
    return jnp.asarray(constant, complexity.dtype) * unit(complexity)


class Rectified(NamedTuple):
    """The gradient [batch, ...], and [batch] bool whether a component was taken off."""

    gradient: jax.Array
    projected: jax.Array


def untouched(gradient: jax.Array) -> Rectified:
    """A gradient as it is."""
    return Rectified(gradient, jnp.zeros_like(gradient, bool).reshape(len(gradient), -1)[:, 0])


def direction(complexity: jax.Array, finished: jax.Array) -> Rectified:
    """Takes off the component of the complexity gradient g [batch, ...] against the finished one, g_F like it.

    ``g - min(<g, u>, 0) u`` with ``u = g_F / ||g_F||``; unchanged where they agree, or where g_F is 0. Where the two
    are opposite nothing is left: rounding errors are taken as 0, since Adam would scale them up to a full step.
    Source: GradAuto eq. 23 to 25.
    """
    u = unit(finished)
    along = jnp.sum(complexity * u, axis=tuple(range(1, u.ndim)), keepdims=True)
    left = complexity - jnp.minimum(along, 0) * u
    left = jnp.where(norm(left) > _ROUNDING * norm(complexity), left, 0)
    return Rectified(left, along.reshape(-1) < 0)
