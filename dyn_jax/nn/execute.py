"""How a gated unit is executed: always (``dense``), or only where it is on.

A unit is ``occupancy(score(x)) * unit(x)``; the field `execution` of a network says whether ``unit(x)`` is evaluated
where that product is 0 anyway: ``conditional`` leaves out what is off for the whole batch, ``rows`` what is off for a
row of it (SkipNet of basic blocks, see `dyn_jax.nn.rows`). Logits, occupancies and executed multiply-adds do not depend
on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.occupancy.gate import Hard
from dyn_jax.types import Occupancy

EXECUTIONS = ("dense", "conditional")


def chosen(network: Any, occupancy: Occupancy, train: bool, known: tuple[str, ...] = EXECUTIONS) -> str:
    """The execution that the network's field asks for; under hard gates in evaluation only, elsewhere ``dense``.

    In training the batch statistics want every example, at initialisation every unit makes its parameters, and an
    occupancy other than ``hard()`` has a derivative where it is 0.

    Raises:
      ValueError: an execution that is not among the `known` ones.
    """
    wanted = _validate.choice("execution", network.execution, known)
    return wanted if isinstance(occupancy, Hard) and not train and not network.is_initializing() else "dense"


def skips(network: Any, occupancy: Occupancy, train: bool) -> bool:
    """Whether the network leaves out what is off for the whole batch, see `chosen`."""
    return chosen(network, occupancy, train) == "conditional"


def unit(skip: bool, network: nn.Module, on: jax.Array, fun: Callable[..., Any], off: Any, *inputs: jax.Array) -> Any:
    """``fun(*inputs)``; with `skip` that is ``lax.cond``: where no element of `on` is true, `off` stands instead.

    Args:
      skip: see `skips`.
      network: whose compact method this is called in.
      on: bool, any shape.
      fun: `inputs` -> a pytree like `off`; makes its layers where it is called, by name.
      off: what stands for the unit where it is off for the whole batch.
      *inputs: arrays.
    """
    if not skip:
        return fun(*inputs)
    # A layer must not be made inside a `cond` of a module outside it, so the branch is a module of its own, whose
    # layers have the names, and so find the parameters, that they have in the network.
    variables = network.variables
    return jax.lax.cond(jnp.any(on), lambda *x: _Piece(fun).apply(variables, *x), lambda *_: off, *inputs)


class _Piece(nn.Module):
    """The layers that a function makes, as children of this module."""

    fun: Callable[..., Any]

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> Any:
        return self.fun(*inputs)
