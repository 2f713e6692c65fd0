"""How an input enters a sparse network, and how the network's voxel scores leave it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.occupancy.voxel import VoxelOccupancy, relate
from dyn_jax.sparse3d.allocate import Capacity, capacity_for
from dyn_jax.sparse3d.cloud import as_reach, check_cloud
from dyn_jax.sparse3d.cylinder import Cylinder, Partition
from dyn_jax.sparse3d.form import PAPER, Form
from dyn_jax.sparse3d.segments import Segments, any_of, segments, spread, sum_over
from dyn_jax.sparse3d.sites import Sites
from dyn_jax.sparse3d.tensor import SparseTensor
from dyn_jax.sparse3d.voxelize import Voxels, first_of, hard_voxels, mean_over, near_voxels, point_scores, soft_features
from dyn_jax.types import PointCloud, Reach


@dataclasses.dataclass(frozen=True)
class HardPoints:
    """Points and the voxels that hold them: eq. 21-23, 36.

    Attributes:
      sites, exists, occupancy: of the finest level: the voxels, [voxel] bool, None.
      groups: the points grouped by voxel.
      overflow: scalar bool.
    """

    sites: Sites
    groups: Segments
    overflow: jax.Array
    occupancy = None

    @property
    def exists(self) -> jax.Array:
        return self.sites.valid

    def gather(self, values: jax.Array) -> jax.Array:
        """[point, channel] -> [voxel, channel], the mean."""
        return mean_over(values, self.groups)

    def back(self, scores: jax.Array) -> jax.Array:
        """[voxel, class] -> [point, class], the score of its voxel."""
        return spread(scores, self.groups)


@dataclasses.dataclass(frozen=True)
class SoftPoints:
    """Points and the voxels they are near: eq. 29-31, 37-40.

    Attributes:
      pairs: of the cloud.
      occupancy: [voxel] of the network's relation, or None where that is `hard`.
      to_input, to_output: [pair], relations of voxelisation and devoxelisation.
      filled: [voxel], "any of" the input's relations.
      form: see `Form`.
    """

    pairs: Voxels
    occupancy: jax.Array | None
    to_input: jax.Array
    to_output: jax.Array
    filled: jax.Array
    form: Form

    @property
    def sites(self) -> Sites:
        return self.pairs.sites

    @property
    def exists(self) -> jax.Array:
        return self.pairs.exists

    @property
    def overflow(self) -> jax.Array:
        return self.pairs.overflow

    def gather(self, values: jax.Array) -> jax.Array:
        """``o f~`` of eq. 37-38, [point, channel] -> [voxel, channel]."""
        return soft_features(values, self.to_input, self.pairs) * self.filled[:, None]

    def back(self, scores: jax.Array) -> jax.Array:
        """[voxel, class] -> [point, class], eq. 40."""
        return point_scores(scores, self.to_output, self.pairs, normalise=self.form.normalises_scores)


def points_in_voxels(
    cloud: PointCloud,
    occupancy: VoxelOccupancy | None,
    capacity: Capacity,
    reach: Reach | jax.typing.ArrayLike | None,
    voxel_size: float,
    form: Form,
) -> HardPoints | SoftPoints:
    """The finest level of a network: the voxels of a checked cloud and how values get there and back."""
    if occupancy is None:
        return HardPoints(*hard_voxels(cloud, voxel_size, capacity.levels[0]))
    reach = reach if occupancy.extends else None
    pairs = near_voxels(cloud, voxel_size, reach=reach, voxels=capacity.levels[0], pairs=capacity.pairs)
    network = None
    if occupancy.extends:
        network = any_of(relate(occupancy.network, pairs.distance, pairs.inside), pairs.voxels)
    to_input = relate(occupancy.input, pairs.distance, pairs.inside)
    to_output = relate(occupancy.output, pairs.distance, pairs.inside)
    return SoftPoints(pairs, network, to_input, to_output, any_of(to_input, pairs.voxels), form)


class Entry(NamedTuple):
    """A network's input on the finest level.

    Attributes:
      sites, exists, occupancy, overflow: see `HardPoints` and `SoftPoints`.
      features: [voxel, channel].
      capacities: rows of every level, or None.
      clouds: that the trace tells apart; 1 for a sparse tensor.
      back: scores [voxel, class] -> scores per row or point.
    """

    sites: Sites
    features: jax.Array
    exists: jax.Array
    occupancy: jax.Array | None
    capacities: tuple[int, ...] | None
    overflow: jax.Array
    clouds: int
    back: Callable[[jax.Array], jax.Array]


def enter(
    inputs: SparseTensor | PointCloud,
    occupancy: VoxelOccupancy | None,
    capacity: Capacity | None,
    *,
    reach: Reach | jax.typing.ArrayLike | None,
    form: Form,
    levels: int,
    in_features: int,
    voxel_size: float,
    coordinate_features: bool = False,
) -> Entry:
    """Checks an input and turns it into voxels; see the networks for the arguments."""
    if isinstance(inputs, SparseTensor):
        if occupancy is not None:
            raise TypeError(
                "occupancy: got a soft one with a SparseTensor, expected a PointCloud: voxels have no points"
            )
        return _enter_tensor(inputs, capacity, levels, in_features)
    if not isinstance(inputs, PointCloud):
        raise TypeError(f"inputs: got {type(inputs).__name__}, expected a SparseTensor or a PointCloud")
    cloud, lost = check_cloud(inputs, voxel_size, in_features - 3 * coordinate_features)
    capacity = default_capacity(cloud, occupancy, capacity, reach, voxel_size, levels)
    points = points_in_voxels(cloud, occupancy, capacity, reach, voxel_size, form)
    if isinstance(points, SoftPoints):
        features = soft_voxel_features(cloud, points, voxel_size, coordinate_features)
    else:
        features = _hard_voxel_features(cloud, points, coordinate_features)
    return _entry(points, features, capacity.levels, points.overflow | lost, cloud.clouds)


def default_capacity(
    cloud: PointCloud | Partition,
    occupancy: VoxelOccupancy | None,
    capacity: Capacity | None,
    reach: Reach | jax.typing.ArrayLike | None,
    voxel_size: float | Cylinder,
    levels: int,
    form: Form = PAPER,
) -> Capacity:
    """`capacity`, or what the cloud needs under this occupancy; ValueError for another number of levels."""
    as_reach(reach)
    if capacity is not None:
        if len(capacity.levels) != levels:
            raise ValueError(f"capacity: got {len(capacity.levels)} levels {capacity.levels}, expected {levels}")
        return capacity
    extends = occupancy is not None and occupancy.extends
    return capacity_for(cloud, voxel_size, levels, reach=reach, extends=extends, form=form)


def flag_overflow(overflow: jax.Array) -> jax.Array:
    """Outside jit, an overflow is an error; inside it is data."""
    if _validate.is_concrete(overflow) and bool(overflow):
        raise ValueError(
            "capacity: voxels or pairs did not fit (or the cloud spans 2^32 voxels or more); give a larger capacity, "
            "see sparse3d.capacity_for"
        )
    return overflow


def _enter_tensor(tensor: SparseTensor, capacity: Capacity | None, levels: int, in_features: int) -> Entry:
    if tensor.features.ndim != 2 or tensor.features.shape[1] != in_features:
        raise ValueError(f"features: got shape {tensor.features.shape}, expected [rows, {in_features}]")
    if tensor.stride != (1, 1, 1):
        raise ValueError(f"stride: got {tensor.stride}, expected a tensor of stride 1")
    sites = tensor.sites()
    row, _ = sites.find(tensor.coordinates, tensor.valid)
    groups = segments(row, sites.capacity)
    capacity = capacity_for(tensor, None, levels) if capacity is None else capacity
    capacities = None if capacity is None else (sites.capacity, *capacity.levels[1:])
    points = HardPoints(sites, groups, sites.overflow)
    return _entry(points, sum_over(tensor.features, groups), capacities, sites.overflow, 1)


def _entry(
    points: HardPoints | SoftPoints, x: jax.Array, capacities: tuple[int, ...] | None, overflow: jax.Array, clouds: int
) -> Entry:
    return Entry(points.sites, x, points.exists, points.occupancy, capacities, overflow, clouds, points.back)


def _hard_voxel_features(cloud: PointCloud, points: HardPoints, coordinates: bool) -> jax.Array:
    """Eq. 34: a voxel has its first point's features; and its coordinates, x and y centred in its cloud, behind."""
    features = first_of(cloud.features, points.groups)
    if not coordinates:
        return features
    position = points.sites.coordinates[:, 1:].astype(features.dtype)
    centred = _centred(position, points.sites.coordinates[:, 0], points.exists, cloud.clouds)
    return jnp.concatenate([features, centred], axis=1)


def _centred(position: jax.Array, batch: jax.Array, counted: jax.Array, clouds: int) -> jax.Array:
    """Positions [row, 3], x and y minus their mean over the counted rows of the row's cloud."""
    own = (counted[None] & (batch[None] == jnp.arange(clouds, dtype=batch.dtype)[:, None]))[:, :, None]
    mean = jnp.sum(jnp.where(own, position[None], 0), axis=1) / jnp.maximum(jnp.sum(own, axis=1), 1)
    # a sum, for the derivative of a look-up are writes that meet
    return position - jnp.sum(jnp.where(own, mean.at[:, 2].set(0)[:, None], 0), axis=0)


def soft_voxel_features(cloud: PointCloud, points: SoftPoints, voxel_size: float, coordinates: bool) -> jax.Array:
    """``o f~`` of eq. 37-38, [voxel, channel]; with voxel coordinates, x and y centred by cloud, behind them.

    The release rounds those coordinates by a steep sigmoid, as LGM's S3DIS code does; the paper has no such step.
    """
    if not coordinates:
        return points.gather(cloud.features)
    batch = jnp.zeros(len(cloud.xyz), jnp.int32) if cloud.batch is None else cloud.batch
    centred = _centred(cloud.xyz / voxel_size, batch, cloud.valid, cloud.clouds)
    features = jnp.concatenate([cloud.features, centred], axis=1)
    soft = soft_features(features, points.to_input, points.pairs)
    if points.form.rounds_coordinates:
        soft = soft.at[:, -3:].set(soft_floor(soft[:, -3:]))
    return soft * points.filled[:, None]


def soft_floor(values: jax.Array, slope: float = 20.0) -> jax.Array:
    """``b + sigmoid(slope (v - b))`` with ``b = floor(v - 1/2)``: rounds half up, up to 5e-5, with hardly a gradient.

    Source: LGM's release (S3DIS); it is not the floor that the deployed network takes.
    """
    below = jnp.floor(values - 0.5)
    return below + jax.nn.sigmoid(slope * (values - below))
