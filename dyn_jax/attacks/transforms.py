"""Optax pieces that attacks chain: how a gradient becomes a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from dyn_jax.attacks.threat import Threat


def steepest(threat: Threat) -> optax.GradientTransformation:
    """Unit step of steepest ascent in the threat set's norm: the sign for Linf, the normalised gradient for L2."""
    return optax.stateless(lambda updates, params: threat.direction(updates))


def l1_normalise() -> optax.GradientTransformation:
    """``g / ||g||_1`` per row (image or point); 0 stays 0 (Dong et al. 2018, eq. 6)."""

    def normalise(updates: jax.Array, params: jax.Array | None = None) -> jax.Array:
        norm = jnp.sum(jnp.abs(updates), axis=tuple(range(1, updates.ndim)), keepdims=True)
        return updates / jnp.where(norm > 0, norm, 1)

    return optax.stateless(normalise)
