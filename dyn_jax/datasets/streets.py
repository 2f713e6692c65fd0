"""Simulated streets seen by a simulated spinning LiDAR: labelled scans that need no file, a stand-in for SemanticKITTI.

Not recorded: a sensor of `RINGS` lasers is turned above a street of boxes, cylinders and spheres, and each ray ends at
the first thing it meets. So scans have rings, shadows behind what they hit, and a density that falls with distance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dyn_jax import _validate
from dyn_jax.datasets.points import Columns, check_columns, streams

STREET_CLASSES = (
    "unlabelled", "road", "sidewalk", "terrain", "building", "fence", "car", "person", "pole", "trunk", "vegetation",
)  # fmt: skip
"""Label 0 marks points that do not count, as in SemanticKITTI; no simulated point has it."""
STREETS_PER_SPLIT = {"train": 96, "test": 16}
HEIGHT = 1.73
"""Metres of the sensor above the road; the sensor is the origin."""
RINGS, TURNS = 32, 256
"""Lasers, from 3 degrees up to 24 degrees down, and firings of each in a turn."""
RANGE = 48.0
"""Metres; a ray that meets nothing before gives no point."""
NOISE, DROPPED = 0.015, 0.08
"""Standard deviation along the ray in metres; share of returns that are lost, more of them from dark things."""

_LABEL = {name: label for label, name in enumerate(STREET_CLASSES)}
_SHINE = {
    "road": 0.18, "sidewalk": 0.3, "terrain": 0.35, "building": 0.45, "fence": 0.4, "car": 0.6, "person": 0.3,
    "pole": 0.55, "trunk": 0.3, "vegetation": 0.25,
}  # fmt: skip
_STREAM = 0x57EE7  # keeps these streams apart from other users of small seeds


SCAN_COLUMNS: Columns = {
    "xyz": ((3,), np.float32), "intensity": ((), np.float32), "labels": ((), np.int32), "ring": ((), np.int32),
}  # fmt: skip


class Scan(NamedTuple):
    """One scan of a spinning LiDAR, the sensor at the origin.

    Attributes:
      xyz: [n, 3] float32, metres, z up.
      intensity: [n] float32.
      labels: [n] int32, 0 for points that do not count; None where unlabelled.
      ring: [n] int32, the laser; None where not known.
      name: of the scan.
    """

    xyz: np.ndarray
    intensity: np.ndarray
    labels: np.ndarray | None
    ring: np.ndarray | None
    name: str


def check_scan(scan: Scan, where: str) -> Scan:
    """Returns the scan if it keeps what `Scan` promises; messages begin with `where`.

    Raises:
      ValueError: no points; other shapes or dtypes; numbers that are not finite; map coordinates, which float32 has
        rounded; labels or rings below 0.
    """
    check_columns(scan, SCAN_COLUMNS, where)
    _validate.coordinates(f"{where}: xyz", scan.xyz)
    for field, got in (("labels", scan.labels), ("ring", scan.ring)):
        if got is not None and got.min() < 0:
            raise ValueError(f"{where}: got {field} {got.min()}, expected at least 0")
    return scan


class _Things(NamedTuple):
    """Upright boxes [n, 8] (x, y, z of the foot, half length, half width, height, cos, sin), cylinders [n, 5]
    (x, y, z of the foot, radius, height) and spheres [n, 4], with their labels."""

    boxes: np.ndarray
    cylinders: np.ndarray
    spheres: np.ndarray
    labels: np.ndarray


def streets(split: str = "train", count: int | None = None, *, seed: int = 0) -> list[Scan]:
    """Labelled scans of simulated streets, made from a seed; the two splits share none.

    Args:
      split, seed, raises: as for `rooms`.
      count: how many; default 96 for training, 16 for testing. The first do not depend on it.

    Returns:
      `Scan` for each, with labels in 1..10 (`STREET_CLASSES`) and rings.
    """
    rngs = streams(split, count, seed, STREETS_PER_SPLIT, _STREAM)
    return [_scan(rng, f"{split}_{i:04d}") for i, rng in enumerate(rngs)]


def _scan(rng: np.random.Generator, name: str) -> Scan:
    widths = rng.uniform(3.2, 5.5, 2), rng.uniform(1.5, 3.0, 2)  # road and sidewalk, to the right and left
    things = _place(rng, *widths)
    elevation = np.repeat(np.deg2rad(np.linspace(3.0, -24.0, RINGS)), TURNS)
    azimuth = np.tile(np.arange(TURNS) * 2 * np.pi / TURNS, RINGS) + rng.uniform(0, 2 * np.pi)
    rays = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], 1)
    distance, label = cast(rays, things, *widths)
    shine = np.array([_SHINE.get(one, 0.0) for one in STREET_CLASSES])[label]
    shine = np.clip(shine * rng.normal(1, 0.25, len(shine)), 0.01, 0.99)
    hit = (distance < RANGE) & (distance > 1.0) & (rng.random(len(shine)) > DROPPED * 0.5 / np.sqrt(shine))
    distance = distance + NOISE * rng.normal(size=len(distance))
    xyz = (rays * distance[:, None])[hit].astype(np.float32)
    ring = np.repeat(np.arange(RINGS, dtype=np.int32), TURNS)[hit]
    return Scan(xyz, shine[hit].astype(np.float32), label[hit].astype(np.int32), ring, name)


def cast(rays: np.ndarray, things: _Things, road: np.ndarray, sidewalk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distance [ray], infinite where nothing is met; label [ray]) of the first thing on each ray [ray, 3]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(rays[:, 2] < 0, -HEIGHT / rays[:, 2], np.inf)
        found = [ground[:, None], _boxes(rays, things.boxes), _cylinders(rays, things.cylinders)]
        found.append(_spheres(rays, things.spheres))
    every = np.concatenate(found, axis=1)
    first = every.argmin(axis=1)
    distance = every[np.arange(len(rays)), first]
    across = rays[:, 1] * np.where(np.isfinite(distance), distance, 0)
    side = (across > 0).astype(int)
    beyond = np.abs(across) - road[side]
    floor = np.where(beyond < 0, _LABEL["road"], np.where(beyond < sidewalk[side], _LABEL["sidewalk"], 0))
    floor = np.where(floor == 0, _LABEL["terrain"], floor)
    return distance, np.where(first == 0, floor, np.concatenate([[0], things.labels])[first])


def _boxes(rays: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[ray, box], the slab test in each box's own frame."""
    x, y, z, length, width, height, cos, sin = (column[None] for column in boxes.T)
    along, across = rays[:, :1] * cos + rays[:, 1:2] * sin, -rays[:, :1] * sin + rays[:, 1:2] * cos
    start = (-(x * cos + y * sin), x * sin - y * cos, -(z + height / 2))
    near, far = np.full(along.shape, -np.inf), np.full(along.shape, np.inf)
    for origin, step, half in zip(start, (along, across, rays[:, 2:3]), (length, width, height / 2)):
        a, b = (-half - origin) / step, (half - origin) / step
        near, far = np.maximum(near, np.minimum(a, b)), np.minimum(far, np.maximum(a, b))
    return np.where((near <= far) & (near > 0), near, np.inf)


def _cylinders(rays: np.ndarray, cylinders: np.ndarray) -> np.ndarray:
    """[ray, cylinder], the mantle alone: they are seen from the side."""
    x, y, z, radius, height = (column[None] for column in cylinders.T)
    flat = rays[:, :1] ** 2 + rays[:, 1:2] ** 2
    towards = rays[:, :1] * x + rays[:, 1:2] * y
    root = towards**2 - flat * (x**2 + y**2 - radius**2)
    distance = (towards - np.sqrt(np.maximum(root, 0))) / flat
    at = distance * rays[:, 2:3]
    return np.where((root > 0) & (distance > 0) & (at >= z) & (at <= z + height), distance, np.inf)


def _spheres(rays: np.ndarray, spheres: np.ndarray) -> np.ndarray:
    """[ray, sphere]."""
    towards = rays @ spheres[:, :3].T
    root = towards**2 - ((spheres[:, :3] ** 2).sum(axis=1) - spheres[:, 3] ** 2)[None]
    distance = towards - np.sqrt(np.maximum(root, 0))
    return np.where((root > 0) & (distance > 0), distance, np.inf)


def _place(rng: np.random.Generator, road: np.ndarray, sidewalk: np.ndarray) -> _Things:
    """What stands along the street, which runs along x; the sensor drives on it."""
    boxes: list[tuple] = []
    cylinders: list[tuple] = []
    spheres: list[tuple] = []

    def box(name: str, x: float, y: float, size: tuple[float, float, float], turn: float = 0.0, z: float = 0.0) -> None:
        half = size[0] / 2, size[1] / 2, size[2]
        boxes.append((x, y, z - HEIGHT, *half, np.cos(turn), np.sin(turn), _LABEL[name]))

    for side, sign in enumerate((-1, 1)):
        kerb, wall = sign * road[side], sign * (road[side] + sidewalk[side] + rng.uniform(1.0, 6.0))
        x = -50.0
        while x < 50:  # houses with gaps, or a fence
            length, depth = rng.uniform(6, 16), rng.uniform(6, 10)
            if rng.random() < 0.75:
                box("building", x + length / 2, wall + sign * depth / 2, (length, depth, rng.uniform(4, 12)))
            elif rng.random() < 0.7:
                box("fence", x + length / 2, wall, (length, 0.1, rng.uniform(1.0, 1.8)))
            x += length + rng.choice([0.0, rng.uniform(1, 5)])
        for x in np.arange(-45, 45, 6.5) + rng.uniform(0, 3):  # parked cars
            if rng.random() < 0.5 and abs(x) > 3:
                turn, y = rng.normal(0, 0.05), kerb - sign * 1.1
                box("car", x, y, (rng.uniform(3.6, 4.8), 1.75, 0.85), turn, 0.25)
                box("car", x - 0.2, y, (2.2, 1.55, 0.6), turn, 1.1)
        for x in np.arange(-45, 45, 9.0) + rng.uniform(0, 6):
            y = kerb + sign * rng.uniform(0.3, 0.8)
            if rng.random() < 0.5:
                cylinders.append((x, y, -HEIGHT, rng.uniform(0.06, 0.12), rng.uniform(4, 8), _LABEL["pole"]))
            else:
                height, radius = rng.uniform(1.8, 2.8), rng.uniform(1.0, 2.0)
                cylinders.append((x, y, -HEIGHT, rng.uniform(0.12, 0.25), height, _LABEL["trunk"]))
                spheres.append((x, y, height + 0.8 * radius - HEIGHT, radius, _LABEL["vegetation"]))
        for _ in range(rng.integers(1, 5)):  # bushes
            radius = rng.uniform(0.4, 1.1)
            y = sign * (road[side] + sidewalk[side] + rng.uniform(0.3, 1.2))
            spheres.append((rng.uniform(-35, 35), y, 0.5 * radius - HEIGHT, radius, _LABEL["vegetation"]))
        for _ in range(rng.integers(1, 5)):
            x, y = rng.uniform(-25, 25), kerb + sign * rng.uniform(0.5, sidewalk[side])
            cylinders.append((x, y, -HEIGHT, rng.uniform(0.2, 0.3), rng.uniform(1.5, 1.9), _LABEL["person"]))
    for x in rng.choice([-1, 1], 2) * rng.uniform(7, 35, 2):  # cars that drive
        y = rng.choice([-1, 1]) * rng.uniform(0.0, 1.5)
        box("car", x, y, (rng.uniform(3.6, 4.8), 1.8, 0.85), rng.normal(0, 0.03), 0.25)
        box("car", x - 0.2, y, (2.2, 1.6, 0.6), 0.0, 1.1)
    rows = [np.array(kind, np.float64) for kind in (boxes, cylinders, spheres)]
    labels = np.concatenate([kind[:, -1] for kind in rows]).astype(int)
    return _Things(rows[0][:, :-1], rows[1][:, :-1], rows[2][:, :-1], labels)
