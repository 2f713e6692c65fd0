"""What runs on the device for a chunk of examples: the clean pass, an attack, the verdict. Pure functions."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dyn_jax import metrics, objectives
from dyn_jax.attacks import AttackResult, to_8bit
from dyn_jax.attacks.minimal import MinimalNorm
from dyn_jax.attacks.threat import ball
from dyn_jax.evaluation import stochastic
from dyn_jax.evaluation.plan import ENERGY, NORM, Budget, Entry, Threat
from dyn_jax.evaluation.subject import Subject
from dyn_jax.metrics.answers import correct
from dyn_jax.types import Output, Trace

Call = Callable[..., dict[str, jax.Array]]
PATH = 101  # at most so many points along a search are kept: the best loss, an error, the most multiply-adds so far


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that says what an evaluation is; see `dyn_jax.evaluation.evaluate`."""

    subject: Subject
    entries: tuple[Entry, ...]
    threat: Threat
    budget: Budget
    seed: int
    batch_size: int
    draws: tuple[int, int]
    devices: Sequence[Any] | None

    def key(self, purpose: str) -> jax.Array:
        """A key for one purpose: attacks and verdicts never share one."""
        return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(purpose.encode()))

    def judge(self, variables: Any, key: jax.Array) -> Callable[[jax.Array], Output]:
        """images -> `Output` of the deployed network; of a random one the votes of fresh draws."""
        forward = self.subject.forward(variables)
        return stochastic.votes(forward, key, self.draws[1]) if self.subject.stochastic else forward


def clean_pass(job: Job) -> Call:
    """(variables, rows, images, labels) -> what the deployed network makes of the clean images."""
    key = job.key("clean")

    def call(variables: Any, _: jax.Array, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        answers = _answers(job.judge(variables, key)(x), y)
        return answers | {"rate": _rate(job, variables, key, x, y, answers["correct"])}

    return call


def attacked(job: Job, entry: Entry) -> Call:
    """(variables, rows, images, labels) -> what the worst lambda of an entry left of the deployed network."""
    subject, key, of_verdict = job.subject, job.key(entry.name), job.key("judge")
    lambdas = None if entry.soften is None else jnp.asarray(job.budget.lambdas, jnp.float32)

    def call(variables: Any, rows: jax.Array, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        victim = job.judge(variables, of_verdict)

        def once(lam: jax.Array | None) -> dict[str, jax.Array]:
            gate = None if entry.soften is None or lam is None else entry.soften(lam)
            forward, attack = subject.forward(variables, gate), entry.attack
            same = gate is None and not subject.stochastic
            if subject.stochastic:
                forward, attack = stochastic.averaged(forward, key, job.draws[0]), stochastic.expected(attack)
            result = attack(forward, x, y, victim=None if same else victim, key=key, index=rows)
            kept = _kept(result, x, y, job.threat)
            kept["fooled"] = kept["success"] & kept["inside"]
            if entry.kind == NORM:  # the smallest perturbation on the way; infinite where there was none
                kept |= {"distance": result.record.smallest, "success": jnp.isfinite(result.record.smallest)}
            return kept

        if lambdas is None:
            return once(None)
        each = jax.vmap(once)(lambdas)
        if entry.kind == NORM:
            value = -_ordered(each["distance"])
        else:
            value = each["macs"] if entry.kind == ENERGY else each["success"] * 1e30 + _ordered(each["margin"])
        best = jnp.argmax(value, axis=0)
        pick = lambda leaf: jax.vmap(lambda column, k: column[k], (1, 0))(leaf, best)
        return jax.tree.map(pick, each) | {"lambda": lambdas[best]}

    return call


def verdict(job: Job) -> Call:
    """(variables, rows, adversarial, clean, labels) -> both judged once more, in float32 and in 8 bits."""
    key, space = job.key("verdict"), ball(job.threat.norm, job.threat.eps)

    def call(variables: Any, _: jax.Array, adversarial: jax.Array, x: jax.Array, y: jax.Array):
        victim = job.judge(variables, key)
        # only where the clean pixels are 8-bit values is the coarse image inside the ball, see `to_8bit`
        grid = jnp.all(jnp.abs(x * 255 - jnp.round(x * 255)) < 1e-3, axis=(1, 2, 3))
        coarse = to_8bit(adversarial, jnp.round(x * 255) / 255)
        answers = _answers(victim(adversarial), y)
        return {
            "wrong": ~answers["correct"] & ~answers["invalid"],
            "inside": space.contains(adversarial, x),
            "rate": _rate(job, variables, key, adversarial, y, answers["correct"]),
            "coarse": coarse,
            "grid": grid,
            "coarse_wrong": ~_answers(victim(coarse.astype(jnp.float32) / 255), y)["correct"] & grid,
        }

    return call


def shown(job: Job) -> Callable[..., dict[str, Any]]:
    """(variables, rows, images) -> ``prediction``, ``macs`` and ``on``: of every unit [row, *elements] bool."""
    key = job.key("pictures")

    def call(variables: Any, _: jax.Array, x: jax.Array) -> dict[str, Any]:
        output = job.judge(variables, key)(x)
        return {
            "prediction": jnp.argmax(output.logits, axis=-1),
            "macs": _energy(output.trace, len(x))["macs"],
            "on": [unit.on for unit in output.trace.units],
        }

    return call


def _rate(job: Job, variables: Any, key: jax.Array, x: jax.Array, y: jax.Array, right: jax.Array) -> jax.Array:
    """[row], the share of fresh draws that answer wrongly; 0 or 1 where nothing draws."""
    if not job.subject.stochastic:
        return 1.0 - right.astype(jnp.float32)
    each = stochastic.averaged(job.subject.forward(variables), key, job.draws[1])(x).each
    assert each is not None
    return 1.0 - jnp.mean(jax.vmap(lambda logits: correct(logits, y))(each.logits).astype(jnp.float32), axis=0)


def _answers(output: Output, y: jax.Array) -> dict[str, jax.Array]:
    return {
        "prediction": jnp.argmax(output.logits, axis=-1).astype(jnp.int32),
        "correct": correct(output.logits, y),
        "invalid": ~jnp.all(jnp.isfinite(output.logits), axis=-1),
        "margin": objectives.margin(output, y, None),
        **_energy(output.trace, len(y)),
    }


def _energy(trace: Trace, rows: int) -> dict[str, jax.Array]:
    """What a pass cost, and the share of every unit that was on; of a static network its one number."""
    if not trace.units:
        return {"macs": jnp.full(rows, float(trace.static_macs)), "shares": jnp.zeros((rows, 0))}
    return {"macs": metrics.executed_macs(trace).astype(jnp.float32), "shares": metrics.example_shares(trace)}


def _kept(result: AttackResult, x: jax.Array, y: jax.Array, threat: Threat) -> dict[str, jax.Array]:
    """What is kept of an attack, arrays [row, ...]."""
    error = result.steps.error
    if isinstance(result.record, MinimalNorm):  # its steps leave the ball
        error = result.record.held & (result.record.norm <= threat.eps)
    so_far = {"path": _ordered(result.steps.loss), "path_error": error.astype(jnp.int32)}
    if "macs" in result.steps.work:
        so_far["path_macs"] = _ordered(result.steps.work["macs"])
    length = result.steps.loss.shape[1]
    shown = jnp.round(jnp.linspace(0, length - 1, min(length, PATH))).astype(int)
    so_far = {name: jax.lax.cummax(values, axis=1)[:, shown] for name, values in so_far.items()}
    answers = _answers(Output(result.logits_adversarial, result.trace_adversarial), y)
    del answers["correct"], answers["invalid"]
    return answers | {
        "adversarial": result.adversarial,
        "success": result.success,
        "invalid": result.invalid,
        "distance": result.distance,
        "inside": ball(threat.norm, threat.eps).contains(result.adversarial, x),
        "psnr": metrics.psnr(result.adversarial, x),
        "changed": _changed(result.trace_clean, result.trace_adversarial, len(y)),
        "nonfinite": jnp.any(result.steps.nonfinite, axis=1),
        **so_far,
    }


def _ordered(values: jax.Array) -> jax.Array:
    """The values with NaN as the least: it must win no comparison."""
    return jnp.where(jnp.isnan(values), -1e30, jnp.clip(values, -1e30, 1e30))


def _changed(before: Trace, after: Trace, rows: int) -> jax.Array:
    """[row], share of an example's elements that were switched."""
    if not before.units:
        return jnp.zeros(rows)
    flips = [(a.on != b.on).reshape(rows, -1) for a, b in zip(before.units, after.units)]
    return jnp.mean(jnp.concatenate(flips, axis=1), axis=1)
