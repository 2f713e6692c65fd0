"""FAB-T (Croce and Hein 2020): steps onto the linearised boundary towards one class after the other, never far away."""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp

from dyn_jax import _validate, objectives
from dyn_jax.attacks import hyperplane
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.minimal import MinimalNorm, begun, closest, length, within
from dyn_jax.attacks.threat import Bounds, Number, ball
from dyn_jax.types import Output

_LEAST = 1e-8  # norm of a step onto the plane, at least


def class_difference(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """``z_t - z_y``, [row]; the objective of one target."""
    at = lambda index: jnp.take_along_axis(output.logits, index[:, None], axis=1)[:, 0]
    if targets is None:
        raise ValueError("targets: got None, expected the classes whose boundary is looked for")
    return at(targets) - at(labels)


@dataclasses.dataclass(frozen=True)
class Walk(abc.ABC):
    """What `fab_t` and `fab` share, attributes as their arguments; they choose the plane that a step goes to."""

    norm: str
    steps: int
    alpha_max: jax.typing.ArrayLike
    eta: jax.typing.ArrayLike
    beta: jax.typing.ArrayLike

    def __post_init__(self) -> None:
        _validate.positive_int("steps", self.steps)
        for name in ("alpha_max", "eta", "beta"):
            object.__setattr__(self, name, _validate.number(name, getattr(self, name), minimum=0))  # "1/10" is one

    @abc.abstractmethod
    def step(self, problem: Problem, x: jax.Array) -> tuple[jax.Array, Steps]:
        """(one step from x, record)."""

    def onto(self, problem: Problem, x: jax.Array, w: jax.Array, gap: jax.Array) -> jax.Array:
        """The step to the plane ``w.z = b`` with ``gap = w.x - b`` [example], b being w.x - (z_t - z_y)."""
        domain, threat = problem.domain, problem.ball
        clean, parts = domain.clean, domain.split(w)
        clean_gap = gap + jnp.sum(domain.split(w * (clean - x)), axis=tuple(range(1, parts.ndim)))

        pair = lambda a, b: jnp.concatenate([a, b])  # one loop projects both
        both, gaps = pair(domain.split(x), domain.split(clean)), pair(gap, clean_gap)
        moves = hyperplane.step(self.norm, both, pair(parts, parts), gaps, threat.bounds)
        far, far_clean = jnp.split(jnp.maximum(length(threat, moves), _LEAST), 2)
        d, d_clean = map(domain.join, jnp.split(moves, 2))
        alpha = domain.spread(jnp.minimum(far / (far + far_clean), self.alpha_max))
        x = (1 - alpha) * (x + self.eta * d) + alpha * (clean + self.eta * d_clean)
        return jnp.clip(x, *threat.bounds)

    def walk(self, problem: Problem, best: tuple, first: jax.Array, aimed: Problem) -> tuple[tuple, tuple]:
        """`steps` steps of `aimed` from `first` -> (the best (x, norm) now, records)."""
        domain = problem.domain

        def step(state: tuple, _: None) -> tuple[tuple, tuple[Steps, MinimalNorm]]:
            x, best = state
            x, steps = self.step(aimed, x)
            held = problem.succeeds(problem.victim(x).logits) | ~problem.attacked
            norm = jnp.where(problem.attacked, self.measured(problem, x), 0)
            best = closest(problem, (x, norm, held), best)
            x = problem.pick(held, domain.clean + self.beta * (x - domain.clean), x)
            return (x, best), (steps, MinimalNorm(norm, held))

        (_, best), records = jax.lax.scan(step, (first, best), None, length=self.steps)
        return best, records

    def measured(self, problem: Problem, x: jax.Array) -> jax.Array:
        """[example], the norm of what was changed."""
        return length(problem.ball, problem.domain.split(x - problem.domain.clean))

    def nothing(self, problem: Problem) -> tuple[jax.Array, jax.Array]:
        """The best (x, norm) before the first step."""
        clean = problem.domain.clean
        return clean, jnp.full_like(self.measured(problem, clean), jnp.inf)

    def found(self, problem: Problem, best: tuple, records: tuple) -> Found:
        """Of records [walk, step, example]."""
        steps, record = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), records)
        return Found(within(problem, best[0]), steps, record)


@dataclasses.dataclass(frozen=True)
class TargetedFab(Walk):
    """The search of `fab_t`."""

    target_classes: int

    def step(self, problem: Problem, x: jax.Array) -> tuple[jax.Array, Steps]:
        """(one step from x towards the plane of `problem`'s targets, pulled to the clean value; record)."""
        w, record = problem.gradient(x)
        return self.onto(problem, x, w, record.loss), record

    def __call__(self, problem: Problem, keys: None, start: jax.Array | None) -> Found:
        problem.of_one_row("fab_t")
        ranked = likeliest_wrong(problem, self.target_classes)
        first = begun(problem, start)

        def towards(best: tuple, targets: jax.Array) -> tuple[tuple, tuple]:
            of_target = lambda output, labels, _=None: class_difference(output, labels, targets)
            return self.walk(problem, best, first, dataclasses.replace(problem, objective=of_target))

        return self.found(problem, *jax.lax.scan(towards, self.nothing(problem), ranked.T))


def likeliest_wrong(problem: Problem, count: int) -> jax.Array:
    """[example, count], the wrong classes with the largest clean logits, largest first; ValueError for too many."""
    logits = (problem.clean if problem.same else problem.forward(problem.domain.clean)).logits
    if count >= logits.shape[1]:
        raise ValueError(f"target_classes: got {count} of {logits.shape[1]} classes, expected fewer")
    wrong = jnp.where(jax.nn.one_hot(problem.labels, logits.shape[1], dtype=bool), -jnp.inf, logits)
    return jax.lax.top_k(wrong, count)[1]


def fab_t(
    eps: Number,
    steps: int = 100,
    *,
    target_classes: int = 9,
    norm: str = "linf",
    alpha_max: jax.typing.ArrayLike = 0.1,
    eta: jax.typing.ArrayLike = 1.05,
    beta: jax.typing.ArrayLike = 0.9,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """The smallest perturbation with which the victim errs, looked for at the boundaries to the likeliest classes.

    For each of the `target_classes` likeliest wrong classes t, from the clean value x0, with f = z_t - z_y and its
    plane P of the linearisation at x: ``x <- clip((1 - a) (x + eta (P(x) - x)) + a (x0 + eta (P(x0) - x0)))``, a being
    the first step's share of both lengths, at most `alpha_max`. Where the victim errs, whatever it says, x is kept if
    it is the nearest so far, and the search goes on from ``x0 + beta (x - x0)``.

    eps decides only at the end: the nearest x is returned if it lies within eps, else the clean value. The smallest
    norm found stands in ``result.record.smallest`` (see `MinimalNorm`) whatever eps is; with a large eps (1 is enough
    for Linf) the nearest x itself is returned. Deterministic. Of a cloud the norm is that of all its points.

    Args:
      eps, norm, bounds: see `dyn_jax.attacks.bim`.
      steps: for each class.
      target_classes: number of classes, at most classes - 1.
      alpha_max, eta, beta: bias towards the clean value, overshoot, and how far a step back goes.

    A ``start`` is where the search of every class begins. Raises as `dyn_jax.attacks.bim`; ``targets`` given to the
    attack; more target classes than wrong classes; a segmented cloud. Source: Croce and Hein 2020, "Minimally distorted
    adversarial examples with a fast adaptive boundary attack", algorithm 1 without the final search, as in AutoAttack's
    code; one restart, from the clean value.
    """
    threat = ball(norm, eps, bounds)
    _validate.positive_int("target_classes", target_classes)
    search = TargetedFab(norm, steps, alpha_max, eta, beta, target_classes)
    return Attack(search, threat, objectives.margin, reach=threat.eps)
