"""KNNPert: perturbations without outlying points (Tsai et al. 2020)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Problem
from dyn_jax.attacks.bisection import Bisection
from dyn_jax.attacks.domains import Coordinates
from dyn_jax.attacks.point_pert import FROM_POINTS, in_cube

_FAR = 1e10


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """[n, m] squared distances of points a [n, 3] and b [m, 3]: n m 3 numbers are held, so for clouds of thousands."""
    difference = a[:, None, :] - b[None, :, :]
    return jnp.sum(difference * difference, axis=-1)


def knn_distance(xyz: jax.Array, valid: jax.Array, k: int = 5, alpha: float = 1.05) -> jax.Array:
    """Mean over the points of ``d_i [d_i > mu + alpha sigma]``, d_i the mean squared distance to the k nearest others.

    mu and sigma are the mean and standard deviation of the d_i; the threshold is held constant in the derivative.

    Args:
      xyz: [point, 3], metres.
      valid: [point] bool, the points of one cloud; where they are not more than k, all others are the nearest.
      k: neighbours.
      alpha: standard deviations above the mean at which a point is an outlier.

    Source: Tsai et al. 2020, the kNN distance.
    """
    others = valid[None, :] & ~jnp.eye(xyz.shape[0], dtype=bool)
    squares = jnp.where(others, squared_distances(xyz, xyz), _FAR)
    nearest = -jax.lax.top_k(-squares, min(k, xyz.shape[0]))[0]
    near = nearest < _FAR
    distance = jnp.sum(jnp.where(near, nearest, 0), axis=1) / jnp.maximum(jnp.sum(near, axis=1), 1)
    number = jnp.maximum(jnp.sum(valid), 1)
    fixed = jax.lax.stop_gradient(jnp.where(valid, distance, 0))
    mean = jnp.sum(fixed) / number
    deviation = jnp.sqrt(jnp.sum(jnp.where(valid, (fixed - mean) ** 2, 0)) / number)
    outlying = valid & (fixed > mean + alpha * deviation)
    return jnp.sum(jnp.where(outlying, distance, 0)) / number


def chamfer_distance(xyz: jax.Array, clean: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over the valid points of the squared distance to the nearest clean point (one direction)."""
    squares = jnp.where(valid[None, :], squared_distances(xyz, clean), _FAR)
    return jnp.sum(jnp.where(valid, jnp.min(squares, axis=1), 0)) / jnp.maximum(jnp.sum(valid), 1)


@dataclasses.dataclass(frozen=True)
class KNNDistance:
    """``chamfer_weight * chamfer + knn_weight * knn`` of every cloud.

    Attributes:
      neighbours: k of the kNN distance.
      alpha: outlier threshold, see `knn_distance`.
      chamfer_weight, knn_weight: of the two distances.
    """

    neighbours: int = 5
    alpha: float = 1.05
    chamfer_weight: float = 5.0
    knn_weight: float = 3.0

    def __post_init__(self) -> None:
        _validate.positive_int("neighbours", self.neighbours)
        for name in ("alpha", "chamfer_weight", "knn_weight"):
            _validate.number(name, getattr(self, name), minimum=0)

    def __call__(self, problem: Problem, x: jax.Array) -> jax.Array:
        domain = problem.domain
        if not isinstance(domain, Coordinates):
            raise TypeError("inputs: got images, expected a PointCloud: neighbours are those of points")

        def of_cloud(valid: jax.Array) -> jax.Array:
            chamfer = chamfer_distance(x, domain.clean, valid)
            return self.chamfer_weight * chamfer + self.knn_weight * knn_distance(x, valid, self.neighbours, self.alpha)

        return jax.vmap(of_cloud)(domain.own)


def knn_pert(
    eps: jax.typing.ArrayLike,
    steps: int,
    *,
    learning_rate: jax.typing.ArrayLike = 0.01,
    constant: jax.typing.ArrayLike = 1.0,
    search_steps: int = 1,
    confidence: float = 15.0,
    distance: KNNDistance = KNNDistance(),
) -> Attack:
    """``min distance(p) - c * min(margin, confidence)`` by Adam, inside the cube of half-width eps.

    Args:
      eps: metres.
      steps, learning_rate, constant, search_steps, confidence: see `point_pert`.
      distance: see `KNNDistance`.

    Raises as `point_pert`. Source: Tsai et al. 2020 (distances). LGM's paper names the attack without its constants,
    and no code was released for it: the defaults are common ones, and the iterates are clipped to the cube.
    """
    search = Bisection(distance, steps, learning_rate, constant, search_steps, **FROM_POINTS)
    return in_cube(search, eps, confidence)
