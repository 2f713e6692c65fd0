"""Brute-force twins: the same sums over dictionaries of sites, one pair at a time, in float64."""

from __future__ import annotations

import itertools

import numpy as np


def cube(size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Offsets of a cube, x fastest."""
    axes = [range(-(s // 2), s // 2 + 1) if s % 2 else range(s) for s in size]
    return [(x, y, z) for z in axes[2] for y in axes[1] for x in axes[0]]


def dense(size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Offsets of a cube, z fastest."""
    return sorted(cube(size))


def reached(coordinates, factor, size, bounds) -> list[tuple[int, ...]]:
    """Sorted outputs in [0, bounds), multiples of `factor`, with a site of stride 1 under their centred kernel."""
    given, found = table(coordinates), set()
    for b in {site[0] for site in given}:
        for out in itertools.product(*(range(0, d, f) for d, f in zip(bounds, three(factor)))):
            if any((b, *(o + k for o, k in zip(out, step))) in given for step in cube(three(size))):
                found.add((b, *out))
    return sorted(found)


def cross(size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Offsets of a cross: the centre, then +1 ... +r, -r ... -1 on x, y and z."""
    found = [(0, 0, 0)]
    for axis in range(3):
        for step in [*range(1, size[axis] // 2 + 1), *range(-(size[axis] // 2), 0)]:
            found.append(tuple(step * (axis == a) for a in range(3)))
    return found


def three(size) -> tuple[int, int, int]:
    return (size,) * 3 if isinstance(size, int) else tuple(size)


def table(coordinates) -> dict[tuple[int, ...], int]:
    """Site -> row."""
    return {tuple(int(v) for v in site): row for row, site in enumerate(np.asarray(coordinates))}


def coarse(coordinates, stride) -> list[tuple[int, ...]]:
    """Sorted distinct sites ``floor(c / s) * s``."""
    steps = (1, *three(stride))
    return sorted({tuple(int(c) // s * s for c, s in zip(site, steps)) for site in np.asarray(coordinates)})


def pairs(source, target, steps) -> list[tuple[int, int, int]]:
    """(row in, row out, slice) with ``source[in] = target[out] + steps[slice]``."""
    where, found = table(source), []
    for k, step in enumerate(steps):
        for row, site in enumerate(np.asarray(target)):
            key = (int(site[0]), *(int(c) + int(s) for c, s in zip(site[1:], step)))
            if key in where:
                found.append((where[key], row, k))
    return found


def scaled(steps, *factors) -> list[tuple[int, ...]]:
    return [tuple(int(np.prod([s, *(three(f)[a] for f in factors)])) for a, s in enumerate(step)) for step in steps]


def convolve(features, kernel, listed, size_out) -> np.ndarray:
    features, kernel = np.asarray(features, np.float64), np.asarray(kernel, np.float64)
    out = np.zeros((size_out, kernel.shape[2]))
    for i, j, k in listed:
        out[j] += features[i] @ kernel[k]
    return out


def gradients(features, kernel, listed, cotangent) -> tuple[np.ndarray, np.ndarray]:
    """Of ``sum(out * cotangent)`` in features and kernel."""
    features, kernel = np.asarray(features, np.float64), np.asarray(kernel, np.float64)
    cotangent = np.asarray(cotangent, np.float64)
    to_features, to_kernel = np.zeros_like(features), np.zeros_like(kernel)
    for i, j, k in listed:
        to_features[i] += kernel[k] @ cotangent[j]
        to_kernel[k] += np.outer(features[i], cotangent[j])
    return to_features, to_kernel


def random_sites(seed: int, count: int, low: int = -6, high: int = 7, batches: int = 3) -> np.ndarray:
    """[count, 4] distinct sites in random order, with negative coordinates and several batch items."""
    rng = np.random.default_rng(seed)
    every = np.array(list(itertools.product(range(batches), *(range(low, high),) * 3)), np.int32)
    return every[rng.choice(len(every), count, replace=False)]
