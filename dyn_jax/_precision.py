"""At least single precision: half of it holds no multiply-adds (above 65,504 float16 is infinite) and rounds counts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def single(x: jax.Array) -> jax.Array:
    """Floating point x in at least single precision; what is no floating point as it is."""
    half = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32
    return x.astype(jnp.float32) if half else x


def singles(tree: Any) -> Any:
    """A tree whose arrays of half precision are in single precision."""
    return jax.tree.map(lambda leaf: single(leaf) if hasattr(leaf, "dtype") else leaf, tree)
