"""At least single precision: half of it holds no multiply-adds (above 65,504 float16 is infinite) and rounds counts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def half(dtype: Any) -> bool:
    """Whether a dtype is floating point of less than 32 bits, bfloat16 too."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def single(x: jax.Array) -> jax.Array:
    """Floating point x in at least single precision; what is no floating point as it is. NumPy's array stays one."""
    return x.astype(np.float32) if half(x.dtype) else x


def singles(tree: Any) -> Any:
    """A tree whose arrays of half precision are in single precision."""
    return jax.tree.map(lambda leaf: single(leaf) if hasattr(leaf, "dtype") else leaf, tree)
