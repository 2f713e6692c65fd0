"""Early exits, measured: which exit answers, what an attack does to that, and what leaving early saves.

Pure functions of logits and traces; exits are numbered from 0, the final one last.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.gates import early_exit
from dyn_jax.metrics.answers import success_rate
from dyn_jax.metrics.traces import dense_macs, executed_macs
from dyn_jax.objectives.exits import exits_of
from dyn_jax.types import Trace


class Decision(NamedTuple):
    """What a deployed early-exit network does with a batch; each [batch].

    Attributes:
      exit: the exit that answers.
      prediction: its class.
      early: whether an internal classifier fired.
      stage: the last stage that ran (the last of all where none fired, whichever exit answers).
    """

    exit: jax.Array
    prediction: jax.Array
    early: jax.Array
    stage: jax.Array


class EarlyParts(NamedTuple):
    """Early Attack's two goals, each [batch] bool: the last exit's class is kept; every other exit's is not that."""

    kept: jax.Array
    changed: jax.Array


def decide(
    exits: jax.Array,
    threshold: jax.typing.ArrayLike,
    *,
    rule: str = "confidence",
    answer: str = "most_confident",
) -> Decision:
    """The decision at a threshold, from the logits of all exits (a sweep over thresholds is a ``vmap``).

    Args:
      exits: [exit, batch, class], as in ``trace.exits``.
      threshold: in (0, 1]; for the rule ``patience`` a whole number of at least 1.
      rule: ``confidence``, ``entropy`` or ``patience``, see `dyn_jax.gates.early_exit`.
      answer: who answers when no internal classifier fires: ``most_confident`` of all exits, or the ``last``.

    Raises:
      ValueError: unknown rule or answer, threshold out of range, fewer than two exits.
    """
    _validate.choice("answer", answer, early_exit.ANSWERS)
    if exits.ndim != 3 or exits.shape[0] < 2:
        raise ValueError(f"exits: got shape {exits.shape}, expected [exit, batch, class] with at least two exits")
    scores = jnp.stack(early_exit.exit_scores(list(exits[:-1]), threshold, rule))
    last = exits.shape[0] - 1
    fired = scores < 0
    early = jnp.any(fired, axis=0)
    stage = jnp.where(early, jnp.argmax(fired, axis=0), last)
    otherwise = jnp.argmax(early_exit.confidence(exits), axis=0) if answer == "most_confident" else last
    answering = jnp.where(early, stage, otherwise)
    predictions = jnp.argmax(exits, axis=-1)
    prediction = jnp.take_along_axis(predictions, answering[None, :], axis=0)[0]
    return Decision(answering, prediction, early, stage)


def exit_index(trace: Trace) -> jax.Array:
    """[batch] integer, the exit at which the computation stopped: stages that ran (occupancy >= 1/2), less one."""
    exits_of(trace)
    running = jnp.ones(trace.units[0].occupancy.shape, jnp.int32)
    total = jnp.zeros_like(running)
    for unit in trace.units:
        running = running * (unit.occupancy >= 0.5)
        total = total + running
    return total


def exit_change(before: Trace, after: Trace) -> jax.Array:
    """[batch] integer, `exit_index` after less before: positive where the adversarial image costs more."""
    return exit_index(after) - exit_index(before)


def predictions(trace: Trace) -> jax.Array:
    """[exit, batch], the class that each exit says."""
    return jnp.argmax(exits_of(trace), axis=-1)


def first_changed_exit(before: Trace, after: Trace, *, reference: str = "own") -> jax.Array:
    """[batch] integer, the first exit whose class differs from its reference; the number of exits where none does.

    Args:
      before, after: traces of the clean and the adversarial batch.
      reference: ``own``: what the same exit said about the clean image; ``final``: what the last exit said about it.

    Source: 2308.08709, section 5 (the text leaves open which of the two it compares with).
    """
    _validate.choice("reference", reference, ("own", "final"))
    old, new = predictions(before), predictions(after)
    _same_exits(old, new)
    differs = new != (old if reference == "own" else old[-1][None, :])
    return jnp.where(jnp.any(differs, axis=0), jnp.argmax(differs, axis=0), old.shape[0])


def early_parts(before: Trace, after: Trace) -> EarlyParts:
    """Early Attack's goals, with the last exit's class on the clean image as p; also its transfer rates T1 and T2.

    Source: 2308.08709, section 6.2 and table 2.
    """
    old, new = predictions(before), predictions(after)
    _same_exits(old, new)
    kept = old[-1]
    return EarlyParts(new[-1] == kept, jnp.all(new[:-1] != kept[None, :], axis=0))


def early_success(before: Trace, after: Trace) -> jax.Array:
    """[batch] bool, both of `early_parts` with finite logits: what Early Attack aims at."""
    kept, changed = early_parts(before, after)
    return kept & changed & jnp.all(jnp.isfinite(exits_of(after)), axis=(0, 2))


def saved_macs(trace: Trace) -> jax.Array:
    """[batch], share of the full network's multiply-adds that leaving early saves, in [0, 1)."""
    exits_of(trace)
    return 1 - executed_macs(trace) / dense_macs(trace)


def transfer_rate(generated: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the generated adversarial examples that the target misclassifies; NaN where there are none.

    D2S: made on a dynamic surrogate, shown to a static target; S2D the other way round.

    Args:
      generated: [batch] bool, adversarial on the surrogate.
      logits: [batch, class] of the target on them; a row that is not finite never counts.
      labels: [batch], the true classes.

    Source: 2308.08709, section 3.1 ("w.r.t. number of generated adversarial examples").
    """
    wrong = (jnp.argmax(logits, axis=-1) != labels) & jnp.all(jnp.isfinite(logits), axis=-1)
    return success_rate(wrong, generated)


def _same_exits(before: jax.Array, after: jax.Array) -> None:
    if before.shape != after.shape:
        raise ValueError(
            f"traces: got exits and batch {before.shape} and {after.shape}, expected one network and batch"
        )
