"""Random perturbation: the baseline that every attack has to beat."""

from __future__ import annotations

import jax

from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.pgd import noise
from dyn_jax.attacks.threat import ball
from dyn_jax.objectives import resolve


def point_noise(eps: jax.typing.ArrayLike) -> Attack:
    """Every coordinate moves by a uniform number in [-eps, eps]; no gradient is taken.

    Args:
      eps: metres (of images: pixel units).

    Source: LGM paper Table XI, "random perturbation" (its distribution is not said; uniform in the cube here).
    """

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        return Found((problem.domain.clean if start is None else start) + noise(problem, keys))

    return Attack(search, ball("linf", eps), resolve("ce"), random=True, attack_all=True)
