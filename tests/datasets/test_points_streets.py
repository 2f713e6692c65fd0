"""Simulated streets: rays end at the first thing they meet, scans repeat, and no ray passes through anything."""

from __future__ import annotations

import numpy as np
import pytest

from dyn_jax.datasets import STREET_CLASSES, streets
from dyn_jax.datasets.streets import HEIGHT, RANGE, RINGS, _Things, cast

LABEL = {name: label for label, name in enumerate(STREET_CLASSES)}


def test_rays_by_hand():
    boxes = np.array([[10.0, 0, -HEIGHT, 1, 1, 2, 1, 0]])
    cylinders = np.array([[0.0, 5, -HEIGHT, 0.5, 4]])
    spheres = np.array([[-6.0, 0, 0, 1]])
    things = _Things(boxes, cylinders, spheres, np.array([LABEL["car"], LABEL["pole"], LABEL["vegetation"]]))
    down = np.array([0.0, -0.6, -0.8])
    rays = np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], down, [0, 0, 1], [0, -1, 0]])
    distance, label = cast(rays, things, np.array([1.0, 4.0]), np.array([2.0, 2.0]))
    np.testing.assert_allclose(distance, [9, 4.5, 5, HEIGHT / 0.8, np.inf, np.inf])
    names = [STREET_CLASSES[one] for one in label[:4]]
    assert names == ["car", "pole", "vegetation", "sidewalk"]  # 1.3 m to the right: beyond the road's 1 m
    turned = things._replace(boxes=np.array([[10.0, 0, -HEIGHT, 1, 1, 2, np.cos(0.7), np.sin(0.7)]]))
    nearer = cast(rays[:1], turned, np.ones(2), np.ones(2))[0]
    assert 10 - np.sqrt(2) <= nearer[0] < 9 + 0.45


def test_scans():
    first, second = streets("test", 2)
    assert first.labels is not None and first.ring is not None
    for scan in (first, second):
        count = len(scan.xyz)
        assert 5000 < count < RINGS * 256 and scan.xyz.dtype == np.float32
        assert scan.labels is not None and scan.labels.min() >= 1 and scan.labels.max() < len(STREET_CLASSES)
        assert (0 <= scan.intensity).all() and (scan.intensity < 1).all()
        distance = np.linalg.norm(scan.xyz, axis=1)
        assert distance.max() < RANGE + 0.1
        road = scan.labels == LABEL["road"]
        np.testing.assert_allclose(scan.xyz[road, 2], -HEIGHT, atol=0.1)
    elevation = np.arcsin(first.xyz[:, 2] / np.linalg.norm(first.xyz, axis=1))
    for ring in (0, 10, 31):  # all points of a laser at its angle
        assert np.ptp(elevation[first.ring == ring]) < 1e-5
    assert {LABEL[name] for name in ("road", "building", "car")} <= set(first.labels.tolist())


def test_seeds():
    scan, same, other = streets("train", 1)[0], streets("train", 2)[0], streets("train", 1, seed=1)[0]
    np.testing.assert_array_equal(scan.xyz, same.xyz)
    assert not np.array_equal(scan.xyz[:100], other.xyz[:100])
    assert not np.array_equal(scan.xyz[:100], streets("test", 1)[0].xyz[:100])
    with pytest.raises(ValueError, match="split"):
        streets("val")
    with pytest.raises(ValueError, match="count"):
        streets("test", 0)
