"""The gate of an early-exit network: has no parameters, reads the logits of the exits passed so far.

Stage i runs while no earlier exit has fired. A rule says when an exit fires, as a score that is below 0 there; an
answer says what a network that stopped at an exit says. Both are values: a family of networks may bring its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate

Answer = Callable[[jax.Array, jax.Array], jax.Array]
"""(logits [batch, exit, class], thresholds [exit - 1]) -> [batch, exit, class], what is said after stopping at each."""


class Rule(NamedTuple):
    """When an exit fires.

    Attributes:
      scores: (logits [batch, exit, class], thresholds [exit]) -> [batch, exit], below 0 where an exit fires.
      allowed: thresholds -> bool, elementwise.
      expected: what `allowed` wants, in words.
    """

    scores: Callable[[jax.Array, jax.Array], jax.Array]
    allowed: Callable[[np.ndarray], np.ndarray]
    expected: str


def confidence(logits: jax.Array) -> jax.Array:
    """Largest softmax probability over the last axis."""
    return jnp.max(jax.nn.softmax(logits), axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """``-sum p log p / log(classes)`` of the softmax over the last axis, in [0, 1]."""
    log_probability = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probability) * log_probability, axis=-1) / jnp.log(float(logits.shape[-1]))


def confidence_scores(exits: jax.Array, thresholds: jax.Array) -> jax.Array:
    """``threshold - confidence``: an exit fires where its confidence >= threshold.

    At equality the score is just below 0 (by half a rounding step), because the rule includes the threshold.
    Source: Kaya, Hong and Dumitras 2019, section 4.
    """
    values = confidence(exits)
    limits = thresholds.astype(values.dtype)[None]
    scores = limits - values
    return jnp.where(values >= limits, jnp.minimum(scores, -0.5 * jnp.finfo(values.dtype).eps), scores)


def entropy_scores(exits: jax.Array, thresholds: jax.Array) -> jax.Array:
    """``entropy - threshold``, the entropy divided by its largest value, log(classes).

    Source: Teerapittayanon, McDanel and Kung 2016 (BranchyNet), section 3.
    """
    values = entropy(exits)
    return values - thresholds.astype(values.dtype)[None]


def patience_scores(exits: jax.Array, thresholds: jax.Array) -> jax.Array:
    """``patience - 1/2 - run``: an exit fires where as many exits in a row as its threshold agreed with the one before.

    A run is 0 at an exit that changes the prediction, and grows by 1 at one that repeats it. The score is piecewise
    constant: no occupancy passes a gradient through it. Source: Zhou et al. 2020 (PABEE), section 3.
    """
    said = jnp.argmax(exits, axis=-1)
    repeats = jnp.concatenate([jnp.zeros_like(said[:, :1], bool), said[:, 1:] == said[:, :-1]], axis=1)
    runs = _running(lambda run, repeated: jnp.where(repeated, run + 1, 0), repeats.astype(exits.dtype))
    return thresholds.astype(exits.dtype)[None] - 0.5 - runs


RULES = {
    "confidence": Rule(confidence_scores, lambda t: (t > 0) & (t <= 1), "in (0, 1]"),
    "entropy": Rule(entropy_scores, lambda t: (t > 0) & (t <= 1), "in (0, 1]"),
    "patience": Rule(patience_scores, lambda t: (t >= 1) & (t == np.round(t)), "a patience: whole, at least 1"),
}


def _named(name: str, value: Any, known: dict[str, Any]) -> Any:
    """`value`, or the one that it names."""
    return value if callable(value) or isinstance(value, Rule) else known[_validate.choice(name, value, known)]


def columns(values: Iterable[jax.Array]) -> jax.Array:
    """[batch, ...] of each exit -> [batch, exit, ...]."""
    return jnp.concatenate([value[:, None] for value in values], axis=1)


def _running(combine: Callable, values: jax.Array) -> jax.Array:
    """[batch, n], what `combine` makes of the columns so far."""
    return columns(itertools.accumulate(values.T, combine))


def check_thresholds(threshold: jax.typing.ArrayLike | tuple, rule: str | Rule, exits: int) -> jax.Array:
    """[exits], a threshold for each exit but the last, from one number or one for each; range where concrete.

    Raises:
      ValueError, TypeError: unknown rule; another number of thresholds; no numbers, or out of the rule's range.
    """
    known: Rule = _named("rule", rule, RULES)
    each: Any = threshold
    if isinstance(threshold, (tuple, list)):
        each = [_validate.number("threshold", value) for value in threshold]
    elif np.ndim(threshold) != 1:
        each = _validate.number("threshold", threshold)
        each = np.full(exits, each) if _validate.is_concrete(each) else jnp.full(exits, each)
    if len(each) != exits:
        raise ValueError(
            f"threshold: got {len(each)} numbers, expected one, or {exits}: one for every exit but the last "
            "(a sweep is a jax.vmap)"
        )
    if _validate.is_concrete(each):
        host = np.asarray(each)
        if not (np.isfinite(host) & known.allowed(host)).all():
            raise ValueError(f"threshold: got {threshold}, expected {known.expected}")
    return jnp.asarray(each)


def exit_scores(
    exits: jax.Array, threshold: jax.typing.ArrayLike | tuple, rule: str | Rule = "confidence"
) -> jax.Array:
    """Scores of the stages after the first: each the lowest of the exits before it, so that one that fired stays so.

    Args:
      exits: logits [batch, exit, class] of every exit but the last, in depth order.
      threshold: one number, or one for each of them; may be traced, so that a sweep is a ``vmap``.
      rule: ``confidence`` or ``entropy`` (relative; thresholds in (0, 1]), ``patience`` (whole, at least 1), a `Rule`.

    Returns:
      [batch, exit].

    Raises:
      ValueError, TypeError: see `check_thresholds`.
    """
    thresholds = check_thresholds(threshold, rule, exits.shape[1])
    return _running(jnp.minimum, _named("rule", rule, RULES).scores(exits, thresholds))


def exit_weights(occupancies: jax.Array) -> jax.Array:
    """``e_i = O_i (1 - o_{i+1})`` with ``O_i = o_2 ... o_i``: the share of the answer that each exit gives.

    A stage runs only while all before it let it, hence the product; at hard occupancy exactly one weight is 1, and for
    any occupancy the weights are non-negative and sum to 1.

    Args:
      occupancies: [batch, exit - 1], of the stages after the first.

    Returns:
      [batch, exit].
    """
    ones = jnp.ones_like(occupancies[:, :1])
    reached = jnp.concatenate([ones, _running(jnp.multiply, occupancies)], axis=1)
    return reached * jnp.concatenate([1 - occupancies, ones], axis=1)


def most_confident(exits: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Every exit its own logits; where none fired, the most confident of all exits answers, at full cost.

    Source: Kaya, Hong and Dumitras 2019, paper and code.
    """
    best = jnp.argmax(confidence(jax.lax.stop_gradient(exits)), axis=1)
    return jnp.concatenate([exits[:, :-1], jnp.take_along_axis(exits, best[:, None, None], axis=1)], axis=1)


def last(exits: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Every exit its own logits; where none fired, the last one's."""
    return exits


ANSWERS: dict[str, Answer] = {"most_confident": most_confident, "last": last}


def answers(exits: jax.Array, thresholds: jax.Array, how: str | Answer = "most_confident") -> jax.Array:
    """[batch, exit, class], what a network that stopped at each exit says.

    Args:
      exits: logits [batch, exit, class].
      thresholds: [exit - 1], see `check_thresholds`.
      how: ``most_confident``, ``last``, or an `Answer`.

    Raises:
      ValueError: unknown `how`.
    """
    return _named("answer", how, ANSWERS)(exits, thresholds)
