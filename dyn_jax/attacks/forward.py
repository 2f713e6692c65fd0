"""What an attack makes of the function it is given: a network whose output can be relied on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dyn_jax import _validate
from dyn_jax._precision import singles
from dyn_jax.types import Output, Reach

Network = Callable[..., Any]
"""inputs -> `Output` or bare logits. The type says neither: flax declares that `Module.apply` may return a tuple."""


def as_forward(fun: Network) -> Callable[..., Output]:
    """(inputs, reach or None, **options) -> `Output` of a network that may return bare logits or know no ``reach``.

    What it returns in half precision is in single precision from here on: losses, norms and multiply-adds are numbers
    that half precision rounds or cannot hold.

    Raises:
      TypeError: not callable; when called, it returns neither an `Output` nor logits [row, class].
    """
    if not callable(fun):
        raise TypeError(f"forward: got {type(fun).__name__}, expected a callable inputs -> Output")
    looks_ahead = _takes_reach(fun)

    def forward(inputs: Any, reach: Reach | None = None, **options: Any) -> Output:
        if reach is not None and looks_ahead:
            options["reach"] = reach
        result = fun(inputs, **options)
        if not hasattr(result, "logits"):
            if isinstance(result, tuple):
                raise TypeError(
                    f"forward: returned a tuple of {len(result)}, expected an Output or logits; evaluate with "
                    "train=False and no mutable collections"
                )
            result = Output(result)
        if not isinstance(result.logits, (jax.Array, np.ndarray)):
            raise TypeError(
                f"forward: returned {type(result.logits).__name__}, expected an Output or a JAX array [batch, class]"
            )
        if result.logits.ndim != 2:
            hint = "; squeeze axes of length 1" if 1 in result.logits.shape else ""
            raise ValueError(f"forward: returned logits of shape {result.logits.shape}, expected [batch, class]{hint}")
        return singles(result)

    return forward


def traced_once(fun: Callable[[jax.Array], Output]) -> Callable[[jax.Array], Output]:
    """`fun`, which a surrounding jit traces once for all its calls; outside of one, eager as it was."""
    within = jax.jit(fun, inline=True)
    return lambda x: (fun if _validate.is_concrete(x) else within)(x)


def _takes_reach(fun: Callable) -> bool:
    try:
        parameters = inspect.signature(fun).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == "reach" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
