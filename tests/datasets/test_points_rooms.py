"""Procedural rooms: by hand, against brute force over all patches, and what the description promises."""

from __future__ import annotations

import importlib
import zlib

import numpy as np
import pytest

from dyn_jax.datasets.points import Scene, check_scene
from dyn_jax.datasets.rooms import NOISE, ROOM_CLASSES, room, rooms
from dyn_jax.datasets.rooms_furniture import CLUTTER, box, chair, prism, shelf, sofa, table, tabletop
from dyn_jax.datasets.rooms_plan import Footprint, overlap, plan, wall_frame

module = importlib.import_module("dyn_jax.datasets.rooms")

POINTS = 4096
LABEL = {name: label for label, name in enumerate(ROOM_CLASSES)}


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def train() -> list[Scene]:
    return rooms("train", points=POINTS)


@pytest.fixture(scope="module")
def test() -> list[Scene]:
    return rooms("test", points=POINTS)


def areas(patches: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.cross(patches[:, 1], patches[:, 2]), axis=1)


def test_box_by_hand():
    """A box of 2 x 3 x 4 has the areas 12, 12, 8, 8, 6, 6, and its corners are those of the patches."""
    patches = box((1, 1, 1), (3, 4, 5))
    assert areas(patches).tolist() == [12, 12, 8, 8, 6, 6]
    corners = np.concatenate([patches[:, 0] + a * patches[:, 1] + b * patches[:, 2] for a in (0, 1) for b in (0, 1)])
    assert {tuple(c) for c in corners.tolist()} == {(x, y, z) for x in (1, 3) for y in (1, 4) for z in (1, 5)}
    assert areas(box((1, 1, 1), (3, 4, 5), ("-z", "-x"))).tolist() == [12, 8, 8, 6]
    assert areas(prism(1.0, 0.0, 2.0, sides=4)).tolist() == pytest.approx([2 * 2**0.5] * 4)


def test_overlap_by_hand():
    """A unit square and one turned by 45 degrees, whose corner reaches 0.707 from its centre."""
    square = Footprint(0, 0, 0, 1, 1)
    assert overlap(square, Footprint(0.99, 0, 0, 1, 1)) and not overlap(square, Footprint(1.01, 0, 0, 1, 1))
    assert overlap(square, Footprint(1.2, 0, np.pi / 4, 1, 1)) and not overlap(
        square, Footprint(1.21, 0, np.pi / 4, 1, 1)
    )
    assert not overlap(square, Footprint(0.86, 0.86, np.pi / 4, 1, 1))  # their boxes meet, they do not
    assert overlap(square, Footprint(0.84, 0.84, np.pi / 4, 1, 1))
    assert overlap(square, Footprint(1.01, 0, 0, 1, 1), gap=0.04)


def inside(points: np.ndarray, at: Footprint) -> np.ndarray:
    c, s = np.cos(at.turn), np.sin(at.turn)
    x, y = points[:, 0] - at.x, points[:, 1] - at.y
    return (np.abs(c * x + s * y) <= at.width / 2) & (np.abs(c * y - s * x) <= at.depth / 2)


def test_overlap_against_a_grid():
    rng, grid = generator(1), np.stack(np.meshgrid(*[np.linspace(-2, 3, 251)] * 2), -1).reshape(-1, 2)
    seen = []
    for _ in range(60):
        a = Footprint(0, 0, 6.3 * rng.random(), 0.5 + rng.random(), 0.5 + rng.random())
        b = Footprint(1.4 * rng.random(), 1.4 * rng.random(), 6.3 * rng.random(), 0.5 + rng.random(), 0.5)
        met = bool(np.any(inside(grid, a) & inside(grid, b)))
        assert not met or overlap(a, b)
        assert met or not overlap(a._replace(width=a.width - 0.1, depth=a.depth - 0.1), b)  # met by less than the grid
        seen.append(met)
    assert 15 < sum(seen) < 45


@pytest.mark.parametrize("seed", range(8))
def test_plan_has_room_for_its_furniture(seed):
    """What stands on the floor is inside the walls and meets nothing else, by a grid of points."""
    planned = plan(generator(seed))
    floor = [p for p in planned.placed if p.z == 0]
    assert {p.name for p in floor} <= {"sofa", "shelf", "table", "chair", "clutter"} and len(floor) >= 3
    grid = np.stack(np.meshgrid(*(np.arange(0, length, 0.02) for length in planned.size[:2])), -1).reshape(-1, 2)
    taken = np.sum([inside(grid, p.at) for p in floor], axis=0)
    assert taken.max() == 1 and (taken == 1).mean() > 0.03
    for p in floor:
        assert np.all(p.at.corners() > 0) and np.all(p.at.corners() < planned.size[:2])
    for thing in (p for p in planned.placed if p.z > 0):
        under = [p for p in floor if p.name == "table" and inside(np.array([thing.at[:2]]), p.at)[0]]
        assert len(under) == 1 and thing.z == under[0].piece.top
    doors = [(k, o) for k, o in enumerate(planned.openings) if o and o.name == "door"]
    assert len(doors) == 1
    k, door = doors[0]
    corner, along, out = wall_frame(k, planned.size)
    before = corner + along * (door.start + door.end) / 2 - out * np.linspace(0.01, 0.8, 40)[:, None]
    assert not np.any([inside(before, p.at) for p in floor])


@pytest.mark.parametrize("make", [table, chair, sofa, shelf, tabletop, *CLUTTER])
def test_pieces_keep_to_their_footprint(make):
    for seed in range(10):
        piece = make(generator(seed))
        patches = np.concatenate([part.patches for part in piece.parts])
        corners = np.concatenate(
            [patches[:, 0] + a * patches[:, 1] + b * patches[:, 2] for a in (0, 1) for b in (0, 1)]
        )
        high = np.array([piece.width / 2, piece.depth / 2, piece.height]) + 1e-9
        assert np.all(corners <= high) and np.all(corners >= (-high[0], -high[1], -1e-9))
        assert corners[:, 2].max() == pytest.approx(piece.height) and corners[:, 2].min() < 0.06
        assert areas(patches).min() > 1e-5


def test_points_against_all_patches():
    """Every point is near a patch of its own class, and every patch has its share of the points."""
    scene = room(3, 2000)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((module._STREAM, 3, 3, 1))))
    surfaces = module._surfaces(rng, plan(rng))

    def distance(xyz: np.ndarray) -> np.ndarray:
        """From each point to the nearest patch of its label: edges are at right angles, so clamping projects."""
        best = np.full(len(xyz), np.inf)
        for (origin, u, v), label in zip(surfaces.patches, surfaces.label):
            rows = np.flatnonzero(scene.labels == label)
            ab = np.linalg.lstsq(np.stack([u, v], 1), (xyz[rows] - origin).T, rcond=None)[0].clip(0, 1)
            best[rows] = np.minimum(best[rows], np.linalg.norm(xyz[rows] - origin - ab.T @ np.stack([u, v]), axis=1))
        return best

    assert distance(scene.xyz).max() < 5.5 * NOISE
    assert distance(scene.xyz).mean() > 0.3 * NOISE
    assert distance(scene.xyz + np.float32(0.2)).mean() > 5 * NOISE  # control
    weight = areas(surfaces.patches) * surfaces.density
    share = [weight[surfaces.label == label].sum() / weight.sum() * 2000 for label in range(10)]
    np.testing.assert_allclose(np.bincount(scene.labels, minlength=10), share, atol=0.02 * 2000)


def test_choice_by_hand():
    """Weights 1, 0, 3 of four points: one, none, three; and a share of 2.5 gives two or three."""
    assert module._choose(generator(0), np.array([1.0, 0.0, 3.0]), 4).tolist() == [0, 2, 2, 2]
    counts = {np.bincount(module._choose(generator(s), np.ones(2), 5))[0] for s in range(20)}
    assert counts == {2, 3}


@pytest.mark.parametrize("split", ["train", "test"])
def test_shape_range_and_classes(split, request):
    scenes = request.getfixturevalue(split)
    assert len(scenes) == {"train": 32, "test": 16}[split]
    for i, scene in enumerate(scenes):
        check_scene(scene, scene.name, len(ROOM_CLASSES))
        assert scene.xyz.shape == (POINTS, 3) and scene.name == f"{split}_{i:04d}"
        np.testing.assert_array_equal((scene.colours * 255).round().astype(np.float32) / np.float32(255), scene.colours)
        low, high = scene.xyz.min(0), scene.xyz.max(0)
        assert np.all(low > -0.1) and np.all(high[:2] < 5.1) and np.all(high[:2] > 2.9) and 2.35 < high[2] < 2.9
    occurs = np.array([np.bincount(scene.labels, minlength=10) > 20 for scene in scenes])
    assert occurs.mean(0).min() > 0.4, dict(zip(ROOM_CLASSES, occurs.mean(0)))
    assert occurs[:, [LABEL[name] for name in ("wall", "floor", "ceiling", "door", "window")]].all()


def test_heights(train):
    for scene in train:
        z = [scene.xyz[scene.labels == label, 2] for label in range(10)]
        floor, ceiling = z[LABEL["floor"]], z[LABEL["ceiling"]]
        assert floor.max() < 0.06 < 2.3 < ceiling.min()
        for name in ("door", "window", "table", "chair", "sofa", "shelf", "clutter"):
            if len(z[LABEL[name]]):
                assert z[LABEL[name]].min() > -0.06 and z[LABEL[name]].max() < ceiling.min()
                assert z[LABEL[name]].mean() > floor.mean() + 0.1


def test_deterministic_and_disjoint(train, test):
    again = rooms("train", 3, points=POINTS)
    for a, b in zip(train, again):
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a[:3], b[:3])) and a.name == b.name
    others = [*test, *rooms("train", 4, seed=1, points=POINTS), *(room(seed, POINTS) for seed in range(4))]
    places = [scene.xyz[:50].tobytes() for scene in [*train, *others]]
    assert len(set(places)) == len(places)


def test_room_is_fixed():
    """Weights are trained on these rooms: a change of them would show test rooms to the networks."""
    scene = rooms("test", 1, points=512)[0]
    np.testing.assert_allclose(scene.xyz[0], [2.860282, 3.114466, 0.659475], atol=1e-5)
    assert zlib.crc32(scene.labels.astype("<i4").tobytes()) == 0x5F5BFAB


def test_colour_alone_does_not_decide(train, test):
    """Nearest neighbours in colour do better than the largest class, and stay far from knowing."""
    from sklearn.neighbors import KNeighborsClassifier

    def sample(scenes):
        return [np.concatenate([getattr(s, field)[:400] for s in scenes]) for field in ("colours", "labels")]

    colours, labels = sample(test)
    score = KNeighborsClassifier(25).fit(*sample(train)).score(colours, labels)
    assert np.bincount(labels).max() / len(labels) + 0.02 < score < 0.55
    assert np.ptp([s.colours[s.labels == LABEL["table"]].mean() for s in train]) > 0.15


def test_refusals():
    with pytest.raises(ValueError, match="split: got 'trian'.*did you mean 'train'"):
        rooms("trian")
    for call in (lambda: rooms(count=0), lambda: rooms(points=0), lambda: room(0, 0), lambda: room(-1)):
        with pytest.raises(ValueError, match="expected at least"):
            call()
    with pytest.raises(TypeError, match="seed: got 0.5"):
        rooms(seed=0.5)
