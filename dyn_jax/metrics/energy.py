"""The energy model of sponge examples: an accelerator that skips zeros and keeps them out of its memory."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.metrics.traces import executed_macs
from dyn_jax.types import Trace


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Costs in picojoules.

    Attributes:
      memory: of one access to DRAM, for a number of 32 bits.
      compute: of one multiply-add.
      skips: whether zeros are neither kept in memory nor multiplied.

    Source: Shumailov et al. 2021, section 4.3; the numbers (45 nm) are those of its released code.
    """

    memory: float = 1950.0
    compute: float = 3.7
    skips: bool = True


ASIC = Accelerator()


def accelerator_energy(trace: Trace, parameters: int, hardware: Accelerator = ASIC) -> jax.Array:
    """[batch], picojoules: ``memory (parameters + 2 activations) + compute multiply-adds``, of one image each.

    Weights are read once; every activation is written once and read once, where it is not zero; a multiply-add with a
    zero is not done. (The released code also counts what lies between a convolution and its norm, and multiplies all
    operations by one share of non-zeros over all layers.)

    Args:
      trace: of a network of activations (``sparse-resnet-*``): its elements are numbers.
      parameters: how many weights are not zero, e.g. the size of all leaves.
      hardware: see `Accelerator`; with ``skips=False`` the energy does not depend on the image.

    Raises:
      ValueError, TypeError: parameters that are no integer of at least 0.

    Source: Shumailov et al. 2021, section 4.3.
    """
    _validate.positive_int("parameters", parameters, 0)
    work = executed_macs(trace)
    flat = [unit.on.reshape(unit.on.shape[0], -1) for unit in trace.units]
    on = sum((jnp.sum(each, axis=1, dtype=work.dtype) for each in flat), start=jnp.zeros_like(work))
    if not hardware.skips:
        on = jnp.full_like(work, float(sum(unit.elements for unit in trace.units)))
        work = jnp.full_like(work, trace.static_macs + sum(float(u.dense_macs or 0) * u.elements for u in trace.units))
    return hardware.memory * (float(parameters) + 2 * on) + hardware.compute * work
