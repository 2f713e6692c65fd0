"""Lovasz-softmax: a smooth stand-in for the mean IoU of a segmentation, as a loss and as an objective."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax.objectives.answers import Objective
from dyn_jax.types import Output


def lovasz_softmax(probabilities: jax.Array, labels: jax.Array, counted: jax.Array) -> jax.Array:
    """Mean over the classes that occur of the Lovasz extension of ``1 - IoU``, a scalar in [0, 1].

    For a class c, the errors ``|[y = c] - p_c|`` of the rows, from the largest, times the increments of ``1 - IoU`` as
    the rows become wrong one after the other.

    Args:
      probabilities: [row, class].
      labels: [row] integers.
      counted: [row] bool; other rows are left out.

    Returns:
      Scalar; 0 where no row counts. Differentiable in the probabilities (the order counts as constant).

    Source: Berman et al. 2018, algorithm 1 and eq. 13 with the classes that are present.
    """
    classes = probabilities.shape[1]
    truth = (labels[None] == jnp.arange(classes, dtype=labels.dtype)[:, None]) & counted[None]
    errors = jnp.where(counted[None], jnp.abs(truth - probabilities.T), -1)  # the others come last, where they add 0
    order = jnp.argsort(-jax.lax.stop_gradient(errors), axis=1, stable=True)
    ranked = jnp.take_along_axis(errors, order, axis=1)
    is_true = jnp.take_along_axis(truth, order, axis=1).astype(errors.dtype)
    counts = jnp.take_along_axis(jnp.broadcast_to(counted[None], truth.shape), order, axis=1)
    total = jnp.sum(is_true, axis=1, keepdims=True)
    left = total - jnp.cumsum(is_true, axis=1)
    union = total + jnp.cumsum(counts.astype(errors.dtype) - is_true, axis=1)
    index = 1 - left / jnp.maximum(union, 1)
    increment = jnp.diff(index, axis=1, prepend=0)
    losses = jnp.sum(jnp.where(counts, ranked * increment, 0), axis=1)
    present = total[:, 0] > 0
    return jnp.sum(jnp.where(present, losses, 0)) / jnp.maximum(jnp.sum(present), 1)


def lovasz(ignore: int = 0) -> Objective:
    """An objective: `lovasz_softmax` of all rows together, the same number for each of them; targeted its negative.

    Args:
      ignore: a label that does not count: rows of no label have label 0 in an attack, and here class 0 is unlabelled.

    Source: LGM's release on Cylinder3D.
    """

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        wanted = labels if targets is None else targets
        loss = lovasz_softmax(jax.nn.softmax(output.logits), wanted, labels != ignore)
        return jnp.broadcast_to(loss if targets is None else -loss, output.logits.shape[:1])

    return objective
