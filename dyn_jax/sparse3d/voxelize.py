"""Points to voxels and back: the hard pipeline, and the soft one whose gradient reaches the coordinates."""

from __future__ import annotations

import itertools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.sparse3d.segments import Segments, segments, spread, sum_over
from dyn_jax.sparse3d.sites import Sites, sites_of
from dyn_jax.types import PointCloud

MOVES = np.array(list(itertools.product((0, -1, 1), repeat=3)), np.int32)
"""[27, 3], the voxel moves of one step, staying first."""

RULES = ("none", "all", "any")


@flax.struct.dataclass
class Voxels:
    """The voxels of a cloud and its (point, voxel) pairs, ordered by point.

    Attributes:
      sites: the M' voxels: those that hold a point and those that a point can reach.
      exists: [voxel] bool, holds a point.
      points: the pairs grouped by point.
      voxels: the pairs grouped by voxel.
      distance: [pair, 3], ``|x + 1/2 - p / L|`` (eq. 29), differentiable in the coordinates.
      inside: [pair] bool, the point lies in the voxel.
      overflow: scalar bool, see `Trace.overflow`.
    """

    sites: Sites
    exists: jax.Array
    points: Segments
    voxels: Segments
    distance: jax.Array
    inside: jax.Array
    overflow: jax.Array


def own_voxel(cloud: PointCloud, voxel_size: float) -> tuple[jax.Array, jax.Array]:
    """(``floor(p / L)`` [point, 3] int32, finite [point] bool): eq. 21. The floor of a float32 quotient, not its
    truncation; coordinates that are not finite or beyond 2^30 voxels give 0 and False."""
    quotient = jnp.floor(_quotient(jax.lax.stop_gradient(cloud.xyz), voxel_size))
    finite = jnp.all(jnp.isfinite(quotient) & (jnp.abs(quotient) < 2.0**30), axis=1)
    return jnp.where(finite[:, None], quotient, 0).astype(jnp.int32), finite


def _quotient(values: jax.Array, size: jax.typing.ArrayLike) -> jax.Array:
    """``values / size``, rounded once. The divisor depends on the values, or XLA would multiply by its reciprocal, and
    points on a face of the grid would change their voxel."""
    return values / (jnp.asarray(size, values.dtype) + 0 * values)


def with_batch(cloud: PointCloud, voxel: jax.Array) -> jax.Array:
    """Coordinates [point, 4] with the batch column in front."""
    batch = jnp.zeros(voxel.shape[0], jnp.int32) if cloud.batch is None else cloud.batch.astype(jnp.int32)
    return jnp.concatenate([batch[:, None], voxel], axis=1)


def hard_voxels(cloud: PointCloud, voxel_size: float, capacity: int | None = None) -> tuple[Sites, Segments, jax.Array]:
    """(sites, points grouped by voxel, overflow) of the voxels that hold a point: eq. 21-23.

    Args:
      cloud: see `PointCloud`.
      voxel_size: L, metres.
      capacity: voxels; default the number of points.
    """
    voxel, finite = own_voxel(cloud, voxel_size)
    valid = cloud.valid & finite
    coordinates = with_batch(cloud, voxel)
    sites = sites_of(coordinates, valid, capacity)
    row, _ = sites.find(coordinates, valid)
    return sites, segments(row, sites.capacity), sites.overflow | jnp.any(cloud.valid & ~finite)


def first_of(values: jax.Array, groups: Segments) -> jax.Array:
    """The value of the first row of each group, [size, ...]; 0 for an empty one. Eq. 34 with the first point."""
    place = jnp.maximum(groups.last - groups.count + 1, 0)
    row = place if groups.order is None else groups.order[place]
    some = (groups.count > 0).reshape((-1,) + (1,) * (values.ndim - 1))
    return jnp.where(some, values[row], 0)


def mean_over(values: jax.Array, groups: Segments) -> jax.Array:
    """Mean of values [row, ...] over each group, [size, ...]; 0 for an empty one."""
    count = jnp.maximum(groups.count, 1).astype(values.dtype).reshape((-1,) + (1,) * (values.ndim - 1))
    return sum_over(values, groups) / count


def near_voxels(cloud: PointCloud, voxel_size: float, *, voxels: int | None = None, pairs: int | None = None) -> Voxels:
    """The voxels a point is in or may be in after one step of ``cloud.reach``, and the pairs with them.

    A step of at most one voxel per axis leads into at most 27 voxels. Without a reach, every point has one pair.

    Args:
      cloud: see `PointCloud`.
      voxel_size: L, metres.
      voxels: capacity M'; default four times the points (the paper's bound) with a reach, else the points.
      pairs: capacity; default four times the points with a reach.

    Raises:
      ValueError: a concrete step above the voxel size; a rule without origin and budget; an unknown rule.

    Source: LGM paper section IV.C (N(x) and the extended voxels), appendix IX.B; release for the rule ``any``.
    """
    own, finite = own_voxel(cloud, voxel_size)
    valid = cloud.valid & finite
    count = own.shape[0]
    lost = jnp.any(cloud.valid & ~finite)
    if cloud.reach is None:
        sites, by_voxel, overflow = hard_voxels(cloud, voxel_size, voxels)
        everyone = jnp.arange(count, dtype=jnp.int32)
        by_point = segments(everyone, count, is_sorted=True)
        center = (own + 0.5).astype(cloud.xyz.dtype)
        distance = jnp.abs(center - cloud.xyz / voxel_size)
        return Voxels(sites, sites.valid, by_point, by_voxel, distance, valid, overflow)
    pairs = 4 * count if pairs is None else pairs
    allowed = _allowed(cloud, own, voxel_size) & valid[:, None]
    found = jnp.sum(allowed, dtype=jnp.int32)
    place = jnp.nonzero(allowed.reshape(-1), size=pairs, fill_value=27 * count)[0].astype(jnp.int32)
    used = jnp.arange(pairs) < found
    point, move = jnp.minimum(place // 27, count - 1), place % 27
    voxel = own[point] + jnp.asarray(MOVES)[move]
    coordinates = with_batch(cloud, own)[point].at[:, 1:].set(voxel)
    sites = sites_of(coordinates, used, 4 * count if voxels is None else voxels)
    row, there = sites.find(coordinates, used)
    inside = used & (move == 0)
    exists = jnp.zeros(sites.capacity, bool).at[jnp.where(inside, row, sites.capacity)].set(True, mode="drop")
    by_point = segments(jnp.where(used, point, count), count, is_sorted=True)
    by_voxel = segments(row, sites.capacity)
    distance = jnp.abs((voxel + 0.5).astype(cloud.xyz.dtype) - spread(cloud.xyz, by_point) / voxel_size)
    return Voxels(sites, exists, by_point, by_voxel, distance, inside & there, sites.overflow | lost | (found > pairs))


def _allowed(cloud: PointCloud, own: jax.Array, voxel_size: float) -> jax.Array:
    """[point, 27] bool: which moves a point can make in one step."""
    reach, xyz = cloud.reach, jax.lax.stop_gradient(cloud.xyz)
    _validate.choice("reach.rule", reach.rule, RULES)
    if _validate.is_concrete(reach.step) and not 0 <= float(reach.step) <= voxel_size * (1 + 1e-6):
        raise ValueError(f"reach.step: got {float(reach.step)}, expected at most one voxel ({voxel_size} m)")
    size = jnp.asarray(voxel_size, xyz.dtype)
    signs = jnp.array((0, -1, 1), xyz.dtype)
    moved = xyz[:, :, None] + signs[None, None] * jnp.asarray(reach.step, xyz.dtype)  # [point, axis, move]
    corner = jnp.floor(_quotient(moved, size))
    moves = (corner != own[:, :, None]) | (signs == 0)[None, None]
    allowed = moves[:, 0, :, None, None] & moves[:, 1, None, :, None] & moves[:, 2, None, None, :]
    if reach.rule != "none":
        if reach.origin is None or reach.budget is None:
            raise ValueError(f"reach: got no origin and budget, expected both for the rule {reach.rule!r}")
        low = (own[:, :, None] + jnp.array((0, -1, 1), jnp.int32)[None, None]).astype(xyz.dtype) * size
        high = (own[:, :, None] + jnp.array((1, 0, 2), jnp.int32)[None, None]).astype(xyz.dtype) * size
        origin, budget = reach.origin[:, :, None], jnp.asarray(reach.budget, xyz.dtype)
        if reach.rule == "any":
            near = (jnp.abs(low - origin) < budget) | (jnp.abs(high - origin) < budget)
            fits = near[:, 0, :, None, None] | near[:, 1, None, :, None] | near[:, 2, None, None, :]
        else:
            near = (low - origin < budget) & (origin - high < budget)
            fits = near[:, 0, :, None, None] & near[:, 1, None, :, None] & near[:, 2, None, None, :]
        stay = jnp.zeros((3, 3, 3), bool).at[0, 0, 0].set(True)
        allowed = allowed & (fits | stay[None])
    return allowed.reshape(-1, 27)


def weighted_mean(values: jax.Array, weights: jax.Array, groups: Segments) -> jax.Array:
    """``sum w v / sum w`` of the rows of each group, [size, channel]; 0 where the weights sum to 0.

    The weights of a group are divided by their largest first, so that a quotient of tiny sums stays exact.
    """
    largest = _largest(jax.lax.stop_gradient(weights), groups)
    scaled = weights / jnp.where(largest > 0, largest, 1).at[groups.group].get(mode="fill", fill_value=1)
    both = sum_over(jnp.concatenate([values * scaled[:, None], scaled[:, None]], axis=1), groups)
    total = both[:, -1:]
    return jnp.where(total != 0, both[:, :-1] / jnp.where(total != 0, total, 1), 0)


def _largest(weights: jax.Array, groups: Segments) -> jax.Array:
    magnitude = jnp.abs(weights)  # the maximum does not depend on the order of the writes
    return jnp.zeros(groups.size, weights.dtype).at[groups.group].max(magnitude, mode="drop")


def soft_features(features: jax.Array, relation: jax.Array, pairs: Voxels) -> jax.Array:
    """``sum_n r f_n / sum_n r`` over the points near each voxel, [voxel, channel]: eq. 37.

    Args:
      features: [point, channel].
      relation: [pair], r; 0 for pairs that are not in use.
      pairs: of the cloud.
    """
    return weighted_mean(spread(features, pairs.points), relation, pairs.voxels)


def point_scores(scores: jax.Array, relation: jax.Array, pairs: Voxels, *, normalise: bool = True) -> jax.Array:
    """``sum_m r y_m / sum_m r`` over the voxels near each point, [point, class]: eq. 40.

    Args:
      scores: [voxel, class], y-tilde of eq. 39.
      relation: [pair], r.
      pairs: of the cloud.
      normalise: False leaves the division out, as LGM's release does.
    """
    values = spread(scores, pairs.voxels)
    if normalise:
        return weighted_mean(values, relation, pairs.points)
    return sum_over(values * relation[:, None], pairs.points)
