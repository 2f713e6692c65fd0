"""Optax pieces that attacks chain: how a gradient becomes a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def each_step(direction: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
    """``direction(gradient)``, such as a threat set's, as a transform."""

    def update(updates: Any, params: Any = None) -> jax.Array:
        return direction(updates)

    return optax.stateless(update)


def l1_normalised(gradient: jax.Array) -> jax.Array:
    """``g / ||g||_1`` per row (image or point); 0 stays 0 (Dong et al. 2018, eq. 6)."""
    norm = jnp.sum(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)), keepdims=True)
    return gradient / jnp.where(norm > 0, norm, 1)
