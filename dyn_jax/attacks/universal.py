"""One perturbation for all images, or one for each class: the batch is the training set."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.domains import pixels_of
from dyn_jax.attacks.threat import Bounds, Number, ball
from dyn_jax.objectives import Objective, resolve


class Universal(flax.struct.PyTreeNode):
    """The record: `delta` [example, 1, height, width, channel], the perturbation of each image before clipping.

    Other images are attacked by ``clip(images + delta, 0, 1)``.
    """

    delta: jax.Array


def universal(
    eps: Number,
    step_size: Number,
    steps: int,
    *,
    norm: str = "linf",
    objective: str | Objective = "ce",
    delta: jax.typing.ArrayLike | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """``delta <- project(delta + step_size * sign(sum of the gradients at clip(x_i + delta)))``, for all images x_i.

    The delta with the largest sum of objectives is kept; it is ``result.record.delta[0, 0]``. Attacks all images, also
    misclassified ones. By nature the result depends on the batch; a data set larger than a batch is gone through by
    passing the last delta on.

    Args:
      eps, step_size, norm, bounds: see `dyn_jax.attacks.bim`.
      steps: gradient steps; one more evaluation is of the last delta.
      objective: ``ce``, ``margin``, ``dlr`` or a callable, e.g. `dyn_jax.objectives.energy()` for a universal slowdown
        or ``hinge_margin()``, with which images that are broken no longer pull.
      delta: where to begin, [height, width, channel]; default 0.

    Raises as `dyn_jax.attacks.bim`; a delta of another shape; a ``start``; a point cloud. Source: Shafahi et al. 2020,
    algorithm 2, on the whole batch; Moosavi-Dezfooli et al. 2017 for the idea.
    """
    return _attack(eps, norm, bounds, objective, step_size, steps, delta, False)


def class_universal(
    eps: Number,
    step_size: Number,
    steps: int,
    *,
    norm: str = "linf",
    objective: str | Objective = "ce",
    delta: jax.typing.ArrayLike | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """`universal` with one delta for the images of every label.

    ``table.at[labels].set(result.record.delta[:, 0])`` makes the table [class, height, width, channel], the shape of
    `delta` too. Arguments and errors as of `universal`.
    """
    return _attack(eps, norm, bounds, objective, step_size, steps, delta, True)


def _attack(eps, norm, bounds, objective, step_size, steps, first, by_class) -> Attack:
    threat = ball(norm, eps, bounds)
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)

    def search(problem: Problem, keys: None, start: jax.Array | None) -> Found:
        domain = pixels_of(problem.domain, "points of different clouds do not correspond")
        if start is not None:
            raise ValueError("start: got some, expected None: a universal perturbation starts at `delta`")
        groups = problem.clean.logits.shape[1] if by_class else 1
        group = problem.labels if by_class else jnp.zeros_like(problem.labels)
        around_zero = problem.ball.replace(bounds=(-jnp.inf, jnp.inf))
        project = lambda delta: around_zero.project(delta, jnp.zeros_like(delta))
        total = lambda values: jax.ops.segment_sum(values, group, groups)
        moved = lambda delta: problem.project(domain.clean + delta[group])

        def step(state: tuple, _: None) -> tuple[tuple, Steps]:
            delta, best, value = state
            gradient, record = problem.gradient(moved(delta))
            now = total(jnp.where(problem.attacked & jnp.isfinite(record.loss), record.loss, 0))
            better = now > value
            best, value = jnp.where(domain.spread(better), delta, best), jnp.where(better, now, value)
            delta = project(delta + step_size * problem.ball.direction(total(gradient)))
            return (delta, best, value), record

        shape = (groups, *domain.clean.shape[1:])
        delta = jnp.zeros_like(domain.clean[:1]) + jnp.zeros(shape, domain.clean.dtype)
        if first is not None:
            if jnp.shape(first) not in (shape, shape[1:]):
                raise ValueError(f"delta: got shape {jnp.shape(first)}, expected {shape}")
            delta = project(delta + _validate.finite("delta", jnp.broadcast_to(first, shape), delta))
        worst = total(jnp.full_like(problem.losses(problem.clean), -jnp.inf)) - jnp.inf  # classes without images too
        (_, delta, _), records = jax.lax.scan(step, (delta, delta, worst), None, length=steps + 1)
        return Found(moved(delta), records, Universal(delta[group][None]))

    return Attack(search, threat, resolve(objective), attack_all=True)
