"""DDN (Rony et al. 2019): a step along the gradient, then a rescaling of the perturbation to a norm that follows."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.criteria import Criterion, checked
from dyn_jax.attacks.fmn import length_l2
from dyn_jax.attacks.minimal import Descent, MinimalNorm, State, closest, cosine, largest_norm, unbounded
from dyn_jax.attacks.threat import Bounds

_LAST = 0.01  # share of the first step that the last one makes


@dataclasses.dataclass(frozen=True)
class Ddn(Descent):
    """The search of `ddn`."""

    gamma: jax.typing.ArrayLike
    step_size: jax.typing.ArrayLike
    levels: int | None

    def step(self, problem: Problem, state: State, number: jax.Array) -> tuple[State, tuple[Steps, MinimalNorm]]:
        domain, threat = problem.domain, problem.ball
        alpha: jax.Array = cosine(1.0, _LAST, number.astype(state.eps.dtype) / self.steps) * self.step_size
        delta = state.x - domain.clean
        gradient, output, record = problem.evaluate(state.x)
        held = self.criterion.holds(problem, problem.judged(state.x, output))
        size = length_l2(domain.split(delta))
        best = closest(problem, (state.x, size, held), state.best)

        gamma = jnp.asarray(self.gamma, state.eps.dtype)
        eps = state.eps * jnp.where(held, 1 - gamma, 1 + gamma)
        eps = jnp.minimum(eps, largest_norm(domain, threat))
        steepness = length_l2(domain.split(gradient))
        delta = delta + gradient * domain.spread(alpha / jnp.where(steepness > 0, steepness, 1))
        size_now = length_l2(domain.split(delta))
        x = domain.clean + delta * domain.spread(eps / jnp.where(size_now > 0, size_now, 1))
        x = jnp.clip(x if self.levels is None else self.rounded(x, threat.bounds), *threat.bounds)
        return State(domain.unmoved(x), eps, best), (record, MinimalNorm(size, held))

    def rounded(self, x: jax.Array, bounds: Bounds) -> jax.Array:
        """To the nearest of `levels` values between the bounds."""
        low, high = bounds
        unit = (high - low) / ((self.levels or 2) - 1)
        return low + jnp.round((x - low) / unit) * unit

    def __call__(self, problem: Problem, keys: None, start: jax.Array | None) -> Found:
        if self.levels is not None and not all(map(math.isfinite, problem.ball.bounds)):
            raise ValueError("levels: got some for a point cloud, expected None: coordinates have no box")
        return super().__call__(problem, keys, start)


def ddn(
    steps: int = 100,
    *,
    criterion: Criterion | None = None,
    init_norm: jax.typing.ArrayLike = 1.0,
    gamma: jax.typing.ArrayLike = 0.05,
    step_size: jax.typing.ArrayLike = 1.0,
    levels: int | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """The smallest L2 perturbation for which a criterion holds on the victim, by decoupled direction and norm.

    ``delta <- eps u / ||u||`` with ``u = delta + a g / ||g||``, clipped to the box; eps is multiplied by ``1 - gamma``
    where the criterion holds and by ``1 + gamma`` where it does not; a falls from `step_size` to a hundredth of it.
    What the result holds is as of `fmn`. Deterministic.

    Args:
      steps: of the schedule; an evaluation each. The x after the last one is not evaluated.
      criterion: of `dyn_jax.attacks.criteria`; default ``misclassified("ce")``.
      init_norm: first eps; of points in metres.
      gamma: relative change of eps.
      step_size: first a, same units as eps.
      levels: round every iterate to that many values (256: 8-bit images, the paper's), None: not at all. At small norms
        rounding costs much.
      bounds: lowest and highest pixel value.

    Raises:
      ValueError, TypeError: a number out of range; fewer than 2 levels, or any for a point cloud; what the criterion
        raises.

    Source: Rony et al. 2019, algorithm 1. Where the gradient is 0 the direction stays (the released code draws one).
    """
    _validate.positive_int("steps", steps)
    if levels is not None:
        _validate.positive_int("levels", levels, minimum=2)
    criterion, positive = checked(criterion, "ce"), _validate.positive
    init_norm, gamma = positive("init_norm", init_norm), positive("gamma", gamma)
    search = Ddn(steps, criterion, init_norm, gamma, positive("step_size", step_size), levels)
    return criterion.attack(search, unbounded("l2", bounds))
