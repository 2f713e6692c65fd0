"""Fewer and cheaper compilations, for tests that run what they compile once or twice."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax._src import compiler
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
QUICK_FLAGS += " --xla_cpu_max_isa=AVX2"  # what every machine has: less code to choose from, and the same everywhere

# JAX loads all dialects of its compiler anew for every program, which takes as long as a small program's own lowering:
# a file's programs share them, while JAX has the function by this name.
context = functools.cache(getattr(mlir, "make_ir_context", lambda: None))
mlir.make_ir_context = context

_compile, _small = compiler.compile_or_get_cached, {}


def _once(backend, module, devices, options, callbacks, *rest, **more):
    """One operation on its own, nine of ten programs, compiles once for all files: its text and options say all."""
    compile_it = functools.partial(_compile, backend, module, devices, options, callbacks, *rest, **more)
    operations = [block.operations for top in module.body.operations for region in top.regions for block in region]
    if callbacks or sum(map(len, operations)) > 10:
        return compile_it()
    key = module.operation.get_asm(enable_debug_info=False), options.SerializeAsString(), *(d.id for d in devices.flat)
    if key not in _small:
        _small[key] = compile_it()
    return _small[key]


compiler.compile_or_get_cached = _once


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
