"""The shapes of the procedural objects and how points are drawn on them. NumPy on the host; z is up, sizes are free."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dyn_jax.datasets.rooms_furniture import between, block, legs

ROUND = 24  # straight pieces of a curved profile


class Shape(NamedTuple):
    """A surface in up to three kinds of pieces, any of which may be empty.

    Attributes:
      patches: [p, 3, 3] parallelograms: a corner and two edges.
      triangles: [t, 3, 3], likewise a corner and two edges.
      frustums: [f, 4]: the line from (r0, z0) to (r1, z1) turned about the z axis; discs and cylinders, too.
    """

    patches: np.ndarray = np.zeros((0, 3, 3))
    triangles: np.ndarray = np.zeros((0, 3, 3))
    frustums: np.ndarray = np.zeros((0, 4))


def sample(rng: np.random.Generator, shape: Shape, points: int) -> np.ndarray:
    """Points [points, 3], uniform on the surface.

    A piece is drawn in proportion to its area; within a frustum of radii r0 and r1 the place t along the line has
    the density ``2 (r0 + (r1 - r0) t) / (r0 + r1)``.
    """
    flat = np.concatenate([shape.patches, shape.triangles])
    area = np.linalg.norm(np.cross(flat[:, 1], flat[:, 2]), axis=1)
    area[len(shape.patches) :] /= 2
    r0, z0, r1, z1 = shape.frustums.T
    edges = np.cumsum(np.concatenate([area, np.pi * (r0 + r1) * np.hypot(r1 - r0, z1 - z0)]))
    row = np.searchsorted(edges[:-1], rng.random(points) * edges[-1], side="right")
    a, b = rng.random((2, points))
    out = np.empty((points, 3))

    on_flat = row < len(flat)
    fold = (row >= len(shape.patches)) & (a + b > 1)  # the other half of a triangle's parallelogram
    a_flat, b_flat = np.where(fold, 1 - a, a)[on_flat, None], np.where(fold, 1 - b, b)[on_flat, None]
    corner, edge1, edge2 = np.moveaxis(flat[row[on_flat]], 1, 0)
    out[on_flat] = corner + a_flat * edge1 + b_flat * edge2

    r0, z0, r1, z1 = shape.frustums[row[~on_flat] - len(flat)].T
    radius = np.sqrt(r0**2 + (r1**2 - r0**2) * a[~on_flat])
    t = np.where(r0 == r1, a[~on_flat], (radius - r0) / np.where(r0 == r1, 1, r1 - r0))
    angle = 2 * np.pi * b[~on_flat]
    out[~on_flat] = np.stack([radius * np.cos(angle), radius * np.sin(angle), z0 + t * (z1 - z0)], 1)
    return out


def turned(*profile: tuple[float, float]) -> np.ndarray:
    """The frustums [n - 1, 4] of a profile of n points (radius, z)."""
    line = np.array(profile, np.float64)
    return np.concatenate([line[:-1], line[1:]], 1)


def _arc(radius: float, z: float, start: float, end: float, distance: float = 0.0) -> np.ndarray:
    """The frustums of a circle of the profile's plane about (distance, z), from an angle to another."""
    angle = np.linspace(start, end, ROUND + 1)
    return turned(*zip(np.maximum(distance + radius * np.cos(angle), 0), z + radius * np.sin(angle)))


def _legs(width: float, depth: float, height: float, thick: float) -> np.ndarray:
    return legs((width - thick) / 2, (depth - thick) / 2, height, thick)


def _each(rng: np.random.Generator, *ranges: tuple[float, float]) -> list[float]:
    return [between(rng, *limits) for limits in ranges]


def _box(rng: np.random.Generator) -> Shape:
    return Shape(patches=block(between(rng, 0.5, 1), between(rng, 0.5, 1), 0, between(rng, 0.4, 1.2)))


def _sphere(rng: np.random.Generator) -> Shape:
    return Shape(frustums=_arc(1.0, 0.0, -np.pi / 2, np.pi / 2))


def _cylinder(rng: np.random.Generator) -> Shape:
    r, h = between(rng, 0.25, 0.6), between(rng, 0.6, 1.6)
    return Shape(frustums=turned((0, 0), (r, 0), (r, h), (0, h)))


def _cone(rng: np.random.Generator) -> Shape:
    r, h = between(rng, 0.35, 0.7), between(rng, 0.7, 1.5)
    return Shape(frustums=turned((0, 0), (r, 0), (0, h)))


def _torus(rng: np.random.Generator) -> Shape:
    tube = between(rng, 0.18, 0.4)
    return Shape(frustums=_arc(tube, 0.0, 0.0, 2 * np.pi, distance=1.0))


def _pyramid(rng: np.random.Generator) -> Shape:
    x, y, h = between(rng, 0.4, 0.7), between(rng, 0.4, 0.7), between(rng, 0.7, 1.5)
    base = np.array([[-x, -y, 0], [x, -y, 0], [x, y, 0], [-x, y, 0]])
    sides = np.stack([base, np.roll(base, -1, axis=0) - base, (0, 0, h) - base], 1)
    return Shape(patches=np.array([[(-x, -y, 0), (2 * x, 0, 0), (0, 2 * y, 0)]], np.float64), triangles=sides)


def _table(rng: np.random.Generator) -> Shape:
    width, depth, height = between(rng, 0.9, 1.6), between(rng, 0.6, 1.0), between(rng, 0.5, 0.8)
    top = block(width, depth, height - 0.05, height)
    return Shape(patches=np.concatenate([top, _legs(width, depth, height - 0.05, between(rng, 0.05, 0.1))]))


def _chair(rng: np.random.Generator) -> Shape:
    width, depth, seat, back = _each(rng, (0.4, 0.55), (0.4, 0.55), (0.38, 0.5), (0.35, 0.6))
    parts = [block(width, depth, seat - 0.05, seat), block(width, 0.05, seat, seat + back, 0, depth / 2 - 0.025)]
    return Shape(patches=np.concatenate([*parts, _legs(width, depth, seat - 0.05, between(rng, 0.04, 0.07))]))


def _lamp(rng: np.random.Generator) -> Shape:
    foot, height, shade, top = _each(rng, (0.15, 0.25), (0.8, 1.4), (0.22, 0.4), (0.08, 0.2))
    low = height - between(rng, 0.25, 0.4)
    stand = turned((0, 0), (foot, 0), (foot, 0.05), (0.03, 0.06), (0.03, height - 0.05))
    return Shape(frustums=np.concatenate([stand, turned((shade, low), (top, height))]))


def _bottle(rng: np.random.Generator) -> Shape:
    r, body, neck, end = _each(rng, (0.2, 0.32), (0.5, 0.8), (0.25, 0.45), (0.06, 0.11))
    shoulder = body + between(rng, 0.1, 0.25)
    profile = (0, 0), (r, 0), (r, body), (end, shoulder), (end, shoulder + neck), (0, shoulder + neck)
    return Shape(frustums=turned(*profile))


SHAPES: dict[str, Callable[[np.random.Generator], Shape]] = {
    "box": _box, "sphere": _sphere, "cylinder": _cylinder, "cone": _cone, "torus": _torus, "pyramid": _pyramid,
    "table": _table, "chair": _chair, "lamp": _lamp, "bottle": _bottle,
}  # fmt: skip
"""Class name -> a shape of random proportions; the order is that of the labels."""
