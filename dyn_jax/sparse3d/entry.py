"""How an input enters a sparse network, and how the network's voxel scores leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.occupancy.voxel import VoxelOccupancy, relate
from dyn_jax.sparse3d.allocate import Capacity, capacity_for
from dyn_jax.sparse3d.segments import any_of, segments, spread, sum_over
from dyn_jax.sparse3d.sites import Sites
from dyn_jax.sparse3d.tensor import SparseTensor
from dyn_jax.sparse3d.voxelize import (
    Voxels,
    first_of,
    hard_voxels,
    near_voxels,
    point_scores,
    soft_features,
)
from dyn_jax.types import PointCloud

SOFT_FLOOR = 20.0
"""Slope of the release's soft floor of S3DIS coordinates."""


class Entry(NamedTuple):
    """A network's input on the finest level.

    Attributes:
      sites: the voxels.
      features: [voxel, channel].
      exists: [voxel] bool.
      occupancy: [voxel] of the network's relation, or None.
      capacities: rows of every level, or None.
      leave: (scores [voxel, class], overflow) -> (scores per row or point, overflow).
    """

    sites: Sites
    features: jax.Array
    exists: jax.Array
    occupancy: jax.Array | None
    capacities: tuple[int, ...] | None
    leave: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def enter(
    inputs: SparseTensor | PointCloud,
    occupancy: VoxelOccupancy | None,
    capacity: Capacity | None,
    *,
    protocol: str,
    levels: int,
    in_features: int,
    voxel_size: float,
    coordinate_features: bool = False,
) -> Entry:
    """Checks an input and turns it into voxels; see the networks for the arguments."""
    if isinstance(inputs, SparseTensor):
        _check_features("features", inputs.features, in_features)
        if occupancy is not None:
            raise TypeError(
                "occupancy: got a soft one with a SparseTensor, expected a PointCloud: voxels have no points"
            )
        return _enter_tensor(inputs, capacity, levels)
    if not isinstance(inputs, PointCloud):
        raise TypeError(f"inputs: got {type(inputs).__name__}, expected a SparseTensor or a PointCloud")
    check_cloud(inputs)
    _check_features("features", inputs.features, in_features - 3 * coordinate_features)
    if capacity is None:
        capacity = capacity_for(inputs, voxel_size, levels, extends=occupancy is not None and occupancy.extends)
    if occupancy is None:
        return _enter_hard(inputs, capacity, voxel_size, coordinate_features)
    return _enter_soft(inputs, occupancy, capacity, voxel_size, coordinate_features, protocol)


def check_cloud(cloud: PointCloud) -> None:
    """Raises TypeError, ValueError: shapes or dtypes that do not fit; concretely: no valid point, NaN or infinity."""
    if cloud.xyz.ndim != 2 or cloud.xyz.shape[1] != 3 or not cloud.xyz.shape[0]:
        raise ValueError(f"xyz: got shape {cloud.xyz.shape}, expected [points, 3] with at least one point")
    if not jnp.issubdtype(cloud.xyz.dtype, jnp.floating):
        raise TypeError(f"xyz: got dtype {cloud.xyz.dtype}, expected floating point, metres")
    count = cloud.xyz.shape[0]
    if cloud.features.ndim != 2 or cloud.features.shape[0] != count:
        raise ValueError(f"features: got shape {cloud.features.shape}, expected [{count}, channels]")
    if cloud.valid.shape != (count,):
        raise ValueError(f"valid: got shape {cloud.valid.shape}, expected ({count},)")
    if _validate.is_concrete(cloud.xyz, cloud.features, cloud.valid):
        valid = np.asarray(cloud.valid)
        if not valid.any():
            raise ValueError("valid: got no valid point, expected at least one")
        for name, values in (("xyz", cloud.xyz), ("features", cloud.features)):
            bad = int((~np.isfinite(np.asarray(values)[valid])).any(axis=1).sum())
            if bad:
                raise ValueError(f"{name}: got {bad} points with NaN or infinite values, expected finite ones")


def _check_features(name: str, features: jax.Array, expected: int) -> None:
    if features.ndim != 2 or features.shape[1] != expected:
        raise ValueError(f"{name}: got shape {features.shape}, expected [rows, {expected}]")


def flag_overflow(overflow: jax.Array) -> jax.Array:
    """Outside jit, an overflow is an error; inside it is data."""
    if _validate.is_concrete(overflow) and bool(overflow):
        raise ValueError(
            "capacity: voxels or pairs did not fit (or the cloud spans 2^32 voxels or more); give a larger capacity, "
            "see sparse3d.capacity_for"
        )
    return overflow


def _enter_tensor(tensor: SparseTensor, capacity: Capacity | None, levels: int) -> Entry:
    if tensor.stride != (1, 1, 1):
        raise ValueError(f"stride: got {tensor.stride}, expected a tensor of stride 1")
    sites = tensor.sites()
    row, _ = sites.find(tensor.coordinates, tensor.valid)
    groups = segments(row, sites.capacity)
    if capacity is None:
        capacity = capacity_for(tensor, None, levels)

    def leave(scores: jax.Array, overflow: jax.Array) -> tuple[jax.Array, jax.Array]:
        return spread(scores, groups), flag_overflow(overflow)

    capacities = None if capacity is None else (sites.capacity, *capacity.levels[1:])
    return Entry(sites, sum_over(tensor.features, groups), sites.valid, None, capacities, leave)


def _enter_hard(cloud: PointCloud, capacity: Capacity | None, voxel_size: float, coordinates: bool) -> Entry:
    """Eq. 21-23, 34, 36: a voxel has its first point's features, a point its voxel's score."""
    sites, groups, lost = hard_voxels(cloud, voxel_size, capacity.levels[0])
    features = first_of(cloud.features, groups)
    if coordinates:
        position = sites.coordinates[:, 1:].astype(features.dtype)
        mean = jnp.sum(position * sites.valid[:, None], axis=0) / jnp.maximum(sites.count, 1)
        features = jnp.concatenate([features, position - mean.at[2].set(0)[None]], axis=1)

    def leave(scores: jax.Array, overflow: jax.Array) -> tuple[jax.Array, jax.Array]:
        return spread(scores, groups), flag_overflow(overflow | lost)

    return Entry(sites, features, sites.valid, None, capacity.levels, leave)


def _enter_soft(
    cloud: PointCloud,
    occupancy: VoxelOccupancy,
    capacity: Capacity,
    voxel_size: float,
    coordinates: bool,
    protocol: str,
) -> Entry:
    """Eq. 29-31, 37-40."""
    reaching = cloud if occupancy.extends else cloud.replace(reach=None)
    pairs = near_voxels(reaching, voxel_size, voxels=capacity.levels[0], pairs=capacity.pairs)
    network = None
    if occupancy.extends:
        network = any_of(relate(occupancy.network, pairs.distance, pairs.inside), pairs.voxels)
    to_input = relate(occupancy.input, pairs.distance, pairs.inside)
    to_output = relate(occupancy.output, pairs.distance, pairs.inside)
    features = soft_voxel_features(cloud, to_input, pairs, voxel_size, coordinates, protocol)

    def leave(scores: jax.Array, overflow: jax.Array) -> tuple[jax.Array, jax.Array]:
        return point_scores(scores, to_output, pairs, normalise=protocol == "paper"), flag_overflow(
            overflow | pairs.overflow
        )

    return Entry(pairs.sites, features, pairs.exists, network, capacity.levels, leave)


def soft_voxel_features(
    cloud: PointCloud, relation: jax.Array, pairs: Voxels, voxel_size: float, coordinates: bool, protocol: str
) -> jax.Array:
    """``o f~`` of eq. 37-38, [voxel, channel]; with voxel coordinates, x and y centred, behind the cloud's features.

    ``release`` rounds those coordinates by a steep sigmoid, as LGM's S3DIS code does; the paper has no such step.
    """
    features = cloud.features
    if coordinates:
        position = cloud.xyz / voxel_size
        count = jnp.maximum(jnp.sum(cloud.valid), 1)
        mean = jnp.sum(jnp.where(cloud.valid[:, None], position, 0), axis=0) / count
        features = jnp.concatenate([features, position - mean.at[2].set(0)[None]], axis=1)
    soft = soft_features(features, relation, pairs)
    if coordinates and protocol == "release":
        soft = soft.at[:, -3:].set(soft_floor(soft[:, -3:]))
    return soft * any_of(relation, pairs.voxels)[:, None]


def soft_floor(values: jax.Array, slope: float = SOFT_FLOOR) -> jax.Array:
    """``b + sigmoid(slope (v - b))`` with ``b = floor(v - 1/2)``: rounds half up, up to 5e-5, with hardly a gradient.

    Source: LGM's release (S3DIS); it is not the floor that the deployed network takes.
    """
    below = jnp.floor(values - 0.5)
    return below + jax.nn.sigmoid(slope * (values - below))
