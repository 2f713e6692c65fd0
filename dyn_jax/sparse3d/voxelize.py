"""Points to voxels and back: the hard pipeline, and the soft one whose gradient reaches the coordinates."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.sparse3d.blocked import ROWS
from dyn_jax.sparse3d.cloud import FINEST, as_reach
from dyn_jax.sparse3d.segments import Segments, segments, spread, sum_over
from dyn_jax.sparse3d.sites import Sites, sites_of
from dyn_jax.types import PointCloud, Reach

MOVES = np.array(list(itertools.product((0, -1, 1), repeat=3)), np.int32)
"""[27, 3], the voxel moves of one step, staying first."""

RULES = ("none", "all", "any")


class Voxels(flax.struct.PyTreeNode):
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
    truncation; coordinates that are not finite, beyond 2^30 voxels, or so large that their dtype rounds them to more
    than a sixteenth of a voxel (beyond 2^19 voxels in float32) give 0 and False."""
    quotient = jnp.floor(_quotient(jax.lax.stop_gradient(cloud.xyz), voxel_size))
    most = min(2.0**30, 1 / (FINEST * float(jnp.finfo(quotient.dtype).eps)))
    finite = jnp.all(jnp.isfinite(quotient) & (jnp.abs(quotient) < most), axis=1)
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
    """(sites, points grouped by voxel, overflow) of the voxels that hold a point: eq. 21-23; default capacity: as many
    as points."""
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


def most_near(reach: Reach | None, voxel_size: float, few: int = 8) -> int:
    """How many voxels a point is near at most: 27, or `few` (two on an axis) for a concrete step below half a voxel.

    A step of half a voxel (LGM's on ScanNet) leads every point to 8 voxels exactly, and one from the middle of a voxel
    to two faces at once, where rounding may add a third voxel: only up to 49 % counts as below. Without a reach, or
    with a step of 0, it is 1.
    """
    if reach is None:
        return 1
    if not _validate.is_concrete(reach.step):
        return 27
    share = float(np.max(np.asarray(reach.step))) / voxel_size
    return 1 if share == 0 else few if share < 0.49 else 27


def near_voxels(
    cloud: PointCloud,
    voxel_size: float,
    *,
    reach: Reach | jax.typing.ArrayLike | None = None,
    voxels: int | None = None,
    pairs: int | None = None,
) -> Voxels:
    """The voxels a point is in or may be in after one step of `reach`, and the pairs with them.

    A step of at most one voxel per axis leads into at most 27 voxels. A longer one leads beyond them, where nothing is
    looked up: it raises where it is concrete and sets `Voxels.overflow` where it is traced. An attack that starts with
    steps of eps (APGD) and wants the gradient all the same, of the 27 alone, hands in ``min(step, voxel_size)``.

    Args:
      cloud: see `PointCloud`.
      voxel_size: L, metres.
      reach: see `Reach`; a number is its step; the step may also hold one number for each point. None: every point has
        one pair, with its own voxel.
      voxels: capacity M'; default: what always fits, see `most_near`.
      pairs: capacity; default: what always fits. A pair takes some 125 bytes: 27 of 100,000 points 340 MB.

    Raises:
      TypeError, ValueError: a concrete step above the voxel size, negative or NaN; a step or an origin of another
        shape; a rule without origin and budget; an unknown rule.

    Source: LGM paper section IV.C (N(x) and the extended voxels), appendix IX.B; release for the rule ``any``.
    """
    reach = as_reach(reach)
    own, finite = own_voxel(cloud, voxel_size)
    count = own.shape[0]

    def distance(xyz: jax.Array, own: jax.Array, voxel: jax.Array) -> jax.Array:
        return jnp.abs((voxel + 0.5).astype(xyz.dtype) - xyz / voxel_size)

    if reach is None:
        sites, by_voxel, overflow = hard_voxels(cloud, voxel_size, voxels)
        by_point = segments(jnp.arange(count, dtype=jnp.int32), count, is_sorted=True)
        inside = cloud.valid & finite
        return Voxels(sites, sites.valid, by_point, by_voxel, distance(cloud.xyz, own, own), inside, overflow)
    most = most_near(reach, voxel_size) * count
    sizes = most if voxels is None else voxels, most if pairs is None else pairs
    allowed, lost = _allowed(cloud, reach, own, voxel_size)
    return related(cloud, (own, finite), allowed, lost, sizes, distance)


def related(
    cloud: PointCloud,
    found: tuple[jax.Array, jax.Array],
    allowed: jax.Array,
    lost: jax.Array,
    sizes: tuple[int, int],
    measure: Callable[..., jax.Array],
    place: Callable[..., jax.Array] = lambda beside, move: beside,
) -> Voxels:
    """The pairs of points, `found` in voxels (see `own_voxel`), and voxels under the moves `allowed`, [point, 27].

    `sizes` are the capacities of voxels and pairs; ``measure(xyz, own voxel, voxel after the move)`` is the distance,
    all [pair, 3]; ``place(voxel after the move, number of the move)`` is where that voxel is kept.
    """
    (own, finite), (voxels, pairs), count = found, sizes, len(cloud.xyz)
    allowed = allowed & (cloud.valid & finite)[:, None]
    number = jnp.sum(allowed, dtype=jnp.int32)
    at = jnp.nonzero(allowed.reshape(-1), size=pairs, fill_value=27 * count)[0].astype(jnp.int32)
    used = jnp.arange(pairs) < number
    point, move = jnp.minimum(at // 27, count - 1), at % 27
    beside = own[point] + jnp.asarray(MOVES)[move]
    coordinates = with_batch(cloud, own)[point].at[:, 1:].set(place(beside, move))
    sites = sites_of(coordinates, used, voxels)
    row, there = sites.find(coordinates, used)
    inside = used & (move == 0)
    exists = jnp.zeros(sites.capacity, bool).at[jnp.where(inside, row, sites.capacity)].set(True, mode="drop", **ROWS)
    by_point = segments(jnp.where(used, point, count), count, is_sorted=True)
    by_voxel = segments(row, sites.capacity)
    distance = measure(spread(cloud.xyz, by_point), own[point], beside)
    overflow = sites.overflow | lost | jnp.any(cloud.valid & ~finite) | (number > pairs)
    return Voxels(sites, exists, by_point, by_voxel, distance, inside & there, overflow)


def check_reach(reach: Reach, rules: Iterable[str], count: int, largest: float, expected: str) -> None:
    """ValueError for another rule, other shapes than `count` points have, a concrete step above `largest`, metres."""
    _validate.choice("reach.rule", reach.rule, rules)
    if jnp.shape(reach.step) not in ((), (count,)):
        raise ValueError(f"reach.step: got shape {jnp.shape(reach.step)}, expected a number or ({count},)")
    if _validate.is_concrete(reach.step):
        wrong = np.asarray(reach.step, float).reshape(-1)
        wrong = wrong[~((wrong >= 0) & (wrong <= largest))]
        if len(wrong):
            raise ValueError(f"reach.step: got {wrong[0]}, expected at most one {expected}")
    if reach.rule != "none":
        if reach.origin is None or reach.budget is None:
            raise ValueError(f"reach: got no origin and budget, expected both for the rule {reach.rule!r}")
        if jnp.shape(reach.origin) != (count, 3):
            raise ValueError(f"reach.origin: got shape {jnp.shape(reach.origin)}, expected ({count}, 3)")


def by_move(per_axis: Any, combine: Callable = operator.and_) -> Any:
    """[point, 27] in the order of `MOVES`: what of [point, axis, 3] holds on every axis (``or_``: on any)."""
    x, y, z = per_axis[:, 0, :, None, None], per_axis[:, 1, None, :, None], per_axis[:, 2, None, None, :]
    return combine(combine(x, y), z).reshape(-1, 27)


def _allowed(cloud: PointCloud, reach: Reach, own: jax.Array, voxel_size: float) -> tuple[jax.Array, jax.Array]:
    """(which moves a point can make in one step [point, 27] bool, whether a step is no step of at most one voxel)."""
    xyz = jax.lax.stop_gradient(cloud.xyz)
    check_reach(reach, RULES, len(xyz), voxel_size * (1 + 1e-6), f"voxel ({voxel_size} m)")
    size = jnp.asarray(voxel_size, xyz.dtype)
    step = jnp.asarray(reach.step, xyz.dtype).reshape(-1, 1, 1)
    lost = ~jnp.all((step >= 0) & (step <= size * (1 + 1e-6)))
    signs = jnp.array((0, -1, 1), xyz.dtype)
    moved = xyz[:, :, None] + signs[None, None] * step  # [point, axis, move]
    corner = jnp.floor(_quotient(moved, size))
    allowed = by_move((corner != own[:, :, None]) | (signs == 0)[None, None])
    if reach.rule != "none":
        low = (own[:, :, None] + jnp.array((0, -1, 1), jnp.int32)[None, None]).astype(xyz.dtype) * size
        high = (own[:, :, None] + jnp.array((1, 0, 2), jnp.int32)[None, None]).astype(xyz.dtype) * size
        origin, budget = jnp.asarray(reach.origin)[:, :, None], jnp.asarray(reach.budget, xyz.dtype).reshape(-1, 1, 1)
        if reach.rule == "any":
            fits = by_move((jnp.abs(low - origin) < budget) | (jnp.abs(high - origin) < budget), operator.or_)
        else:
            fits = by_move((low - origin < budget) & (origin - high < budget))
        allowed = allowed & fits.at[:, 0].set(True)
    return allowed, lost


def weighted_mean(values: jax.Array, weights: jax.Array, groups: Segments) -> jax.Array:
    """``sum w v / sum w`` of the rows of each group, [size, channel]; 0 where the weights sum to 0.

    The weights of a group are divided by their largest first, so that a quotient of tiny sums stays exact.
    """
    magnitude = jnp.abs(jax.lax.stop_gradient(weights))  # the maximum does not depend on the order of the writes
    largest = jnp.zeros(groups.size, weights.dtype).at[groups.group].max(magnitude, mode="drop", **ROWS)
    scaled = weights / jnp.where(largest > 0, largest, 1).at[groups.group].get(mode="fill", fill_value=1, **ROWS)
    both = sum_over(jnp.concatenate([values * scaled[:, None], scaled[:, None]], axis=1), groups)
    total = both[:, -1:]
    return jnp.where(total != 0, both[:, :-1] / jnp.where(total != 0, total, 1), 0)


def soft_features(features: jax.Array, relation: jax.Array, pairs: Voxels) -> jax.Array:
    """``sum_n r f_n / sum_n r`` over the points near each voxel, [point, channel] -> [voxel, channel]: eq. 37.

    `relation` is r, [pair]; 0 for pairs that are not in use.
    """
    return weighted_mean(spread(features, pairs.points), relation, pairs.voxels)


def point_scores(scores: jax.Array, relation: jax.Array, pairs: Voxels, *, normalise: bool = True) -> jax.Array:
    """``sum_m r y_m / sum_m r`` over the voxels near each point, [voxel, class] -> [point, class]: eq. 40.

    `scores` are y-tilde of eq. 39; without `normalise` the division is left out, as in LGM's release.
    """
    values = spread(scores, pairs.voxels)
    if normalise:
        return weighted_mean(values, relation, pairs.points)
    return sum_over(values * relation[:, None], pairs.points)
