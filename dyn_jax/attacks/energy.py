"""The search that the energy attacks share: Adam on a perturbation, in one scan, with a record of what the gates did.

A method says how the gradients of the complexity loss, the finished loss and the distortion become the gradient that
Adam gets. The network is passed through once a step; its derivative is pulled back once for each loss that is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate, metrics, objectives
from dyn_jax.attacks import rectify
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.domains import Domain, l2
from dyn_jax.attacks.restarts import better_of
from dyn_jax.attacks.threat import Bounds, Box, Number, Threat, ball
from dyn_jax.objectives.answers import untargeted
from dyn_jax.types import Output, Trace, UnitTrace

KEEP = ("most", "least_loss", "last")


class EnergySteps(flax.struct.PyTreeNode):
    """What every step saw before it moved: arrays [example, step], ``gating`` and ``on`` [example, step, unit].

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
      switched_on, switched_off: elements that changed since the step before; 0 for voxels, which have no fixed place.
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
    """What a method combines, [example, ...]: of the complexity loss, the finished loss, the distortion.

    `values` is n of eq. 7, how many numbers an example has, in a shape that broadcasts to them.
    """

    complexity: jax.Array
    finished: jax.Array
    distortion: jax.Array
    values: int | jax.Array


@dataclasses.dataclass(frozen=True)
class Form:
    """How an energy attack moves, measures and keeps what it finds.

    Attributes:
      change: (domain, delta) -> x, the change of variable.
      distance: (domain, x) -> [example], the distortion that is kept small.
      bounds: lowest and highest pixel value that `change` gives.
      keep: which iterate is returned: ``most``: the one that executes most on the victim, the closest among equals;
        ``least_loss``: least ``weight * complexity + distortion``; ``last``.
      update_last: whether the last step's update still counts (GradAuto's release reports what it saw before it).
      keep_logits: weight of `objectives.logit_drift` in the distortion; GradAuto's option to keep the accuracy has 1e5.
    """

    change: Callable[[Domain, jax.Array], jax.Array] = lambda domain, delta: domain.perturbed(delta)
    distance: Callable[[Domain, jax.Array], jax.Array] = l2
    bounds: Bounds = (0.0, 1.0)
    keep: str = "most"
    update_last: bool = True
    keep_logits: jax.typing.ArrayLike = 0.0

    def __post_init__(self) -> None:
        _validate.choice("keep", self.keep, KEEP)
        _validate.number("keep_logits", self.keep_logits, minimum=0)

    def replace(self, **changes: object) -> Form:
        """A copy with other fields."""
        return dataclasses.replace(self, **changes)


PAPER = Form()
"""Eq. 3 of GradAuto, started exactly at the clean value, eq. 7's L2 norm; the paper names no iterate to return."""

Combine = Callable[[Gradients], rectify.Rectified]  # what Adam gets
Losses = Callable[[Trace, jax.Array], tuple[jax.Array, jax.Array]]  # at a step: complexity, finished, [example]


def combined(turn: Combine) -> Combine:
    """``n * turn(gradients) + g_D`` with n the number of values of an example: the gradient of eq. 7."""

    def combine(gradients: Gradients) -> rectify.Rectified:
        turned = turn(gradients)
        return turned._replace(gradient=gradients.values * turned.gradient + gradients.distortion)

    return combine


def gate_attack(
    combine: Combine, eps: Number | None, tau: jax.typing.ArrayLike | None, weights: objectives.Weights, **fields: Any
) -> Attack:
    """The attack on `objectives.complexity_loss` and `finished_loss` (eq. 6 and 20); `fields` of `EnergySearch`."""
    objective = objectives.energy(tau=tau, weights=weights)
    given: Any = {"tau": tau, "weights": weights}
    losses = lambda trace, _: (objectives.complexity_loss(trace, **given), objectives.finished_loss(trace, **given))
    return EnergySearch(combine, losses, tau=tau, **fields).attack(eps, objective)


@dataclasses.dataclass(frozen=True)
class EnergySearch:
    """Adam on delta from 0."""

    combine: Combine
    losses: Losses
    form: Form
    steps: int
    learning_rate: jax.typing.ArrayLike
    # of the complexity loss in the total that keep="least_loss" compares; None: the values of an example, as in eq. 7
    weight: jax.typing.ArrayLike | None = None
    finished_from: int | None = None  # step from which the finished gradient is computed; None: never
    tau: jax.typing.ArrayLike | None = 0.5  # for the record
    # (problem, x, step number) -> the forward pass that is differentiated at that x; None: the problem's own
    prepare: Callable[[Problem, jax.Array, jax.Array], Callable] | None = None

    def __post_init__(self) -> None:
        _validate.positive_int("steps", self.steps)
        _validate.positive("learning_rate", self.learning_rate)

    def attack(self, eps: Number | None, objective: objectives.Objective) -> Attack:
        """The attack that makes this search; inside a ball where `eps` is given, else anywhere in the box."""
        bounds = self.form.bounds
        threat: Threat = Box(bounds) if eps is None else ball("linf", eps, bounds)
        return Attack(self, threat, objective, attack_all=True, reach=2 * self.learning_rate)

    def __call__(self, problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        untargeted(problem.targets)
        if start is not None:
            raise ValueError("start: got some, expected None: an attack on the energy starts at delta = 0")
        objectives.check_adaptive(problem.clean.trace)
        domain, form = problem.domain, self.form
        adam = optax.adam(self.learning_rate)  # pyright: ignore[reportArgumentType]: optax names no numpy scalars
        delta = jnp.zeros_like(domain.clean)
        zeros = jnp.zeros_like(self.losses(problem.clean.trace, jnp.int32(0))[0])
        one = problem.attacked.astype(zeros.dtype)
        if zeros.shape != one.shape:
            raise ValueError(f"forward: got a trace of {len(zeros)} examples, expected {len(one)}, one for each cloud")
        weight = domain.values if self.weight is None else self.weight
        values = domain.values if isinstance(domain.values, int) else domain.values.reshape(-1, *(1,) * delta.ndim)
        keeps_logits = not (isinstance(form.keep_logits, (int, float)) and form.keep_logits == 0)

        def value(delta: jax.Array) -> jax.Array:
            # what a projection takes off is no reason to stop: its derivative is that of the change of variable
            x = form.change(domain, delta)
            return x + jax.lax.stop_gradient(problem.project(x) - x)

        def judge(x: jax.Array, output: Output, away: jax.Array) -> tuple[jax.Array, jax.Array]:
            """(rank of an iterate, minus its distortion), [example]."""
            if form.keep == "least_loss":
                return -(self.losses(output.trace, jnp.int32(self.steps))[0] * weight + away), -away
            executed = metrics.executed_macs(jax.lax.stop_gradient(problem.judged(x, output).trace))
            return executed.astype(away.dtype), -away

        def step(state: tuple, number: jax.Array) -> tuple[tuple, tuple]:
            delta, adam_state, best, before = state
            forward = problem.forward if self.prepare is None else self.prepare(problem, value(delta), number)

            def evaluate(delta: jax.Array) -> tuple[tuple, tuple]:
                x = value(delta)
                output = forward(x, problem.reach)
                complexity, finished = self.losses(output.trace, number)
                drift = zeros
                if keeps_logits:
                    drift = domain.mean(objectives.logit_drift(output, problem.clean.logits), problem.counted)
                return (complexity, finished, drift), (x, output)

            (complexity, finished, _), pull, (x, output) = jax.vjp(evaluate, delta, has_aux=True)
            of = lambda *cotangents: domain.split(pull(tuple(c.astype(zeros.dtype) for c in cotangents))[0])
            g_complexity = of(one, zeros, zeros)
            g_finished = jnp.zeros_like(g_complexity)
            if self.finished_from is not None:
                late = number >= self.finished_from
                g_finished = jax.lax.cond(late, lambda: of(zeros, one, zeros), lambda: jnp.zeros_like(g_complexity))
            g_distortion = domain.split(jax.grad(lambda d: jnp.sum(one * form.distance(domain, value(d))))(delta))
            if keeps_logits:
                g_distortion += of(zeros, zeros, one * form.keep_logits)
            gradients = Gradients(g_complexity, g_finished, g_distortion, values)
            rectified = self.combine(gradients)
            gradient, bad = problem.finite(domain.join(rectified.gradient))
            update, adam_state = adam.update(gradient, adam_state)
            away = form.distance(domain, x)
            best = (x, best[1]) if form.keep == "last" else better_of(problem, (x, judge(x, output, away)), best)
            seen = {"complexity": complexity, "finished": finished, "distortion": away}
            record = _record(output.trace.units, before, number, gradients, rectified, self.tau, **seen)
            steps = problem.observed(output, -complexity, bad)
            return (domain.settled(delta + update), adam_state, best, [unit.on for unit in output.trace.units]), (
                steps,
                record,
            )

        worst = jnp.full_like(zeros, -jnp.inf)
        best = (domain.clean, (worst, worst))
        # shapes alone: what this pass says is not needed
        like = jax.eval_shape(problem.forward, domain.clean, problem.reach).trace.units
        before = [jnp.zeros_like(delta, bool, shape=unit.occupancy.shape) for unit in like]
        begin = (delta, adam.init(delta), best, before)
        (delta, _, best, _), (steps, record) = jax.lax.scan(step, begin, jnp.arange(self.steps))
        x = best[0]
        if form.update_last:
            x = value(delta)
            if form.keep != "last":
                output = problem.forward(x, problem.reach)
                x = better_of(problem, (x, judge(x, output, form.distance(domain, x))), best)[0]
        return Found(x, steps, record)


def _count(flags: jax.Array) -> jax.Array:
    return jnp.sum(flags.reshape(flags.shape[0], -1), axis=1, dtype=jnp.int32)


def _record(
    units: tuple[UnitTrace, ...],
    before: list[jax.Array],
    number: jax.Array,
    gradients: Gradients,
    rectified: rectify.Rectified,
    tau: jax.typing.ArrayLike | None,
    **seen: jax.Array,
) -> EnergySteps:
    """What step `number` saw; `before`: what was on in the step before, elements of a fixed place are compared."""
    mean = lambda x: jnp.mean(x.reshape(x.shape[0], -1), axis=1)
    length = rectify.norm(gradients.complexity).reshape(-1)
    none = jnp.zeros_like(length, jnp.int32)
    fixed = [(unit.on, old) for unit, old in zip(units, before) if unit.dense_macs is not None]
    moved = lambda counts: jnp.where(number > 0, sum(counts, start=none), none)
    return EnergySteps(
        complexity_norm=length,
        finished_norm=rectify.norm(gradients.finished).reshape(-1),
        cosine=rectify.cosine(gradients.complexity, gradients.finished),
        projected=rectified.projected,
        zero_gradient=(sum(_count(~unit.on) for unit in units) > 0) & (length == 0),
        gating=jnp.stack([mean(objectives.gating_excess(unit, tau)) for unit in units], axis=1),
        on=jnp.stack([mean(unit.on.astype(jnp.float32)) for unit in units], axis=1),
        switched_on=moved(_count(now & ~old) for now, old in fixed),
        switched_off=moved(_count(old & ~now) for now, old in fixed),
        **seen,
    )
