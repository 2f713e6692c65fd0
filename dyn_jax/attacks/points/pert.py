"""PointPert: the smallest perturbation, in L2, that is misclassified (Xiang et al. 2019)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax.attacks.points.base import PointAttack, PointProblem, check_eps
from dyn_jax.attacks.points.perturb import AdamSearch
from dyn_jax.objectives import hinge_margin


def squared_l2(problem: PointProblem, xyz: jax.Array) -> jax.Array:
    """Sum of squared coordinate changes over the valid points."""
    change = jnp.where(problem.cloud.valid[:, None], xyz - problem.cloud.xyz, 0)
    return jnp.sum(change * change)


def point_pert(
    eps: jax.typing.ArrayLike,
    steps: int,
    *,
    learning_rate: jax.typing.ArrayLike = 0.01,
    constant: jax.typing.ArrayLike = 10.0,
    search_steps: int = 1,
    confidence: float = 0.0,
    reach: jax.typing.ArrayLike | None = None,
) -> PointAttack:
    """``min ||p - clean||^2 - c * min(margin, confidence)`` by Adam, inside the cube of half-width eps.

    Args:
      eps: metres.
      steps: of Adam, for every c.
      learning_rate: metres.
      constant: first weight c of the margin.
      search_steps: values of c tried: tenfold until a success, then bisected.
      confidence: logits by which the margin should exceed 0.
      reach: metres a point can get in one step, for occupancies that look ahead; default the learning rate.

    Raises:
      ValueError, TypeError: negative or non-numeric arguments; steps below 1.

    Source: Xiang et al. 2019, section 4.1 (perturbation), untargeted as LGM uses it; neither LGM nor its release says
    how the attack is bounded by eps: here the iterates are clipped. No code was released for it.
    """
    eps = check_eps(eps)
    objective = hinge_margin(confidence)
    reach = learning_rate if reach is None else reach
    search = AdamSearch(squared_l2, steps, learning_rate, constant, search_steps, reach)
    return PointAttack(search, eps, objective, random=True)
