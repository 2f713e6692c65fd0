"""Measures of smallest perturbations: how near an attack comes to the best of many attacks, image by image."""

from __future__ import annotations

import jax
import numpy as np

from dyn_jax import _validate


def local_optimality(
    norms: jax.typing.ArrayLike, best: jax.typing.ArrayLike, *, curve: str = "steps", where: np.ndarray | None = None
) -> float:
    """``1 - (A - A*) / (c d - A*)``: 1 where an attack finds the best of every image, 0 where it finds nothing.

    A and A* are areas under accuracy against distance of the attack and of the pointwise best, up to d, the largest
    best distance; c is the share of best distances above 0. Distances beyond d, infinite ones too, count as d.

    Args:
      norms: [example], the smallest norm of this attack, e.g. ``result.record.smallest``: 0 where the clean value
        already fools, infinite where nothing was found.
      best: [example], the smallest norm of any attack, finite.
      curve: ``steps``: the exact area, the mean of the clipped distances; ``released``: trapezoids between the
        distinct distances, as the released tables (above 1 where no image has distance 0, and 1 for an attack that
        fails everywhere); ``released_plot``: the same, but a failure keeps the accuracy before it.
      where: [example] bool, the examples to count; default all.

    Raises:
      ValueError, TypeError: norms that are negative, NaN or do not fit; a best that is infinite, or 0 everywhere.

    Source: Cina et al. 2025, "AttackBench: Evaluating gradient-based attacks for adversarial examples", equation of
    the local optimality.
    """
    _validate.choice("curve", curve, ("steps", "released", "released_plot"))
    norms, best = np.asarray(norms, np.float64), np.asarray(best, np.float64)
    if norms.ndim != 1 or best.shape != norms.shape:
        raise ValueError(
            f"norms, best: got shapes {norms.shape} and {best.shape}, expected one number per example each"
        )
    if where is not None:
        rows = np.asarray(_validate.rows("where", where, len(norms)))
        norms, best = norms[rows], best[rows]
    if not len(norms) or not (np.all(norms >= 0) and np.all(best >= 0)):
        raise ValueError("norms, best: got negative ones, NaN or none, expected distances")
    largest = float(best.max())
    if not 0 < largest < np.inf:
        raise ValueError(f"best: got {largest} as the largest, expected finite distances, not all 0")
    area, least = (_area(values, largest, curve) for values in (norms, best))
    most = float(np.mean(best > 0)) * largest
    if area == least:
        return 1.0
    return 1 - (area - least) / (most - least) if most > least else 0.0


def _area(norms: np.ndarray, largest: float, curve: str) -> float:
    """Under accuracy against distance, up to `largest`."""
    clipped = np.minimum(norms, largest)
    if curve == "steps":
        return float(clipped.mean())
    at = np.unique(clipped)
    accuracy = (clipped[None] > at[:, None]).mean(axis=1)
    if curve == "released_plot" and np.isinf(norms).any() and len(at) > 1:
        accuracy[-1] = accuracy[-2]
    return float(np.trapezoid(accuracy, at))
