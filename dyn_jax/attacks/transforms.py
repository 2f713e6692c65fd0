"""Optax pieces that attacks chain: how a gradient becomes a step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dyn_jax.attacks.threat import Ball


def steepest(threat: Ball) -> optax.GradientTransformation:
    """Unit step of steepest ascent in the threat set's norm: the sign for Linf, the normalised gradient for L2."""

    def direction(updates: Any, params: Any = None) -> jax.Array:
        return threat.direction(updates)

    return optax.stateless(direction)


def l1_normalise() -> optax.GradientTransformation:
    """``g / ||g||_1`` per row (image or point); 0 stays 0 (Dong et al. 2018, eq. 6)."""

    def normalise(updates: Any, params: Any = None) -> jax.Array:
        norm = jnp.sum(jnp.abs(updates), axis=tuple(range(1, updates.ndim)), keepdims=True)
        return updates / jnp.where(norm > 0, norm, 1)

    return optax.stateless(normalise)
