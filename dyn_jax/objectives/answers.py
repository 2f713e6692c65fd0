"""What an attack ascends: per-example losses of an `Output`.

Every objective is ``objective(output, labels, targets) -> [batch]``, larger is more adversarial. ``targets`` is None in
an untargeted attack. Write your own with the same three arguments; it may read the trace as well as the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax._precision import single
from dyn_jax.types import Output

Objective = Callable[[Output, jax.Array, jax.Array | None], jax.Array]


def untargeted(targets: jax.Array | None, why: str = "an attack on the energy has no target class") -> None:
    """Raises ValueError where there are targets, for what cannot aim at a class."""
    if targets is not None:
        raise ValueError(f"targets: got some, expected None: {why}")


def without_targets(value: Callable[[Output, jax.Array], jax.Array], *why: str) -> Objective:
    """``value(output, labels)`` as an objective that refuses targets, see `untargeted`."""

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        untargeted(targets, *why)
        return value(output, labels)

    return objective


@partial(jax.jit, inline=True)
def _at(logits: jax.Array, index: jax.Array) -> jax.Array:
    if jnp.shape(index) != logits.shape[:1]:
        raise ValueError(f"labels: got shape {jnp.shape(index)}, expected {logits.shape[:1]}, one for every row")
    return jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0]


@partial(jax.jit, inline=True)
def _largest_other(logits: jax.Array, index: jax.Array) -> jax.Array:
    own = jax.nn.one_hot(index, logits.shape[1], dtype=bool)
    return jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)


def cross_entropy(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """``-log softmax(z)_y`` of logits z [batch, class], labels y [batch]; targeted ``log softmax(z)_t``; [batch]."""
    log_probability = jax.nn.log_softmax(single(output.logits))
    return -_at(log_probability, labels) if targets is None else _at(log_probability, targets)


def margin(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """``max_{j != y} z_j - z_y``, positive where misclassified; targeted ``z_t - max_{j != t} z_j``.

    Source: Carlini and Wagner 2017, f_6, without the clamp (see `hinge_margin`).
    """
    logits = single(output.logits)
    if targets is None:
        return _largest_other(logits, labels) - _at(logits, labels)
    return _at(logits, targets) - _largest_other(logits, targets)


def hinge_margin(confidence: float = 0.0, margin: Objective = margin) -> Objective:
    """``min(margin, confidence)``: no gradient once the margin exceeds `confidence`.

    Args:
      confidence: kappa, in logits, at least 0.
      margin: what is clamped; default `margin`.

    Source: Carlini and Wagner 2017, f_6.
    """
    _validate.number("confidence", confidence, minimum=0)

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        return jnp.minimum(margin(output, labels, targets), confidence)

    return objective


def released_margin(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """`margin` as LGM's code has it: the label's own slot counts as a logit of 0 among the others.

    That matters where all other logits are negative.
    """
    index = labels if targets is None else targets
    other, own = jnp.maximum(_largest_other(output.logits, index), 0.0), _at(output.logits, index)
    return other - own if targets is None else own - other


def dlr(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Difference of logits ratio, invariant to shift and scale of the logits.

    Untargeted ``-(z_y - max_{j != y} z_j) / (z_(1) - z_(3))``; targeted
    ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)``, with z_(k) the k-th largest logit.

    Raises:
      ValueError: fewer than three (targeted: four) classes.

    Source: Croce and Hein 2020, eq. 4 and 5; the denominator has their released code's 1e-12 added.
    """
    needed = 3 if targets is None else 4
    if output.logits.shape[1] < needed:
        raise ValueError(f"dlr: got {output.logits.shape[1]} classes, expected at least {needed}")
    logits = single(output.logits)
    ranked = jax.lax.top_k(logits, needed)[0]
    own = _at(logits, labels)
    if targets is None:
        return (_largest_other(logits, labels) - own) / (ranked[:, 0] - ranked[:, 2] + 1e-12)
    third = 0.5 * (ranked[:, 2] + ranked[:, 3])
    return (_at(logits, targets) - own) / (ranked[:, 0] - third + 1e-12)


OBJECTIVES: dict[str, Objective] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def resolve(objective: str | Objective) -> Objective:
    """A name among ``ce``, ``margin``, ``dlr``, or a callable, to the callable."""
    if callable(objective):
        return objective
    return OBJECTIVES[_validate.choice("objective", objective, OBJECTIVES)]
