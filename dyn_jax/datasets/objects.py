"""Procedural objects with labels: a stand-in for ModelNet40 that needs no file."""

from __future__ import annotations

import numpy as np

from dyn_jax import _validate
from dyn_jax.datasets.objects_shapes import SHAPES, sample
from dyn_jax.datasets.points import Objects, into_unit_sphere, streams

OBJECT_CLASSES = tuple(SHAPES)
OBJECTS_PER_SPLIT = {"train": 800, "test": 200}
NOISE = 0.01
"""Standard deviation of a point along each axis, the object's radius being about 1."""

_STREAM = 0x0B7EC7  # keeps these streams apart from other users of small seeds
_SPARE = 1.5  # how many times the points are drawn, so that patches can be left out


def objects(split: str = "train", count: int | None = None, *, seed: int = 0, points: int = 1024) -> Objects:
    """Labelled objects of ten classes, made from a seed; the two splits share no object.

    Each is a shape of random proportions, scaled by 0.8 to 1.25 along each axis, turned about the vertical, drawn
    uniformly on its surface, with up to three patches missing (at most a third of the surface), moved by normal
    noise of 0.01, and brought into the unit sphere: mean at the origin, farthest point at distance 1.

    Args:
      split, seed, raises: as for `rooms`.
      count: how many objects; default 800 for training, 200 for testing. Object i has class i mod 10, and does not
        depend on the count.
      points: how many points each object has.

    Returns:
      `Objects`: xyz [object, points, 3] with z up, labels [object] in 0..9 (`OBJECT_CLASSES`).
    """
    rngs = streams(split, count, seed, OBJECTS_PER_SPLIT, _STREAM)
    points = _validate.positive_int("points", points, minimum=2)
    labels = np.arange(len(rngs), dtype=np.int32) % len(OBJECT_CLASSES)
    xyz = np.empty((len(rngs), points, 3), np.float32)
    for i, (rng, label) in enumerate(zip(rngs, labels)):
        xyz[i] = _make(rng, OBJECT_CLASSES[label], points)
    return Objects(xyz, labels, "procedural objects")


def _make(rng: np.random.Generator, name: str, points: int) -> np.ndarray:
    xyz = sample(rng, SHAPES[name](rng), int(np.ceil(_SPARE * points)))
    xyz = into_unit_sphere(xyz * (0.8 + 0.45 * rng.random(3)))
    xyz = _leave_out(rng, xyz, points)
    angle = 2 * np.pi * rng.random()
    c, s = np.cos(angle), np.sin(angle)
    xyz = xyz @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return into_unit_sphere(xyz + rng.normal(0, NOISE, xyz.shape))


def _leave_out(rng: np.random.Generator, xyz: np.ndarray, points: int) -> np.ndarray:
    """Takes away up to three patches, each the points nearest to one of them; returns the first `points` left."""
    share = rng.random(3) / 9  # of what is there; three of them take at most a third
    for i in range(rng.integers(4)):
        at = xyz[rng.integers(len(xyz))]
        order = np.argsort(np.sum((xyz - at) ** 2, axis=1), kind="stable")
        gone = min(int(share[i] * len(xyz)), len(xyz) - points)
        xyz = np.delete(xyz, order[:gone], axis=0)
    return xyz[:points]
