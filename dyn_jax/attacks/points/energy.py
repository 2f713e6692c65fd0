"""Energy attacks on point clouds: points move so that more voxels, and more of their neighbours, exist."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate, metrics, objectives
from dyn_jax.attacks.energy import Combine, Gradients
from dyn_jax.attacks.grad_auto import check_rate, combined
from dyn_jax.attacks.points.base import Found, PointAttack, PointProblem, Steps, check_eps
from dyn_jax.attacks.rectify import Rectified
from dyn_jax.types import Output, Reach

KEEP = ("most", "last")


@dataclasses.dataclass(frozen=True)
class PointEnergySearch:
    """Adam on the coordinates inside the cube; see `dyn_jax.attacks.energy.EnergySearch` for the parts.

    A unit's element is an output voxel. With a soft occupancy the voxels within reach are elements too: the complexity
    loss raises the occupancy of those that do not exist yet, the finished loss keeps those that do.

    Attributes:
      combine: (gradients [1, point, 3], step number) -> the gradient that Adam gets.
      steps, learning_rate: of Adam, metres.
      reach: metres a point can get in one step, for occupancies that look ahead.
      finished_from: step from which the finished gradient is computed; None: never.
      keep: ``most``: the iterate that executes most on the victim; ``last``.
    """

    combine: Combine
    steps: int
    learning_rate: jax.typing.ArrayLike
    reach: jax.typing.ArrayLike
    finished_from: int | None
    keep: str

    def __call__(self, problem: PointProblem, key: jax.Array | None) -> Found:
        if problem.targets is not None:
            raise ValueError("targets: got some, expected None: an attack on the energy has no target class")
        clean, valid = problem.cloud.xyz, problem.cloud.valid[:, None]
        adam, reach = optax.adam(self.learning_rate), Reach(self.reach)

        def distance(xyz: jax.Array) -> jax.Array:
            square = jnp.sum(jnp.where(valid, xyz - clean, 0) ** 2)
            return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

        def step(state: tuple, number: jax.Array) -> tuple[tuple, Steps]:
            xyz, adam_state, best, most = state

            def evaluate(xyz: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Output]:
                output = problem.forward(problem.at(xyz, reach))
                losses = objectives.complexity_loss(output.trace), objectives.finished_loss(output.trace)
                return losses, output

            (complexity, _), pull, output = jax.vjp(evaluate, xyz, has_aux=True)
            one, zero = jnp.ones_like(complexity), jnp.zeros_like(complexity)
            g_finished = jnp.zeros_like(xyz)
            if self.finished_from is not None:
                late = number >= self.finished_from
                g_finished = jax.lax.cond(late, lambda: pull((zero, one))[0], lambda: jnp.zeros_like(xyz))
            parts = (pull((one, zero))[0], g_finished, jax.grad(distance)(xyz))
            gradient = self.combine(Gradients(*(part[None] for part in parts)), number).gradient[0]
            finite = jnp.all(jnp.isfinite(gradient), axis=1, keepdims=True)
            update, adam_state = adam.update(jnp.where(finite & valid, gradient, 0), adam_state)
            moved = problem.project(xyz + update)
            if self.keep == "most":
                executed = jnp.sum(metrics.executed_macs(problem.victim(problem.at(moved)).trace))
                best, most = jnp.where(executed > most, moved, best), jnp.maximum(executed, most)
            else:
                best = moved
            units = output.trace.units
            voxels = jnp.max(jnp.stack([jnp.sum(unit.occupancy > 0) for unit in units]))
            overflow = output.trace.overflow
            record = Steps(
                -jnp.sum(complexity),
                voxels,
                jnp.sum(metrics.executed_macs(output.trace)),
                ~jnp.all(finite),
                jnp.zeros((), bool) if overflow is None else overflow,
            )
            return (moved, adam_state, best, most), record

        before = jnp.sum(metrics.executed_macs(problem.victim(problem.at(clean)).trace))
        state = (clean, adam.init(clean), clean, before)
        (_, _, best, _), records = jax.lax.scan(step, state, jnp.arange(self.steps))
        return Found(best, records)


def point_grad_auto(
    eps: jax.typing.ArrayLike,
    lipschitz: jax.typing.ArrayLike = 1.0,
    *,
    steps: int = 50,
    learning_rate: jax.typing.ArrayLike = 0.005,
    magnitude: bool = True,
    direction: bool = True,
    direction_from: int | None = None,
    reach: jax.typing.ArrayLike | None = None,
    keep: str = "most",
) -> PointAttack:
    """GradAuto on coordinates: `dyn_jax.attacks.grad_auto` without the change of variable, inside a cube.

    ``steps.macs`` of the result are the multiply-adds of the pass that was differentiated (with a soft occupancy,
    their expectation); ``dyn_jax.metrics.increase(result.trace_clean, result.trace_adversarial)`` is the measure, since
    voxels have no dense cost to recover.

    Args:
      eps: half-width of the cube around every point, metres.
      lipschitz: K; a number or an array inside a vmap.
      steps, learning_rate: of Adam; metres.
      magnitude, direction, direction_from: see `grad_auto`.
      reach: metres a point can get in one step; None: twice the learning rate, at most one voxel is allowed.
      keep: ``most`` or ``last``.

    Raises:
      ValueError, TypeError: a number out of range, an unknown name.

    Source: GradAuto section 4, with voxels as units.
    """
    lipschitz = _validate.number("lipschitz", lipschitz)
    if _validate.is_concrete(lipschitz) and not jnp.all(jnp.asarray(lipschitz) > 0):
        raise ValueError(f"lipschitz: got {lipschitz}, expected a positive Lipschitz constant K")
    _validate.positive_int("steps", steps)
    begin = steps // 2 if direction_from is None else _validate.positive_int("direction_from", direction_from, 0)
    combine = combined(lipschitz, magnitude, direction)
    return _attack(eps, combine, steps, learning_rate, reach, begin if direction else None, keep)


def point_ilfo(
    eps: jax.typing.ArrayLike,
    *,
    weight: jax.typing.ArrayLike = 1e5,
    steps: int = 50,
    learning_rate: jax.typing.ArrayLike = 0.005,
    reach: jax.typing.ArrayLike | None = None,
    keep: str = "most",
) -> PointAttack:
    """ILFO on coordinates: Adam on ``distance + c complexity``. Arguments as of `point_grad_auto` and `ilfo`."""
    weight = _validate.number("weight", weight, minimum=0)
    _validate.positive_int("steps", steps)

    def combine(gradients: Gradients, number: jax.Array) -> Rectified:
        scale = jnp.asarray(weight, gradients.complexity.dtype)
        return Rectified(scale * gradients.complexity + gradients.distortion, jnp.zeros(1, bool))

    return _attack(eps, combine, steps, learning_rate, reach, None, keep)


def _attack(eps, combine, steps, learning_rate, reach, finished_from, keep) -> PointAttack:
    check_rate(learning_rate)
    _validate.choice("keep", keep, KEEP)
    reach = 2 * learning_rate if reach is None else _validate.number("reach", reach, minimum=0)
    search = PointEnergySearch(combine, steps, learning_rate, reach, finished_from, keep)
    return PointAttack(search, check_eps(eps), objectives.energy())
