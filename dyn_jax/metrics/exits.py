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
      prediction: the class that the network says.
      early: whether an exit before the last fired.
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
    threshold: jax.typing.ArrayLike | tuple,
    *,
    rule: str | early_exit.Rule = "confidence",
    answer: str | early_exit.Answer = "most_confident",
) -> Decision:
    """The decision at a threshold, from the logits of all exits (a sweep over thresholds is a ``vmap``).

    Args:
      exits: [batch, exit, class], as in ``trace.exits``.
      threshold: one number, or one for every exit but the last: in (0, 1]; for the rule ``patience`` whole, at least 1.
      rule: ``confidence``, ``entropy`` or ``patience``, or a `dyn_jax.gates.early_exit.Rule`.
      answer: who answers when no exit fires: ``most_confident`` of all exits, or the ``last``; or an
        `dyn_jax.gates.early_exit.Answer`, with which the exit where the network stopped counts as the one that answers.

    Raises:
      ValueError, TypeError: unknown rule or answer; thresholds out of range or of another number; fewer than two exits.
    """
    shape = jnp.shape(exits)
    if len(shape) != 3 or not shape[0] or shape[1] < 2:
        raise ValueError(f"exits: got shape {shape}, expected [batch, exit, class] with at least two exits")
    exits = jnp.asarray(exits)
    thresholds = early_exit.check_thresholds(threshold, rule, shape[1] - 1)
    fired = early_exit.exit_scores(exits[:, :-1], thresholds, rule) < 0
    said = jnp.argmax(early_exit.answers(exits, thresholds, answer), axis=-1)
    early = jnp.any(fired, axis=1)
    stage = jnp.where(early, jnp.argmax(fired, axis=1), shape[1] - 1)
    surest = jnp.argmax(early_exit.confidence(exits), axis=1)
    answering = jnp.where(early | (answer != "most_confident"), stage, surest)
    return Decision(answering, jnp.take_along_axis(said, stage[:, None], axis=1)[:, 0], early, stage)


def exit_index(trace: Trace) -> jax.Array:
    """[batch] integer, the exit at which the computation stopped: stages that ran, less one.

    Raises:
      ValueError: a network without early exits, or whose units are no stages: one number an example for each.
    """
    exits = exits_of(trace)
    shapes = [unit.score.shape for unit in trace.units]
    if shapes != [exits.shape[:1]] * (exits.shape[1] - 1):
        raise ValueError(f"trace: got units {shapes} for exits {exits.shape}, expected a [batch] for all but one exit")
    running = jnp.cumprod(early_exit.columns(unit.on for unit in trace.units), axis=1, dtype=jnp.int32)
    return jnp.sum(running, axis=1)


def exit_change(before: Trace, after: Trace) -> jax.Array:
    """[batch] integer, `exit_index` after less before: positive where the adversarial image costs more.

    Raises:
      ValueError: as `exit_index`; traces of different networks or batches.
    """
    _exits_of_both(before, after)
    return exit_index(after) - exit_index(before)


def predictions(trace: Trace) -> jax.Array:
    """[batch, exit], the class that each exit says.

    Raises:
      ValueError: a network without early exits.
    """
    return jnp.argmax(exits_of(trace), axis=-1)


def first_changed_exit(before: Trace, after: Trace, *, reference: str = "own") -> jax.Array:
    """[batch] integer, the first exit whose class differs from its reference; the number of exits where none does.

    Args:
      before, after: traces of the clean and the adversarial batch.
      reference: ``own``: what the same exit said about the clean image; ``final``: what the last exit said about it.

    Raises:
      ValueError: unknown `reference`; traces without early exits, or of different networks or batches.

    Source: 2308.08709, section 5 (the text leaves open which of the two it compares with).
    """
    _validate.choice("reference", reference, ("own", "final"))
    old, new = (jnp.argmax(exits, axis=-1) for exits in _exits_of_both(before, after))
    differs = new != (old if reference == "own" else old[:, -1:])
    return jnp.where(jnp.any(differs, axis=1), jnp.argmax(differs, axis=1), old.shape[1])


def early_parts(before: Trace, after: Trace) -> EarlyParts:
    """Early Attack's goals, with the last exit's class on the clean image as p; also its transfer rates T1 and T2.

    Raises:
      ValueError: traces without early exits, or of different networks or batches.

    Source: 2308.08709, section 6.2 and table 2.
    """
    old, new = (jnp.argmax(exits, axis=-1) for exits in _exits_of_both(before, after))
    return EarlyParts(new[:, -1] == old[:, -1], jnp.all(new[:, :-1] != old[:, -1:], axis=1))


def early_success(before: Trace, after: Trace) -> jax.Array:
    """[batch] bool, both of `early_parts` with finite logits: what Early Attack aims at; raises as they do."""
    kept, changed = early_parts(before, after)
    return kept & changed & jnp.all(jnp.isfinite(exits_of(after)), axis=(1, 2))


def saved_macs(trace: Trace) -> jax.Array:
    """[batch], share of the full network's multiply-adds that leaving early saves, in [0, 1).

    Raises:
      ValueError: a network without early exits, or without units.
    """
    exits_of(trace)
    return 1 - executed_macs(trace) / dense_macs(trace)


def transfer_rate(generated: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the generated adversarial examples that the target misclassifies; NaN where there are none.

    D2S: made on a dynamic surrogate, shown to a static target; S2D the other way round.

    Args:
      generated: [batch] bool, adversarial on the surrogate.
      logits: [batch, class] of the target on them; a row that is not finite never counts.
      labels: [batch], the true classes.

    Raises:
      ValueError, TypeError: shapes that do not fit; flags that are no bools; labels no integers or out of range.

    Source: 2308.08709, section 3.1 ("w.r.t. number of generated adversarial examples").
    """
    logits = _validate.logits("logits", logits)
    labels = _validate.labels("labels", labels, *logits.shape)
    generated = _validate.rows("generated", generated, len(labels))
    wrong = (jnp.argmax(logits, axis=-1) != labels) & jnp.all(jnp.isfinite(logits), axis=-1)
    return success_rate(wrong, generated)


def _exits_of_both(before: Trace, after: Trace) -> tuple[jax.Array, jax.Array]:
    old, new = exits_of(before), exits_of(after)
    if old.shape != new.shape:
        raise ValueError(f"traces: got exits {old.shape} and {new.shape}, expected those of one network and batch")
    return old, new
