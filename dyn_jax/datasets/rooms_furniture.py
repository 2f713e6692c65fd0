"""What the procedural rooms are furnished with: pieces made of flat, coloured patches. NumPy on the host.

A piece stands on the floor at the origin, its front towards -y; x is its width, y its depth. All lengths in metres.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PALETTES = {
    "wall": ((0.88, 0.86, 0.82), (0.80, 0.80, 0.80), (0.85, 0.80, 0.70), (0.74, 0.80, 0.84)),
    "ceiling": ((0.90, 0.90, 0.89), (0.84, 0.83, 0.80)),
    "floor": ((0.55, 0.40, 0.26), (0.45, 0.44, 0.43), (0.66, 0.55, 0.42), (0.38, 0.33, 0.32)),
    "wood": ((0.58, 0.42, 0.27), (0.42, 0.29, 0.19), (0.72, 0.60, 0.44), (0.83, 0.82, 0.79), (0.25, 0.22, 0.21)),
    "door": ((0.86, 0.84, 0.80), (0.60, 0.44, 0.29), (0.78, 0.78, 0.78)),
    "window": ((0.78, 0.86, 0.92), (0.62, 0.70, 0.78), (0.88, 0.90, 0.92)),
    "frame": ((0.88, 0.88, 0.87), (0.50, 0.38, 0.26)),
    "fabric": ((0.40, 0.40, 0.42), (0.48, 0.33, 0.23), (0.25, 0.31, 0.45), (0.33, 0.42, 0.30), (0.55, 0.22, 0.20)),
    "metal": ((0.30, 0.30, 0.31), (0.60, 0.60, 0.61)),
    "thing": ((0.70, 0.55, 0.38), (0.15, 0.15, 0.17), (0.75, 0.20, 0.18), (0.20, 0.42, 0.68), (0.85, 0.84, 0.80)),
}
"""Usual colours, RGB in [0, 1]; `colour` varies them."""

FACES = {"-x": 0, "+x": 1, "-y": 2, "+y": 3, "-z": 4, "+z": 5}


class Part(NamedTuple):
    """Patches of one colour.

    Attributes:
      patches: [n, 3, 3]: a corner and the two edges of a parallelogram, ``corner + a edge1 + b edge2``, a, b in [0, 1].
      colour: [3] RGB.
    """

    patches: np.ndarray
    colour: np.ndarray


class Piece(NamedTuple):
    """One piece of furniture.

    Attributes:
      parts: what it is made of.
      width, depth: of its footprint, centred at the origin.
      height: of its highest patch.
      top: height of a surface that things can be put on, or None.
    """

    parts: list[Part]
    width: float
    depth: float
    height: float
    top: float | None = None


def colour(rng: np.random.Generator, palette: str) -> np.ndarray:
    """A colour of the palette [3], brighter or darker by up to a tenth, each channel off by about 0.02."""
    base = np.array(PALETTES[palette][rng.integers(len(PALETTES[palette]))])
    return np.clip(base * between(rng, 0.9, 1.1) + rng.normal(0, 0.02, 3), 0, 1)


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number in [low, high)."""
    return low + (high - low) * rng.random()


def box(low: tuple, high: tuple, without: tuple[str, ...] = ()) -> np.ndarray:
    """The faces of an axis-parallel box as patches [6 - len(without), 3, 3]; `without` names hidden ones ("-z")."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    ex, ey, ez = (x1 - x0, 0, 0), (0, y1 - y0, 0), (0, 0, z1 - z0)
    faces = [(low, ey, ez), ((x1, y0, z0), ey, ez), (low, ex, ez), ((x0, y1, z0), ex, ez)]
    faces += [(low, ex, ey), ((x0, y0, z1), ex, ey)]
    return np.delete(np.array(faces, np.float64), [FACES[name] for name in without], axis=0)


def block(
    width: float, depth: float, low: float, high: float, x: float = 0, y: float = 0, without: tuple[str, ...] = ()
) -> np.ndarray:
    """The `box` about (x, y), from one height to another."""
    return box((x - width / 2, y - depth / 2, low), (x + width / 2, y + depth / 2, high), without)


def legs(x: float, y: float, height: float, thick: float, without: tuple[str, ...] = ()) -> np.ndarray:
    """Four posts on the floor, at (+-x, +-y)."""
    corners = itertools.product((-x, x), (-y, y))
    return np.concatenate([block(thick, thick, 0, height, *corner, without) for corner in corners])


def prism(radius: float, z0: float, z1: float, sides: int = 8, top_radius: float | None = None) -> np.ndarray:
    """The sides of an upright prism about the z axis as patches; with `top_radius` the sides lean inwards."""
    angle = 2 * np.pi * np.arange(sides + 1) / sides
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    bottom = np.concatenate([radius * ring, np.full((sides + 1, 1), z0)], 1)
    top = np.concatenate([(radius if top_radius is None else top_radius) * ring, np.full((sides + 1, 1), z1)], 1)
    return np.stack([bottom[:-1], bottom[1:] - bottom[:-1], top[:-1] - bottom[:-1]], 1)


def _legs(width: float, depth: float, height: float, thick: float) -> np.ndarray:
    return legs(width / 2 - thick, depth / 2 - thick, height, thick, ("-z", "+z"))


def table(rng: np.random.Generator) -> Piece:
    """A top on four legs, or on two side panels."""
    width, depth, height = between(rng, 0.9, 1.6), between(rng, 0.6, 0.9), between(rng, 0.68, 0.78)
    thick, wood = between(rng, 0.03, 0.06), colour(rng, "wood")
    top = block(width, depth, height - thick, height)
    if rng.random() < 0.6:
        legs = Part(_legs(width, depth, height - thick, between(rng, 0.05, 0.09)), colour(rng, "metal"))
        if rng.random() < 0.6:
            legs = legs._replace(colour=wood)
    else:
        x, y, z = width / 2 - 0.05, depth / 2 - 0.04, height - thick
        panels = [box((s * x - 0.02, -y, 0), (s * x + 0.02, y, z), ("-z", "+z")) for s in (-1, 1)]
        legs = Part(np.concatenate(panels), wood)
    return Piece([Part(top, wood), legs], width, depth, height, height)


def chair(rng: np.random.Generator) -> Piece:
    """A seat with a back, on four legs or on a column."""
    width, depth = between(rng, 0.42, 0.52), between(rng, 0.42, 0.52)
    seat, height, thick = between(rng, 0.40, 0.48), between(rng, 0.80, 1.0), between(rng, 0.04, 0.08)
    cover, frame = colour(rng, "fabric" if rng.random() < 0.5 else "wood"), colour(rng, "metal")
    if rng.random() < 0.5:
        frame = colour(rng, "wood")
    parts = [Part(block(width, depth, seat - thick, seat), cover)]
    gap = between(rng, 0.0, 0.15)
    parts.append(Part(box((-width / 2, depth / 2 - 0.05, seat + gap), (width / 2, depth / 2, height)), cover))
    if rng.random() < 0.6:
        parts.append(Part(_legs(width, depth, seat - thick, 0.045), frame))
    else:
        foot = 0.9 * min(width, depth) / 2
        cross = [box((-foot, -0.03, 0.02), (foot, 0.03, 0.08)), box((-0.03, -foot, 0.02), (0.03, foot, 0.08))]
        parts.append(Part(np.concatenate([prism(0.035, 0.08, seat - thick, 6), *cross]), frame))
    if gap > 0.02:
        posts = [
            box((s * 0.15 - 0.02, depth / 2 - 0.04, seat), (s * 0.15 + 0.02, depth / 2, seat + gap)) for s in (-1, 1)
        ]
        parts.append(Part(np.concatenate(posts), frame))
    return Piece(parts, width, depth, height)


def sofa(rng: np.random.Generator) -> Piece:
    """A seat block, a back and two arms."""
    width, depth = between(rng, 1.4, 2.0), between(rng, 0.75, 0.95)
    seat, back, arm = between(rng, 0.38, 0.46), between(rng, 0.75, 0.9), between(rng, 0.55, 0.65)
    side, rear, cover = between(rng, 0.12, 0.2), between(rng, 0.18, 0.25), colour(rng, "fabric")
    x, y = width / 2, depth / 2
    blocks = [
        box((-x + side, -y, 0.05), (x - side, y - rear, seat), ("-z", "+y", "-x", "+x")),
        box((-x, y - rear, 0.05), (x, y, back), ("-z",)),
        box((-x, -y, 0.05), (-x + side, y - rear, arm), ("-z", "+y")),
        box((x - side, -y, 0.05), (x, y - rear, arm), ("-z", "+y")),
    ]
    parts = [Part(np.concatenate(blocks), cover)]
    if rng.random() < 0.4:  # a cushion
        at = between(rng, -0.3, 0.3)
        cushion = box((at - 0.2, y - rear - 0.14, seat), (at + 0.2, y - rear, seat + 0.3), ("-z", "+y"))
        parts.append(Part(cushion, colour(rng, "fabric")))
    return Piece(parts, width, depth, back)


def shelf(rng: np.random.Generator) -> Piece:
    """A bookcase: two sides, a back, boards, and books on most of them."""
    width, depth, height = between(rng, 0.6, 1.2), between(rng, 0.25, 0.36), between(rng, 1.2, 2.0)
    wood, x, y = colour(rng, "wood"), width / 2, depth / 2
    boards = int(height / between(rng, 0.32, 0.42)) + 1
    levels = np.linspace(0.06, height - 0.02, boards)
    side = x - 0.015
    frame = [box((s * side - 0.015, -y, 0), (s * side + 0.015, y, height), ("-z",)) for s in (-1, 1)]
    frame += [box((-x, y - 0.01, 0), (x, y, height), ("-z", "+z", "-x", "+x", "+y"))]
    frame += [box((-x, -y, z - 0.02), (x, y - 0.01, z), ("+y", "-x", "+x")) for z in levels]
    parts = [Part(np.concatenate(frame), wood)]
    for low, high in zip(levels[:-1], levels[1:]):
        if rng.random() < 0.75:
            end = between(rng, -0.3, 1.0) * (x - 0.04)
            top = low + between(rng, 0.6, 0.85) * (high - low)
            books = box((-x + 0.03, -y + 0.06, low), (end, y - 0.03, top), ("+y", "-z"))
            parts.append(Part(books, colour(rng, "thing")))
    return Piece(parts, width, depth, height)


def carton(rng: np.random.Generator) -> Piece:
    """A box on the floor."""
    width, depth, height = between(rng, 0.25, 0.5), between(rng, 0.25, 0.45), between(rng, 0.2, 0.45)
    return _closed(width, depth, height, colour(rng, "thing"))


def _closed(width: float, depth: float, height: float, tint: np.ndarray) -> Piece:
    return Piece([Part(block(width, depth, 0, height, without=("-z",)), tint)], width, depth, height)


def bin(rng: np.random.Generator) -> Piece:
    """A waste bin, open above."""
    radius, height = between(rng, 0.12, 0.18), between(rng, 0.28, 0.42)
    return Piece([Part(prism(radius, 0, height), colour(rng, "thing"))], 2 * radius, 2 * radius, height)


def lamp(rng: np.random.Generator) -> Piece:
    """A floor lamp: a foot, a pole and a shade."""
    height, foot = between(rng, 1.3, 1.7), between(rng, 0.12, 0.16)
    stand = np.concatenate([prism(0.025, 0.03, height - 0.25, 6), box((-foot, -foot, 0), (foot, foot, 0.03), ("-z",))])
    shade = prism(0.17, height - 0.3, height, 8, between(rng, 0.08, 0.15))
    return Piece([Part(stand, colour(rng, "metal")), Part(shade, colour(rng, "ceiling"))], 0.34, 0.34, height)


def tabletop(rng: np.random.Generator) -> Piece:
    """A thing for a table: a screen on its foot, a pile of books or a box, a pot."""
    kind, tint = rng.integers(3), colour(rng, "thing")
    if kind == 0:
        width, height = between(rng, 0.4, 0.55), between(rng, 0.4, 0.5)
        screen = [block(width, 0.04, 0.1, height), block(0.2, 0.16, 0, 0.1, without=("-z",))]
        return Piece([Part(np.concatenate(screen), tint)], width, 0.16, height)
    if kind == 1:
        width, depth, height = between(rng, 0.15, 0.32), between(rng, 0.15, 0.25), between(rng, 0.05, 0.25)
        return _closed(width, depth, height, tint)
    radius, height = between(rng, 0.05, 0.1), between(rng, 0.1, 0.25)
    return Piece([Part(prism(radius, 0, height), tint)], 2 * radius, 2 * radius, height)


CLUTTER: tuple[Callable[[np.random.Generator], Piece], ...] = (carton, bin, lamp)
"""What stands about on the floor."""
