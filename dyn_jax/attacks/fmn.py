"""FMN (Pintor et al. 2021): gradient steps inside a ball whose radius follows the boundary."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Problem, Steps
from dyn_jax.attacks.criteria import Criterion, checked
from dyn_jax.attacks.domains import Domain
from dyn_jax.attacks.minimal import Descent, MinimalNorm, State, closest, cosine, largest_norm, length, unbounded
from dyn_jax.attacks.threat import Bounds, into_l1

_SMALL = 1e-12
_LEAST = 1e-3  # share of the norm that a step to the boundary has at least (not in the paper)
Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Fmn(Descent):
    """The search of `fmn`."""

    norm: str
    step_size: Range
    gamma: Range

    def step(self, problem: Problem, state: State, number: jax.Array) -> tuple[State, tuple[Steps, MinimalNorm]]:
        domain, threat = problem.domain, problem.ball
        done = number.astype(state.eps.dtype) / self.steps  # a quotient of integers would be float64 under x64
        alpha, gamma = cosine(*self.step_size, done), cosine(*self.gamma, done)
        delta = state.x - domain.clean
        gradient, output, record = problem.evaluate(state.x)
        held = self.criterion.holds(problem, problem.judged(state.x, output))
        parts = domain.split(gradient)
        size = length(threat, domain.split(delta))
        found = jnp.isfinite(state.best[1]) | held
        best = closest(problem, (state.x, size, held), state.best)

        to_boundary = jnp.abs(record.loss - self.criterion.level(problem)) / jnp.maximum(dual(self.norm, parts), _SMALL)
        # on the boundary itself rounding decides, and a step of length 0 would end the search
        to_boundary = jnp.maximum(to_boundary, _LEAST * size)
        outside = jnp.where(found, state.eps * (1 + gamma), size + to_boundary)
        eps = jnp.where(held, jnp.minimum(state.eps * (1 - gamma), best[1]), outside)
        eps = jnp.minimum(eps, largest_norm(domain, threat))
        eps = jnp.where(jnp.isfinite(eps), eps, size)  # nothing to go by: no gradient, or logits that are not finite

        steepness = jnp.maximum(length_l2(parts), _SMALL)
        delta = delta + gradient * domain.spread(alpha / steepness)
        x = domain.clean + self.projected(domain, eps, delta)
        return State(jnp.clip(x, *threat.bounds), eps, best), (record, MinimalNorm(size, held))

    def projected(self, domain: Domain, eps: jax.Array, delta: jax.Array) -> jax.Array:
        """Onto the cube of half-width eps, the L1 ball, or the sphere of radius eps (as the published numbers have)."""
        radius = domain.spread(eps)
        if self.norm == "linf":
            return jnp.clip(delta, -radius, radius)
        parts = domain.split(delta)
        if self.norm == "l1":
            endless = jnp.full_like(parts, jnp.inf)
            return domain.join(into_l1(parts, endless, eps.reshape(-1, *(1,) * (parts.ndim - 1))))
        return delta * (radius / domain.spread(jnp.maximum(length_l2(parts), _SMALL)))


def length_l2(parts: jax.Array) -> jax.Array:
    """[example], the L2 norm of [example, ...]."""
    return jnp.sqrt(jnp.sum(parts * parts, axis=tuple(range(1, parts.ndim))))


def dual(norm: str, parts: jax.Array) -> jax.Array:
    """[example], the gradient's norm that a step of unit `norm` gains at most."""
    if norm == "l2":
        return length_l2(parts)
    return (jnp.max if norm == "l1" else jnp.sum)(jnp.abs(parts), axis=tuple(range(1, parts.ndim)))


def fmn(
    steps: int = 100,
    *,
    norm: str = "linf",
    criterion: Criterion | None = None,
    step_size: Range = (1.0, 0.01),
    gamma: Range = (0.05, 0.001),
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """The smallest perturbation for which a criterion holds on the victim: the whole accuracy-against-eps curve.

    ``delta <- P(delta + step_size g / ||g||_2)``, P the projection onto the radius eps, then onto the box. Before
    anything was found eps is the linearised distance to the boundary, ``||delta|| + |loss| / ||g||*``; afterwards it
    shrinks by gamma (not above the best norm) where the criterion holds, and grows by gamma where it does not.

    ``result.record.smallest`` [example] is the norm found (infinite: none; 0: the criterion held on the clean value),
    `dyn_jax.metrics.robust_accuracy_at` turns it into the curve; ``result.adversarial`` is the perturbed value, the
    clean one where nothing was found. Deterministic. Of a cloud the norm is that of all its points.

    Args:
      steps: of both schedules; an evaluation each. The x after the last one is not evaluated.
      norm, bounds: see `dyn_jax.attacks.bim`; also ``l1``.
      criterion: of `dyn_jax.attacks.criteria`; default ``misclassified()``; ``recovered(0.5)`` finds the smallest
        perturbation that brings half of the saved computation back.
      step_size: first and last one, an L2 length whatever the norm; of points in metres.
      gamma: first and last relative change of eps.

    Raises:
      ValueError, TypeError: steps not a positive integer; unknown norm; a schedule that is no pair of numbers of at
        least 0; what the criterion raises.

    Source: Pintor et al. 2021, algorithm 1, with the constants and, for L2, the sphere of adversarial-library.
    """
    threat = unbounded(norm, bounds)
    _validate.positive_int("steps", steps)
    criterion = checked(criterion)
    search = Fmn(steps, criterion, jnp.inf, norm, _range("step_size", step_size), _range("gamma", gamma))
    return criterion.attack(search, threat)


def _range(name: str, got: Range) -> Range:
    try:
        first, last = got
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got {got!r}, expected (first, last)") from None
    return _validate.number(name, first, minimum=0), _validate.number(name, last, minimum=0)
