"""Static capacities, counted on the host: how many rows every level of a network needs, in buckets.

A capacity is part of what is compiled. `bucket` rounds counts up so that similar scenes share one; `allocate` gives a
list of scenes at most a handful of shapes between them. What does not fit is flagged, never cut in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.sparse3d.cloud import as_reach, check_cloud
from dyn_jax.sparse3d.cylinder import Cylinder, Partition
from dyn_jax.sparse3d.cylinder_count import most_reached, near_on_host, reached_counts
from dyn_jax.sparse3d.cylinder_near import most_near_cells
from dyn_jax.sparse3d.form import PAPER, Form
from dyn_jax.sparse3d.tensor import SparseTensor
from dyn_jax.sparse3d.voxelize import MOVES, by_move, most_near
from dyn_jax.types import PointCloud, Reach

STEPS = 4
"""Buckets per doubling."""
SMALLEST = 32


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Static sizes of one forward pass.

    Attributes:
      levels: voxels of every level, from the finest.
      pairs: (point, voxel) pairs of a soft occupancy that extends to near voxels, else None.
    """

    levels: tuple[int, ...]
    pairs: int | None = None


def bucket(count: int) -> int:
    """The smallest of 32, 40, 48, 56, 64, 80, 96, ... (four sizes per doubling) that holds `count`."""
    count = _validate.positive_int("count", count, 0)
    size = SMALLEST
    while size < count:
        size *= 2
    step = max(size // 2 // STEPS, 1)
    return max(SMALLEST, -(-count // step) * step)


def level_counts(coordinates: np.ndarray, levels: int) -> list[int]:
    """Distinct sites of every level of a pyramid over coordinates [n, 4] (batch first), each half as fine."""
    sites, counts = np.asarray(coordinates, np.int64), []
    for level in range(levels):
        steps = np.array([1, 2**level, 2**level, 2**level])
        sites = np.unique(sites // steps * steps, axis=0)
        counts.append(len(sites))
    return counts


def near_coordinates(
    cloud: PointCloud, voxel_size: float, reach: Reach | jax.typing.ArrayLike | None = None
) -> np.ndarray:
    """[pair, 4], the voxels that the valid points of a concrete cloud are in or can reach, with repetitions."""
    reach, valid = as_reach(reach), np.asarray(cloud.valid)
    dtype = jax.dtypes.canonicalize_dtype(cloud.xyz.dtype)  # of the network, or points on a face change their voxel
    xyz = np.asarray(cloud.xyz, dtype)[valid]
    batch = np.zeros(len(xyz), int) if cloud.batch is None else np.asarray(cloud.batch)[valid]
    size = dtype.type(voxel_size)
    own = np.floor(xyz / size)
    coordinates = np.concatenate([batch[:, None], own], axis=1).astype(np.int64)
    if reach is None:
        return coordinates
    step = np.asarray(reach.step, dtype)
    step = step[valid][:, None] if step.ndim else step
    corner = np.stack([own, np.floor((xyz - step) / size), np.floor((xyz + step) / size)], axis=2)
    moves = corner != own[:, :, None]
    moves[:, :, 0] = True
    point, move = np.nonzero(by_move(moves))
    return coordinates[point] + np.insert(MOVES, 0, 0, axis=1)[move]


@overload
def capacity_for(
    inputs: PointCloud | Partition | Sequence[PointCloud],
    voxel_size: float | Cylinder,
    levels: int,
    *,
    reach: Reach | jax.typing.ArrayLike | None = None,
    extends: bool = True,
    slack: float = 1.0,
    form: Form = PAPER,
) -> Capacity: ...


@overload
def capacity_for(
    inputs: SparseTensor, voxel_size: float | None, levels: int, *, slack: float = 1.0
) -> Capacity | None: ...


def capacity_for(
    inputs: SparseTensor | PointCloud | Partition | Sequence[PointCloud],
    voxel_size: Any,
    levels: int,
    *,
    reach: Reach | jax.typing.ArrayLike | None = None,
    extends: bool = True,
    slack: float = 1.0,
    form: Form = PAPER,
) -> Capacity | None:
    """The capacity of one input, or of several clouds together: counted where it is concrete, else what always fits.

    What always fits needs no counting: the rows of a sparse tensor (None); of a cloud, a voxel for each point on every
    level; with a reach, `most_near` pairs for each point, as many voxels on the finest level, and 8 for each point on
    the coarser ones. That is large: with a traced step and 100,000 points, 2.7 million rows, which take 350 MB for
    every 32 channels. Counted, the embedded rooms have 3 to 6 voxels for each point within half a voxel. The levels of
    a cylindrical grid may grow, at most to the whole grid.

    Args:
      inputs: a sparse tensor, a point cloud, its partition, or clouds that are to share one capacity.
      voxel_size: metres, for clouds; or the `Cylinder` of a cylindrical network.
      levels: of the network.
      reach: as for the network: a `Reach` or its step; None: points stay.
      extends: whether the occupancy looks at the voxels within `reach`; if not, `reach` is ignored.
      slack: counts are multiplied by it: room for the points to move during an attack.
      form: of the network; it matters to a cylindrical one.

    Raises:
      TypeError, ValueError: slack below 1, levels below 1 or not those of the cylinder, no cloud; see `check_cloud`.
    """
    _validate.positive_int("levels", levels)
    slack = _validate.number("slack", slack, minimum=1.0)
    if isinstance(inputs, Partition):
        return _partition_capacity(inputs, voxel_size, slack)
    if isinstance(inputs, SparseTensor):
        if not _validate.is_concrete(inputs.coordinates, inputs.valid):
            return None
        coordinates = np.asarray(inputs.coordinates)[np.asarray(inputs.valid)]
        return _rounded(level_counts(coordinates, levels), slack)
    reach = as_reach(reach) if extends else None
    if not isinstance(inputs, PointCloud):
        needs: list[Any] = [
            capacity_for(one, voxel_size, levels, reach=reach, slack=slack, form=form) for one in inputs
        ]
        if not needs:
            raise ValueError("inputs: got no clouds, expected at least one")
        pairs = None if reach is None else max(need.pairs or 0 for need in needs)
        return Capacity(tuple(map(max, zip(*(need.levels for need in needs)))), pairs)
    if isinstance(voxel_size, Cylinder):
        return _cylinder_capacity(inputs, voxel_size, levels, reach, slack, form)
    cloud, _ = check_cloud(inputs, voxel_size)
    if not _validate.is_concrete(cloud.xyz, cloud.valid, reach):
        count, most = cloud.xyz.shape[0], most_near(reach, voxel_size)
        rest = (min(most, 8) * count,) * (levels - 1)  # a coarser voxel is as wide as two steps: two on an axis
        return Capacity((most * count, *rest), None if reach is None else most * count)
    near = near_coordinates(cloud, voxel_size, reach)
    return _rounded(level_counts(near, levels), slack, None if reach is None else len(near))


def _rounded(counts: Sequence[int], slack: float, pairs: int | None = None) -> Capacity:
    size = lambda count: bucket(int(count * slack))
    return Capacity(tuple(map(size, counts)), None if pairs is None else size(pairs))


def _partition_capacity(points: Partition, cylinder: Cylinder, slack: float) -> Capacity:
    if not isinstance(cylinder, Cylinder):
        raise TypeError("voxel_size: got a number for a Partition, expected its Cylinder")
    if not _validate.is_concrete(points.cells, points.valid):
        rows = points.cells.shape[0]
        return Capacity(tuple(most_reached(rows, cylinder.factors, cylinder.grid, points.clouds)))
    cells = np.asarray(points.cells)[np.asarray(points.valid)]
    return _rounded(reached_counts(cells, cylinder.factors, cylinder.grid), slack)


def _cylinder_capacity(
    inputs: PointCloud, cylinder: Cylinder, levels: int, reach: Reach | None, slack: float, form: Form
) -> Capacity:
    if levels != len(cylinder.factors) + 1:
        raise ValueError(f"levels: got {levels}, expected {len(cylinder.factors) + 1}: those of the cylinder")
    cloud, _ = check_cloud(inputs, cylinder.finest)
    if not _validate.is_concrete(cloud.xyz, cloud.valid, reach):
        most = most_near_cells(reach, cylinder) * cloud.xyz.shape[0]
        counts = most_reached(most, cylinder.factors, cylinder.grid, cloud.clouds)
        return Capacity(tuple(counts), None if reach is None else most)
    near = near_on_host(cloud, cylinder, reach, form)
    counts = reached_counts(near, cylinder.factors, cylinder.grid)
    return _rounded(counts, slack, None if reach is None else len(near))


def point_cloud(
    xyz: np.ndarray, features: np.ndarray, *, points: int | None = None, origin: np.ndarray | None = None
) -> PointCloud:
    """A `PointCloud` of host arrays, filled up to `points` rows (copies of the first, not valid).

    Args:
      xyz: [n, 3], metres; floats of any width, or integers.
      features: [n, channel], numbers.
      points: rows, at least n; default n.
      origin: [3], subtracted from `xyz` in float64 before anything is rounded, for clouds in map coordinates; the
        cloud's own coordinates, and all that comes of them, are relative to it.

    Raises:
      TypeError, ValueError: no points, shapes or dtypes that do not fit, NaN or infinite values, `points` below n;
        coordinates that float32, or the dtype they come in, rounds by more than 1 mm.
    """
    xyz, features = _validate.coordinates("xyz", xyz, origin), np.asarray(features)
    if features.ndim != 2 or len(features) != len(xyz):
        raise ValueError(f"features: got shape {features.shape}, expected [{len(xyz)}, channels]")
    if not jnp.issubdtype(features.dtype, jnp.floating) and features.dtype.kind not in "biu":
        raise TypeError(f"features: got dtype {features.dtype}, expected numbers")
    with np.errstate(over="ignore"):  # infinite is refused below
        features = features.astype(np.float32)
    bad = int((~np.isfinite(features)).any(axis=1).sum())
    if bad:
        raise ValueError(f"features: got {bad} points with NaN or infinite values, expected finite ones")
    points = len(xyz) if points is None else _validate.positive_int("points", points)
    if points < len(xyz):
        raise ValueError(f"points: got {points}, expected at least {len(xyz)}")
    rows = np.where(np.arange(points) < len(xyz), np.arange(points), 0)
    return PointCloud(jnp.asarray(xyz[rows]), jnp.asarray(features[rows]), jnp.arange(points) < len(xyz))


def allocate(
    clouds: Sequence[PointCloud],
    voxel_size: float | Cylinder,
    levels: int,
    *,
    reach: Reach | jax.typing.ArrayLike | None = None,
    shapes: int = 3,
    extends: bool = True,
    slack: float = 1.2,
) -> list[tuple[PointCloud, Capacity]]:
    """Clouds of different sizes, filled up so that they share at most `shapes` compiled forms.

    The clouds are ordered by size and cut into groups whose sizes are closest; every group gets the largest counts
    among its members.

    Args:
      clouds: concrete.
      voxel_size: metres, or the `Cylinder` of a cylindrical network.
      levels: of the network.
      shapes: distinct (points, capacity) at most.
      reach, extends, slack: as in `capacity_for`; the reach is the same for all clouds.

    Returns:
      For every cloud, in order: itself with more invalid points, and its capacity.
    """
    _validate.positive_int("shapes", shapes)
    if not clouds:
        return []
    sizes = np.array([cloud.xyz.shape[0] for cloud in clouds])
    order = np.argsort(sizes, kind="stable")
    gaps = np.diff(np.log(sizes[order]))
    cuts = np.sort(np.argsort(-gaps, kind="stable")[: min(shapes, len(clouds)) - 1] + 1) if len(clouds) > 1 else []
    result: list = [None] * len(clouds)
    for group in np.split(order, cuts):
        members = [clouds[i] for i in group]
        shared = capacity_for(members, voxel_size, levels, reach=reach, extends=extends, slack=slack)
        for i in group:
            result[i] = (_fill(clouds[i], bucket(int(sizes[group].max()))), shared)
    return result


def _fill(cloud: PointCloud, points: int) -> PointCloud:
    count = cloud.xyz.shape[0]
    rows = np.where(np.arange(points) < count, np.arange(points), 0)
    filled = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], cloud)  # on the host: no compilation for every size
    return jax.tree.map(jnp.asarray, filled.replace(valid=filled.valid & (np.arange(points) < count)))
