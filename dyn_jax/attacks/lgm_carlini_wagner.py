"""LGM's "C&W": the hinge margin under Adam inside an Linf ball, as its released code has it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.bim import release_bounds
from dyn_jax.attacks.threat import Bounds, ball
from dyn_jax.objectives import hinge_margin


def lgm_carlini_wagner(
    eps: jax.typing.ArrayLike | str,
    step_size: jax.typing.ArrayLike | str,
    steps: int,
    *,
    confidence: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
    protocol: str = "paper",
    attack_all: bool = False,
) -> Attack:
    """Adam on the perturbation, minimising ``max(z_y - max_other z, -confidence)``, clipped to the ball at every step.

    Not the attack of Carlini and Wagner (`carlini_wagner`): no change of variables, no distance term, no search over
    a constant. It is what the "C&W" rows of LGM's table II were computed with.

    Args:
      eps: Linf radius in pixel units of [0, 1] images.
      step_size: Adam's learning rate, same units; betas 0.9 and 0.999, epsilon 1e-8 (PyTorch's defaults).
      steps: number of steps.
      confidence: kappa, in logits.
      bounds: lowest and highest pixel value.
      protocol: ``paper`` has the margin of Carlini and Wagner's f_6; ``release`` counts the label's own slot as a
        logit of 0 and clips to (-1, 1).
      attack_all: also perturb images that are misclassified to begin with.

    Raises:
      ValueError, TypeError: as `dyn_jax.attacks.bim`; a negative confidence.
    """
    threat = ball("linf", eps, release_bounds(bounds, protocol))
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)
    adam = optax.adam(step_size, b1=0.9, b2=0.999, eps=1e-8)

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        def step(state: tuple, _: None) -> tuple[tuple, tuple]:
            x, adam_state = state
            losses, gradient, bad = problem.losses_and_gradient(x)
            update, adam_state = adam.update(-gradient, adam_state)
            return (problem.project(x + update), adam_state), (losses, bad)

        start = problem.images if start is None else start
        (x, _), (history, bad) = jax.lax.scan(step, (start, adam.init(start)), None, length=steps)
        return Found(x, history, jnp.sum(bad, axis=0, dtype=jnp.int32))

    return Attack(search, threat, hinge_margin(confidence, protocol=protocol), attack_all=attack_all)
