"""The gate of an early-exit network: has no parameters, reads the logits of the exits passed so far.

Stage i runs while no earlier exit has fired; each rule below says when an exit fires, as a score that is >= 0 where
the next stage still runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate

ANSWERS = ("most_confident", "last")

Scores = list[jax.Array]


def confidence(logits: jax.Array) -> jax.Array:
    """Largest softmax probability over the last axis."""
    return jnp.max(jax.nn.softmax(logits), axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """``-sum p log p / log(classes)`` of the softmax over the last axis, in [0, 1]."""
    log_probability = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probability) * log_probability, axis=-1) / jnp.log(float(logits.shape[-1]))


def confidence_scores(exits: Sequence[jax.Array], threshold: jax.typing.ArrayLike) -> Scores:
    """``threshold - highest confidence of the exits before``; an exit fires where its confidence >= threshold.

    At equality the score is just below 0 (by half a rounding step), because the rule includes the threshold.

    Args:
      exits: logits [batch, class] of each exit but the last, in depth order.
      threshold: in (0, 1]; may be traced, so that a sweep over it is a ``vmap``.

    Returns:
      One score [batch] for each stage after the first.

    Source: Kaya, Hong and Dumitras 2019, section 4.
    """
    scores, highest = [], None
    for logits in exits:
        value = confidence(logits)
        highest = value if highest is None else jnp.maximum(highest, value)
        limit = jnp.asarray(threshold, value.dtype)
        score = limit - highest
        scores.append(jnp.where(highest >= limit, jnp.minimum(score, -0.5 * jnp.finfo(value.dtype).eps), score))
    return scores


def entropy_scores(exits: Sequence[jax.Array], threshold: jax.typing.ArrayLike) -> Scores:
    """``lowest entropy of the exits before - threshold``; an exit fires where its entropy < threshold.

    Arguments and result as in `confidence_scores`; the entropy is divided by its largest value, log(classes).
    Source: Teerapittayanon, McDanel and Kung 2016 (BranchyNet), section 3.
    """
    scores, lowest = [], None
    for logits in exits:
        value = entropy(logits)
        lowest = value if lowest is None else jnp.minimum(lowest, value)
        scores.append(lowest - jnp.asarray(threshold, value.dtype))
    return scores


def patience_scores(exits: Sequence[jax.Array], threshold: jax.typing.ArrayLike) -> Scores:
    """``patience - 1/2 - longest run``: an exit fires where `threshold` exits in a row agreed with the one before.

    Args:
      exits: as in `confidence_scores`.
      threshold: the patience, a positive integer; a run is 0 at an exit that changes the prediction, and grows by 1 at
        one that repeats it.

    The score is piecewise constant: no occupancy passes a gradient through it.
    Source: Zhou et al. 2020 (PABEE), section 3.
    """
    scores, longest, run, before = [], None, None, None
    for logits in exits:
        prediction = jnp.argmax(logits, axis=-1)
        run = jnp.zeros_like(logits[:, 0]) if before is None else jnp.where(prediction == before, run + 1, 0.0)
        longest = run if longest is None else jnp.maximum(longest, run)
        before = prediction
        scores.append(jnp.asarray(threshold, run.dtype) - 0.5 - longest)
    return scores


RULES: dict[str, Callable[..., Scores]] = {
    "confidence": confidence_scores,
    "entropy": entropy_scores,
    "patience": patience_scores,
}


def check_threshold(threshold: jax.typing.ArrayLike, rule: str = "confidence") -> jax.typing.ArrayLike:
    """Returns `threshold`; checks it where it is concrete.

    Raises:
      ValueError: unknown rule; outside (0, 1] (``patience``: below 1).
    """
    _validate.choice("rule", rule, RULES)
    threshold = _validate.number("threshold", threshold)
    if _validate.is_concrete(threshold):
        value = np.asarray(threshold)
        if rule == "patience" and not bool((value >= 1).all()):
            raise ValueError(f"threshold: got {threshold}, expected a patience of at least 1")
        if rule != "patience" and not bool(((value > 0) & (value <= 1)).all()):
            raise ValueError(f"threshold: got {threshold}, expected a number in (0, 1]")
    return threshold


def exit_scores(exits: Sequence[jax.Array], threshold: jax.typing.ArrayLike, rule: str = "confidence") -> Scores:
    """Scores [batch] of the stages after the first, from the logits of every exit but the last, by the named rule.

    Raises:
      ValueError: unknown rule; threshold outside (0, 1] (``patience``: below 1).
    """
    return RULES[rule](exits, check_threshold(threshold, rule))


def exit_weights(occupancies: Sequence[jax.Array], batch_like: jax.Array) -> list[jax.Array]:
    """``e_i = O_i (1 - o_{i+1})`` with ``O_i = o_2 ... o_i``: the share of the answer that each exit gives.

    A stage runs only while all before it let it, hence the product; at hard occupancy exactly one weight is 1, and for
    any occupancy the weights are non-negative and sum to 1.

    Args:
      occupancies: [batch] of each stage after the first.
      batch_like: [batch], gives shape and dtype.

    Returns:
      One weight [batch] for each exit.
    """
    running, weights = jnp.ones_like(batch_like), []
    for occupancy in occupancies:
        weights.append(running * (1 - occupancy))
        running = running * occupancy
    return [*weights, running]


def answer(exits: jax.Array, weights: Sequence[jax.Array], how: str = "most_confident") -> jax.Array:
    """``sum_i e_i logits_i``, where the last term's logits are those that answer when no exit has fired.

    Args:
      exits: logits [exit, batch, class].
      weights: [batch] of every exit, see `exit_weights`.
      how: ``most_confident`` lets the most confident of all exits answer then, at full cost (Shallow-Deep Networks,
        paper and code); ``last`` the last one.

    Raises:
      ValueError: unknown `how`.
    """
    _validate.choice("answer", how, ANSWERS)
    otherwise = exits[-1]
    if how == "most_confident":
        best = jnp.argmax(confidence(jax.lax.stop_gradient(exits)), axis=0)
        otherwise = jnp.take_along_axis(exits, best[None, :, None], axis=0)[0]
    logits = weights[-1][:, None] * otherwise
    for number, weight in enumerate(weights[:-1]):
        logits = logits + weight[:, None] * exits[number]
    return logits
