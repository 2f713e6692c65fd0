"""Networks as they are deployed: one image at a time, compiled, and what is off is not computed."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate, metrics, occupancy
from dyn_jax.networks.checkpoint import check_variables
from dyn_jax.types import Variables


class Answer(NamedTuple):
    """What a deployed network says about one image.

    Attributes:
      logits: [class].
      macs: scalar, the multiply-adds of `dyn_jax.metrics.executed_macs`.
      exit: scalar integer, where an early-exit network stopped; None for other networks.
    """

    logits: jax.Array
    macs: jax.Array
    exit: jax.Array | None


@dataclasses.dataclass(frozen=True, eq=False)
class Deployed:
    """Image [height, width, 3] in [0, 1] -> `Answer`; made by `deploy`.

    Attributes:
      network: with ``execution="conditional"``.
      variables: on the device.
      shape: of the image.
      compiled: ``(variables, image) -> Answer``, ahead of time; ``compiled.as_text()`` is its HLO.
    """

    network: nn.Module
    variables: Variables
    shape: tuple[int, int, int]
    compiled: Any

    def __call__(self, image: jax.typing.ArrayLike) -> Answer:
        """Waits for nothing, as all of JAX.

        Raises:
          ValueError, TypeError: a batch, another shape, no floating point, a traced array; pixels of a NumPy array that
            are not finite or outside [0, 1] (one on the device is not waited for).
        """
        shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
        if shape is None or dtype is None:
            raise TypeError(f"image: got {type(image).__name__}, expected an array {list(self.shape)}")
        if len(shape) == 4:
            raise ValueError(f"image: got a batch {shape}, expected one image {self.shape} at a time")
        if shape != self.shape:
            raise ValueError(f"image: got shape {shape}, expected {self.shape}")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"image: got dtype {dtype}, expected floating point in [0, 1] (divide uint8 by 255)")
        if not _validate.is_concrete(image):
            raise TypeError(
                "image: got a traced array, expected numbers: it is compiled; transform `net.apply` instead"
            )
        if isinstance(image, np.ndarray):
            _validate.within("image", image, (0.0, 1.0))
        return self.compiled(self.variables, jnp.asarray(image, jnp.float32))


def deploy(
    net: nn.Module,
    variables: Variables,
    *,
    image_size: int | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Deployed:
    """Compiles `net` for one image at a time, with every unit that is off left out by a ``lax.cond``.

    Logits, multiply-adds and exits are those of the batched network under ``hard()``. What is left out: a block that
    SkipNet skips, every stage behind the exit that fired, a block of DynConv with no position on, a unit of SACT or ACT
    where everything has halted. Where some positions of a map are on, the whole map is computed.

    Args:
      net: `SkipNet`, `SDN` (RDI-Nets too), `DynConv` or `SACT`: a network with the field ``execution``.
      variables: of `net`.
      image_size: height and width; default the network's own, must be given where it has none.
      compiler_options: of ``jax.jit``.

    Raises:
      ValueError, TypeError: a network that is not supported; variables that do not fit it; no image size, or another
        than the network's.
    """
    if not isinstance(net, nn.Module) or not hasattr(net, "execution"):
        name = net.__name__ if inspect.isclass(net) else type(net).__name__
        raise ValueError(f"net: got {name}, expected a SkipNet, SDN, DynConv or SACT (a network with `execution`)")
    own = getattr(net, "image_size", None)
    if image_size is None and own is None:
        raise ValueError(f"image_size: got None, expected height and width: a {type(net).__name__} takes any")
    size = _validate.positive_int("image_size", own if image_size is None else image_size)
    if own is not None and size != own:
        raise ValueError(f"image_size: got {size}, expected the network's own, {own}")
    check_variables(net, variables)
    network = net.clone(execution="conditional")

    def answer(variables: Variables, image: jax.Array) -> Answer:
        output: Any = network.apply(variables, image[None], occupancy=occupancy.hard())
        stopped = None if output.trace.exits is None else metrics.exits.exit_index(output.trace)[0]
        return Answer(output.logits[0], metrics.executed_macs(output.trace)[0], stopped)

    shape = (size, size, 3)
    on_device = jax.device_put(variables)
    run = jax.jit(answer, compiler_options=None if compiler_options is None else dict(compiler_options))
    compiled = run.lower(on_device, jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    return Deployed(network, on_device, shape, compiled)
