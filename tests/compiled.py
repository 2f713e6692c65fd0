"""Fewer and cheaper compilations, for tests that run what they compile once or twice."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax._src.interpreters import mlir

from dyn_jax.occupancy.gate import Hard, Sigmoid, StraightThrough
from dyn_jax.testing._compare import quick_jit as quick_jit
from dyn_jax.types import Occupancy, Output, Variables

# {option of the compiler: (what every test has, what users have)}
_OPTIONS = {"xla_backend_optimization_level": (0, 3), "xla_cpu_parallel_codegen_split_count": (1, 32)}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # gone later; without: a third of the time at level 0
    _OPTIONS["xla_cpu_use_fusion_emitters"] = (False, True)
USERS = {name: users for name, (_, users) in _OPTIONS.items()}
QUICK_FLAGS = " ".join(f"--{name}={quick}".lower() for name, (quick, _) in _OPTIONS.items())

# JAX loads all dialects of its compiler anew for every program, which takes as long as a small program's own lowering:
# a file's programs share them, while JAX has the function by this name.
context = functools.cache(getattr(mlir, "make_ir_context", lambda: None))
mlir.make_ir_context = context


def exact_jit(fun: Callable, **options) -> Callable:
    """``jax.jit`` as users have it, for what stands or falls with rounding or runs long: several times as dear."""
    return jax.jit(fun, compiler_options=USERS, **options)


def traced_once(net: nn.Module, variables: Variables) -> Callable[..., Output]:
    """``net.apply`` with these variables, which JAX traces once for all attacks and losses that call it."""
    return jax.jit(functools.partial(net.apply, variables), inline=True)


_KINDS = (Hard, Sigmoid, StraightThrough)


@flax.struct.dataclass
class Switched:
    """One of the library's deterministic occupancies, chosen by data: a network compiles once for all of them.

    Values and derivatives are those of the chosen one (the others' are selected away), up to how XLA rounds: not for
    traces that are compared to the bit.
    """

    kind: jax.typing.ArrayLike
    lam: jax.typing.ArrayLike

    def __call__(self, score: jax.Array) -> jax.Array:
        soft = jnp.where(self.kind == 1, Sigmoid(self.lam)(score), StraightThrough(self.lam)(score))
        return jnp.where(self.kind == 0, Hard()(score), soft)


def switched(how: Occupancy) -> Switched:
    """`how`, one of `hard()`, `sigmoid(lam)` and `straight_through(lam)`, as data."""
    return Switched(_KINDS.index(type(how)), float(getattr(how, "lam", 1.0)))
