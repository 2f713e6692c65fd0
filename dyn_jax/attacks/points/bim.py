"""Point-BIM: iterated gradient steps of every point's coordinates inside a cube."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.points.base import Found, PointAttack, PointProblem, check_eps
from dyn_jax.objectives import Objective, resolve
from dyn_jax.types import Reach

PROTOCOLS = ("paper", "release")
DIRECTIONS = ("linf", "sign", "l2")


def direction_of(gradient: jax.Array, kind: str) -> jax.Array:
    """Per-point direction of a gradient [point, 3]; 0 where it is 0.

    ``linf``: ``g / (max_i |g_i| + 1e-8)``, the direction kept, length 1 in the maximum norm (LGM's release);
    ``sign``: BIM's; ``l2``: ``g / (|g| + 1e-8)`` (Liu et al. 2019).
    """
    if kind == "sign":
        return jnp.sign(gradient)
    size = jnp.abs(gradient)
    if kind == "linf":
        return gradient / (jnp.max(size, axis=1, keepdims=True) + 1e-8)
    square = jnp.sum(gradient * gradient, axis=1, keepdims=True)
    return gradient / (jnp.sqrt(jnp.where(square > 0, square, 1)) + 1e-8)


def point_bim(
    eps: jax.typing.ArrayLike,
    step_size: jax.typing.ArrayLike,
    steps: int,
    *,
    direction: str = "linf",
    objective: str | Objective = "ce",
    keep: str | None = None,
    protocol: str = "paper",
) -> PointAttack:
    """``p <- clip(p + step_size * direction(gradient))`` for every point, from the clean cloud.

    The forward pass is told how far a step leads (`Reach`), so that an occupancy that looks ahead sees the voxels
    that a point can get into next.

    Args:
      eps: half-width of the cube around every clean point, metres.
      step_size: largest coordinate change of one step, metres; at most one voxel.
      steps: evaluations of the gradient, at least 1.
      direction: ``linf``, ``sign`` or ``l2``, see `direction_of`.
      objective: ``ce``, ``margin``, ``dlr`` or a callable; mean over the rows that count.
      keep: ``last`` iterate, or the one with the ``worst`` mean IoU of the victim on the labels (targeted: on the
        targets, the best), the clean cloud included. Default: ``last``; in the release ``worst``.
      protocol: ``paper``; ``release``: every candidate voxel must be within eps of the clean point on some axis, and
        the last evaluation makes no step (`steps` - 1 of them).

    Raises:
      ValueError, TypeError: eps or step negative; steps not a positive integer; unknown names.

    Source: LGM paper section VI.A, after Liu et al. 2019; released code for the direction and `keep`.
    """
    eps = check_eps(eps)
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)
    _validate.choice("direction", direction, DIRECTIONS)
    _validate.choice("protocol", protocol, PROTOCOLS)
    keep = {"paper": "last", "release": "worst"}[protocol] if keep is None else keep
    _validate.choice("keep", keep, ("last", "worst"))

    def reach_from(problem: PointProblem) -> Reach:
        if protocol == "release":
            return Reach(step_size, problem.cloud.xyz, eps, "any")
        return Reach(step_size)

    def badness(problem: PointProblem, xyz: jax.Array) -> jax.Array:
        logits = problem.victim(problem.at(xyz)).logits
        if problem.targets is None:
            return -problem.mean_iou(logits)
        hits = (jnp.argmax(logits, axis=1) == problem.targets) & problem.counted
        return jnp.mean(hits.astype(logits.dtype))

    def search(problem: PointProblem, key: jax.Array | None) -> Found:
        del key
        reach = reach_from(problem)

        def step(state: tuple, number: jax.Array) -> tuple[tuple, tuple]:
            xyz, best, best_badness = state
            if keep == "worst":
                now = badness(problem, xyz)
                better = now > best_badness
                best, best_badness = jnp.where(better, xyz, best), jnp.where(better, now, best_badness)
            gradient, record, _ = problem.gradient(xyz, reach)
            moved = problem.project(xyz + step_size * direction_of(gradient, direction))
            if protocol == "release":
                moved = jnp.where(number == steps - 1, xyz, moved)
            return (moved, best, best_badness), record

        clean = problem.cloud.xyz
        start = (clean, clean, jnp.asarray(-jnp.inf, clean.dtype))
        (xyz, best, best_badness), records = jax.lax.scan(step, start, jnp.arange(steps))
        if keep == "worst":
            # the last iterate of the paper's form has not been looked at yet
            xyz = jnp.where(badness(problem, xyz) > best_badness, xyz, best)
        return Found(xyz, records)

    return PointAttack(search, eps, resolve(objective))
