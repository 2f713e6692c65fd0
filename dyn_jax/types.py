"""The words that every part of dyn_jax shares: what a forward pass takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax

Occupancy = Callable[[jax.Array], jax.Array]
"""Score -> value in [0, 1], elementwise. See `dyn_jax.occupancy`."""

Tap = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]
"""(features before gate i, i) -> (features for the trunk, features for the gate): both the features themselves, with a
derivative of one's own. For attacks that treat the two gradients differently."""

Variables = Any
"""Flax variables, ``{'params': ..., 'batch_stats': ...}``."""


@flax.struct.dataclass
class Dilated:
    """The part of a unit's work that a spatial neighbourhood of its occupied elements needs.

    A 3x3 convolution inside a masked branch must know its input on the dilated mask, so the layers before it
    run there (DynConv, section 3.3).

    Attributes:
      occupancy: [batch, *elements], occupancy of the dilated elements.
      macs: multiply-adds of one such element.
    """

    occupancy: jax.Array
    macs: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class UnitTrace:
    """What one adaptive unit did.

    Attributes:
      score: [batch, *elements], the number the unit decided by: on where it is >= 0.
      occupancy: [batch, *elements], what the occupancy function made of the score.
      macs: multiply-adds of one element when it is on (a static integer).
      dilated: further work on a dilated mask, or None.
      name: where the unit sits in the network, e.g. ``group2_layer0``.
      repeats: [batch, *elements], how many times `macs` an element costs (a voxel's neighbours, the input channels of
        a convolution that are on), or None: once.
      most_repeats: the largest `repeats` of an element, where the network fixes one; None: `repeats` depends on the
        input alone (voxels), or is None.
      logit: the score is a logit: the gating value of the energy attacks is its sigmoid, the threshold 1/2. Otherwise
        the score itself is "gating value minus threshold".
      value: [batch, *elements], what the unit's output is multiplied by where it is on, or None: 1. The output becomes
        ``occupancy * value * unit(x)`` (ManiDP, whose mask is the saliency).
      pooled: [batch, feature], pooled features of the map that the gate masks, before it does, where a training
        loss needs them (ManiDP), or None.
    """

    score: jax.Array
    occupancy: jax.Array
    macs: int = flax.struct.field(pytree_node=False)
    dilated: Dilated | None = None
    name: str = flax.struct.field(pytree_node=False, default="")
    repeats: jax.Array | None = None
    most_repeats: int | None = flax.struct.field(pytree_node=False, default=None)
    logit: bool = flax.struct.field(pytree_node=False, default=False)
    value: jax.Array | None = None
    pooled: jax.Array | None = None


@flax.struct.dataclass
class Reach:
    """How far the points of a cloud may move within one attack step: which voxels are candidates.

    Attributes:
      step: metres, per axis; at most one voxel.
      origin: [point, 3], the clean coordinates, for a `rule` other than ``none``.
      budget: metres, how far a point may get from `origin`.
      rule: which candidates the budget removes: ``none`` (the paper's N(x)); ``all``: those out of reach on some
        axis; ``any``: those out of reach on every axis (LGM's release, which hardly prunes).
    """

    step: jax.typing.ArrayLike
    origin: jax.Array | None = None
    budget: jax.typing.ArrayLike | None = None
    rule: str = flax.struct.field(pytree_node=False, default="none")


@flax.struct.dataclass
class PointCloud:
    """What a 3D network takes: points with features.

    Attributes:
      xyz: [point, 3], metres.
      features: [point, channel], e.g. colours minus 1/2.
      valid: [point] bool, False for points that only fill the array up.
      batch: [point] int32, which cloud a point belongs to; None: all to one.
      reach: for soft occupancies, see `Reach`; None: points stay in their voxels.
    """

    xyz: jax.Array
    features: jax.Array
    valid: jax.Array
    batch: jax.Array | None = None
    reach: Reach | None = None


@flax.struct.dataclass
class Trace:
    """What the adaptive part of a network did for a batch.

    Attributes:
      units: one `UnitTrace` per adaptive unit, in execution order.
      static_macs: multiply-adds per example that run whatever the input.
      exits: [exit, batch, class] logits of every exit of an early-exit network, else None.
      overflow: scalar bool of a 3D network, else None: True where its numbers cannot be trusted, because voxels or
        pairs did not fit the static capacity, the cloud spans 2^32 voxels or more, or a coordinate is not finite.
    """

    units: tuple[UnitTrace, ...] = ()
    static_macs: int = flax.struct.field(pytree_node=False, default=0)
    exits: jax.Array | None = None
    overflow: jax.Array | None = None


@flax.struct.dataclass
class Output:
    """What every forward pass returns: ``logits`` [batch, class] and the ``trace``."""

    logits: jax.Array
    trace: Trace = Trace()


@runtime_checkable
class Forward(Protocol):
    """Anything an attack can attack: images [batch, height, width, channel] -> `Output`."""

    def __call__(self, x: jax.Array, /) -> Output: ...
