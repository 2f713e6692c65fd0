"""Measures of answers: who was right before and after an attack."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[batch] bool, the prediction is the label and all logits are finite."""
    logits = _validate.logits("logits", logits)
    labels = _validate.labels("labels", labels, *logits.shape)
    return (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of right predictions, in [0, 1], of logits [batch, class] and labels [batch]; a NaN makes its row wrong."""
    return jnp.mean(correct(logits, labels))


def success_rate(success: jax.Array, attacked: jax.Array) -> jax.Array:
    """Successes among the attacked, ``sum(success & attacked) / sum(attacked)``; NaN where none was attacked.

    LGM's success rate has ``attacked = ~result.clean_success``: (correct before - correct after) / correct before.

    Args:
      success, attacked: [batch] bool.
    """
    success = _validate.rows("success", success, np.size(success))
    attacked = _validate.rows("attacked", attacked, len(success))
    return jnp.sum(success & attacked) / jnp.sum(attacked)


def robust_accuracy(result: Any, where: jax.Array | None = None) -> jax.Array:
    """Share of rows that withstood an attack: neither a success nor invalid; NaN where no row counts.

    Args:
      result: an `AttackResult`: its `success`, `invalid` and `counted`.
      where: [row] bool, the rows to count; default all that the attack counted.
    """
    rows = result.counted if where is None else result.counted & _validate.rows("where", where, len(result.counted))
    return jnp.sum(rows & ~result.success & ~result.invalid) / jnp.sum(rows)


def robust_accuracy_at(
    norms: jax.typing.ArrayLike, eps: jax.typing.ArrayLike, where: jax.Array | None = None
) -> jax.Array:
    """Share of examples that no perturbation found so far breaks within eps: a whole curve from one run.

    Args:
      norms: [example], the smallest norm that broke each one, e.g. ``result.record.smallest`` of `dyn_jax.attacks.fmn`:
        0 where it is misclassified, infinite where nothing was found; NaN counts as broken.
      eps: a number, "8/255", or an array of any shape, at least 0, in the same unit and rounded as the norms are: a
        norm of exactly eps breaks.
      where: [example] bool, the examples to count; default all.

    Returns:
      The shape of `eps`; NaN where no example counts.

    Raises:
      ValueError: norms of another rank, or negative; an eps that is negative or NaN.
    """
    if jnp.ndim(norms) != 1:
        raise ValueError(f"norms: got shape {jnp.shape(norms)}, expected [example]")
    norms = jnp.asarray(norms, jnp.result_type(norms, jnp.float32))
    eps = jnp.asarray(_validate.number("eps", eps) if isinstance(eps, str) else eps, norms.dtype)
    if _validate.is_concrete(norms) and np.any(np.asarray(norms) < 0):
        raise ValueError("norms: got negative ones, expected distances")
    if _validate.is_concrete(eps) and not np.all(np.asarray(eps) >= 0):
        raise ValueError("eps: got negative ones or NaN, expected radii of at least 0")
    rows = jnp.ones(norms.shape, bool) if where is None else _validate.rows("where", where, len(norms))
    withstood = norms.reshape(-1, *(1,) * eps.ndim) > eps[None]
    return jnp.sum(withstood & rows.reshape(-1, *(1,) * eps.ndim), axis=0) / jnp.sum(rows)


def accuracy_kept(clean: jax.Array, adversarial: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the correctly classified examples that still are, from logits [batch, class]; NaN where there are none.

    An attack on the energy that shall stay unnoticed keeps it at 1.
    """
    _validate.same_shape("clean, adversarial", clean, adversarial)
    right = correct(clean, labels)
    number = jnp.sum(right)
    return jnp.where(number > 0, jnp.sum(right & correct(adversarial, labels)) / jnp.maximum(number, 1), jnp.nan)
