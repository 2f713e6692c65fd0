"""Where doors, windows and furniture of a procedural room go: plans without points. NumPy on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from dyn_jax.datasets import rooms_furniture as furniture
from dyn_jax.datasets.rooms_furniture import Piece, between

_TRIES = 24


class Footprint(NamedTuple):
    """A rectangle on the floor: its centre, its turn in radians (counter-clockwise), its width and depth."""

    x: float
    y: float
    turn: float
    width: float
    depth: float

    def corners(self) -> np.ndarray:
        """[4, 2], in order."""
        half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (self.width / 2, self.depth / 2)
        return half @ rotation(self.turn).T + (self.x, self.y)


class Placed(NamedTuple):
    """A piece of a class, where it stands, and how high."""

    name: str
    piece: Piece
    at: Footprint
    z: float = 0.0


class Opening(NamedTuple):
    """A door or window of a wall: from `start` to `end` along it, from `low` to `high`."""

    name: str
    start: float
    end: float
    low: float
    high: float


class Plan(NamedTuple):
    """A room before points are drawn: its size [3], an opening or None for each wall, what stands in it."""

    size: tuple[float, float, float]
    openings: tuple[Opening | None, ...]
    placed: list[Placed]


def overlap(a: Footprint, b: Footprint, gap: float = 0.0) -> bool:
    """Whether two rectangles come nearer than about `gap`: no side of either separates them by it."""
    first, second = a.corners(), b.corners()
    for turn in (a.turn, b.turn):
        axes = rotation(turn)
        p, q = first @ axes, second @ axes
        if np.any((p.max(0) + gap <= q.min(0)) | (q.max(0) + gap <= p.min(0))):
            return False
    return True


def plan(rng: np.random.Generator) -> Plan:
    """Chooses size, door, windows and furniture; a piece that finds no free place is left out."""
    size = (between(rng, 3, 5), between(rng, 3, 5), between(rng, 2.4, 2.8))
    openings, keep_free = _openings(rng, size)
    placed: list[Placed] = []

    def place(name: str, piece: Piece, candidates: Iterator[Footprint]) -> Footprint | None:
        for at in candidates:
            inside = np.all((at.corners() >= 0.02) & (at.corners() <= np.array(size[:2]) - 0.02))
            if inside and not any(overlap(at, other, 0.04) for other in [*keep_free, *(p.at for p in placed)]):
                placed.append(Placed(name, piece, at))
                return at
        return None

    wall, anywhere = partial(_against_walls, rng, size, openings), partial(_anywhere, rng, size)
    if rng.random() < 0.8:
        place("sofa", sofa := furniture.sofa(rng), wall(sofa))
    for chance in (0.9, 0.4):
        if rng.random() < chance:
            place("shelf", shelf := furniture.shelf(rng), wall(shelf))
    for chance, where in ((1.0, anywhere), (0.5, wall)):
        if rng.random() < chance:
            at = place("table", table := furniture.table(rng), where(table))
            if at is None:
                continue
            _put_on(rng, table, at, placed)
            for side in range(4) if where is anywhere else (0,):
                if rng.random() < 0.75:
                    place("chair", chair := furniture.chair(rng), _at_side(rng, at, side, chair))
    if rng.random() < 0.5:
        place("chair", chair := furniture.chair(rng), anywhere(chair))
    for _ in range(1 + rng.integers(3)):
        thing = furniture.CLUTTER[rng.integers(len(furniture.CLUTTER))](rng)
        place("clutter", thing, anywhere(thing))
    return Plan(size, openings, placed)


def _openings(rng: np.random.Generator, size: Sequence[float]) -> tuple[tuple[Opening | None, ...], list[Footprint]]:
    """A door in one wall, windows in one or two others; and the floor before the door."""
    first, windows = rng.integers(4), 1 + rng.integers(2)
    openings: list[Opening | None] = [None] * 4
    keep_free = []
    for i in range(1 + windows):
        k = int(first + (0, 2, 1 + 2 * rng.integers(2))[i]) % 4
        length = size[k % 2]
        width = between(rng, 0.8, 1.0) if i == 0 else between(rng, 0.8, min(1.8, length - 0.8))
        start = between(rng, 0.2, length - width - 0.2)
        low, high = (0.0, between(rng, 2.0, 2.1)) if i == 0 else (between(rng, 0.8, 1.0), between(rng, 1.9, 2.2))
        openings[k] = Opening("door" if i == 0 else "window", start, start + width, low, high)
        if i == 0:
            corner, along, out = wall_frame(k, size)
            x, y = corner + along * (start + width / 2) - out * 0.4
            keep_free.append(Footprint(float(x), float(y), k * np.pi / 2, width, 0.8))
    return tuple(openings), keep_free


def wall_frame(k: int, size: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, direction and outward normal of wall k, each [2]; a piece turned by k right angles backs onto it."""
    corner = np.array([(0, size[1]), (0, 0), (0, 0), (size[0], 0)][k], np.float64)
    return corner, np.array([(1.0, 0.0), (0.0, 1.0)][k % 2]), np.array([(0.0, 1), (-1, 0), (0, -1), (1, 0)][k])


def _against_walls(
    rng: np.random.Generator, size: Sequence[float], openings: Sequence[Opening | None], piece: Piece
) -> Iterator[Footprint]:
    for _ in range(_TRIES):
        k = int(rng.integers(4))
        corner, along, out = wall_frame(k, size)
        at = between(rng, piece.width / 2 + 0.06, size[k % 2] - piece.width / 2 - 0.06)
        gap, turn = between(rng, 0.04, 0.1), rng.normal(0, 0.015)
        opening = openings[k]
        if (
            opening
            and piece.height > opening.low
            and abs(at - (opening.start + opening.end) / 2) < (piece.width + opening.end - opening.start) / 2
        ):
            continue
        x, y = corner + along * at - out * (piece.depth / 2 + gap)
        yield Footprint(float(x), float(y), k * np.pi / 2 + turn, piece.width, piece.depth)


def _anywhere(rng: np.random.Generator, size: Sequence[float], piece: Piece) -> Iterator[Footprint]:
    for _ in range(_TRIES):
        turn = 2 * np.pi * rng.random() if rng.random() < 0.5 else np.pi / 2 * rng.integers(4)
        x, y = (between(rng, 0.2, length - 0.2) for length in size[:2])
        yield Footprint(x, y, turn, piece.width, piece.depth)


def _at_side(rng: np.random.Generator, table: Footprint, side: int, piece: Piece) -> Iterator[Footprint]:
    """Before side 0 (front), 1 (right), 2 (back) or 3 (left) of a table, facing it."""
    reach, span = (table.depth, table.width) if side % 2 == 0 else (table.width, table.depth)
    for _ in range(4):
        turn = table.turn + side * np.pi / 2 + np.pi  # its front, -y, towards the table
        distance = reach / 2 + piece.depth / 2 + between(rng, 0.05, 0.2)
        local = np.array([between(rng, -0.25, 0.25) * span, -distance])
        x, y = rotation(table.turn + side * np.pi / 2) @ local + (table.x, table.y)
        yield Footprint(float(x), float(y), turn + rng.normal(0, 0.1), piece.width, piece.depth)


def _put_on(rng: np.random.Generator, table: Piece, at: Footprint, placed: list[Placed]) -> None:
    """Up to two things on a table, one on each half."""
    assert table.top is not None
    for half in (-1, 1):
        if rng.random() < 0.6:
            thing = furniture.tabletop(rng)
            local = np.array([half * at.width / 4, between(rng, -0.15, 0.15) * at.depth])
            x, y = rotation(at.turn) @ local + (at.x, at.y)
            spot = Footprint(float(x), float(y), at.turn + rng.normal(0, 0.2), thing.width, thing.depth)
            placed.append(Placed("clutter", thing, spot, table.top))


def rotation(turn: float) -> np.ndarray:
    """The matrix [2, 2] that turns columns counter-clockwise."""
    c, s = np.cos(turn), np.sin(turn)
    return np.array([[c, -s], [s, c]])
