"""The points demo on a tiny network: what it prints, draws and flags; the shipped weights load and segment rooms."""

import jax
import numpy as np
import pytest

from dyn_jax import cli, metrics, networks, plotting
from dyn_jax.cli import demo_points
from dyn_jax.datasets import ROOM_CLASSES, rooms
from dyn_jax.networks.minkunet import MinkUNet
from dyn_jax.sparse3d import capacity_for

TINY = MinkUNet(planes=(4,) * 8, layers=(0,) * 8, num_classes=10, stem_features=4, stem_size=3, voxel_size=0.2)
POINTS = 600
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}}


@pytest.fixture(scope="module")
def attacked(quick_programs):
    """Both gradients on two rooms, with the compiled function used by all tests of this file."""
    scenes = rooms("test", 2, points=POINTS)
    clouds, labels = demo_points.clouds_of(scenes), [scene.labels for scene in scenes]
    small, large = demo_points.capacities(TINY, clouds, 0.05)
    variables = jax.jit(lambda key: TINY.init(key, TINY.example_input()))(jax.random.key(0))
    run = demo_points.attack_function(TINY, small, large, steps=3)

    def attack(name, eps=0.1, step=0.05):
        occupancy = demo_points.GRADIENTS[name]
        return demo_points.attack_rooms(run, variables, clouds, labels, name, occupancy, eps, step)

    return scenes, clouds, labels, variables, {name: attack(name) for name in demo_points.GRADIENTS}


def test_rows(attacked):
    _, clouds, labels, _, found = attacked
    for name, (row, results) in found.items():
        assert not row.overflow and row.seconds > 0
        assert demo_points.format_row(row).startswith(name)
        for number, (result, cloud, y) in enumerate(zip(results, clouds, labels)):
            moved = np.abs(result.adversarial - np.asarray(cloud.xyz))
            assert moved.max() <= 0.1 + 1e-6 and moved.max() > 0.04
            matrix = metrics.confusion(np.argmax(result.logits_adversarial, 1), y, 10)
            np.testing.assert_allclose(metrics.mean_iou(matrix), row.after_rooms[number], rtol=1e-5)
    before = sum(np.asarray(metrics.confusion(np.argmax(r.logits_clean, 1), y, 10)) for r, y in zip(results, labels))
    np.testing.assert_array_equal(row.clean, before)


def test_leading_costs_voxels(attacked):
    fgm, lgm = (attacked[-1][name][0] for name in ("FGM", "LGM"))
    assert lgm.voxels > 1.2 * fgm.voxels and lgm.gflops > fgm.gflops > 0
    np.testing.assert_array_equal(fgm.clean, lgm.clean)


def test_too_small_is_flagged(attacked):
    _, clouds, labels, variables, found = attacked
    result = found["FGM"][1][0]
    run = lambda *_: result.replace(overflow=np.ones_like(result.overflow))
    occupancy = demo_points.GRADIENTS["FGM"]
    row, _ = demo_points.attack_rooms(run, variables, clouds[:1], labels[:1], "FGM", occupancy, 0.1, 0.05)
    assert row.overflow and "did not fit" in demo_points.format_row(row)


def test_picture(attacked, tmp_path):
    scenes, *_, found = attacked
    result = found["LGM"][1][0]
    path = plotting.cloud_figure(result, scenes[0].xyz, scenes[0].labels, ROOM_CLASSES, str(tmp_path / "a" / "x.png"))
    with open(path, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_shipped_weights_segment_rooms():
    net, variables = networks.pretrained("minkunet-rooms")
    scene = rooms("test", 1, points=12288)[0]
    cloud = demo_points.clouds_of([scene])[0]
    capacity = capacity_for(cloud, net.voxel_size, net.levels)
    logits = jax.jit(lambda v, c: net.apply(v, c, capacity=capacity).logits, **QUICK)(variables, cloud)
    assert np.mean(np.argmax(logits, axis=1) == scene.labels) > 0.9


@pytest.mark.parametrize("count", ["0", "-3"])
def test_demo_refuses_no_rooms(capsys, count):
    assert cli.main(["demo", "--points", f"--rooms={count}"]) == 2
    assert "rooms" in capsys.readouterr().err
