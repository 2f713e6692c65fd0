"""The sparse tensor: coordinates, features, and which rows are in use."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.sparse3d.kernel import Size, triple
from dyn_jax.sparse3d.sites import Sites, sites_of


class SparseTensor(flax.struct.PyTreeNode):
    """Features at integer sites; no two valid rows share one.

    Attributes:
      coordinates: [capacity, 4] int32, (batch, x, y, z), multiples of the stride.
      features: [capacity, channel].
      valid: [capacity] bool.
      overflow: scalar bool, rows were lost on the way here (see `Trace.overflow`).
      stride: static, three integers.
    """

    coordinates: jax.Array
    features: jax.Array
    valid: jax.Array
    overflow: jax.Array
    stride: tuple[int, int, int] = flax.struct.field(pytree_node=False, default=(1, 1, 1))

    def sites(self) -> Sites:
        """The sorted sites of the valid rows."""
        sites = sites_of(self.coordinates, self.valid, stride=self.stride)
        return sites.replace(overflow=sites.overflow | self.overflow)


def from_numpy(
    coordinates: np.ndarray, features: np.ndarray, *, capacity: int | None = None, stride: Size = 1
) -> SparseTensor:
    """A sparse tensor of the given rows, on the host.

    Rows stay in order; of rows that share their coordinates the first is kept. Rows up to `capacity` are filled
    with zeros and are not valid.

    Args:
      coordinates: [n, 4] integers, (batch, x, y, z), |x|, |y|, |z| < 2^30, n >= 1.
      features: [n, channel] floats, finite.
      capacity: static number of rows; default the number of distinct sites. See `bucket`.
      stride: of the tensor; coordinates are multiples of it.

    Raises:
      TypeError, ValueError: wrong shape or dtype; no rows; features not finite or of another length; a negative
        batch, or one of at least n (columns mixed up); coordinates out of range, spanning 2^32 cells or more, or no
        multiples of the stride; more distinct sites than `capacity`.
    """
    coordinates, features = np.asarray(coordinates), np.asarray(features)
    steps = triple("stride", stride)
    if coordinates.ndim != 2 or coordinates.shape[1] != 4:
        raise ValueError(f"coordinates: got shape {coordinates.shape}, expected [n, 4]: (batch, x, y, z)")
    if coordinates.dtype.kind not in "iu":
        raise TypeError(f"coordinates: got dtype {coordinates.dtype}, expected integers (floor first)")
    if features.ndim != 2 or len(features) != len(coordinates):
        raise ValueError(f"features: got shape {features.shape}, expected [{len(coordinates)}, channels]")
    if features.dtype.kind != "f":
        raise TypeError(f"features: got dtype {features.dtype}, expected floating point")
    if not len(coordinates):
        raise ValueError("coordinates: got no voxels, expected at least one")
    with np.errstate(over="ignore"):  # infinite is refused below
        features = features.astype(jax.dtypes.canonicalize_dtype(features.dtype.newbyteorder("=")))
    if not np.isfinite(features).all():
        raise ValueError("features: got NaN or infinite values, expected finite ones")
    if coordinates.dtype.kind == "u" and coordinates.max() >= 2**30:  # before a uint64 wraps
        raise ValueError(f"coordinates: got {coordinates.max()}, expected magnitudes below 2^30")
    coordinates = coordinates.astype(np.int64)
    if coordinates[:, 0].min() < 0:
        raise ValueError(f"coordinates: got batch {coordinates[:, 0].min()}, expected at least 0 in the first column")
    if coordinates[:, 0].max() >= len(coordinates):  # (x, y, z, batch), or a cloud without voxels
        raise ValueError(
            f"coordinates: got batch {coordinates[:, 0].max()} in the first column of {len(coordinates)} rows, "
            "expected a number for each cloud; the columns are (batch, x, y, z)"
        )
    if np.abs(coordinates).max() >= 2**30:
        raise ValueError(f"coordinates: got {np.abs(coordinates).max()}, expected magnitudes below 2^30")
    span = coordinates.max(axis=0) - coordinates.min(axis=0) + 1
    if np.prod(span.astype(float)) >= 4.29e9:
        raise ValueError(f"coordinates: got a bounding box of {' x '.join(map(str, span))} cells, expected < 2^32")
    if (coordinates[:, 1:] % np.array(steps)).any():
        raise ValueError(f"coordinates: got values that are no multiples of the stride {steps}")
    _, first = np.unique(coordinates, axis=0, return_index=True)
    rows = np.sort(first)
    capacity = len(rows) if capacity is None else _validate.positive_int("capacity", capacity)
    if capacity < len(rows):
        raise ValueError(f"capacity: got {capacity}, expected at least {len(rows)}, the number of distinct sites")
    rest = ((0, capacity - len(rows)), (0, 0))
    filled = jnp.asarray(np.pad(coordinates[rows].astype(np.int32), rest))
    values = jnp.asarray(np.pad(features[rows], rest))
    return SparseTensor(filled, values, jnp.arange(capacity) < len(rows), jnp.zeros((), bool), steps)


def to_numpy(tensor: SparseTensor) -> tuple[np.ndarray, np.ndarray]:
    """(coordinates [n, 4], features [n, channel]) of the valid rows.

    Raises:
      ValueError: the tensor's overflow flag is set.
    """
    if bool(tensor.overflow):
        raise ValueError("tensor: its overflow flag is set, rows were lost; give a larger capacity")
    valid = np.asarray(tensor.valid)
    return np.asarray(tensor.coordinates)[valid], np.asarray(tensor.features)[valid]
