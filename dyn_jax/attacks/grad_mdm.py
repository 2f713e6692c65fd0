"""GradMDM (Pan et al., TPAMI 2023), GradAuto's successor, as its released code has it.

Losses by power norms, and gradients evened out where the gates branch off the trunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from dyn_jax import _validate, objectives
from dyn_jax.attacks import rectify
from dyn_jax.attacks.base import Attack, Problem
from dyn_jax.attacks.domains import squares
from dyn_jax.attacks.energy import PAPER, EnergySearch, Form
from dyn_jax.attacks.ilfo import weighted
from dyn_jax.types import Trace

GRAD_MDM = PAPER.replace(distance=squares)
WARM_UP = 10  # steps with plain sums and without the nodes
COMPLEXITY_WEIGHT = 1.5e5
_GUARD = 1e-20


def probabilities(trace: Trace) -> jax.Array:
    """[batch, element], gating values with their threshold moved to 1/2, in [0, 1], of all units side by side."""
    parts = [jnp.clip(0.5 + objectives.gating_excess(unit), 0, 1) for unit in trace.units]
    return jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)


def power_norm(x: jax.Array, exponent: jax.typing.ArrayLike) -> jax.Array:
    """``(sum_i x_i^p)^(1/p)`` of x >= 0 [batch, element] -> [batch]; derivative 0 at elements that are 0.

    Powers of x over its largest element, so that large exponents do not underflow.
    """
    largest = jax.lax.stop_gradient(jnp.max(x, axis=1, keepdims=True))
    there = (x > 0) & (largest > 0)
    ratio = jnp.where(there, x, 1) / jnp.where(largest > 0, largest, 1)
    total = jnp.sum(jnp.where(there, ratio**exponent, 0), axis=1)
    return largest[:, 0] * jnp.where(total > 0, total, 1) ** (1 / exponent) * (total > 0)


def power_losses(trace: Trace, number: jax.Array, active: float, inactive: float) -> tuple[jax.Array, jax.Array]:
    """(Q, P), both [batch]: ``Q = -||min(p, 1/2)||_b`` over the gates that are off, ``P = ||1 - max(p, 1/2)||_a``.

    p are the gates' probabilities; a and b are 1 in the first steps. Source: GradMDM's released code (read).
    """
    p = probabilities(trace)
    a, b = (jnp.where(number < WARM_UP, 1.0, exponent) for exponent in (active, inactive))
    return -power_norm(jnp.minimum(p, 0.5), b), power_norm(1 - jnp.maximum(p, 0.5), a)


@jax.custom_vjp
def node(x: jax.Array, token: jax.Array, count: jax.Array, against: jax.Array, working: jax.Array) -> tuple:
    """x twice: for the trunk and for the gate. Backward, both gradients get unit length and the trunk's times `count`.

    Args:
      x: [batch, ...].
      token: zeros like x; its cotangent is the gradient that the node passed on.
      count: [batch], how many gates from here on are to be served.
      against: like x; a component of the gradient against it is taken off; 0: nothing is.
      working: scalar, 1, or 0: an ordinary branching, the gradients are added.
    """
    return x, x


def _node_fwd(x, token, count, against, working):
    return (x, x), (count, against, working)


def _node_bwd(residuals, cotangents):
    count, against, working = residuals
    trunk, gate = cotangents
    scale = lambda g: g / (rectify.norm(g) + _GUARD)
    weighted = scale(trunk) * count.reshape(-1, *(1,) * (trunk.ndim - 1)) + scale(gate)
    evened = rectify.direction(weighted, against).gradient
    gradient = jnp.where(working > 0, evened, trunk + gate)
    return gradient, gradient, jnp.zeros_like(count), jnp.zeros_like(against), jnp.zeros_like(working)


node.defvjp(_node_fwd, _node_bwd)


def evened_forward(active: float, inactive: float, problem: Problem, x: jax.Array, number: jax.Array) -> Callable:
    """The network with nodes before its gates, ready for the backward pass of Q at x.

    The pass of P comes first: its nodes count the gates that are off, and what they pass on is kept. The pass of Q
    counts the gates that are on and takes off what runs against the kept gradient.
    """
    forward = problem.forward
    if any(unit.score.ndim != 1 for unit in problem.clean.trace.units):
        raise ValueError("forward: got units of several elements, expected one gate a unit; use even=False")
    zeros = [jnp.zeros(shape, dtype) for shape, dtype in _tapped_shapes(forward, x)]
    on = [unit.on for unit in forward(x).trace.units]
    on_from, off_from = _from_each(on), _from_each([~gate for gate in on])
    working = jnp.asarray(number >= WARM_UP, x.dtype)

    def total(tokens: list[jax.Array]) -> jax.Array:
        tapped = forward(x, tap=lambda h, i: node(h, tokens[i], off_from[i], zeros[i], working))
        return jnp.sum(power_losses(tapped.trace, number, active, inactive)[1])

    kept = jax.grad(total)(zeros)
    return lambda x, reach=None: forward(x, tap=lambda h, i: node(h, zeros[i], on_from[i], kept[i], working))


def _tapped_shapes(forward: Callable, x: jax.Array) -> list[tuple]:
    """Shape and dtype of what the network hands to its tap, in order."""
    shapes: list[tuple] = []

    def note(h: jax.Array, index: int) -> tuple[jax.Array, jax.Array]:
        shapes.append((h.shape, h.dtype))
        return h, h

    try:
        jax.eval_shape(lambda x: forward(x, tap=note), x)
    except TypeError as error:
        if "tap" not in str(error):
            raise
        raise TypeError("forward: does not take tap=, expected a network that does (SkipNet), or even=False") from error
    return shapes


def _from_each(flags: list[jax.Array]) -> list[jax.Array]:
    """[batch] for every gate: how many flags from its own to the last are set."""
    return [
        sum((flag.astype(jnp.float32) for flag in flags[first:]), start=jnp.float32(0)) for first in range(len(flags))
    ]


def grad_mdm(
    gamma: jax.typing.ArrayLike = 100.0,
    *,
    steps: int = 100,
    learning_rate: jax.typing.ArrayLike = 0.01,
    active: float = 50.0,
    inactive: float = 3.5,
    even: bool = True,
    form: Form = GRAD_MDM,
) -> Attack:
    """Adam on delta with the gradient ``1.5e5 g_Q + gamma g_D``, where g_Q went through the nodes.

    ``Q = -||min(p, 1/2)||_b`` over the gates, D the squared distance. From the tenth step on a node before every gate
    gives the trunk's and the gate's gradient unit length, counts the gates they serve, and takes off what runs against
    the gates that are on. Before it the norms are plain sums and there are no nodes. Its paper is not among those this
    library follows: this is its code, on the exact change of variable by default.

    Args:
      gamma: weight of the distortion, at least 0: the larger, the smaller the perturbation (GradAuto's K is the other
        way round). May be traced.
      steps, learning_rate: of Adam.
      active, inactive: a and b, exponents of the norms: 50 and 3.5 for SkipNet RL; the code has a = 0.35 for SP.
      even: the nodes; needs a forward that takes ``tap=`` (SkipNet: ``partial(net.apply, variables, occupancy=...)``).
        False: the losses alone, for any network.
      form: see `dyn_jax.attacks.energy.Form`; its code's is ``released.form().replace(update_last=False)``.

    Raises as `grad_auto`; when called with ``even``, for a network whose units have several elements or that does not
    take ``tap=``. Source: GradMDM's released code (read). Without its option to keep the accuracy, in which the order
    of the backward passes mixes up the nodes' counts.
    """
    gamma = _validate.number("gamma", gamma, minimum=0)
    _validate.positive("active", active)
    _validate.positive("inactive", inactive)
    search = EnergySearch(
        weighted(COMPLEXITY_WEIGHT, gamma),
        partial(power_losses, active=active, inactive=inactive),
        form,
        steps,
        learning_rate,
        COMPLEXITY_WEIGHT,
        prepare=partial(evened_forward, active, inactive) if even else None,
    )
    return search.attack(None, objectives.energy(weights="equal"))
