"""Procedural indoor rooms with labels: a stand-in for ScanNet and S3DIS that needs no file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dyn_jax import _validate
from dyn_jax.datasets.points import Scene, stream, streams
from dyn_jax.datasets.rooms_furniture import between, colour
from dyn_jax.datasets.rooms_plan import Plan, plan, rotation, wall_frame

ROOM_CLASSES = ("wall", "floor", "ceiling", "door", "window", "table", "chair", "sofa", "shelf", "clutter")
ROOMS_PER_SPLIT = {"train": 32, "test": 16}
NOISE = 0.01
"""Standard deviation of a point along each axis, in metres."""

_LABEL = {name: label for label, name in enumerate(ROOM_CLASSES)}
_STREAM = 0x700F5  # keeps these streams apart from other users of small seeds
_DENSITY = {"wall": 0.4, "floor": 0.5, "ceiling": 0.25}  # against 1 for what a scan goes near to


def rooms(split: str = "train", count: int | None = None, *, seed: int = 0, points: int = 8192) -> list[Scene]:
    """Labelled indoor rooms, made from a seed; the two splits share no room.

    A room is 3 to 5 m long and wide and 2.4 to 2.8 m high: walls, floor, a ceiling, a door, windows, and what
    there was room for of a sofa, shelves, tables, chairs and clutter, none of which meet. Points are drawn on
    all surfaces in proportion to area (walls, floor and ceiling 0.4, 0.5 and 0.25 times as dense, as in
    scans), then moved by normal noise of 1 cm. Colours overlap between classes (walls, ceilings and doors are
    alike, tables, chairs and shelves share their wood), vary with the instance, and carry light and texture.

    Args:
      split: "train" or "test".
      count: how many rooms; default 32 for training, 16 for testing. The first rooms do not depend on it.
      seed: any integer of at least 0; another one gives other rooms.
      points: how many points each room has.

    Returns:
      `Scene` for each room: xyz [points, 3] in metres with z up and a corner of the floor at the origin, colours
      [points, 3] in multiples of 1/255, labels [points] in 0..9 (`ROOM_CLASSES`; no point is `IGNORE`).

    Raises:
      TypeError, ValueError: split is neither, or a number is not an integer in its range.
    """
    rngs = streams(split, count, seed, ROOMS_PER_SPLIT, _STREAM)
    points = _validate.positive_int("points", points)
    return [_make(rng, points, f"{split}_{i:04d}") for i, rng in enumerate(rngs)]


def room(seed: int, points: int = 8192) -> Scene:
    """One room that is in neither split, a `Scene` named ``room_<seed>``; arguments and errors as for `rooms`."""
    seed = _validate.positive_int("seed", seed, minimum=0)
    rng = stream(_STREAM, seed, len(ROOMS_PER_SPLIT) + 1, 1)
    return _make(rng, _validate.positive_int("points", points), f"room_{seed}")


def _make(rng: np.random.Generator, points: int, name: str) -> Scene:
    surfaces = _surfaces(rng, plan(rng))
    normal = np.cross(surfaces.patches[:, 1], surfaces.patches[:, 2])
    area = np.linalg.norm(normal, axis=1)
    row = _choose(rng, area * surfaces.density, points)
    row = row[np.argsort(rng.random(points), kind="stable")]  # so that the first points are a sample, too
    a, b = rng.random((2, points, 1))
    patch = surfaces.patches[row]
    clean = patch[:, 0] + a * patch[:, 1] + b * patch[:, 2]
    colours = surfaces.colour[row] * _texture(rng, surfaces, row, a, b)
    colours = colours * _light(rng, clean, (normal / area[:, None])[row])
    colours = colours * rng.normal(1, 0.03, 3) + rng.normal(0, 0.03, (points, 1)) + rng.normal(0, 0.015, (points, 3))
    return Scene(
        xyz=(clean + rng.normal(0, NOISE, (points, 3))).astype(np.float32),
        colours=(np.rint(255 * np.clip(colours, 0, 1)) / 255).astype(np.float32),
        labels=surfaces.label[row],
        name=name,
    )


class _Surfaces(NamedTuple):
    """All patches of a room: patches [n, 3, 3], label [n], colour [n, 3], density [n]."""

    patches: np.ndarray
    label: np.ndarray
    colour: np.ndarray
    density: np.ndarray


def _surfaces(rng: np.random.Generator, planned: Plan) -> _Surfaces:
    parts = _shell(rng, planned)
    for name, piece, at, z in planned.placed:
        turn = np.eye(3)
        turn[:2, :2] = rotation(at.turn)
        for patches, tint in piece.parts:
            patches = patches @ turn.T
            patches[:, 0] += (at.x, at.y, z)
            parts.append((name, patches, tint))
    repeats = [len(patches) for _, patches, _ in parts]
    return _Surfaces(
        np.concatenate([patches for _, patches, _ in parts]),
        np.repeat(np.array([_LABEL[name] for name, _, _ in parts], np.int32), repeats),
        np.repeat(np.array([tint for _, _, tint in parts]), repeats, axis=0),
        np.repeat([_DENSITY.get(name, 1.0) for name, _, _ in parts], repeats),
    )


def _shell(rng: np.random.Generator, planned: Plan) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Floor, ceiling, walls with their openings: (class, patches, colour)."""
    width, depth, height = planned.size
    flat = [(width, 0, 0), (0, depth, 0)]
    parts = [
        ("floor", np.array([[(0, 0, 0), *flat]], np.float64), colour(rng, "floor")),
        ("ceiling", np.array([[(0, 0, height), *flat]], np.float64), colour(rng, "ceiling")),
    ]
    paint, frame = colour(rng, "wall"), colour(rng, "frame")
    for k, opening in enumerate(planned.openings):
        corner, along, out = wall_frame(k, planned.size)
        length = planned.size[k % 2]

        def patch(start: float, end: float, low: float, high: float, set_back: float = 0.0) -> np.ndarray:
            origin = (*(corner + start * along + set_back * out), low)  # noqa: B023
            return np.array([[origin, (*((end - start) * along), 0), (0, 0, high - low)]], np.float64)  # noqa: B023

        tint = np.clip(paint + rng.normal(0, 0.01, 3), 0, 1)
        if opening is None:
            parts.append(("wall", patch(0, length, 0, height), tint))
            continue
        name, start, end, low, high = opening
        around = [patch(0, start, 0, height), patch(end, length, 0, height), patch(start, end, high, height)]
        if low > 0:
            around.append(patch(start, end, 0, low))
        parts.append(("wall", np.concatenate(around), tint))
        parts.append((name, patch(start, end, low, high, 0.04), colour(rng, name)))
        edge, middle = 0.06, (start + end) / 2
        border = [patch(start, start + edge, low, high), patch(end - edge, end, low, high)]
        border.append(patch(start, end, high - edge, high))
        if name == "window":
            border += [patch(start, end, low, low + edge), patch(middle - 0.03, middle + 0.03, low, high)]
        parts.append((name, np.concatenate(border), frame))
    return parts


def _choose(rng: np.random.Generator, weight: np.ndarray, count: int) -> np.ndarray:
    """Rows [count] in proportion to weight, ascending: each row its share, rounded down or up."""
    edges = np.cumsum(weight)
    return np.searchsorted(edges[:-1], (np.arange(count) + rng.random()) * (edges[-1] / count), side="right")


def _texture(
    rng: np.random.Generator, surfaces: _Surfaces, row: np.ndarray, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """Factors [n, 1] about 1: stripes along one edge of each patch, of its own width and strength."""
    count = len(surfaces.patches)
    strength, phase, across = 0.1 * rng.random(count) ** 2, rng.random(count), rng.random(count) < 0.5
    lengths = np.linalg.norm(surfaces.patches[:, 1:], axis=2)
    waves = np.where(across, lengths[:, 0], lengths[:, 1]) / (0.05 + 0.2 * rng.random(count))
    place = np.where(across[row, None], a, b)
    return 1 + strength[row, None] * np.sin(2 * np.pi * (waves[row, None] * place + phase[row, None]))


def _light(rng: np.random.Generator, xyz: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Factors [n, 1]: a lamp near the ceiling on patches seen from both sides, and light from everywhere."""
    high = xyz.max(0)
    lamp = np.array([between(rng, 0.2, 0.8), between(rng, 0.2, 0.8), between(rng, 0.8, 0.95)]) * high
    towards = lamp - xyz
    distance = np.linalg.norm(towards, axis=1)
    facing = np.abs(np.sum(towards * normal, axis=1)) / np.maximum(distance, 1e-6)
    shade = 0.65 + 0.35 * facing / (0.6 + 0.16 * distance**2)
    return (between(rng, 0.9, 1.15) * np.minimum(shade, 1.1))[:, None]
