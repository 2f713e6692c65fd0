"""Cylindrical partition of a LiDAR scan: radius, angle and height in cells, which points they hold and are near.

A voxelisation of its own beside the cubic one. Cells are (batch, rho, phi, z); points beyond the bounds are clipped to
the outermost cells, never dropped.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.sparse3d.kernel import Size
from dyn_jax.sparse3d.segments import Segments, segments
from dyn_jax.sparse3d.sites import Sites, sites_of
from dyn_jax.sparse3d.voxelize import with_batch
from dyn_jax.types import PointCloud

FEATURES = 9
"""Channels of `Partition.features`."""


@dataclasses.dataclass(frozen=True)
class Cylinder:
    """Bounds and cells of a cylindrical grid, and the strides of the levels that a network makes of it.

    Attributes:
      low, high: (rho, phi, z), metres and radians.
      grid: cells on every axis.
      factors: of the strides between the levels, from the finest; what `capacity_for` counts by.

    Source: Cylinder3D's SemanticKITTI configuration.
    """

    low: tuple[float, float, float] = (0.0, -3.1415926, -4.0)
    high: tuple[float, float, float] = (50.0, 3.1415926, 2.0)
    grid: tuple[int, int, int] = (480, 360, 32)
    factors: tuple[Size, ...] = ((2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1))

    def __post_init__(self) -> None:
        for low, high, cells in zip(self.low, self.high, self.grid):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ValueError(f"low, high: got {self.low} and {self.high}, expected low < high on every axis")
            _validate.positive_int("grid", cells, 2)

    @property
    def interval(self) -> np.ndarray:
        """[3] float64, (high - low) / (grid - 1): the last cell of an axis holds what is at or beyond `high`."""
        low, high = np.array(self.low, np.float64), np.array(self.high, np.float64)
        return (high - low) / (np.array(self.grid) - 1)

    @property
    def finest(self) -> float:
        """Metres, the smaller of a cell's radial and vertical size."""
        return float(min(self.interval[0], self.interval[2]))

    @property
    def wraps(self) -> bool:
        """Whether the angle covers a full turn, so that its first cell lies beside the last but one (the last holds
        the angle `high` itself and nothing else)."""
        return bool(abs(self.high[1] - self.low[1] - 2 * np.pi) < 1e-5)

    def cell_of(self, polar: np.ndarray) -> np.ndarray:
        """[point, 3] int32, ``floor((clip(p, low, high) - low) / interval)`` in float64: the reference."""
        clipped = np.clip(np.asarray(polar, np.float64), self.low, self.high)
        return np.floor((clipped - np.array(self.low)) / self.interval).astype(np.int32)


@functools.lru_cache(maxsize=64)
def edges(cylinder: Cylinder) -> tuple[np.ndarray, ...]:
    """Per axis [grid - 1] float32: the smallest number that `Cylinder.cell_of` puts into cell 1, 2, ...

    Comparing a float32 coordinate with these gives the cell of the float64 formula exactly, also under jit.
    """
    return tuple(_edges(cylinder, axis) for axis in range(3))


def _edges(cylinder: Cylinder, axis: int) -> np.ndarray:
    low, high, step = cylinder.low[axis], cylinder.high[axis], cylinder.interval[axis]
    cells = np.arange(1, cylinder.grid[axis])

    def reaches(value: np.ndarray) -> np.ndarray:
        return np.floor((np.clip(value.astype(np.float64), low, high) - low) / step) >= cells

    def at(rank: np.ndarray) -> np.ndarray:
        """The float32 of each rank; the bits of positive ones are in their order."""
        return np.copysign(np.abs(rank).astype(np.int32).view(np.float32), rank.astype(np.float32))

    bits = np.array([low, high], np.float32).view(np.int32).astype(np.int64)
    first, last = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    before, edge = np.full(len(cells), first - 1), np.full(len(cells), last + 1)
    while (edge - before > 1).any():  # bisection: around 0 there are a billion numbers within a rounding of `low`
        middle = (before + edge) // 2
        there = reaches(at(middle))
        before, edge = np.where(there, before, middle), np.where(there, middle, edge)
    return np.where(reaches(at(edge)), at(edge), np.float32(np.inf))


def _rounded(values: jax.Array) -> jax.Array:
    """Float32 values, each rounded by itself: a compiler would fuse a product with the sum behind it."""
    if values.dtype != jnp.float32:
        return values
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jax.lax.bitcast_convert_type(bits + (values != values).astype(jnp.int32), jnp.float32)


@jax.custom_jvp
def radius(x: jax.Array, y: jax.Array) -> jax.Array:
    """``sqrt(x^2 + y^2)``, every operation rounded as NumPy does it; derivative 0 at 0."""
    return jnp.sqrt(_rounded(x * x) + _rounded(y * y))


@radius.defjvp
def _radius_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, y), rho = primals, radius(*primals)
    safe = jnp.where(rho > 0, rho, 1)
    return rho, (x * tangents[0] + y * tangents[1]) / safe


def polar_of(xyz: jax.Array) -> jax.Array:
    """(rho, phi, z) [point, 3] of xyz: ``sqrt(x^2 + y^2)``, ``atan2(y, x)`` in (-pi, pi], z; on the axis without
    derivative."""
    x, y, z = xyz[:, 0], xyz[:, 1], xyz[:, 2]
    off_axis = (x != 0) | (y != 0)
    angle = jnp.where(off_axis, jnp.arctan2(y, jnp.where(off_axis, x, 1)), 0)
    return jnp.stack([radius(x, y), angle, z], axis=1)


def cells_of(xyz: jax.Array, cylinder: Cylinder) -> tuple[jax.Array, jax.Array]:
    """(cell [point, 3] int32, finite [point] bool): `Cylinder.cell_of` of the float32 polar coordinates.

    Coordinates that are not finite give cell 0 and False.
    """
    xyz = jax.lax.stop_gradient(xyz).astype(jnp.float32)
    finite = jnp.all(jnp.isfinite(xyz), axis=1)
    x, y, z = jnp.where(finite[:, None], xyz, 0).T
    polar = (radius(x, y), jnp.arctan2(y, x), z)
    cells = [jnp.searchsorted(jnp.asarray(e), p, side="right") for e, p in zip(edges(cylinder), polar)]
    return jnp.stack(cells, axis=1).astype(jnp.int32), finite


def offsets_of(polar: jax.Array, cell: jax.Array, cylinder: Cylinder) -> jax.Array:
    """``p - ((cell + 1/2) * interval + low)``, [point, 3]: from the centre of the cell, subtracted in two parts."""
    columns = []
    for axis in range(3):
        centre = (np.arange(cylinder.grid[axis]) + 0.5) * cylinder.interval[axis] + cylinder.low[axis]
        coarse = centre.astype(np.float32)
        rest = (centre - coarse).astype(np.float32)
        row = cell[:, axis]
        shifted = polar[:, axis] - jnp.asarray(coarse)[row].astype(polar.dtype)
        columns.append(shifted - jnp.asarray(rest)[row].astype(polar.dtype))
    return jnp.stack(columns, axis=1)


class Partition(flax.struct.PyTreeNode):
    """Points with the nine features of a cylindrical network, and their cells.

    Attributes:
      features: [point, 9]: offset from the cell's centre (3), rho, phi, z (not clipped), x, y, intensity.
      cells: [point, 4] int32, (batch, rho, phi, z).
      valid: [point] bool.
      clouds: static, how many clouds the batch column tells apart.
    """

    features: jax.Array
    cells: jax.Array
    valid: jax.Array
    clouds: int = flax.struct.field(pytree_node=False, default=1)


def partition(cloud: PointCloud, cylinder: Cylinder) -> Partition:
    """The points of a cloud with their cells and nine features, differentiable in xyz through the features alone.

    Points that are not finite become invalid.

    Args:
      cloud: see `PointCloud`; features [point, 1], the intensity as the sensor gives it.
      cylinder: bounds and grid.

    Source: Cylinder3D's data set code; LGM's release.
    """
    cell, finite = cells_of(cloud.xyz, cylinder)
    polar = polar_of(cloud.xyz)
    features = jnp.concatenate([offsets_of(polar, cell, cylinder), polar, cloud.xyz[:, :2], cloud.features], axis=1)
    return Partition(features, with_batch(cloud, cell), cloud.valid & finite, cloud.clouds)


def filled_cells(points: Partition, capacity: int | None = None) -> tuple[Sites, Segments]:
    """(the cells that hold a point, the points grouped by cell); default capacity: the number of points."""
    sites = sites_of(points.cells, points.valid, capacity)
    row, _ = sites.find(points.cells, points.valid)
    return sites, segments(row, sites.capacity)


def check_partition(points: Partition, cylinder: Cylinder) -> Partition:
    """`points` as JAX arrays.

    Raises:
      TypeError, ValueError: arrays of another shape or dtype; cells beyond the grid, features that are not finite, no
        valid point (where they are concrete).
    """
    count = np.shape(points.features)[0] if np.ndim(points.features) else 0
    if np.shape(points.features) != (count, FEATURES) or not count:
        raise ValueError(f"features: got shape {np.shape(points.features)}, expected [points, {FEATURES}]")
    if np.shape(points.cells) != (count, 4) or np.shape(points.valid) != (count,):
        raise ValueError(
            f"cells, valid: got shapes {np.shape(points.cells)} and {np.shape(points.valid)}, expected ({count}, 4): "
            f"(batch, rho, phi, z), and ({count},)"
        )
    points = jax.tree.map(jnp.asarray, points)
    if not jnp.issubdtype(points.cells.dtype, jnp.integer) or points.valid.dtype != bool:
        raise TypeError(f"cells, valid: got dtypes {points.cells.dtype}, {points.valid.dtype}, expected integers, bool")
    if points.features.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"features: got dtype {points.features.dtype}, expected float32")
    if _validate.is_concrete(points):
        valid, cells = np.asarray(points.valid), np.asarray(points.cells)
        if not valid.any():
            raise ValueError("valid: got no valid point, expected at least one")
        if not np.isfinite(np.asarray(points.features)[valid]).all():
            raise ValueError("features: got NaN or infinite values, expected finite ones")
        low, high = cells[valid].min(axis=0), cells[valid].max(axis=0)
        if low.min() < 0 or (high >= (points.clouds, *cylinder.grid)).any():
            raise ValueError(
                f"cells: got {low.tolist()} to {high.tolist()}, expected at least 0 and below "
                f"{[points.clouds, *cylinder.grid]}"
            )
    return points
