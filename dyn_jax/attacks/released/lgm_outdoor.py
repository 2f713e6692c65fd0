"""LGM's released attack on Cylinder3D: settings by budget, the loss on cells, and the iterate that is kept.

Use it with ``form=sparse3d.OUTDOOR_RELEASE`` and the occupancy of `settings`.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate, metrics
from dyn_jax.attacks.ascent import each_step
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.released.lgm import worst_of_clouds
from dyn_jax.attacks.threat import ball
from dyn_jax.objectives import Objective, lovasz_softmax
from dyn_jax.occupancy import voxel
from dyn_jax.types import Output

STEPS = 30
"""Evaluations; the last makes no step."""


@flax.struct.dataclass
class OverflowingSigmoid:
    """`voxel.sigmoid` written as ``1 / (1 + exp(lam (d - 1/2)))``: where float32 overflows, more than
    ``88.7 / lam`` cells outside a face, the derivative is NaN, and the point makes no step."""

    lam: jax.typing.ArrayLike

    def __call__(self, distance: jax.Array, inside: jax.Array) -> jax.Array:
        return jnp.prod(1 / (1 + jnp.exp(jnp.asarray(self.lam, distance.dtype) * (distance - 0.5))), axis=-1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the release pairs with a budget."""

    step_size: float  # metres
    input_lam: float  # slope of the relation of features
    network_lam: float  # and of occupancy

    def occupancy(self) -> voxel.VoxelOccupancy:
        """The occupancy of LGM; FGM's is None."""
        into = OverflowingSigmoid(self.input_lam)
        return voxel.VoxelOccupancy(into, OverflowingSigmoid(self.network_lam), into)


def settings(eps: float) -> Settings:
    """The settings of a budget in metres: 0.005, 0.01, 0.02, 0.05."""
    table = {0.005: Settings(0.0025, 10, 250), **dict.fromkeys((0.01, 0.02, 0.05), Settings(0.005, 10, 200))}
    if eps not in table:
        raise ValueError(f"eps: got {eps}, expected one of {', '.join(map(str, table))} (metres)")
    return table[eps]


def cell_labels(labels: jax.Array, cell: jax.Array, cells: int, classes: int) -> jax.Array:
    """[cell], the label of most points of each cell, of equals the smaller one; 0 for an empty one. Label 0 votes."""
    votes = jnp.zeros((cells, classes), jnp.int32).at[cell, labels].add(1, mode="drop")
    return jnp.argmax(votes, axis=1).astype(jnp.int32)


def cell_lovasz() -> Objective:
    """`lovasz_softmax` of the scores of a scan's cells against `cell_labels`, cells with label 0 left out.

    It reads the extras of the trace's first unit, as `Cylinder3D` writes them.
    """

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        extras = output.trace.units[0].extras if output.trace.units else {}
        if not {"cell", "scores"} <= set(extras):
            raise ValueError("output: got a trace without the scores of cells, expected that of a Cylinder3D")
        wanted, own = labels if targets is None else targets, output.trace.units[0].on

        def of_scan(own: jax.Array, cell: jax.Array, scores: jax.Array) -> jax.Array:
            of_cell = cell_labels(wanted, jnp.where(own, cell, len(scores)), *scores.shape)
            return lovasz_softmax(jax.nn.softmax(scores), of_cell, of_cell != 0)

        loss = jax.vmap(of_scan)(own, extras["cell"], extras["scores"])
        loss = jnp.sum(jnp.where(own, loss[:, None], 0), axis=0)
        return loss if targets is None else -loss

    return objective


def _normalised(gradient: jax.Array) -> jax.Array:
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
    return gradient / (jnp.max(jnp.abs(gradient), axis=1, keepdims=True) + 1e-12)


def normalised() -> optax.GradientTransformation:
    """``g / (max_i |g_i| + 1e-12)`` for every point, numbers that are not finite as 0."""
    return each_step(_normalised)


def scan_bim(eps: float, steps: int = STEPS, *, objective: Objective | None = None) -> Attack:
    """`dyn_jax.attacks.point_bim` on scans, keeping of each the iterate with the worst mean IoU of the victim.

    The mean is over the classes that occur or are predicted, without class 0, whose points do not count. The clean
    scan is among the candidates, and the last evaluation makes no step.

    Args:
      eps: half-width of the cube around every point, metres; one that `settings` knows.
      steps: evaluations.
      objective: default `cell_lovasz`.
    """
    step_size = settings(eps).step_size
    _validate.positive_int("steps", steps)

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        wanted = problem.labels if problem.targets is None else problem.targets

        def badness_of(said: jax.Array, own: jax.Array, classes: int) -> jax.Array:
            matrix = metrics.confusion(said, jnp.where(own, wanted, -1), classes, ignore=0)
            value = metrics.mean_iou(matrix[1:, 1:], absent="skip")
            return -value if problem.targets is None else value

        def moved(x: jax.Array) -> tuple[jax.Array, Steps]:
            gradient, output, losses = problem.pulled(x)
            record = problem.observed(output, losses, problem.finite(gradient)[1])
            # a NaN stays until here: the release drops single coordinates, not whole points
            return problem.project(x + step_size * _normalised(gradient)), record

        return worst_of_clouds(problem, start, steps, badness_of, moved)

    return Attack(search, ball("linf", eps), objective or cell_lovasz(), attack_all=True, reach=step_size)
