"""When a search has found what it looks for: the victim errs, or it computes more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate, metrics
from dyn_jax.attacks.base import Problem
from dyn_jax.objectives import Objective, resolve
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


def misclassified(objective: str | Objective = "margin", *, attack_all: bool = False) -> Criterion:
    """The victim errs (says the target, where there are targets).

    Args:
      objective: what is ascended; ``margin`` is 0 on the boundary, as `fmn` needs it.
      attack_all: also perturb examples that are misclassified to begin with.
    """
    objective = resolve(objective)
    return Criterion(
        objective, lambda problem: 0.0, lambda problem, output: problem.succeeds(output.logits), attack_all
    )


def executed_share(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Executed over dense multiply-adds, [example]: an objective; with a soft occupancy the expected share.

    Raises:
      ValueError: a network without units, or with voxels, which have no dense cost; targets.
    """
    _no_targets(targets)
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

    def holds(problem: Problem, output: Output) -> jax.Array:
        now = executed_share(output, problem.labels)
        return now >= level(problem) - 1e-6  # sums of shares round

    return Criterion(objective, level if objective is executed_share else lambda problem: 0.0, holds, attack_all=True)


def increased(by: jax.typing.ArrayLike) -> Criterion:
    """The victim executes at least ``1 + by`` times the multiply-adds of the clean value; for voxels too.

    Args:
      by: share, above 0. May be traced.

    Raises:
      ValueError: `by` not positive; when called, a network without units, or targets.
    """
    by = _validate.positive("by", by)

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        _no_targets(targets)
        return jnp.log(jnp.maximum(metrics.executed_macs(output.trace), 1.0))

    def level(problem: Problem) -> jax.Array:
        return objective(problem.clean, problem.labels) + jnp.log1p(by)

    def holds(problem: Problem, output: Output) -> jax.Array:
        return objective(output, problem.labels) >= level(problem) - 1e-6

    return Criterion(objective, level, holds, attack_all=True)


def never(objective: str | Objective) -> Criterion:
    """Nothing is enough: the search goes on to its last step and keeps the largest objective, e.g. of energy."""
    none = lambda problem, output: jnp.zeros_like(problem.attacked)
    return Criterion(resolve(objective), lambda problem: 0.0, none, attack_all=True)


def _no_targets(targets: Any) -> None:
    if targets is not None:
        raise ValueError("targets: got some, expected None: an attack on the energy has no target class")
