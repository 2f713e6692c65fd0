"""Points that a LiDAR loses or never had: dropping within a budget, spoofing on beams, and clouds that are saved."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import CLASSES
from compiled import quick_jit

from dyn_jax import attacks
from dyn_jax.attacks.domains import domain_of
from dyn_jax.datasets import read_scan, streets, write_scan
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d import Cylinder, any_of, near_cells, partition, point_cloud
from dyn_jax.types import Output, PointCloud

POINTS = 16
WEIGHTS = np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)
KEY = jax.random.key(0)
CYLINDER = Cylinder()


def segmenter(cloud):
    """A score per point, linear in its own coordinates; nothing is said about points that are not valid."""
    return Output(jnp.where(cloud.valid[:, None], cloud.xyz @ WEIGHTS, jnp.nan))


def classifier(cloud):
    """One row a cloud: linear in the mean of the valid points."""
    batch = jnp.zeros(POINTS, int) if cloud.batch is None else cloud.batch
    own = ((batch[None] == jnp.arange(cloud.clouds)[:, None]) & cloud.valid[None]).astype(cloud.xyz.dtype)
    return Output((own @ cloud.xyz / jnp.sum(own, axis=1, keepdims=True)) @ WEIGHTS)


def a_cloud(clouds=1, seed=1):
    rng = np.random.default_rng(seed)
    xyz = jnp.asarray(rng.normal(size=(POINTS, 3)), jnp.float32)
    batch = None if clouds == 1 else jnp.arange(POINTS, dtype=jnp.int32) % clouds
    return PointCloud(xyz, jnp.zeros((POINTS, 1)), jnp.arange(POINTS) < POINTS - 1, batch, clouds)


def dropped_by_hand(cloud, label, points, rounds, power):
    """Zheng's algorithm in a plain loop, for `classifier`."""
    xyz, there = np.asarray(cloud.xyz, np.float64), np.asarray(cloud.valid).copy()
    for round_ in range(rounds):
        z = xyz[there].mean(0) @ WEIGHTS
        p = np.exp(z - z.max())
        p /= p.sum()
        p[label] -= 1
        gradient = WEIGHTS @ p / there.sum()
        radius = np.linalg.norm(xyz, axis=1)
        score = np.where(there, -(xyz @ gradient) * radius**power, -np.inf)
        count = (round_ + 1) * points // rounds - round_ * points // rounds
        there[np.argsort(-score)[:count]] = False
    return there


@pytest.mark.parametrize("points, rounds, power", [(6, 6, 1.0), (5, 2, 0.0), (7, 3, 2.0)])
def test_dropping_against_a_plain_loop(points, rounds, power):
    cloud, label = a_cloud(), 2
    attack = attacks.point_drop(points, rounds, power=power)
    result = jax.jit(lambda cloud: attack(classifier, cloud, jnp.array([label])))(cloud)
    there = dropped_by_hand(cloud, label, points, rounds, power)
    np.testing.assert_array_equal(np.asarray(attacks.remaining(cloud, result.adversarial).valid), there)
    np.testing.assert_array_equal(result.adversarial[there], cloud.xyz[there])
    assert int(result.distance.sum()) == points and result.steps.loss.shape == (1, rounds)
    random = attacks.point_drop(points, rounds, saliency="random")(classifier, cloud, jnp.array([label]), key=KEY)
    assert int(random.distance.sum()) == points
    assert float(result.loss[0]) > float(random.loss[0])  # the control


def test_dropped_points_are_nobodys_error():
    """`segmenter` says NaN where a point is gone: neither loss nor success may see it."""
    cloud = a_cloud()
    labels = jnp.argmax(cloud.xyz @ WEIGHTS, axis=1)
    with jax.debug_nans(False):
        result = attacks.point_drop(5, 5, objective="margin")(segmenter, cloud, labels)
    there = attacks.remaining(cloud, result.adversarial).valid
    assert int(there.sum()) == POINTS - 1 - 5
    np.testing.assert_array_equal(result.counted, there)
    assert not result.success.any() and not result.invalid.any() and np.isfinite(result.steps.loss).all()


def test_budget_is_of_every_cloud_and_the_mask_holds():
    cloud = a_cloud(clouds=2)
    free = jnp.arange(POINTS) >= 4
    attack = attacks.point_drop(3, 2)
    result = attack(classifier, cloud, jnp.array([1, 2]), mask=free)
    gone = np.asarray(cloud.valid & ~attacks.remaining(cloud, result.adversarial).valid)
    assert [gone[number::2].sum() for number in (0, 1)] == [3, 3] and not gone[:4].any()
    domain = domain_of(cloud, attack.threat, free)
    kept = np.asarray(domain.project(jnp.zeros((POINTS, 3))))  # the runner trusts no search
    left = (kept != 0).any(axis=1)
    assert [int((~left)[number:-1:2].sum()) for number in (0, 1)] == [3, 3]
    np.testing.assert_array_equal(kept[left], np.asarray(cloud.xyz)[left])
    alone = attacks.point_drop(3, 2, attack_all=False)(classifier, cloud, jnp.argmin(classifier(cloud).logits, axis=1))
    np.testing.assert_array_equal(alone.adversarial, cloud.xyz)


def test_a_point_at_the_origin_is_no_dropped_one():
    cloud = a_cloud()
    cloud = cloud.replace(xyz=cloud.xyz.at[3].set(0))
    result = attacks.point_drop(POINTS, 4, saliency="random")(classifier, cloud, jnp.array([2]), key=KEY)
    np.testing.assert_array_equal(result.logits_clean, classifier(cloud).logits)
    left = attacks.remaining(cloud, result.adversarial)
    assert np.flatnonzero(left.valid).tolist() == [3] and int(result.distance.sum()) == POINTS - 2
    np.testing.assert_array_equal(result.logits_adversarial, classifier(left).logits)


def test_a_cloud_without_points_is_nobodys_error():
    """Of several: one that has none, and one that loses all."""
    cloud = a_cloud(clouds=2)
    empty = cloud.replace(batch=cloud.batch * 2, clouds=3)
    with jax.debug_nans(False):
        none = attacks.bim(0.1, 0.1, 1)(lambda c: constant(c.clouds), empty, jnp.array([0, 1, 1]))
        lost = attacks.point_drop(8, 2, attack_all=True)(lambda c: constant(2), cloud, jnp.ones(2, int))
    np.testing.assert_array_equal(none.counted, [True, False, True])
    np.testing.assert_array_equal(none.success, [False, False, True])
    assert not lost.counted.any() and not lost.success.any()


def constant(rows):
    """Says class 0 whatever it is given."""
    return Output(jnp.tile(jnp.array([1.0, 0.0]), (rows, 1)))


def test_what_dropping_refuses():
    for arguments, message in (((0, 1), "points: got 0"), ((2, 3), "rounds: got 3, expected at most 2")):
        with pytest.raises(ValueError, match=message):
            attacks.point_drop(*arguments)
    with pytest.raises(ValueError, match="saliency: got 'largest'"):
        attacks.point_drop(2, 2, saliency="largest")
    with pytest.raises(ValueError, match="got images"):
        attacks.point_drop(2, 2)(lambda x: x.reshape(len(x), -1), jnp.full((1, 2, 2, 3), 0.5))
    with pytest.raises(TypeError, match="threat: got Dropped, expected a ball"):
        search = dataclasses.replace(attacks.rays(0.1, 2), threat=attacks.Dropped(2))
        search(classifier, a_cloud(), jnp.array([0]))


def a_scan(count=60, clouds=1):
    rng = np.random.default_rng(3)
    angle, radius = rng.uniform(-np.pi, np.pi, count), rng.uniform(4, 30, count)
    xyz = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.uniform(-1.5, 1, count)], axis=1)
    batch = None if clouds == 1 else jnp.arange(count, dtype=jnp.int32) % clouds
    shine = jnp.asarray(rng.random((count, 1)), jnp.float32)
    return PointCloud(jnp.asarray(xyz, jnp.float32), shine, jnp.arange(count) < count - 2, batch, clouds)


@pytest.mark.parametrize("clouds", [1, 2])
def test_spoofed_points_lie_on_beams(clouds):
    cloud = a_scan(clouds=clouds)
    run = jax.jit(lambda cloud, key: attacks.spoofed(cloud, 7, key, nearest=3.0))
    more, eager = run(cloud, KEY), attacks.spoofed(cloud, 7, KEY, nearest=3.0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), more, eager)
    added, beam = np.asarray(more.added), np.asarray(more.beam)[-7 * clouds :]
    assert added.sum() == 7 * clouds and added[-7 * clouds :].all() and len(set(beam)) == len(beam)
    true, got = np.asarray(cloud.xyz)[beam], np.asarray(more.cloud.xyz)[added]
    far, near = np.linalg.norm(true, axis=1), np.linalg.norm(got, axis=1)
    np.testing.assert_allclose(got / near[:, None], true / far[:, None], atol=1e-6)
    assert (near >= 3.0 - 1e-5).all() and (near <= far).all() and near.std() > 1
    np.testing.assert_array_equal(np.asarray(more.cloud.features)[added], np.asarray(cloud.features)[beam])
    valid = np.asarray(more.cloud.valid)
    assert valid[added].all() and not valid[beam].any()  # one return a beam
    assert valid.sum() == np.asarray(cloud.valid).sum()
    both = attacks.spoofed(cloud, 7, KEY, returns=2)
    assert np.asarray(both.cloud.valid).sum() == np.asarray(cloud.valid).sum() + 7 * clouds
    labels = np.asarray(more.labels(np.arange(60), 0))
    assert (labels[added] == 0).all() and (labels[:60] == np.arange(60)).all()
    if clouds == 2:
        np.testing.assert_array_equal(more.cloud.batch[added], np.asarray(cloud.batch)[beam])
        assert np.bincount(np.asarray(more.cloud.batch)[added]).tolist() == [7, 7]


def test_a_sector_over_the_cut_and_what_spoofing_refuses():
    cloud = a_scan(400)
    more = attacks.spoofed(cloud, 9, KEY, sector=(3.0, 3.6))
    x, y, _ = np.asarray(more.cloud.xyz)[np.asarray(more.added)].T
    assert ((np.arctan2(y, x) - 3.0) % (2 * np.pi) <= 0.6).all()
    with pytest.raises(ValueError, match=r"points: got 9, expected at most \d: beams"):
        attacks.spoofed(cloud, 9, KEY, sector=(3.0, 3.01))
    inside = jax.jit(lambda cloud: attacks.spoofed(cloud, 9, KEY, sector=(3.0, 3.01)).cloud)(cloud)
    assert int(inside.valid.sum()) == int(cloud.valid.sum())  # as many as there are take the places of true ones
    for options, message in (
        ({"sector": (1.0, 0.5)}, "sector: got"),
        ({"returns": 3}, "returns: got 3"),
        ({"nearest": 0.0}, "nearest: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.spoofed(cloud, 9, KEY, **options)


def opening(cloud, reach=None, *, relation):
    """Says class 0 the more, the more of the cells are there that hold no point."""
    pairs = near_cells(cloud, CYLINDER, reach=reach, voxels=512, pairs=512)
    cells = any_of(voxel.relate(relation, pairs.distance, pairs.inside), pairs.voxels)
    empty = jnp.sum(jnp.where(pairs.exists, 0, cells))
    return Output(jnp.stack([empty, 0 * empty])[None])


def test_a_spoofed_point_is_led_into_a_cell_that_is_not_there():
    """What LGM claims: an empty cell near an added point has a derivative; without the relation's there is none."""
    more = attacks.spoofed(a_scan(), 8, KEY)
    attack = attacks.bim(0.4, 0.05, 8, norm="ray", attack_all=True)
    wanted, mask = jnp.array([1]), more.added
    run = lambda relation: jax.jit(partial(attack, partial(opening, relation=relation), mask=mask))(more.cloud, wanted)
    soft, hard = run(voxel.sigmoid(10.0)), run(voxel.hard())
    np.testing.assert_array_equal(hard.adversarial, more.cloud.xyz)
    added = np.asarray(more.added)
    np.testing.assert_array_equal(soft.adversarial[~added], more.cloud.xyz[~added])
    moved = np.linalg.norm(np.asarray(soft.adversarial - more.cloud.xyz), axis=1)[added]
    assert (moved > 0.01).sum() >= 3 and moved.max() <= 0.4 + 1e-4
    assert float(soft.steps.loss[0, -1] - soft.steps.loss[0, 0]) > 0.01
    assert float(np.ptp(hard.steps.loss[0])) < 1e-6


def test_saved_clouds_need_no_new_sampling(tmp_path):
    """Moved, dropped and spoofed clouds are written in float32; read back a network gets the same of them."""
    scan = streets("test", 1)[0]
    rows = np.arange(0, len(scan.xyz), 40)
    cloud = point_cloud(scan.xyz[rows], scan.intensity[rows, None])
    more = attacks.spoofed(cloud, 20, KEY)
    given = quick_jit(partial(partition, cylinder=CYLINDER))
    labels = jnp.asarray(np.arange(len(rows)) % CLASSES)
    made = {
        "moved": attacks.pgd(0.3, 0.1, 1, norm="ray", attack_all=True),
        "dropped": attacks.point_drop(50, 1, saliency="random"),
    }
    size = len(more.added)
    for name, attack in made.items():
        wanted = more.labels(labels, 0)
        result = attack(lambda cloud: Output(jnp.sin(cloud.xyz @ WEIGHTS)), more.cloud, wanted, key=KEY, ignore=0)
        kept = attacks.remaining(more.cloud, result.adversarial)
        there = np.asarray(kept.valid)
        write_scan(tmp_path / f"{name}.bin", kept.xyz[there], kept.features[there])
        back = read_scan(tmp_path / f"{name}.bin")
        again = point_cloud(back.xyz, back.intensity[:, None], points=size)
        first, second = given(kept), given(again)
        np.testing.assert_array_equal(second.cells[: there.sum()], first.cells[there])
        np.testing.assert_array_equal(second.valid, np.arange(size) < there.sum())
        np.testing.assert_allclose(second.features[: there.sum()], first.features[there], rtol=1e-6, atol=1e-6)
        assert len(np.unique(first.cells[there], axis=0)) > 100


def test_map_coordinates_keep_their_offset(tmp_path):
    """Refused as they are; shifted in float64, an attacked cloud comes back to its place."""
    origin = np.array([458_000.25, 5_428_000.75, 112.5])
    scan = np.asarray(a_scan().xyz, np.float64)
    shine = np.zeros((len(scan), 1), np.float32)
    with pytest.raises(ValueError, match=r"subtract an origin"):
        point_cloud(scan + origin, shine)
    cloud = point_cloud(scan + origin, shine, origin=origin)
    result = attacks.point_noise(0.01)(lambda cloud: cloud.xyz @ WEIGHTS, cloud, key=KEY)
    in_map = np.asarray(result.adversarial, np.float64) + origin
    np.testing.assert_allclose(in_map, scan + origin + np.asarray(result.adversarial - cloud.xyz), atol=1e-5)
    far = (scan + origin).astype(np.float32)
    with pytest.raises(ValueError, match="map.bin: xyz: got coordinates up to .* rounds by up to"):
        write_scan(tmp_path / "map.bin", far, shine)
    assert not (tmp_path / "map.bin").exists()
    np.concatenate([far, shine], axis=1).tofile(tmp_path / "map.bin")
    with pytest.raises(ValueError, match="map.bin: xyz: got coordinates up to .* rounds by up to"):
        read_scan(tmp_path / "map.bin")
