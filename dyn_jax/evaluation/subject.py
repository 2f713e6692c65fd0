"""What is evaluated: a network with its weights as functions of images, occupancy and key."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from dyn_jax import _files
from dyn_jax import occupancy as occupancies
from dyn_jax.attacks.forward import as_forward
from dyn_jax.networks.checkpoint import check_own
from dyn_jax.types import Occupancy, Output, Variables


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network that can be attacked and judged."""

    apply: Callable[..., Any]  # (variables, images, **keywords) -> `Output` or logits
    variables: Variables  # an argument of every compiled program
    judged: Occupancy  # what it is deployed with; one that draws (`occupancy.Stochastic`) makes it random
    takes: frozenset[str]  # which of ``occupancy``, ``key``, ``tap`` `apply` accepts

    @property
    def stochastic(self) -> bool:
        """Whether a forward pass draws: it takes a ``key``, or its gates do."""
        return "key" in self.takes or isinstance(self.judged, occupancies.Stochastic)

    def forward(self, variables: Variables, gate: Occupancy | None = None) -> Callable[..., Output]:
        """images, key -> `Output` under an occupancy (None: the one that is judged); key None where nothing draws.

        Other keywords (``tap``) are handed on.
        """
        gate = self.judged if gate is None else gate

        def forward(x: jax.Array, key: jax.Array | None = None, **options: Any) -> Output:
            given: dict[str, Any] = {"occupancy": gate, **options} if "occupancy" in self.takes else options
            if "key" in self.takes:
                given["key"] = key
            elif key is not None and isinstance(gate, occupancies.Stochastic):
                given["rngs"] = {"gate": key}
            return as_forward(lambda x: self.apply(variables, x, **given))(x)

        return forward

    def shape(self, images: jax.typing.ArrayLike) -> Output:
        """Shapes of what it returns for these images, without running it.

        Raises:
          TypeError, ValueError: whatever the network says about them, or a result that is no `Output` or logits;
            variables of another module: missing, of another shape, or that it would not read.
        """
        key = jax.random.key(0) if self.stochastic else None
        batch = jax.ShapeDtypeStruct(jnp.shape(images), jnp.float32)
        check_own(getattr(self.apply, "__self__", None), self.variables)
        try:
            return jax.eval_shape(lambda v, x: self.forward(v)(x, key), self.variables, batch)
        except (TypeError, ValueError):
            raise
        except Exception as error:  # flax's own, or a KeyError of a function
            why = _files.short(f"{type(error).__name__}: {error}", 300)
            raise ValueError(f"net, variables: got some that fail on images {batch.shape}: {why}") from error

    def fingerprint(self, images: jax.typing.ArrayLike) -> str:
        """A digest of the traced program and of what it holds: fields of a module, code and constants of a function."""
        key = jax.random.key(0) if self.stochastic else None
        batch = jax.ShapeDtypeStruct(jnp.shape(images), jnp.float32)
        traced = jax.make_jaxpr(lambda v, x, key: self.forward(v)(x, key))(self.variables, batch, key)
        digest = hashlib.blake2b(plain(str(traced.jaxpr)).encode(), digest_size=16)
        for constant in held(traced):
            keys = jnp.issubdtype(jnp.result_type(constant), jax.dtypes.prng_key)
            digest.update(np.ascontiguousarray(jax.random.key_data(constant) if keys else constant).tobytes())
        return digest.hexdigest()


def held(program: Any) -> list[Any]:
    """Every array that a traced program holds, which its text leaves out: constants, also those of a function that it
    calls (a jitted one has its own), and literals with axes; the program's own constants come first."""
    jaxpr = getattr(program, "jaxpr", program)
    atoms = [*(atom for equation in jaxpr.eqns for atom in equation.invars), *jaxpr.outvars]
    found = [*getattr(program, "consts", ()), *(a.val for a in atoms if isinstance(a, jex.Literal) and np.ndim(a.val))]
    inner = [
        part
        for equation in jaxpr.eqns
        for value in equation.params.values()
        for part in (value if isinstance(value, (list, tuple)) else (value,))
    ]
    return found + [array for part in inner if hasattr(part, "eqns") for array in held(part)]


def plain(text: str) -> str:
    """A text without the addresses of objects, which are others in every process."""
    return re.sub(r"0x[0-9a-f]+", "", text)


def subject_of(net: Any, variables: Variables, occupancy: Occupancy | None = None) -> Subject:
    """A Linen module, or a function ``(variables, images, ...)``, with its weights.

    Args:
      net: a module whose call takes images and returns an `Output` or logits, or such a function; ``occupancy=`` is
        handed on where it is accepted, and so is ``key=``, which says that the network is random.
      variables: its weights.
      occupancy: what it is deployed with; default ``hard()``.

    Raises:
      TypeError: `net` cannot be called; an occupancy for a network that takes none.
    """
    if isinstance(net, nn.Module):
        call, apply = type(net).__call__, net.apply
    elif callable(net):
        call, apply = net, net
    else:
        raise TypeError(f"net: got {type(net).__name__}, expected a Linen module or a function (variables, images)")
    names = {name for name, p in inspect.signature(call).parameters.items() if p.kind is not p.VAR_KEYWORD}
    takes = frozenset(names & {"occupancy", "key", "tap"})
    if occupancy is not None and "occupancy" not in takes:
        raise TypeError("occupancy: got one, expected None: the network does not take occupancy=")
    if occupancy is not None and not callable(occupancy):
        raise TypeError(f"occupancy: got {type(occupancy).__name__}, expected one of dyn_jax.occupancy, or a function")
    return Subject(apply, variables, occupancies.hard() if occupancy is None else occupancy, takes)
