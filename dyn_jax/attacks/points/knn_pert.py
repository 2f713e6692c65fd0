"""KNNPert: perturbations without outlying points (Tsai et al. 2020)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.points.base import PointAttack, PointProblem, check_eps
from dyn_jax.attacks.points.perturb import AdamSearch, squared_distances
from dyn_jax.objectives import hinge_margin


def knn_distance(xyz: jax.Array, valid: jax.Array, k: int = 5, alpha: float = 1.05) -> jax.Array:
    """Mean over the points of ``d_i [d_i > mu + alpha sigma]``, d_i the mean squared distance to the k nearest others.

    mu and sigma are the mean and standard deviation of the d_i; the threshold is held constant in the derivative.

    Args:
      xyz: [point, 3], metres; valid: [point] bool, more than k of them.
      k: neighbours.
      alpha: standard deviations above the mean at which a point is an outlier.

    Source: Tsai et al. 2020, the kNN distance.
    """
    count = xyz.shape[0]
    far = jnp.asarray(1e10, xyz.dtype)
    others = valid[None, :] & ~jnp.eye(count, dtype=bool)
    squares = jnp.where(others, squared_distances(xyz, xyz), far)
    nearest = -jax.lax.top_k(-squares, k)[0]
    distance = jnp.mean(nearest, axis=1)
    number = jnp.maximum(jnp.sum(valid), 1)
    fixed = jax.lax.stop_gradient(jnp.where(valid, distance, 0))
    mean = jnp.sum(fixed) / number
    deviation = jnp.sqrt(jnp.sum(jnp.where(valid, (fixed - mean) ** 2, 0)) / number)
    outlying = valid & (fixed > mean + alpha * deviation)
    return jnp.sum(jnp.where(outlying, distance, 0)) / number


def chamfer_distance(xyz: jax.Array, clean: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over the points of the squared distance to the nearest clean point (one direction)."""
    squares = jnp.where(valid[None, :], squared_distances(xyz, clean), jnp.asarray(1e10, xyz.dtype))
    return jnp.sum(jnp.where(valid, jnp.min(squares, axis=1), 0)) / jnp.maximum(jnp.sum(valid), 1)


def knn_pert(
    eps: jax.typing.ArrayLike,
    steps: int,
    *,
    learning_rate: jax.typing.ArrayLike = 0.01,
    constant: jax.typing.ArrayLike = 1.0,
    search_steps: int = 1,
    confidence: float = 15.0,
    neighbours: int = 5,
    alpha: float = 1.05,
    chamfer_weight: float = 5.0,
    knn_weight: float = 3.0,
    reach: jax.typing.ArrayLike | None = None,
) -> PointAttack:
    """``min w_c chamfer + w_k knn - c * min(margin, confidence)`` by Adam, inside the cube of half-width eps.

    Args:
      eps: metres.
      steps, learning_rate, constant, search_steps, confidence, reach: as for `point_pert`.
      neighbours: k of the kNN distance; below the number of valid points.
      alpha: outlier threshold, see `knn_distance`.
      chamfer_weight, knn_weight: of the two distances.

    Raises:
      ValueError, TypeError: as for `point_pert`; neighbours below 1.

    Source: Tsai et al. 2020 (distances). LGM's paper names the attack without its constants, and no code was released
    for it: the defaults are common ones, and the iterates are clipped to the cube.
    """
    eps = check_eps(eps)
    _validate.positive_int("neighbours", neighbours)
    for name, value in (("alpha", alpha), ("chamfer_weight", chamfer_weight), ("knn_weight", knn_weight)):
        _validate.number(name, value, minimum=0)

    def penalty(problem: PointProblem, xyz: jax.Array) -> jax.Array:
        valid = problem.cloud.valid
        chamfer = chamfer_distance(xyz, problem.cloud.xyz, valid)
        return chamfer_weight * chamfer + knn_weight * knn_distance(xyz, valid, neighbours, alpha)

    reach = learning_rate if reach is None else reach
    search = AdamSearch(penalty, steps, learning_rate, constant, search_steps, reach)
    return PointAttack(search, eps, hinge_margin(confidence), random=True)
