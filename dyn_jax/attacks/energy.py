"""The search that the energy attacks share: Adam on a perturbation, in one scan, with a record of what the gates did.

A method says how the gradients of the complexity loss, the finished loss and the distortion become the gradient that
Adam gets. The network is passed through once a step; its derivative is pulled back once for each loss that is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dyn_jax import metrics, objectives
from dyn_jax.attacks import rectify
from dyn_jax.attacks.base import Found, Problem
from dyn_jax.attacks.tanh_space import Change
from dyn_jax.types import Trace, UnitTrace

KEEP = ("most", "least_loss", "last")


@flax.struct.dataclass
class EnergySteps:
    """What every step saw before it moved: arrays [step, batch], ``gating`` and ``on`` [step, batch, unit].

    Attributes:
      complexity: the complexity loss; 0 where every element is on, so that there is nothing to do.
      finished: the finished loss; 0 where none is on.
      distortion: what the attack keeps small, in its own unit.
      complexity_norm, finished_norm: L2 norms of their gradients by delta, before they are rectified.
      cosine: of the angle between the two gradients (figure 2C); 0 where either is 0 or was not needed.
      projected: bool, a component against the finished gradient was taken off.
      zero_gradient: bool, something is off but the gradient that could switch it on is exactly 0 (saturated gates,
        saliencies below their ReLU).
      gating: mean over a unit's elements of the gating value minus its threshold (figures 1C, 2A).
      on: share of a unit's elements that are on.
      switched_on, switched_off: elements that changed since the step before.
    """

    complexity: jax.Array
    finished: jax.Array
    distortion: jax.Array
    complexity_norm: jax.Array
    finished_norm: jax.Array
    cosine: jax.Array
    projected: jax.Array
    zero_gradient: jax.Array
    gating: jax.Array
    on: jax.Array
    switched_on: jax.Array
    switched_off: jax.Array


@dataclasses.dataclass(frozen=True)
class Gradients:
    """What a method combines, all like delta: of the complexity loss, the finished loss, the distortion."""

    complexity: jax.Array
    finished: jax.Array
    distortion: jax.Array


Combine = Callable[[Gradients, jax.Array], rectify.Rectified]
Losses = Callable[[Trace, jax.Array], tuple[jax.Array, jax.Array]]


def gate_losses(tau: jax.typing.ArrayLike | None, weights: objectives.Weights) -> Losses:
    """Eq. 6 and 20: `objectives.complexity_loss` and `objectives.finished_loss`, the same at every step."""

    def losses(trace: Trace, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        del number
        return (
            objectives.complexity_loss(trace, tau=tau, weights=weights),
            objectives.finished_loss(trace, tau=tau, weights=weights),
        )

    return losses


@dataclasses.dataclass(frozen=True)
class EnergySearch:
    """``search(problem, keys, start) -> Found``.

    Attributes:
      combine: (gradients, step number) -> the gradient that Adam gets.
      losses: (trace, step number) -> (complexity [batch], finished [batch]).
      change: from delta to an image.
      distance: (image, clean) -> [batch], the distortion.
      steps, learning_rate: of Adam.
      weight: of the complexity loss in the total that ``keep="least_loss"`` compares; None: the number of values of an
        image, as in eq. 7.
      finished_from: step from which the finished gradient is computed; None: never.
      drift: weight of `objectives.logit_drift` in the distortion.
      keep: which iterate is returned: ``most``: the one that executes most on the victim, the closest among equals;
        ``least_loss``: least ``weight * complexity + distortion``; ``last``.
      update_last: whether the last step's update still counts (the release reports what it saw before it).
      tau: for the record.
      prepare: (problem, image, step number) -> the forward pass that is differentiated at that image; None: the
        problem's own.
    """

    combine: Combine
    losses: Losses
    change: Change
    distance: Callable[[jax.Array, jax.Array], jax.Array]
    steps: int
    learning_rate: jax.typing.ArrayLike
    weight: jax.typing.ArrayLike | None = None
    finished_from: int | None = None
    drift: jax.typing.ArrayLike = 0.0
    keep: str = "most"
    update_last: bool = True
    tau: jax.typing.ArrayLike | None = 0.5
    prepare: Callable[[Problem, jax.Array, jax.Array], Callable] | None = None

    def __call__(self, problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        if problem.targets is not None:
            raise ValueError("targets: got some, expected None: an attack on the energy has no target class")
        if start is not None:
            raise ValueError("start: got some, expected None: an attack on the energy starts at delta = 0")
        images = problem.images
        if not problem.clean.trace.units:
            raise ValueError("forward: got a network without adaptive units (trace.units is empty), expected some")
        adam = optax.adam(self.learning_rate)
        delta = jnp.zeros_like(images)
        zeros = jnp.zeros(images.shape[0], images.dtype)
        weight = images[0].size if self.weight is None else self.weight
        keeps_logits = not (isinstance(self.drift, (int, float)) and self.drift == 0)

        def to_image(delta: jax.Array) -> jax.Array:
            x = self.change.to_image(images, delta)
            return x if problem.mask is None else images + (x - images) * problem.mask

        def judge(x: jax.Array, output: object) -> tuple[jax.Array, jax.Array]:
            """(rank of an iterate, distortion), both [batch], the larger rank the better."""
            away = self.distance(x, images)
            if self.keep == "least_loss":
                return -(weight * self.losses(output.trace, self.steps)[0] + away), away
            trace = output.trace if problem.victim is problem.forward else problem.victim(x).trace
            return metrics.executed_macs(jax.lax.stop_gradient(trace)), away

        def step(state: tuple, number: jax.Array) -> tuple[tuple, tuple]:
            delta, adam_state, best, before = state
            forward = problem.forward if self.prepare is None else self.prepare(problem, to_image(delta), number)

            def evaluate(delta: jax.Array) -> tuple[tuple, tuple]:
                x = to_image(delta)
                output = forward(x)
                complexity, finished = self.losses(output.trace, number)
                drift = objectives.logit_drift(output, problem.clean.logits) if keeps_logits else zeros
                return (complexity, finished, drift), (x, output)

            (complexity, finished, _), pull, (x, output) = jax.vjp(evaluate, delta, has_aux=True)
            one = problem.attacked.astype(complexity.dtype)
            of = lambda *cotangents: pull(tuple(c.astype(complexity.dtype) for c in cotangents))[0]
            g_complexity = of(one, zeros, zeros)
            g_finished = jnp.zeros_like(delta)
            if self.finished_from is not None:
                late = number >= self.finished_from
                g_finished = jax.lax.cond(late, lambda: of(zeros, one, zeros), lambda: jnp.zeros_like(delta))
            g_distortion = jax.grad(lambda d: jnp.sum(one * self.distance(to_image(d), images)))(delta)
            if keeps_logits:
                g_distortion += of(zeros, zeros, one * self.drift)
            gradients = Gradients(g_complexity, g_finished, g_distortion)
            rectified = self.combine(gradients, number)
            bad = ~jnp.all(jnp.isfinite(rectified.gradient), axis=(1, 2, 3))
            update, adam_state = adam.update(jnp.where(bad[:, None, None, None], 0, rectified.gradient), adam_state)
            if self.keep != "last":
                best = _better(best, x, *judge(x, output))
            else:
                best = (x, *best[1:])
            on = [_is_on(unit) for unit in output.trace.units]
            record = _record(
                output.trace, gradients, rectified, (complexity, finished), self.distance(x, images), self.tau
            )
            anything_off = sum(_count(~a) for a in on) > 0
            changed = [_count(a & ~b) for a, b in zip(on, before)], [_count(b & ~a) for a, b in zip(on, before)]
            moved = number > 0
            record = record.replace(
                zero_gradient=anything_off & (record.complexity_norm == 0),
                switched_on=jnp.where(moved, sum(changed[0]), 0),
                switched_off=jnp.where(moved, sum(changed[1]), 0),
            )
            return (delta + update, adam_state, best, on), (record, bad)

        worst = jnp.full(images.shape[0], -jnp.inf, images.dtype)
        before = [_is_on(unit) for unit in problem.clean.trace.units]
        begin = (delta, adam.init(delta), (images, worst, worst), before)
        (delta, _, best, _), (record, bad) = jax.lax.scan(step, begin, jnp.arange(self.steps))
        if self.update_last:
            x = to_image(delta)
            best = (x,) if self.keep == "last" else _better(best, x, *judge(x, problem.forward(x)))
        return Found(best[0], -record.complexity, jnp.sum(bad, axis=0, dtype=jnp.int32), record)


def _better(best: tuple, x: jax.Array, rank: jax.Array, away: jax.Array) -> tuple:
    """The better of two iterates per example: higher rank, then smaller distortion; NaN never wins."""
    _, best_rank, best_away = best
    better = (rank > best_rank) | ((rank == best_rank) & (-away > best_away))
    chosen = jnp.where(better[:, None, None, None], x, best[0])
    return chosen, jnp.where(better, rank, best_rank), jnp.where(better, -away, best_away)


def _is_on(unit: UnitTrace) -> jax.Array:
    return unit.occupancy >= 0.5


def _count(flags: jax.Array) -> jax.Array:
    return jnp.sum(flags.reshape(flags.shape[0], -1), axis=1, dtype=jnp.int32)


def _record(
    trace: Trace,
    gradients: Gradients,
    rectified: rectify.Rectified,
    losses: tuple[jax.Array, jax.Array],
    distortion: jax.Array,
    tau: jax.typing.ArrayLike | None,
) -> EnergySteps:
    mean = lambda x: jnp.mean(x.reshape(x.shape[0], -1), axis=1)
    length = rectify.norm(gradients.complexity).reshape(-1)
    return EnergySteps(
        complexity=losses[0],
        finished=losses[1],
        distortion=distortion,
        complexity_norm=length,
        finished_norm=rectify.norm(gradients.finished).reshape(-1),
        cosine=rectify.cosine(gradients.complexity, gradients.finished),
        projected=rectified.projected,
        zero_gradient=jnp.zeros(length.shape, bool),
        gating=jnp.stack([mean(objectives.gating_excess(unit, tau)) for unit in trace.units], axis=1),
        on=jnp.stack([mean(_is_on(unit).astype(jnp.float32)) for unit in trace.units], axis=1),
        switched_on=jnp.zeros_like(length, jnp.int32),
        switched_off=jnp.zeros_like(length, jnp.int32),
    )
