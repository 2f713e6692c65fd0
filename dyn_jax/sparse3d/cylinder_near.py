"""The cells that a point of a scan is near, and how near: candidates and distances of LGM's outdoor relation."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.sparse3d.cloud import as_reach
from dyn_jax.sparse3d.cylinder import Cylinder, cells_of, offsets_of, polar_of
from dyn_jax.sparse3d.voxelize import MOVES, Voxels, by_move, check_reach, most_near, related
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
      released: candidates and distances as in LGM's release, see `near_released` and `_released_distance`.

    Raises:
      TypeError, ValueError: a concrete step above a cell's radial or vertical size, negative or NaN; a step or origin
        of another shape; a rule without origin and budget; an unknown rule.

    Source: LGM paper section IV.C, on the cells of Cylinder3D; release for `released`.
    """
    reach = as_reach(reach)
    own, finite = cells_of(cloud.xyz, cylinder)
    most = most_near_cells(reach, cylinder) * len(own)
    sizes = most if voxels is None else voxels, most if pairs is None else pairs
    allowed, lost = jnp.zeros((len(own), 27), bool).at[:, 0].set(True), jnp.zeros((), bool)
    if reach is not None:
        largest = cylinder.finest * (1 + 1e-6)
        check_reach(reach, RULES, len(own), largest, f"cell ({cylinder.finest:.3g} m)")
        step = jnp.asarray(reach.step)
        lost = ~jnp.all((step >= 0) & (step <= largest))
        find = _released_candidates if released else _candidates
        allowed = allowed | find(cloud.xyz, own, reach, cylinder)

    def place(beside: jax.Array, move: jax.Array) -> jax.Array:
        if released or not cylinder.wraps:
            return beside
        last = cylinder.grid[1] - 1
        cell = beside.at[:, 1].set(jnp.minimum(beside[:, 1], last) % last)
        return jnp.where((move == 0)[:, None], beside, cell)

    measure = partial(_released_distance if released else _distance, cylinder=cylinder)
    return related(cloud, (own, finite), allowed, lost, sizes, measure, place)


def _candidates(xyz: jax.Array, own: jax.Array, reach: Reach, cylinder: Cylinder) -> jax.Array:
    """[point, 27] bool, see `near_cells`."""
    allowed = _within(xyz, own, reach.step, cylinder)
    if reach.rule == "all":
        assert reach.origin is not None and reach.budget is not None
        allowed &= _within(reach.origin, own, reach.budget, cylinder)
    return allowed


def _within(xyz: jax.Array, own: jax.Array, step: jax.typing.ArrayLike, cylinder: Cylinder) -> jax.Array:
    xyz = jax.lax.stop_gradient(xyz)
    polar, step = polar_of(xyz), jnp.broadcast_to(jnp.asarray(step, xyz.dtype), xyz.shape[:1])
    return within_faces(jnp, polar, offsets_of(polar, own, cylinder), own, step, cylinder)


def within_faces(xp: Any, polar: Any, offset: Any, own: Any, step: Any, cylinder: Cylinder) -> Any:
    """[point, 27] bool: every face between `own` and the cell is less than `step` [point] metres from the point.

    `xp` is ``jax.numpy``, or ``numpy`` where the host counts; polar and offset [point, 3], see `offsets_of`.
    """
    half, last, one = cylinder.interval[None] / 2, np.array([cylinder.grid]) - 1, xp.ones_like(step)
    wraps = np.array([[False, cylinder.wraps, False]])
    # from an origin on the other side of the cut
    off = xp.where(wraps & (abs(offset) > np.pi), offset - xp.sign(offset) * 2 * np.pi, offset)
    metres = xp.stack([one, polar[:, 0], one], axis=1)
    down = (wraps | (own > 0)) & (metres * (off + half) < step[:, None])
    up = (wraps | (own < last)) & (metres * (half - off) < step[:, None])
    up |= wraps & (own == last)  # the last cell holds the cut itself
    return by_move(xp.stack([xp.ones_like(down), down, up], axis=2))  # moves 0, -1, 1


def _distance(xyz: jax.Array, own: jax.Array, beside: jax.Array, cylinder: Cylinder) -> jax.Array:
    """[pair, 3], in cells, from the centre of the cell `beside` (not wrapped)."""
    last, wraps = np.array([cylinder.grid]) - 1, np.array([[False, cylinder.wraps, False]])
    to = jnp.where(wraps & (own == last), jnp.minimum(beside, last), beside)
    offset = offsets_of(polar_of(xyz), own, cylinder) / cylinder.interval[None]
    signed = offset - (to - own).astype(xyz.dtype)
    outermost = jnp.where(to == 0, jnp.maximum(signed, 0), jnp.maximum(-signed, 0))
    return jnp.where(~wraps & ((to == 0) | (to == last)), outermost, jnp.abs(signed))


def _released_candidates(xyz: jax.Array, own: jax.Array, reach: Reach, cylinder: Cylinder) -> jax.Array:
    """[point, 27] bool, see `near_released`."""
    xyz = jax.lax.stop_gradient(xyz)
    step = jnp.broadcast_to(jnp.asarray(reach.step, xyz.dtype), xyz.shape[:1])
    interval = jnp.asarray(cylinder.interval, jnp.float32).astype(xyz.dtype)
    return near_released(jnp, xyz, own, step, interval, cylinder)


def near_released(xp: Any, xyz: Any, own: Any, step: Any, interval: Any, cylinder: Cylinder) -> Any:
    """[point, 27] bool, LGM's release: the two corners of a cell are taken without the lower bounds, so that they lie
    on the other side of the sensor and 4 m too high, and one Cartesian coordinate within the step is enough; cells
    with an index of 0 are left out, and nothing wraps. Arguments as `within_faces`; `interval` in xyz's precision."""
    cell = own[:, None] + xp.asarray(MOVES)[None]
    near = xp.zeros(cell.shape[:2], bool)
    for corner in (0, 1):
        rho, phi, z = xp.moveaxis((cell + corner) * interval[None, None], 2, 0)
        place = xp.stack([rho * xp.cos(phi), rho * xp.sin(phi), z], axis=2)
        near |= xp.any(abs(place - xyz[:, None]) < step[:, None, None], axis=2)
    return near & xp.all((cell > 0) & (cell < xp.asarray(cylinder.grid)[None, None]), axis=2)


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
