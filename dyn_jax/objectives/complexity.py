"""What the energy attacks descend: functions of the trace alone, and the objective that any attack can ascend."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax._precision import single
from dyn_jax.objectives.answers import Objective, without_targets
from dyn_jax.types import Output, Trace, UnitTrace


def gating_excess(unit: UnitTrace, tau: jax.typing.ArrayLike | None = 0.5) -> jax.Array:
    """``G - tau``, how far the gating values lie above the threshold: [batch, *elements].

    Where the unit brings a gating value between 0 and 1 (``extras["probability"]``: the sigmoid of a logit, in SkipNet
    and DynConv) that is G; with tau None the score itself, whose threshold is 0 and whose derivative does not vanish
    however far off the gate is (not in the paper).

    Elsewhere the score already is gating value minus the unit's own threshold (ManiDP: saliency; SACT: 1 - eps -
    halting so far; early exits: threshold - confidence; voxels: occupancy - 1/2) and `tau` is not used.

    Source: GradAuto section 3.1, "Gate Generation".
    """
    probability = unit.extras.get("probability")
    if tau is None or probability is None:
        return single(unit.score)
    probability = single(probability)
    return probability - jnp.asarray(tau, probability.dtype)


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
    check_adaptive(trace)
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
    whole = jnp.where(whole > 0, whole, 1)  # a cloud without points costs nothing
    return [c / whole.reshape(-1, *(1,) * (c.ndim - 1)) for c in costs]


def check_adaptive(trace: Trace) -> None:
    """Raises ValueError where no input could change what the network costs."""
    if not trace.units:
        raise ValueError("forward: got a network without adaptive units (trace.units is empty), expected some")
    if all(unit.constant for unit in trace.units):
        raise ValueError(
            "forward: got a network of constant cost (a fixed number of experts or tokens runs, whatever the input), "
            "expected units whose number depends on it; attack which ones run, through a soft occupancy or their scores"
        )


def _element_costs(unit: UnitTrace) -> jax.Array:
    """Multiply-adds of an element that is on, [1 or batch, *1 or elements]: dense ones where there are such."""
    if unit.dense_macs is None:
        return jax.lax.stop_gradient(jnp.broadcast_to(unit.macs, unit.score.shape))
    return jnp.full((1,) * unit.score.ndim, float(unit.dense_macs), single(unit.score).dtype)


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
    return without_targets(lambda output, labels: -complexity_loss(output.trace, tau=tau, weights=weights))


def check_weights(weights: Weights) -> Weights:
    """Returns `weights`; ValueError unless they are a known name or an array."""
    return _validate.choice("weights", weights, ("macs", "equal")) if isinstance(weights, str) else weights


def check_tau(tau: jax.typing.ArrayLike | None) -> jax.typing.ArrayLike | None:
    """Returns tau; ValueError unless it lies in (0, 1) or is None."""
    return None if tau is None else _validate.share("tau", tau)


def logit_drift(output: Output, clean: jax.Array) -> jax.Array:
    """``sum (logits - clean logits)^2``, [batch]: the penalty that keeps an energy attack's prediction.

    Source: GradAuto's released code (its option to maintain accuracy).
    """
    return jnp.sum((single(output.logits) - clean) ** 2, axis=-1)
