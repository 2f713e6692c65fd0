"""Measures of segmentations: confusion matrix and intersection over union."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate


def confusion(
    predictions: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, num_classes: int, ignore: int = 255
) -> jax.Array:
    """[true class, predicted class] float32 counts of points.

    Labels outside [0, num_classes) and `ignore` do not count. Add the matrices of several clouds before `iou`, as the
    ScanNet and S3DIS benchmarks do.

    Args:
      predictions, labels: [point] integer.
      ignore: a label that does not count.

    Raises:
      ValueError: outside jit, a prediction that is no class where the label counts: no cell of the matrix has it.
    """
    _validate.positive_int("num_classes", num_classes)
    predictions, labels = (_validate.integers("predictions, labels", values) for values in (predictions, labels))
    _validate.same_shape("predictions, labels", predictions, labels)
    if predictions.ndim != 1:
        raise TypeError(f"predictions, labels: got shape {predictions.shape}, expected integers [point]")
    counted = (labels >= 0) & (labels < num_classes) & (labels != ignore)
    if _validate.is_concrete(predictions, counted):
        _validate.integers("predictions", np.asarray(predictions)[np.asarray(counted)], 0, num_classes - 1)
    truth = jax.nn.one_hot(jnp.where(counted, labels, -1), num_classes)
    return truth.T @ jax.nn.one_hot(predictions, num_classes)


def iou(matrix: jax.typing.ArrayLike) -> jax.Array:
    """[class], ``intersection / union`` of a `confusion` matrix; NaN for a class that neither occurs nor is predicted.

    Source: ScanNet's benchmark; LGM's release adds 1e-10 to the union, which makes such a class count as 0.
    """
    values, there = _iou(matrix)
    return jnp.where(there, values, jnp.nan)


def _iou(matrix: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """(IoU [class], 0 where the class is absent; present [class] bool)."""
    if jnp.ndim(matrix) != 2 or jnp.shape(matrix)[0] != jnp.shape(matrix)[1]:
        raise ValueError(f"matrix: got shape {jnp.shape(matrix)}, expected [class, class] as `confusion` makes it")
    if _validate.is_concrete(matrix) and not (np.isfinite(matrix) & (np.asarray(matrix) >= 0)).all():
        raise ValueError("matrix: got negative, NaN or infinite counts, expected numbers of points")
    matrix = jnp.asarray(matrix, jnp.result_type(float))  # sums of scans pass 2^31, where JAX would cut an integer
    intersection = jnp.diagonal(matrix)
    union = jnp.sum(matrix, axis=0) + jnp.sum(matrix, axis=1) - intersection
    there = union > 0
    return jnp.where(there, intersection / jnp.where(there, union, 1), 0), there


def mean_iou(matrix: jax.typing.ArrayLike, *, absent: str = "zero") -> jax.Array:
    """Mean of `iou` over the classes.

    Args:
      matrix: [class, class], see `confusion`.
      absent: what a class counts that neither occurs nor is predicted: ``zero`` (LGM's release and its tables) or
        ``skip`` (left out of the mean; 0 if no class is left).

    Raises:
      ValueError: a matrix that is not square, or holds what is no count.
    """
    _validate.choice("absent", absent, ("zero", "skip"))
    values, there = _iou(matrix)
    total = jnp.sum(values)
    return total / (there.shape[0] if absent == "zero" else jnp.maximum(jnp.sum(there), 1))
