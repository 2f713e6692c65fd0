"""The cells that a point of a scan is near, and how near: candidates and distances of LGM's outdoor relation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.sparse3d.cloud import as_reach
from dyn_jax.sparse3d.cylinder import Cylinder, cells_of, offsets_of, polar_of
from dyn_jax.sparse3d.segments import segments, spread
from dyn_jax.sparse3d.sites import sites_of
from dyn_jax.sparse3d.voxelize import MOVES, Voxels, most_near, with_batch
from dyn_jax.types import PointCloud, Reach

RULES = ("none", "all")


def most_near_cells(reach: Reach | None, cylinder: Cylinder) -> int:
    """How many cells a point is near at most: 27, or 12 (two radially and vertically) for a small concrete step."""
    return most_near(reach, cylinder.finest, 12)


def near_cells(
    cloud: PointCloud,
    cylinder: Cylinder,
    *,
    reach: Reach | jax.typing.ArrayLike | None = None,
    voxels: int | None = None,
    pairs: int | None = None,
    released: bool = False,
) -> Voxels:
    """The cells a point is in or may get into with one step of `reach`, and the pairs with them.

    A cell beside the point's own is a candidate where every face that lies between is less than the step away:
    ``|rho - face|``, ``rho |phi - face|``, ``|z - face|``, in metres. The angle wraps: the first cell and the last but
    one are neighbours. Distances are in cells, ``|(p - centre) / interval|`` per axis (eq. 29); an outermost cell
    reaches to infinity, so that points beyond the bounds are at distance 0.

    Closer to the axis than ``step / interval`` (0.6 m for 1 cm) a step leads past a whole cell in the angle; of these
    cells the nearest on each side is looked at.

    Args:
      cloud: see `PointCloud`; intensities are not looked at.
      cylinder: bounds and grid.
      reach: see `Reach`; a number is its step. None: every point has one pair, with its own cell. Of the rules,
        ``all`` leaves out the cells farther than the budget from the clean point on some axis.
      voxels, pairs: capacities; default what always fits.
      released: candidates and distances as in LGM's release, see `_released_candidates` and `_released_distance`.

    Raises:
      TypeError, ValueError: a concrete step above a cell's radial or vertical size, negative or NaN; a step or origin
        of another shape; a rule without origin and budget; an unknown rule.

    Source: LGM paper section IV.C, on the cells of Cylinder3D; release for `released`.
    """
    reach = as_reach(reach)
    own, finite = cells_of(cloud.xyz, cylinder)
    valid, count = cloud.valid & finite, own.shape[0]
    allowed = jnp.zeros((count, 27), bool).at[:, 0].set(True)
    lost = jnp.zeros((), bool)
    if reach is not None:
        lost = _check(reach, cylinder, count)
        find = _released_candidates if released else _candidates
        allowed = allowed | find(cloud.xyz, own, reach, cylinder)
    allowed = allowed & valid[:, None]
    most = most_near_cells(reach, cylinder) * count
    pairs, voxels = most if pairs is None else pairs, most if voxels is None else voxels
    found = jnp.sum(allowed, dtype=jnp.int32)
    place = jnp.nonzero(allowed.reshape(-1), size=pairs, fill_value=27 * count)[0].astype(jnp.int32)
    used = jnp.arange(pairs) < found
    point, move = jnp.minimum(place // 27, count - 1), place % 27
    beside = own[point] + jnp.asarray(MOVES)[move]
    cell = beside
    if cylinder.wraps and not released:
        last = cylinder.grid[1] - 1
        cell = beside.at[:, 1].set(jnp.minimum(beside[:, 1], last) % last)
        cell = jnp.where((move == 0)[:, None], own[point], cell)
    coordinates = with_batch(cloud, own)[point].at[:, 1:].set(cell)
    sites = sites_of(coordinates, used, voxels)
    row, there = sites.find(coordinates, used)
    inside = used & (move == 0)
    exists = jnp.zeros(sites.capacity, bool).at[jnp.where(inside, row, sites.capacity)].set(True, mode="drop")
    by_point = segments(jnp.where(used, point, count), count, is_sorted=True)
    by_voxel = segments(row, sites.capacity)
    measure = _released_distance if released else _distance
    distance = measure(spread(cloud.xyz, by_point), own[point], beside, cylinder)
    overflow = sites.overflow | lost | jnp.any(cloud.valid & ~finite) | (found > pairs)
    return Voxels(sites, exists, by_point, by_voxel, distance, inside & there, overflow)


def _check(reach: Reach, cylinder: Cylinder, count: int) -> jax.Array:
    """Whether a step is no step of at most one cell, scalar bool."""
    _validate.choice("reach.rule", reach.rule, RULES)
    if jnp.shape(reach.step) not in ((), (count,)):
        raise ValueError(f"reach.step: got shape {jnp.shape(reach.step)}, expected a number or ({count},)")
    largest = cylinder.finest * (1 + 1e-6)
    if _validate.is_concrete(reach.step):
        wrong = np.asarray(reach.step, float).reshape(-1)
        wrong = wrong[~((wrong >= 0) & (wrong <= largest))]
        if len(wrong):
            raise ValueError(f"reach.step: got {wrong[0]}, expected at most one cell ({cylinder.finest:.3g} m)")
    if reach.rule != "none":
        if reach.origin is None or reach.budget is None:
            raise ValueError(f"reach: got no origin and budget, expected both for the rule {reach.rule!r}")
        if jnp.shape(reach.origin) != (count, 3):
            raise ValueError(f"reach.origin: got shape {jnp.shape(reach.origin)}, expected ({count}, 3)")
    step = jnp.asarray(reach.step)
    return ~jnp.all((step >= 0) & (step <= largest))


def _candidates(xyz: jax.Array, own: jax.Array, reach: Reach, cylinder: Cylinder) -> jax.Array:
    """[point, 27] bool, see `near_cells`."""
    allowed = _within(jax.lax.stop_gradient(xyz), own, reach.step, cylinder)
    if reach.rule == "all":
        assert reach.origin is not None and reach.budget is not None
        allowed &= _within(jax.lax.stop_gradient(reach.origin), own, reach.budget, cylinder)
    return allowed


def _within(xyz: jax.Array, own: jax.Array, step: jax.typing.ArrayLike, cylinder: Cylinder) -> jax.Array:
    """[point, 27] bool: every face between `own` and the cell is less than `step` metres from the point."""
    polar = polar_of(xyz)
    step = jnp.broadcast_to(jnp.asarray(step, xyz.dtype), xyz.shape[:1])
    offset = offsets_of(polar, own, cylinder)
    per_axis = []
    for axis in range(3):
        half, metres = cylinder.interval[axis] / 2, polar[:, 0] if axis == 1 else jnp.ones_like(step)
        last = cylinder.grid[axis] - 1
        off = offset[:, axis]
        if axis == 1 and cylinder.wraps:  # from an origin on the other side of the cut
            off = jnp.where(jnp.abs(off) > np.pi, off - jnp.sign(off) * 2 * np.pi, off)
            can = jnp.ones_like(own[:, axis], bool), jnp.ones_like(own[:, axis], bool)
        else:
            can = own[:, axis] > 0, own[:, axis] < last
        down, up = can[0] & (metres * (off + half) < step), can[1] & (metres * (half - off) < step)
        if axis == 1 and cylinder.wraps:  # the last cell holds the cut itself
            up |= own[:, axis] == last
        per_axis.append(jnp.stack([jnp.ones_like(down), down, up], axis=1))  # moves 0, -1, 1
    a, b, c = per_axis
    return (a[:, :, None, None] & b[:, None, :, None] & c[:, None, None, :]).reshape(-1, 27)


def _distance(xyz: jax.Array, own: jax.Array, beside: jax.Array, cylinder: Cylinder) -> jax.Array:
    """[pair, 3], in cells, from the centre of the cell `beside` (not wrapped)."""
    offset = offsets_of(polar_of(xyz), own, cylinder)
    columns = []
    for axis in range(3):
        last = cylinder.grid[axis] - 1
        to = beside[:, axis]
        if axis == 1 and cylinder.wraps:
            to = jnp.where(own[:, axis] == last, jnp.minimum(to, last), to)
        signed = offset[:, axis] / cylinder.interval[axis] - (to - own[:, axis]).astype(xyz.dtype)
        distance = jnp.abs(signed)
        if not (axis == 1 and cylinder.wraps):
            distance = jnp.where(
                to == 0, jnp.maximum(signed, 0), jnp.where(to == last, jnp.maximum(-signed, 0), distance)
            )
        columns.append(distance)
    return jnp.stack(columns, axis=1)


def _released_candidates(xyz: jax.Array, own: jax.Array, reach: Reach, cylinder: Cylinder) -> jax.Array:
    """[point, 27] bool, LGM's release: the two corners of a cell are taken without the lower bounds, so that they lie
    on the other side of the sensor and 4 m too high, and one Cartesian coordinate within the step is enough; cells
    with an index of 0 are left out, and nothing wraps."""
    xyz = jax.lax.stop_gradient(xyz)
    cell = own[:, None, :] + jnp.asarray(MOVES)[None]
    interval = jnp.asarray(cylinder.interval, jnp.float32)[None, None]
    step = jnp.broadcast_to(jnp.asarray(reach.step, xyz.dtype), xyz.shape[:1])[:, None, None]
    near = jnp.zeros(cell.shape[:2], bool)
    for corner in (0, 1):
        rho, phi, z = jnp.moveaxis((cell + corner).astype(xyz.dtype) * interval.astype(xyz.dtype), 2, 0)
        place = jnp.stack([rho * jnp.cos(phi), rho * jnp.sin(phi), z], axis=2)
        near |= jnp.any(jnp.abs(place - xyz[:, None]) < step, axis=2)
    grid = jnp.asarray(cylinder.grid, jnp.int32)[None, None]
    return near & jnp.all((cell > 0) & (cell < grid), axis=2)


def _released_distance(xyz: jax.Array, own: jax.Array, beside: jax.Array, cylinder: Cylinder) -> jax.Array:
    """[pair, 3], LGM's release: ``|(clip(p) - low) / interval - (cell + 1/2)|`` in float32, without the 1/2 where the
    cell is the first or last of its axis."""
    del own
    dtype = xyz.dtype
    low, high, interval = (jnp.asarray(v, dtype)[None] for v in (cylinder.low, cylinder.high, cylinder.interval))
    clipped = jnp.clip(polar_of(xyz), low, high)
    last = jnp.asarray(cylinder.grid, jnp.int32)[None] - 1
    centre = beside.astype(dtype) + jnp.where((beside == 0) | (beside == last), 0, 0.5).astype(dtype)
    return jnp.abs((clipped - low) / (interval + 0 * clipped) - centre)
