"""The words that every part of dyn_jax shares: what a forward pass takes and returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import numpy as np
from jax.tree_util import GetAttrKey

Occupancy = Callable[..., jax.Array]
"""Score -> value in [0, 1], elementwise; a random one takes ``key=`` as well. See `dyn_jax.occupancy`."""

Tap = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]
"""(features before gate i, i) -> (features for the trunk, features for the gate): both the features themselves, with a
derivative of one's own. For attacks that treat the two gradients differently."""

Variables = Any
"""Flax variables, ``{'params': ..., 'batch_stats': ...}``."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class UnitTrace:
    """What one adaptive unit did, and what it costs.

    Attributes:
      score: [batch, *elements], the number the unit decided by: on where it is >= 0.
      occupancy: [batch, *elements], what the occupancy function made of the score.
      macs: multiply-adds that one element adds where it is on: an integer, or an array that broadcasts to the score
        and holds whatever depends on other gates or on the input, differentiable. A unit with two prices counts the
        difference here and the cheap price in `Trace.static_macs`.
      dense_macs: what one element adds in the dense network, an integer; None where there is no dense network
        (voxels). An integer `macs` is its own dense cost, unless another one is given.
      name: where the unit sits in the network, e.g. ``group2_layer0``.
      constant: as many elements run whatever the input (a router's k experts): there is no energy to attack.
      extras: arrays [batch, ...] of the family's own: ``probability`` (the gating value of the energy attacks where
        the score is a logit), ``value`` and ``pooled`` (ManiDP), ``dilated`` (DynConv, SACT), ``ponder`` (SACT),
        ``kept``, ``weight``, ``logits`` (experts: room was left, softmax and logits of the router).
    """

    score: jax.Array
    occupancy: jax.Array
    macs: int | jax.Array
    dense_macs: int | None = None
    name: str = ""
    extras: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    constant: bool = False

    def __post_init__(self) -> None:
        vars(self).update(_fixed=isinstance(self.macs, (int, np.integer)))
        if isinstance(self.macs, (int, np.integer)):
            vars(self).update(macs=int(self.macs))
            vars(self).update(dense_macs=self.macs if self.dense_macs is None else self.dense_macs)

    @property
    def on(self) -> jax.Array:
        """[batch, *elements] bool: the one place that says what counts as on, an occupancy of at least 1/2."""
        return self.occupancy >= 0.5

    @property
    def elements(self) -> int:
        """Elements of one example."""
        return math.prod(self.score.shape[1:])

    def replace(self, **changes: Any) -> UnitTrace:
        """A copy with other fields."""
        return dataclasses.replace(self, **changes)

    def tree_flatten_with_keys(self) -> tuple:
        fixed = self._fixed  # type: ignore[attr-defined]
        names = ("score", "occupancy", "extras") if fixed else ("score", "occupancy", "extras", "macs")
        children = tuple((GetAttrKey(name), getattr(self, name)) for name in names)
        return children, (names, self.name, self.dense_macs, self.macs if fixed else None, self.constant)

    @classmethod
    def tree_unflatten(cls, static: tuple, children: tuple) -> UnitTrace:
        names, name, dense_macs, macs, constant = static
        unit = object.__new__(cls)
        vars(unit).update(macs=macs, name=name, dense_macs=dense_macs, constant=constant, _fixed="macs" not in names)
        vars(unit).update(zip(names, children))
        return unit


class PointCloud(flax.struct.PyTreeNode):
    """What a 3D network takes: points with features, of one cloud or of several side by side.

    Attributes:
      xyz: [point, 3], metres.
      features: [point, channel], e.g. colours minus 1/2.
      valid: [point] bool, False for points that only fill the array up.
      batch: [point] int32 in [0, clouds), which cloud a point belongs to; None: all to one.
      clouds: how many clouds there are, static.
    """

    xyz: jax.Array
    features: jax.Array
    valid: jax.Array
    batch: jax.Array | None = None
    clouds: int = flax.struct.field(pytree_node=False, default=1)


class Reach(flax.struct.PyTreeNode):
    """How far points may move in the step that a gradient is for, and so which voxels are candidates.

    An argument of a 3D network's forward pass, beside the cloud: ``net.apply(variables, cloud, reach=Reach(0.01))``.

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


class Trace(flax.struct.PyTreeNode):
    """What the adaptive part of a network did for a batch; every array in it has the batch first.

    Attributes:
      units: one `UnitTrace` per adaptive unit, in execution order.
      static_macs: multiply-adds per example that run whatever the input.
      exits: [batch, exit, class] logits of every exit of an early-exit network, else None.
      overflow: scalar bool of a 3D network, else None: True where its numbers cannot be trusted, because voxels or
        pairs did not fit the static capacity, the cloud spans 2^32 voxels or more, or a coordinate is not finite.
    """

    units: tuple[UnitTrace, ...] = ()
    static_macs: int = flax.struct.field(pytree_node=False, default=0)
    exits: jax.Array | None = None
    overflow: jax.Array | None = None


class Output(flax.struct.PyTreeNode):
    """What every forward pass returns: ``logits`` [batch, class] and the ``trace``."""

    logits: jax.Array
    trace: Trace = Trace()


@runtime_checkable
class Forward(Protocol):
    """Anything an attack can attack: images [batch, height, width, channel], or a `PointCloud`, -> `Output`.

    A forward of point clouds that takes ``reach=`` is told how far points may move, see `Reach`.
    """

    def __call__(self, x: Any, /) -> Output: ...
