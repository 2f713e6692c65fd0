"""How many cells and pairs a scan needs on every level of a cylindrical network, counted on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dyn_jax.sparse3d.cylinder import Cylinder
from dyn_jax.sparse3d.cylinder_near import near_released, within_faces
from dyn_jax.sparse3d.form import Form
from dyn_jax.sparse3d.kernel import Size, triple
from dyn_jax.sparse3d.voxelize import MOVES
from dyn_jax.types import PointCloud, Reach

SLACK = 1e-4
"""Relative; steps are counted this much longer, so that no rounding makes a count too small."""


def near_on_host(cloud: PointCloud, cylinder: Cylinder, reach: Reach | None, form: Form) -> np.ndarray:
    """[pair, 4], at least the cells that the valid points of a concrete cloud are in or near, with repetitions.

    The budget of a reach is not looked at: it only takes candidates away.
    """
    valid = np.asarray(cloud.valid)
    xyz = np.asarray(cloud.xyz, np.float32)[valid]
    batch = np.zeros(len(xyz), int) if cloud.batch is None else np.asarray(cloud.batch)[valid]
    polar = np.stack([np.sqrt(xyz[:, 0] ** 2 + xyz[:, 1] ** 2), np.arctan2(xyz[:, 1], xyz[:, 0]), xyz[:, 2]], axis=1)
    own = cylinder.cell_of(polar)
    coordinates = np.concatenate([batch[:, None], own], axis=1).astype(np.int64)
    if reach is None:
        return coordinates
    step = np.broadcast_to(np.asarray(reach.step, float), valid.shape)[valid] * (1 + SLACK) + 1e-7
    if form.shifted_neighbours:
        allowed = near_released(np, xyz.astype(float), own, step + 1e-5, cylinder.interval, cylinder)
    else:
        offset = polar - ((own + 0.5) * cylinder.interval + np.array(cylinder.low))
        allowed = within_faces(np, polar, offset, own, step, cylinder)
    allowed[:, 0] = True
    point, move = np.nonzero(allowed)
    near = coordinates[point] + np.insert(MOVES, 0, 0, axis=1)[move]
    if cylinder.wraps and not form.shifted_neighbours:
        wrapped = np.minimum(near[:, 2], cylinder.grid[1] - 1) % (cylinder.grid[1] - 1)
        near[:, 2] = np.where(move == 0, near[:, 2], wrapped)
    return near


def reached_counts(coordinates: np.ndarray, factors: Sequence[Size], bounds: Size) -> list[int]:
    """Distinct sites of every level over coordinates [n, 4], each level all that a kernel of 3 reaches."""
    sites = np.unique(np.asarray(coordinates, np.int64), axis=0)
    counts, stride, limit = [len(sites)], np.ones(3, np.int64), np.array(triple("bounds", bounds))
    for factor in factors:
        cell, coarser = sites[:, 1:] // stride, stride * triple("factor", factor)
        columns = []
        for axis, f in enumerate(triple("factor", factor)):
            there = (cell[:, axis, None] + 1) // f - np.arange(-(-3 // f))[None]
            fits = (there * f >= cell[:, axis, None] - 1) & (there >= 0) & (there * coarser[axis] < limit[axis])
            columns.append((there * coarser[axis], fits))
        (x, a), (y, b), (z, c) = columns
        fits = a[:, :, None, None] & b[:, None, :, None] & c[:, None, None, :]
        row, i, j, k = np.nonzero(fits)
        found = np.stack([sites[row, 0], x[row, i], y[row, j], z[row, k]], axis=1)
        keys = np.unique(((found[:, 0] * limit[0] + found[:, 1]) * limit[1] + found[:, 2]) * limit[2] + found[:, 3])
        rest, last = np.divmod(keys, limit[2])
        rest, middle = np.divmod(rest, limit[1])
        sites = np.stack([rest // limit[0], rest % limit[0], middle, last], axis=1)
        stride = coarser
        counts.append(len(sites))
    return counts


def most_reached(rows: int, factors: Sequence[Size], bounds: Size, clouds: int) -> list[int]:
    """What always fits where the sites are not known: what a kernel of 3 makes of every row, or the whole grid."""
    counts, stride, limit = [rows], np.ones(3, np.int64), np.array(triple("bounds", bounds))
    for factor in factors:
        stride = stride * triple("factor", factor)
        growth = int(np.prod([-(-3 // f) for f in triple("factor", factor)]))
        counts.append(int(min(counts[-1] * growth, clouds * np.prod(-(-limit // stride)))))
    return counts
