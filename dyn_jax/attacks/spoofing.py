"""Spoofing (Cao et al. 2019): returns of a LiDAR that nothing reflected, on beams that it has."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.types import PointCloud


class Spoofed(NamedTuple):
    """A cloud with spoofed points behind its own.

    Attributes:
      cloud: `PointCloud` of as many more points; where the sensor has one return a beam, the beams' own returns are not
        valid any more.
      added: [point] bool, the spoofed ones: the ``mask`` of an attack that moves them alone.
      beam: [point] int32, the row of the cloud whose beam (ring, azimuth, intensity) a point has; its own for the rest.
    """

    cloud: PointCloud
    added: jax.Array
    beam: jax.Array

    def labels(self, labels: jax.typing.ArrayLike, ignore: int = 255) -> jax.Array:
        """Labels [point] of the cloud, with `ignore` for spoofed points, which are nothing."""
        return jnp.where(self.added, ignore, jnp.asarray(labels)[self.beam])


def spoofed(
    cloud: PointCloud,
    points: int,
    key: jax.Array,
    *,
    nearest: float = 2.0,
    sector: tuple[float, float] | None = None,
    returns: int = 1,
) -> Spoofed:
    """Adds points on random beams of a scan, each somewhere between the sensor and what the beam meets.

    An attack of the runner moves them then, along their beams::

        more = attacks.spoofed(cloud, 60, key, sector=(0.0, 0.2))
        attack = attacks.bim(5.0, 0.1, 20, norm="ray", attack_all=True)
        result = attack(soft, more.cloud, more.labels(labels, 0), victim=hard, mask=more.added, ignore=0)

    No two spoofed points share a beam; intensity and direction, and so the ring, are those of the beam's own return.
    Sizes are static, so that this runs under jit. A soft occupancy (`occupancy.voxel.lgm`) sees the cells that a
    spoofed point may open next; with a hard one an added point has a gradient through the features of its cell alone.

    Args:
      cloud: the sensor at the origin; one or several scans.
      points: budget of every scan, at least 1 (papers: 20 to 200).
      key: typed PRNG key.
      nearest: metres; beams that meet something nearer are not spoofed.
      sector: (from, to), azimuths in radians, ``to`` above ``from``: where the spoofer's laser reaches; papers: some
        10 degrees. None: everywhere.
      returns: that the sensor reports for a beam: 1: a spoofed point takes the place of the true one; 2: beside it.

    Raises:
      ValueError, TypeError: numbers out of range; no key; outside jit, fewer beams in the sector than points (inside,
        the rest are not valid).

    Source: Cao et al. 2019, section 4; Sun et al. 2020 for the budgets.
    """
    _validate.positive_int("points", points)
    nearest = float(_validate.positive("nearest", nearest))
    if returns not in (1, 2):
        raise ValueError(f"returns: got {returns!r}, expected 1 or 2, as the sensor gives for a beam")
    xyz, count = jnp.asarray(cloud.xyz), cloud.xyz.shape[0]
    distance = jnp.sqrt(jnp.sum(xyz * xyz, axis=1))
    can = cloud.valid & (distance > nearest)
    if sector is not None:
        low, high = (float(_validate.number("sector", angle)) for angle in sector)
        if not low < high <= low + 2 * np.pi + 1e-6:
            raise ValueError(f"sector: got {sector}, expected (from, to), radians, at most a full turn apart")
        can &= (jnp.arctan2(xyz[:, 1], xyz[:, 0]) - low) % (2 * np.pi) <= high - low
    batch = jnp.zeros(count, jnp.int32) if cloud.batch is None else cloud.batch
    own = (batch[None] == jnp.arange(cloud.clouds, dtype=batch.dtype)[:, None]) & can[None]
    most = min(points, count)
    of_beam, of_place = jax.random.split(key)
    order = jnp.where(own, jax.random.uniform(of_beam, (count,))[None], -1.0)
    drawn, beam = jax.lax.top_k(order, most)
    there, beam = (drawn >= 0).reshape(-1), beam.reshape(-1)
    if _validate.is_concrete(there) and (most < points or not np.asarray(there).all()):
        raise ValueError(f"points: got {points}, expected at most {int(np.asarray(own).sum(axis=1).min())}: beams")
    share = jax.random.uniform(of_place, beam.shape, xyz.dtype)
    metres = nearest + share * (distance[beam] - nearest)
    scale = jnp.where(there, metres / jnp.where(distance[beam] > 0, distance[beam], 1), 1)
    valid = jnp.asarray(cloud.valid)
    if returns == 1:
        valid = valid.at[jnp.where(there, beam, count)].set(False, mode="drop")
    more = cloud.replace(
        xyz=jnp.concatenate([xyz, xyz[beam] * scale[:, None]]),
        features=jnp.concatenate([cloud.features, cloud.features[beam]]),
        valid=jnp.concatenate([valid, there]),
        batch=None if cloud.batch is None else jnp.concatenate([cloud.batch, cloud.batch[beam]]),
    )
    rows = jnp.concatenate([jnp.arange(count, dtype=jnp.int32), beam.astype(jnp.int32)])
    return Spoofed(more, jnp.arange(len(rows)) >= count, rows)
