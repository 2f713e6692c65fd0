"""Objectives of early-exit networks: one exit's, or all of them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax._precision import single
from dyn_jax.objectives.answers import Objective, resolve, without_targets
from dyn_jax.types import Output, Trace


def exits_of(trace: Trace) -> jax.Array:
    """[batch, exit, class], the logits of all exits.

    Raises:
      ValueError: the network has no early exits, fewer than two of them.
    """
    if trace.exits is None or trace.exits.shape[1] < 2:
        raise ValueError("forward: got a network without early exits (trace.exits is None), expected at least two")
    return trace.exits


def at_exit(forward: Callable[[jax.Array], Output], index: int) -> Callable[[jax.Array], Output]:
    """`forward` with the logits of exit `index` (negative: from the end) as its answer: attack or judge that exit.

    Raises:
      TypeError: `index` is not an integer.
      ValueError: when called, there is no such exit, or the network has none.
    """
    index = _validate.positive_int("exit", index, minimum=-(2**31))

    def forward_at(x: jax.Array) -> Output:
        output = forward(x)
        exits = exits_of(output.trace)
        count = exits.shape[1]
        if not -count <= index < count:
            raise ValueError(f"exit: got {index}, expected one of the network's {count} exits, 0 to {count - 1}")
        return output.replace(logits=exits[:, index])

    return forward_at


def exit_objective(index: int, objective: str | Objective = "ce") -> Objective:
    """`objective` at exit `index` (negative: from the end) instead of the network's answer; raises as `at_exit`."""
    inner = resolve(objective)

    def at(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        return inner(at_exit(lambda _: output, index)(output.logits), labels, targets)

    return at


def sum_of_exits(objective: str | Objective = "ce") -> Objective:
    """`objective` summed over all exits, the final one included."""
    inner = resolve(objective)

    def total(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        exits = exits_of(output.trace)
        losses = (inner(output.replace(logits=exits[:, i]), labels, targets) for i in range(exits.shape[1]))
        return sum(losses, start=jnp.int32(0))

    return total


GUARD = 1e-9


def unsure_exits() -> Objective:
    """``-sum_{i < last} -mean_j log(softmax_ij + 1e-9)``: cross-entropy of all exits but the last with the uniform one.

    Ascending it makes them unsure: its largest value, at uniform exits, is ``-(exits - 1) log(classes)``.

    Raises:
      ValueError: when called, targets, or a network without early exits.

    Source: DeepSloth (Hong et al. 2021), eq. 1; released code for the 1e-9.
    """

    def value(output: Output, labels: jax.Array) -> jax.Array:
        inner = jax.nn.softmax(single(exits_of(output.trace)[:, :-1]))
        return jnp.sum(jnp.mean(jnp.log(inner + GUARD), axis=-1), axis=-1)

    return without_targets(value, "DeepSloth has no target class")
