"""The door for point clouds: what a 3D network and the counting of its sizes are given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.types import PointCloud, Reach

FINEST = 16
"""Steps of the coordinates' dtype that a voxel must hold at least."""


def check_cloud(cloud: PointCloud, voxel_size: float, channels: int | None = None) -> tuple[PointCloud, jax.Array]:
    """(the cloud as JAX arrays, whether something in it cannot be trusted: scalar bool).

    What only run time can see raises outside jit and sets the flag inside: features of valid points that are not
    finite, no valid point, batch indices outside [0, clouds), whose points become invalid. (Coordinates that are not
    finite are flagged where they become voxels.)

    Arrays may be of NumPy or JAX, `voxel_size` is in metres, `channels` those of the features, where a network asks.

    Raises:
      TypeError: no point cloud, or dtypes that do not fit. Half precision is refused: it cannot tell voxels apart.
      ValueError: shapes that do not fit; what is said above; coordinates so large that their dtype rounds them to more
        than a sixteenth of a voxel.
    """
    if not isinstance(cloud, PointCloud):
        raise TypeError(f"inputs: got {type(cloud).__name__}, expected a PointCloud")
    _validate.positive("voxel_size", voxel_size)
    for name in ("xyz", "features", "valid"):
        if not hasattr(getattr(cloud, name), "dtype"):
            raise TypeError(f"{name}: got {type(getattr(cloud, name)).__name__}, expected an array")
    if cloud.xyz.ndim != 2 or cloud.xyz.shape[1] != 3 or not cloud.xyz.shape[0]:
        raise ValueError(f"xyz: got shape {cloud.xyz.shape}, expected [points, 3] with at least one point")
    count = cloud.xyz.shape[0]
    for name, values in (("xyz", cloud.xyz), ("features", cloud.features)):
        if values.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name}: got dtype {values.dtype}, expected float32 (or float64 under jax_enable_x64)")
    if cloud.features.ndim != 2 or len(cloud.features) != count or channels not in (None, cloud.features.shape[1]):
        wanted = "channels" if channels is None else channels
        raise ValueError(f"features: got shape {cloud.features.shape}, expected [{count}, {wanted}]")
    _validate.cloud_rows(cloud)
    cloud = jax.tree.map(jnp.asarray, cloud)
    if _validate.is_concrete(cloud):
        _check_values(cloud, voxel_size)
        return cloud, jnp.zeros((), bool)
    lost = ~jnp.any(cloud.valid) | jnp.any(cloud.valid[:, None] & ~jnp.isfinite(cloud.features))
    if cloud.batch is None:
        return cloud, lost
    inside = (cloud.batch >= 0) & (cloud.batch < cloud.clouds)
    return cloud.replace(valid=cloud.valid & inside), lost | jnp.any(cloud.valid & ~inside)


def _check_values(cloud: PointCloud, voxel_size: float) -> None:
    valid = np.asarray(cloud.valid)
    if not valid.any():
        raise ValueError("valid: got no valid point, expected at least one")
    for name, values in (("xyz", cloud.xyz), ("features", cloud.features)):
        bad = int((~np.isfinite(np.asarray(values)[valid])).any(axis=1).sum())
        if bad:
            raise ValueError(f"{name}: got {bad} points with NaN or infinite values, expected finite ones")
    farthest = np.abs(np.asarray(cloud.xyz)[valid]).max()
    step = np.spacing(farthest)
    if step * FINEST > voxel_size:
        raise ValueError(
            f"xyz: got coordinates of up to {farthest:.6g} m, which {cloud.xyz.dtype} rounds to {step:.2g} m, expected "
            f"at most 1/{FINEST} of a voxel ({voxel_size} m); subtract an origin first"
        )


def as_reach(reach: Reach | jax.typing.ArrayLike | None) -> Reach | None:
    """What ``reach=`` means: nothing, a `Reach`, or the step of one; TypeError or ValueError for anything else."""
    if reach is None or isinstance(reach, Reach):
        return reach
    return Reach(_validate.number("reach", reach, minimum=0.0))
