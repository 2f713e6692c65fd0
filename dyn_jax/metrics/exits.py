"""Early exits, measured: which exit answers, what an attack does to that, and what leaving early saves.

Pure functions of logits and traces; exits are numbered from 0, the final one last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.gates import early_exit
from dyn_jax.metrics.answers import success_rate
from dyn_jax.metrics.traces import dense_macs, dense_unit_macs, executed_macs
from dyn_jax.objectives.exits import exits_of
from dyn_jax.types import Trace

_ROUNDS = 1e-3  # sums of shares round


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
      ValueError, TypeError: thresholds out of range or of another number; fewer than two exits.
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
      ValueError: units that are no stages: one number an example for each.
    """
    exits = exits_of(trace)
    shapes = [unit.score.shape for unit in trace.units]
    if shapes != [exits.shape[:1]] * (exits.shape[1] - 1):
        raise ValueError(f"trace: got units {shapes} for exits {exits.shape}, expected a [batch] for all but one exit")
    running = jnp.cumprod(early_exit.columns(unit.on for unit in trace.units), axis=1, dtype=jnp.int32)
    return jnp.sum(running, axis=1)


def exit_change(before: Trace, after: Trace) -> jax.Array:
    """[batch] integer, `exit_index` after less before: positive where the adversarial image costs more."""
    _exits_of_both(before, after)
    return exit_index(after) - exit_index(before)


def predictions(trace: Trace) -> jax.Array:
    """[batch, exit], the class that each exit says."""
    return jnp.argmax(exits_of(trace), axis=-1)


def first_changed_exit(before: Trace, after: Trace, *, reference: str = "own") -> jax.Array:
    """[batch] integer, the first exit whose class differs from its reference; the number of exits where none does.

    An exit whose logits are not finite says no class, and has not changed it.

    Args:
      before, after: traces of the clean and the adversarial batch.
      reference: ``own``: what the same exit said about the clean image; ``final``: what the last exit said about it.

    Source: 2308.08709, section 5 (the text leaves open which of the two it compares with).
    """
    _validate.choice("reference", reference, ("own", "final"))
    old, new = map(_said, _exits_of_both(before, after))
    wanted = old if reference == "own" else old[:, -1:]
    differs = (new != wanted) & (new >= 0) & (wanted >= 0)
    return jnp.where(jnp.any(differs, axis=1), jnp.argmax(differs, axis=1), old.shape[1])


def early_parts(before: Trace, after: Trace) -> EarlyParts:
    """Early Attack's goals, with the last exit's class on the clean image as p; also its transfer rates T1 and T2.

    Exits whose logits are not finite say no class: they neither keep nor change one.

    Source: 2308.08709, section 6.2 and table 2.
    """
    old, new = map(_said, _exits_of_both(before, after))
    kept = old[:, -1:]
    changed = (new[:, :-1] != kept) & (new[:, :-1] >= 0) & (kept >= 0)
    return EarlyParts((new[:, -1] == kept[:, 0]) & (kept[:, 0] >= 0), jnp.all(changed, axis=1))


def early_success(before: Trace, after: Trace) -> jax.Array:
    """[batch] bool, both of `early_parts` with finite logits: what Early Attack aims at."""
    kept, changed = early_parts(before, after)
    return kept & changed & jnp.all(jnp.isfinite(exits_of(after)), axis=(1, 2))


def saved_macs(trace: Trace) -> jax.Array:
    """[batch], share of the full network's multiply-adds that leaving early saves, in [0, 1)."""
    exits_of(trace)
    return 1 - executed_macs(trace) / float(dense_macs(trace))


def transfer_rate(generated: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the generated adversarial examples that the target misclassifies; NaN where there are none.

    D2S: made on a dynamic surrogate, shown to a static target; S2D the other way round.

    Args:
      generated: [batch] bool, adversarial on the surrogate.
      logits: [batch, class] of the target on them; a row that is not finite never counts.
      labels: [batch], the true classes.

    Source: 2308.08709, section 3.1 ("w.r.t. number of generated adversarial examples").
    """
    logits = _validate.logits("logits", logits)
    labels = _validate.labels("labels", labels, *logits.shape)
    generated = _validate.rows("generated", generated, len(labels))
    wrong = (jnp.argmax(logits, axis=-1) != labels) & jnp.all(jnp.isfinite(logits), axis=-1)
    return success_rate(wrong, generated)


def _said(exits: jax.Array) -> jax.Array:
    """[batch, exit], the class that each exit says, -1 where its logits are not finite."""
    return jnp.where(jnp.all(jnp.isfinite(exits), axis=-1), jnp.argmax(exits, axis=-1), -1)


def _exits_of_both(before: Trace, after: Trace) -> tuple[jax.Array, jax.Array]:
    old, new = exits_of(before), exits_of(after)
    if old.shape != new.shape:
        raise ValueError(f"traces: got exits {old.shape} and {new.shape}, expected those of one network and batch")
    return old, new


class Curve(NamedTuple):
    """How many images have left by what cost.

    Attributes:
      cost: [exit + 1], of leaving at each exit, relative to the last: from 0 to 1.
      left: [exit + 1], share of the images that left at it or before: from 0 to 1.
    """

    cost: jax.Array
    left: jax.Array

    @property
    def area(self) -> jax.Array:
        """Under the curve, by trapezoids: DeepSloth's efficacy. High is fast; in [(1 - c_(N-1)) / 2, 1 - c_0 / 2]."""
        return jnp.sum(jnp.diff(self.cost) * (self.left[1:] + self.left[:-1]) / 2)


def exit_costs(trace: Trace) -> jax.Array:
    """[exit], multiply-adds of leaving at each exit, the heads tried before included."""
    exits_of(trace)
    costs = [float(trace.static_macs), *(dense_unit_macs(unit) for unit in trace.units)]
    return jnp.cumsum(jnp.asarray(costs))


def exit_shares(trace: Trace) -> jax.Array:
    """[batch, exit], the share of every exit in the answer: under hard occupancy 1 where an image left, else 0."""
    exit_index(trace)  # for its checks
    return early_exit.exit_weights(early_exit.columns(unit.occupancy for unit in trace.units))


def exit_curve(shares: jax.Array, costs: jax.typing.ArrayLike) -> Curve:
    """The exit-cost curve of DeepSloth.

    Args:
      shares: [exit] of the images, or `exit_shares` [batch, exit]. What did not leave early counts at the full cost.
      costs: [exit], ascending, of leaving at each exit; in any unit.

    Raises:
      ValueError: another number of costs than exits; costs that do not ascend; shares that are no parts of 1 (counts).

    Source: Hong et al. 2021, section 4 ("exit-depth" curve), by cost as in its released code.
    """
    # multiply-adds pass 2^31, where JAX would cut an integer
    shares, costs = jnp.atleast_2d(jnp.asarray(shares)), jnp.asarray(costs, jnp.result_type(float))
    if costs.shape != shares.shape[1:] or len(costs) < 2:
        raise ValueError(f"costs: got shape {costs.shape}, expected {shares.shape[1:]}, one for each of the exits")
    if _validate.is_concrete(costs) and not (np.diff(np.asarray(costs), prepend=0) > 0).all():
        raise ValueError(f"costs: got {np.asarray(costs)}, expected positive ones that ascend")
    if _validate.is_concrete(shares):
        least, most = np.min(shares), np.max(np.sum(shares, axis=1))
        if not (least >= -_ROUNDS and most <= 1 + _ROUNDS):
            raise ValueError(f"shares: got some from {least:.6g} on that sum up to {most:.6g}, expected parts of 1")
    left = jnp.cumsum(jnp.mean(shares, axis=0)[:-1])
    ends = lambda value: jnp.full(1, value, left.dtype)
    return Curve(jnp.concatenate([ends(0), costs / costs[-1]]), jnp.concatenate([ends(0), left, ends(1)]))


def efficacy(trace: Trace, costs: jax.typing.ArrayLike | None = None) -> jax.Array:
    """Area under the exit-cost curve of a batch, a scalar in (0, 1): high where images leave early.

    Args:
      trace: under soft occupancies, the expected curve.
      costs: [exit]; default `exit_costs`.

    Source: Hong et al. 2021, section 4.
    """
    return exit_curve(exit_shares(trace), exit_costs(trace) if costs is None else costs).area


def rad_threshold(
    thresholds: Sequence[float], accuracy: Sequence[float], cost: Sequence[float], final: float, drop: float
) -> int:
    """Index of the threshold that costs at most a relative accuracy drop of `drop`.

    The first whose accuracy is above ``final (1 - drop)`` and which has both less cost and more accuracy than the best
    before it.

    Args:
      thresholds, accuracy, cost: of a sweep, in one order; DeepSloth's has .05, .10, ..., .95.
      final: accuracy of the last exit.
      drop: in (0, 1); DeepSloth has .05 and .15.

    Raises:
      ValueError: sweeps of different lengths, or empty; no threshold keeps the accuracy.

    Source: released code of Hong et al. 2021 ("RAD").
    """
    if not len(thresholds) == len(accuracy) == len(cost) > 0:
        raise ValueError(f"thresholds, accuracy, cost: got {len(thresholds)}, {len(accuracy)}, {len(cost)} numbers")
    least = final * (1 - _validate.share("drop", drop))
    best: int | None = None
    for i in range(len(thresholds)):
        if accuracy[i] > least and (best is None or (cost[i] < cost[best] and accuracy[i] > accuracy[best])):
            best = i
    if best is None:
        raise ValueError(f"drop: got {drop}, expected a threshold with an accuracy above {least}; best {max(accuracy)}")
    return best
