"""Point dropping (Zheng et al. 2019): the points whose absence hurts most are taken away, a few at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.domains import Coordinates
from dyn_jax.attacks.threat import Dropped, norm
from dyn_jax.objectives import Objective, resolve
from dyn_jax.types import PointCloud

SALIENCIES = ("shift", "gradient", "random")


def saliency_of(gradient: jax.Array, xyz: jax.Array, kind: str, power: float = 1.0) -> jax.Array:
    """How much the loss is taken to rise where a point goes, [point], of gradient and xyz [point, 3].

    ``shift``: ``-dL/dr r^(1 + power)`` with r the distance from the origin: a point at the centre tells nothing, so
    that dropping it is the limit of shifting it there (for a LiDAR: along its beam into the sensor).
    ``gradient``: the length of dL/dx. Source: Zheng et al. 2019, eq. 4 to 6, with the origin for the centre.
    """
    if kind == "gradient":
        return norm(gradient)[:, 0]
    return -jnp.sum(gradient * xyz, axis=1) * norm(xyz)[:, 0] ** power


def point_drop(
    points: int,
    rounds: int = 10,
    *,
    saliency: str = "shift",
    power: float = 1.0,
    objective: str | Objective = "ce",
    attack_all: bool = True,
) -> Attack:
    """In every round the points of largest saliency go, about ``points / rounds`` of them, and the gradient is anew.

    The adversarial points of the result are those of the cloud, or the origin where one is dropped: the networks see a
    cloud in which it is not valid, neither loss nor success count it, and `remaining` gives that cloud. A point that
    lies at the origin stays. Sizes are static: the same program serves every choice of points.

    Args:
      points: budget of every cloud, at least 1.
      rounds: evaluations of the gradient, 1 to `points`.
      saliency: ``shift``, ``gradient``, see `saliency_of`, or ``random``, the control, for which a key is needed.
      power: of ``shift``.
      objective: ``ce``, ``margin``, ``dlr`` or a callable; mean over the rows that count and are there.
      attack_all: also drop points of clouds that are misclassified to begin with.

    Raises:
      ValueError, TypeError: points or rounds no positive integer, more rounds than points; an unknown saliency; a power
        that is negative; when called, images.

    Source: Zheng et al. 2019, algorithm 1. As an attack on LiDARs, absorbed or cancelled returns: Cao et al. 2023.
    """
    _validate.positive_int("points", points)
    if _validate.positive_int("rounds", rounds) > points:
        raise ValueError(f"rounds: got {rounds}, expected at most {points}, one for each point")
    _validate.choice("saliency", saliency, SALIENCIES)
    power = float(_validate.number("power", power, minimum=0))
    counts = np.diff(np.arange(rounds + 1) * points // rounds)

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        domain = problem.domain
        if not isinstance(domain, Coordinates):
            raise ValueError("inputs: got images, expected a PointCloud: pixels cannot be dropped")
        most = min(int(counts.max()), domain.clean.shape[0])
        noise = None if keys is None else jax.vmap(jax.random.uniform)(keys).astype(domain.clean.dtype)

        def step(x: jax.Array, count: jax.Array) -> tuple:
            gradient, record = problem.gradient(x)
            score = saliency_of(gradient, x, saliency, power) if noise is None else noise
            can = jnp.any(x != 0, axis=1)
            can = can if domain.free is None else can & (domain.free[:, 0] > 0)
            own = domain.own & can[None] & problem.attacked[:, None]
            score, place = jax.lax.top_k(jnp.where(own, score[None], -jnp.inf), most)
            goes = (jnp.arange(most)[None] < count) & (score > -jnp.inf)
            place = jnp.where(goes, place, len(x)).reshape(-1)
            return x.at[place].set(0, mode="drop"), record

        first = domain.clean if start is None else domain.project(start)
        return Found(*jax.lax.scan(step, first, jnp.asarray(counts)))

    return Attack(search, Dropped(points), resolve(objective), random=saliency == "random", attack_all=attack_all)


def remaining(cloud: PointCloud, adversarial: jax.Array) -> PointCloud:
    """What the networks saw of the cloud attacked, given the result's points [point, 3]: dropped ones are not valid."""
    dropped = jnp.all(adversarial == 0, axis=1) & jnp.any(cloud.xyz != 0, axis=1)
    return cloud.replace(xyz=adversarial, valid=cloud.valid & ~dropped)
