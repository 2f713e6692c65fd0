"""Top-k: a fixed number of the elements is on, those of the largest values."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate


def top_k_score(values: jax.Array, k: int) -> jax.Array:
    """``s_i - s_(k)``, the distance to the k-th largest value: 0 or more for k elements, [..., element].

    Under `occupancy.hard` k elements are on; `straight_through` gives them a derivative, `sigmoid` a soft value (1/2
    at the k-th). Of equal values the first ones are on; the others' score is moved just below 0 and keeps its
    derivative.

    Args:
      values: s [..., element], finite.
      k: how many, in [1, elements].

    Raises:
      ValueError, TypeError: k out of range or no integer.
    """
    count = values.shape[-1]
    if _validate.positive_int("k", k) > count:
        raise ValueError(f"k: got {k}, expected at most {count}, the number of elements")
    largest, chosen = jax.lax.top_k(values, k)
    score = values - largest[..., -1:]
    on = jnp.any(chosen[..., None] == jnp.arange(count).reshape((1,) * values.ndim + (count,)), axis=-2)
    # compiled, values may be rounded anew beside top_k's copy of them: the choice is top_k's, to the last bit
    nothing = score - jax.lax.stop_gradient(score)
    below = jnp.where(score < 0, score, nothing - jnp.finfo(values.dtype).tiny)
    return jnp.where(on, jnp.where(score >= 0, score, nothing), below)
