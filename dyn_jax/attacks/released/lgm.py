"""LGM's released attacks: eps in steps of 2/255 (`eps_units`), a box of (-1, 1) around [0, 1] images, and what else.

Arguments as of the attacks of the same name in `dyn_jax.attacks`; eps stays in pixel units here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dyn_jax import _validate, metrics
from dyn_jax.attacks.ascent import ascent
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.bim import bim as _bim
from dyn_jax.attacks.fgsm import fgsm as _fgsm
from dyn_jax.attacks.lgm_auto_step import lgm_auto_step as _auto_step
from dyn_jax.attacks.lgm_carlini_wagner import lgm_carlini_wagner as _carlini_wagner
from dyn_jax.attacks.mi_fgsm import momentum
from dyn_jax.attacks.pgd import unclipped
from dyn_jax.attacks.point_bim import direction_of
from dyn_jax.attacks.threat import Number, ball
from dyn_jax.objectives import Objective, hinge_margin, released_margin, resolve
from dyn_jax.types import Reach

BOUNDS = (-1.0, 1.0)


def eps_units(units: float) -> float:
    """The released eps and step units, "8" -> 16/255: the scale of a [-1, 1] image, applied to [0, 1] images."""
    return units * 2.0 / 255.0


def fgsm(eps: Number, **options: Any) -> Attack:
    """`dyn_jax.attacks.fgsm` in the box (-1, 1), so that pixels go below 0."""
    return _fgsm(eps, bounds=BOUNDS, **options)


def bim(eps: Number, step_size: Number, steps: int, **options: Any) -> Attack:
    """`dyn_jax.attacks.bim` in the box (-1, 1)."""
    return _bim(eps, step_size, steps, bounds=BOUNDS, **options)


def pgd(eps: Number, step_size: Number, steps: int, *, objective: str | Objective = "ce") -> Attack:
    """`dyn_jax.attacks.pgd` whose start is not clipped to the box; examples left alone come back with its noise."""
    return unclipped(ball("linf", eps, BOUNDS), step_size, steps, objective=resolve(objective), keep_start=True)


def batch_mean_normalised(gradient: jax.Array) -> jax.Array:
    """``g / mean|g|`` over the whole batch, zeros included. Depends on the batch."""
    mean = jnp.mean(jnp.abs(gradient))
    return gradient / jnp.where(mean > 0, mean, 1)


def mi_fgsm(
    eps: Number, step_size: Number, steps: int, *, decay: float = 1.0, objective: str | Objective = "ce"
) -> Attack:
    """`dyn_jax.attacks.mi_fgsm` with the mean over the batch, so that examples influence each other, in (-1, 1)."""
    threat = ball("linf", eps, BOUNDS)
    directions = momentum(threat, decay, batch_mean_normalised)
    return ascent(threat, step_size, steps, *directions, objective=resolve(objective))


def carlini_wagner(eps: Number, step_size: Number, steps: int, *, confidence: float = 0.0) -> Attack:
    """`dyn_jax.attacks.lgm_carlini_wagner` with `dyn_jax.objectives.released_margin`, in (-1, 1)."""
    return _carlini_wagner(eps, step_size, steps, objective=hinge_margin(confidence, released_margin), bounds=BOUNDS)


def auto_step(eps: Number, step_size: Number, steps: int, **options: Any) -> Attack:
    """`dyn_jax.attacks.lgm_auto_step` in the box (-1, 1)."""
    return _auto_step(eps, step_size, steps, bounds=BOUNDS, **options)


def worst_of_clouds(
    problem: Problem,
    start: jax.Array | None,
    steps: int,
    badness_of: Callable[[jax.Array, jax.Array, int], jax.Array],
    moved: Callable[[jax.Array], tuple[jax.Array, Steps]],
) -> Found:
    """The iterate of every cloud on which the victim is worst, the clean one too; the last evaluation makes no step.

    ``badness_of(predictions [row], which rows of one cloud count [row], classes)`` says how bad;
    ``moved(x)`` is x after a step, and the record.
    """
    clean, domain = problem.domain.clean, problem.domain
    own, counted = domain.split(jnp.ones_like(clean))[..., 0] > 0, problem.counted
    # rows are points, or clouds where a network classifies them
    own = (own if own.shape[1:] == counted.shape else jnp.eye(len(counted), dtype=bool)) & counted[None]

    def badness(x: jax.Array) -> jax.Array:
        logits = problem.victim(x).logits
        predictions = jnp.argmax(logits, axis=1)
        return jax.vmap(lambda rows: badness_of(predictions, rows, logits.shape[1]))(own)

    def step(state: tuple, number: jax.Array) -> tuple[tuple, Steps]:
        x, best, worst = state
        now = badness(x)
        best, worst = problem.pick(now > worst, x, best), jnp.maximum(now, worst)
        further, record = moved(x)
        return (jnp.where(number == steps - 1, x, further), best, worst), record

    first = clean if start is None else problem.project(start)
    (_, best, _), records = jax.lax.scan(step, (first, clean, badness(clean)), jnp.arange(steps))
    return Found(best, records)


def point_bim(
    eps: jax.typing.ArrayLike,
    step_size: jax.typing.ArrayLike,
    steps: int,
    *,
    direction: str = "linf",
    objective: str | Objective = "ce",
) -> Attack:
    """`dyn_jax.attacks.point_bim` on segmented clouds, keeping of each the iterate with the victim's worst mean IoU.

    The clean cloud is among the candidates; targeted, the iterate with most rows at their target is kept. Every
    candidate voxel must be within eps of the clean point on some axis, and the last evaluation makes no step.
    """
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        reach = Reach(step_size, problem.domain.clean, eps, "any")

        def badness_of(predictions: jax.Array, own: jax.Array, classes: int) -> jax.Array:
            if problem.targets is not None:
                return jnp.mean(((predictions == problem.targets) & own).astype(problem.clean.logits.dtype))
            labels = jnp.where(own, problem.labels, -1)
            return -metrics.mean_iou(metrics.confusion(predictions, labels, classes))

        def moved(x: jax.Array) -> tuple[jax.Array, Steps]:
            gradient, record = problem.gradient(x, reach)
            return problem.project(x + step_size * direction_of(gradient, direction)), record

        return worst_of_clouds(problem, start, steps, badness_of, moved)

    return Attack(search, ball("linf", eps), resolve(objective), attack_all=True, reach=step_size)
