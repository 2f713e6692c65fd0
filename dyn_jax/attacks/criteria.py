"""When a search has found what it looks for: the victim errs, or it computes more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate, metrics
from dyn_jax.attacks.base import Attack, Problem, Search, Steps
from dyn_jax.attacks.threat import Threat
from dyn_jax.objectives.answers import Objective, resolve, untargeted, without_targets
from dyn_jax.types import Output


@dataclasses.dataclass(frozen=True)
class Criterion:
    """What a search ascends, and when it has found it.

    Attributes:
      objective: ascended on `forward`; a query attack reads it on the victim.
      level: problem -> [example] or a number: the objective's value on the boundary. Only a search that measures its
        distance to the boundary (`fmn`) reads it.
      holds: (problem, the victim's output) -> [example] bool.
      attack_all: also where the victim errs to begin with.
    """

    objective: Objective
    level: Callable[[Problem], jax.typing.ArrayLike]
    holds: Callable[[Problem, Output], jax.Array]
    attack_all: bool = False

    def __post_init__(self) -> None:
        for name in ("objective", "level", "holds"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, expected a callable")

    def asked(self, problem: Problem, x: jax.Array) -> tuple[jax.Array, jax.Array, Steps]:
        """What the victim tells a query attack about x: objective and whether it holds, [example]; the record."""
        output = problem.victim(x)
        value = problem.losses(output)
        return value, self.holds(problem, output), problem.observed(output, value, ~jnp.isfinite(value))

    def attack(self, search: Search, threat: Threat, **fields: Any) -> Attack:
        """The attack that looks for it."""
        return Attack(search, threat, self.objective, attack_all=self.attack_all, **fields)


def checked(criterion: Criterion | None, default: str = "margin") -> Criterion:
    """`criterion`, by default `misclassified`; raises TypeError unless it is one."""
    if criterion is None:
        return misclassified(default)
    if not isinstance(criterion, Criterion):
        raise TypeError(f"criterion: got {type(criterion).__name__}, expected one of dyn_jax.attacks.criteria")
    return criterion


def misclassified(objective: str | Objective = "margin", *, attack_all: bool = False) -> Criterion:
    """The victim errs (says the target, where there are targets).

    Args:
      objective: what is ascended; ``margin`` is 0 on the boundary, as `fmn` needs it.
      attack_all: also perturb examples that are misclassified to begin with.
    """
    errs = lambda problem, output: problem.succeeds(output.logits)
    return Criterion(resolve(objective), lambda problem: 0.0, errs, attack_all)


def executed_share(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Executed over dense multiply-adds, [example]: an objective; with a soft occupancy the expected share.

    Raises:
      ValueError: a network without units, or with voxels, which have no dense cost; targets.
    """
    untargeted(targets)
    return metrics.executed_macs(output.trace) / float(metrics.dense_macs(output.trace))


def recovered(share: jax.typing.ArrayLike, objective: Objective = executed_share) -> Criterion:
    """At least `share` of the multiply-adds that the victim saved on the clean value runs: "recovery >= share".

    An example that saves nothing to begin with meets it at once.

    Args:
      share: of the saved computation, above 0; 1: everything runs. May be traced.
      objective: what is ascended. The executed share needs an occupancy with a derivative in `forward`;
        `dyn_jax.objectives.energy()` has one through the scores whatever the occupancy, but no level of its own, so
        that `fmn` measures its distance to the boundary with another ruler than its gradient.

    Raises:
      ValueError: share not in (0, 1]; when called, what `executed_share` raises.

    Source: GradAuto section 5 ("Metric") for the share.
    """
    share = _validate.positive("share", share)
    if _validate.is_concrete(share) and np.asarray(share) > 1:
        raise ValueError(f"share: got {share}, expected at most 1: no more than everything can run")

    def level(problem: Problem) -> jax.Array:
        clean = executed_share(problem.clean, problem.labels)
        return clean + share * (1 - clean)

    # sums of shares round
    holds = lambda problem, output: executed_share(output, problem.labels) >= level(problem) - 1e-6

    return Criterion(objective, level if objective is executed_share else lambda problem: 0.0, holds, attack_all=True)


def increased(by: jax.typing.ArrayLike) -> Criterion:
    """The victim executes at least ``1 + by`` times the multiply-adds of the clean value; for voxels too.

    Args:
      by: share, above 0. May be traced.

    Raises:
      ValueError: `by` not positive; when called, a network without units, or targets.
    """
    by = _validate.positive("by", by)

    log_macs = lambda output: jnp.log(jnp.maximum(metrics.executed_macs(output.trace), 1.0))
    level = lambda problem: log_macs(problem.clean) + jnp.log1p(by)
    holds = lambda problem, output: log_macs(output) >= level(problem) - 1e-6
    return Criterion(without_targets(lambda output, labels: log_macs(output)), level, holds, attack_all=True)


def never(objective: str | Objective) -> Criterion:
    """Nothing is enough: the search goes on to its last step and keeps the largest objective, e.g. of energy."""
    none = lambda problem, output: jnp.zeros_like(problem.attacked)
    return Criterion(resolve(objective), lambda problem: 0.0, none, attack_all=True)
