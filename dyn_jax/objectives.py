"""What an attack ascends: per-example losses of an `Output`.

Every objective is ``objective(output, labels, targets) -> [batch]``, larger is more adversarial. ``targets`` is None in
an untargeted attack. Write your own with the same three arguments; it may read the trace as well as the logits.

`complexity_loss` and `finished_loss` are what the energy attacks descend: functions of the trace alone.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate, metrics
from dyn_jax.types import Output, Trace, UnitTrace

Objective = Callable[[Output, jax.Array, jax.Array | None], jax.Array]


def _at(logits: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0]


def _largest_other(logits: jax.Array, index: jax.Array) -> jax.Array:
    own = jax.nn.one_hot(index, logits.shape[1], dtype=bool)
    return jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)


def cross_entropy(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """``-log softmax(z)_y``; targeted ``log softmax(z)_t``.

    Args:
      output: logits [batch, class].
      labels: [batch], the true classes.
      targets: [batch] or None.

    Returns:
      [batch].
    """
    log_probability = jax.nn.log_softmax(output.logits)
    return -_at(log_probability, labels) if targets is None else _at(log_probability, targets)


def margin(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """``max_{j != y} z_j - z_y``, positive where misclassified; targeted ``z_t - max_{j != t} z_j``.

    Source: Carlini and Wagner 2017, f_6, without the clamp (see `hinge_margin`).
    """
    if targets is None:
        return _largest_other(output.logits, labels) - _at(output.logits, labels)
    return _at(output.logits, targets) - _largest_other(output.logits, targets)


def hinge_margin(confidence: float = 0.0, *, protocol: str = "paper") -> Objective:
    """``min(margin, confidence)``: no gradient once the margin exceeds `confidence`.

    Args:
      confidence: kappa, in logits, at least 0.
      protocol: ``release`` reproduces LGM's code, where the label's own slot counts as a logit of 0 among the others
        (which matters when all other logits are negative).

    Source: Carlini and Wagner 2017, f_6.
    """
    _validate.number("confidence", confidence, minimum=0)
    _validate.choice("protocol", protocol, ("paper", "release"))

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        if protocol == "paper":
            value = margin(output, labels, targets)
        else:
            index = labels if targets is None else targets
            other = jnp.maximum(_largest_other(output.logits, index), 0.0)
            own = _at(output.logits, index)
            value = other - own if targets is None else own - other
        return jnp.minimum(value, confidence)

    return objective


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
    ranked = jax.lax.top_k(output.logits, needed)[0]
    own = _at(output.logits, labels)
    if targets is None:
        return (_largest_other(output.logits, labels) - own) / (ranked[:, 0] - ranked[:, 2] + 1e-12)
    third = 0.5 * (ranked[:, 2] + ranked[:, 3])
    return (_at(output.logits, targets) - own) / (ranked[:, 0] - third + 1e-12)


def gating_excess(unit: UnitTrace, tau: jax.typing.ArrayLike | None = 0.5) -> jax.Array:
    """``G - tau``, how far the gating values lie above the threshold: [batch, *elements].

    Where the score is a logit (SkipNet, DynConv) ``G = sigmoid(score)``; with tau None the score itself, whose
    threshold is 0 and whose derivative does not vanish however far off the gate is (not in the paper).

    Elsewhere the score already is gating value minus the unit's own threshold (ManiDP: saliency; SACT: 1 - eps -
    halting so far; early exits: threshold - confidence; voxels: occupancy - 1/2) and `tau` is not used.

    Source: GradAuto section 3.1, "Gate Generation".
    """
    if tau is None or not unit.logit:
        return unit.score
    return jax.nn.sigmoid(unit.score) - jnp.asarray(tau, unit.score.dtype)


Weights = str | jax.Array
"""lambda of the units: ``macs``, ``equal``, or numbers [unit]; see `complexity_weights`."""


def complexity_weights(trace: Trace, kind: Weights = "macs") -> list[jax.Array]:
    """lambda of every unit's elements, broadcastable to its scores.

    Args:
      trace: of any adaptive network.
      kind: ``macs``: ``C / sum C``, an element's share of the multiply-adds of all units (for a voxel by its
        neighbours of now, without gradient); ``equal``: 1 (the release); or numbers [unit], e.g. one-hot to attack a
        single unit. Numbers may be traced.

    Raises:
      ValueError: unknown `kind`, or another number of numbers than units; a trace without units.

    Source: GradAuto section 3.3, after eq. 6 and 8.
    """
    check_weights(kind)
    if not trace.units:
        raise ValueError("forward: got a network without adaptive units (trace.units is empty), expected some")
    if not isinstance(kind, str):
        if jnp.shape(kind) != (len(trace.units),):
            raise ValueError(f"weights: got shape {jnp.shape(kind)}, expected ({len(trace.units)},), one for each unit")
        return [jnp.asarray(k).reshape((1,) * unit.score.ndim) for k, unit in zip(kind, trace.units)]
    if kind == "equal":
        return [jnp.ones((1,) * unit.score.ndim, unit.score.dtype) for unit in trace.units]
    costs = [_element_costs(unit) for unit in trace.units]
    totals = [jnp.sum(jnp.broadcast_to(c, (c.shape[0], *u.score.shape[1:])), axis=tuple(range(1, c.ndim)))
              for c, u in zip(costs, trace.units)]  # fmt: skip
    whole = sum(totals[1:], start=totals[0])
    return [c / whole.reshape(-1, *(1,) * (c.ndim - 1)) for c in costs]


def _element_costs(unit: UnitTrace) -> jax.Array:
    """Multiply-adds of an element that is on, [1 or batch, *1 or elements]."""
    if unit.repeats is not None and unit.most_repeats is None:
        return unit.macs * jax.lax.stop_gradient(unit.repeats)
    elements = unit.score.size // unit.score.shape[0]
    return jnp.full((1,) * unit.score.ndim, metrics.dense_unit_macs(unit) / elements, unit.score.dtype)


def complexity_loss(trace: Trace, *, tau: jax.typing.ArrayLike | None = 0.5, weights: Weights = "macs") -> jax.Array:
    """``sum_l lambda_l max(tau - G_l, 0)`` over the elements of all units, [batch]: 0 where everything is on.

    Args:
      trace: of any adaptive network.
      tau: threshold of gates whose value is a probability; None: on their scores, see `gating_excess`.
      weights: see `complexity_weights`.

    Source: GradAuto eq. 6 (layers) and 8 (channels).
    """
    return _weighted(trace, lambda excess: jax.nn.relu(-excess), tau, weights)


def finished_loss(trace: Trace, *, tau: jax.typing.ArrayLike | None = 0.5, weights: Weights = "macs") -> jax.Array:
    """``-sum_l lambda_l max(G_l - tau, 0)``, [batch]: its gradient keeps on what is on.

    Arguments as of `complexity_loss`. Source: GradAuto eq. 20.
    """
    return -_weighted(trace, jax.nn.relu, tau, weights)


def _weighted(trace: Trace, part: Callable, tau: jax.typing.ArrayLike | None, weights: Weights) -> jax.Array:
    pairs = zip(trace.units, complexity_weights(trace, weights))
    sums = [jnp.sum(w * part(gating_excess(u, tau)), axis=tuple(range(1, u.score.ndim))) for u, w in pairs]
    return sum(sums[1:], start=sums[0])


def energy(*, tau: jax.typing.ArrayLike | None = 0.5, weights: Weights = "macs") -> Objective:
    """``-complexity_loss`` as an objective for any attack: `bim` with it is a slowdown inside a ball.

    Raises:
      ValueError: tau outside (0, 1); unknown `weights`; when called, a network without units, or targets.
    """
    check_tau(tau)
    check_weights(weights)

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        if targets is not None:
            raise ValueError("targets: got some, expected None: an attack on the energy has no target class")
        return -complexity_loss(output.trace, tau=tau, weights=weights)

    return objective


def check_weights(weights: Weights) -> Weights:
    """Returns `weights`; ValueError unless they are a known name or an array."""
    return _validate.choice("weights", weights, ("macs", "equal")) if isinstance(weights, str) else weights


def check_tau(tau: jax.typing.ArrayLike | None) -> jax.typing.ArrayLike | None:
    """Returns tau; ValueError unless it lies in (0, 1) or is None."""
    if tau is None:
        return None
    tau = _validate.number("tau", tau)
    if _validate.is_concrete(tau) and not bool(((np.asarray(tau) > 0) & (np.asarray(tau) < 1)).all()):
        raise ValueError(f"tau: got {tau}, expected a number in (0, 1): the threshold of a gate's probability")
    return tau


def logit_drift(output: Output, clean: jax.Array) -> jax.Array:
    """``sum (logits - clean logits)^2``, [batch]: the penalty that keeps an energy attack's prediction.

    Source: GradAuto's released code (its option to maintain accuracy).
    """
    return jnp.sum((output.logits - clean) ** 2, axis=-1)


OBJECTIVES: dict[str, Objective] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def resolve(objective: str | Objective) -> Objective:
    """A name among ``ce``, ``margin``, ``dlr``, or a callable, to the callable."""
    if callable(objective):
        return objective
    return OBJECTIVES[_validate.choice("objective", objective, OBJECTIVES)]
