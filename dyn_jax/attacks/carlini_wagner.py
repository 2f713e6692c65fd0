"""C&W-L2 (Carlini and Wagner 2017): the smallest perturbation, by binary search over the loss's constant."""

from __future__ import annotations

import jax

from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.bisection import Bisection
from dyn_jax.attacks.domains import squares
from dyn_jax.attacks.threat import Bounds, Box, check_bounds
from dyn_jax.objectives import hinge_margin


def carlini_wagner(
    *,
    steps: int = 1000,
    search_steps: int = 9,
    learning_rate: jax.typing.ArrayLike = 0.01,
    initial_constant: jax.typing.ArrayLike = 1e-3,
    confidence: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
    attack_all: bool = False,
) -> Attack:
    """Minimises ``||x - clean||^2 + c * max(z_y - max_other z, -confidence)`` over ``x = (tanh(w) + 1) / 2``.

    For every example, c goes up tenfold while no success is found and is bisected afterwards. The closest success on
    the victim over all searches is returned, the clean value where there is none. Coordinates have no box: there w is
    x itself.

    Args:
      steps: Adam steps per value of c (the paper's code: 10,000).
      search_steps: values of c.
      learning_rate: Adam's; of coordinates in metres.
      initial_constant: first c.
      confidence: kappa, in logits; a success must exceed this margin on the victim.
      bounds, attack_all: see `dyn_jax.attacks.bim`; x is mapped onto the range of the bounds.

    Raises as `point_pert`. Source: Carlini and Wagner 2017, section V and VI.A (f_6). Without the released code's early
    abort.
    """
    check_bounds(bounds)
    search = Bisection(
        lambda problem, x: squares(problem.domain, x), steps, learning_rate, initial_constant, search_steps, confidence
    )
    return Attack(search, Box(bounds), hinge_margin(confidence), attack_all=attack_all, reach=learning_rate)
