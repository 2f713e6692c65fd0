"""PointPert: the smallest perturbation, in L2, that is misclassified (Xiang et al. 2019)."""

from __future__ import annotations

from typing import Any

import jax

from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.bisection import Bisection
from dyn_jax.attacks.domains import squares
from dyn_jax.attacks.threat import ball
from dyn_jax.objectives import hinge_margin

# metres, of the start: at the clean cloud itself distances have no gradient
FROM_POINTS: Any = {"jitter": 1e-5, "best_effort": True}


def point_pert(
    eps: jax.typing.ArrayLike,
    steps: int,
    *,
    learning_rate: jax.typing.ArrayLike = 0.01,
    constant: jax.typing.ArrayLike = 10.0,
    search_steps: int = 1,
    confidence: float = 0.0,
) -> Attack:
    """``min ||p - clean||^2 - c * min(margin, confidence)`` by Adam, inside the cube of half-width eps.

    Args:
      eps: metres.
      steps: of Adam, for every c.
      learning_rate: metres; also how far an occupancy that looks ahead takes a step to lead.
      constant: first weight c of the margin.
      search_steps: values of c tried: tenfold until a success, then bisected.
      confidence: logits by which the margin should exceed 0.

    Raises:
      ValueError, TypeError: numbers out of range; steps below 1.

    Source: Xiang et al. 2019, section 4.1 (perturbation), untargeted as LGM uses it; neither LGM nor its release says
    how the attack is bounded by eps: here the iterates are clipped. No code was released for it.
    """
    search = Bisection(
        lambda problem, x: squares(problem.domain, x), steps, learning_rate, constant, search_steps, **FROM_POINTS
    )
    return in_cube(search, eps, confidence)


def in_cube(search: Bisection, eps: jax.typing.ArrayLike, confidence: float) -> Attack:
    """The attack that `point_pert` and `knn_pert` make of their search."""
    threat = ball("linf", eps)
    return Attack(search, threat, hinge_margin(confidence), random=True, attack_all=True, reach=search.learning_rate)
