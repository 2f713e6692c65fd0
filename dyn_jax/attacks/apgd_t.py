"""APGD-T (Croce and Hein 2020): APGD on the targeted DLR loss, once for each of the likeliest wrong classes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.apgd import Course, runs
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.fab_t import likeliest_wrong
from dyn_jax.attacks.restarts import better_of, folded, nothing
from dyn_jax.attacks.threat import Bounds, Number, ball
from dyn_jax.objectives import Objective, margin, resolve


def apgd_t(
    eps: Number,
    steps: int = 100,
    *,
    target_classes: int = 9,
    norm: str = "linf",
    objective: str | Objective = "dlr",
    course: Course = Course(),  # noqa: B008
    bounds: Bounds = (0.0, 1.0),
    attack_all: bool = False,
) -> Attack:
    """Untargeted criterion, targeted loss: for each example and each of its `target_classes` likeliest wrong classes.

    Per example the first result that the victim misclassifies is kept, else the one with the largest margin.

    Args:
      eps, steps, norm, course, bounds, attack_all: see `dyn_jax.attacks.apgd`.
      target_classes: number of classes tried, at most classes - 1.
      objective: used with ``targets`` set; ``dlr`` is the paper's.

    Raises as `dyn_jax.attacks.apgd`; ``targets`` given to the attack; more target classes than wrong classes; a
    segmented cloud. Source: Croce and Hein 2020, section 4 (9 target classes, 100 steps; in L1 AutoAttack takes 5).
    """
    threat = ball(norm, eps, bounds)
    run = runs(steps, course)
    _validate.positive_int("target_classes", target_classes)
    loss = resolve(objective)

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        problem.of_one_row("apgd_t")
        ranked = likeliest_wrong(problem, target_classes)

        def attack(best: tuple, number: jax.Array) -> tuple[tuple, Steps | None]:
            targets = jax.lax.dynamic_index_in_dim(ranked, number, axis=1, keepdims=False)
            # the loss aims, the criterion stays: any error will do
            aimed = dataclasses.replace(problem, objective=lambda output, labels, _=None: loss(output, labels, targets))
            found = run(aimed, folded(keys, number), start)
            output = problem.victim(found.x)
            score = problem.succeeds(output.logits), margin(output, problem.labels)
            return better_of(problem, (found.x, score), best), found.steps

        (best, _), records = jax.lax.scan(attack, nothing(problem), jnp.arange(target_classes))
        return Found(best, jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), records))

    return Attack(search, threat, margin, random=True, attack_all=attack_all, reach=threat.eps)
