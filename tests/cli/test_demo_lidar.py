"""The LiDAR demo: clouds of one size, the table's line by hand, and what is run in which order (the attack stubbed)."""

import numpy as np
import pytest

from dyn_jax import cli
from dyn_jax.cli import demo_lidar, demo_points
from dyn_jax.cli.demo_points import RoomRow
from dyn_jax.datasets import STREET_CLASSES, streets
from dyn_jax.occupancy import voxel
from dyn_jax.training.points import SCAN_POINTS

CLASSES = len(STREET_CLASSES)


def row(after: np.ndarray, name: str = "LGM", eps: float = 0.1) -> RoomRow:
    clean = np.diag(np.arange(CLASSES))
    return RoomRow(name, eps, clean, after, np.ones(1), np.ones(1), 12.0, 3.0, False, 1.5)


def test_clouds_share_a_size():
    scans = streets("test", 2)
    assert len({len(scan.xyz) for scan in scans}) == 2
    clouds, labels = demo_lidar.of_one_size(scans)
    for scan, cloud, y in zip(scans, clouds, labels):
        assert cloud.xyz.shape == (SCAN_POINTS, 3) and y.shape == (SCAN_POINTS,) and bool(cloud.valid.all())
        known = {tuple(point): label for point, label in zip(scan.xyz.tolist(), scan.labels.tolist())}
        assert [known[tuple(point)] for point in np.asarray(cloud.xyz).tolist()] == y.tolist()


def test_a_line_by_hand():
    """Half of one class, as many points as ten others of which nine are whole: IoU 1/2 and, where they went, less."""
    after = np.diag(np.arange(CLASSES)).astype(float)
    after[1, 1], after[1, 2] = 0.5, 0.5
    wanted = 100 * (0.5 + 2 / 2.5 + 8) / 10
    words = demo_lidar.format_row(row(after)).split()
    assert words[:4] == ["LGM", "0.100", "100.0", f"{wanted:.1f}"]


@pytest.fixture
def stubbed(monkeypatch, tmp_path):
    calls = []

    def attack(run, variables, clouds, labels, name, occupancy, eps, step):
        calls.append((name, eps, step, len(clouds)))
        return row(np.diag(np.arange(CLASSES)), name, eps), ["result"]

    def attack_function(net, small, large, *, steps):
        """Stands for minutes of compilation; the demo compiles for both gradients before it measures."""
        return lambda variables, cloud, labels, eps, step, occupancy: calls.append(occupancy)

    monkeypatch.setattr(demo_points, "attack_rooms", attack)
    monkeypatch.setattr(demo_lidar, "attack_function", attack_function)
    monkeypatch.setattr(demo_lidar.plotting, "scan_figure", lambda *arguments, iou: calls.append(arguments[-1]))
    return calls


def test_the_command(stubbed, tmp_path, capsys):
    assert cli.main(["demo", "--lidar", "--streets", "2", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    compiled = [call for call in stubbed if isinstance(call, voxel.VoxelOccupancy)]
    assert len(compiled) == 2 and set(compiled) == set(demo_points.GRADIENTS.values())
    runs = [call for call in stubbed if type(call) is tuple]
    assert runs == [(name, eps, step, 2) for eps, step in demo_lidar.STEP.items() for name in ("FGM", "LGM")]
    pictures = [call for call in stubbed if isinstance(call, str)]
    assert pictures == [str(tmp_path / f"street_eps_{eps:g}.png") for eps in demo_lidar.STEP]
    assert said.count("LGM") == 3 and all(picture in said for picture in pictures)
    assert cli.main(["demo", "--lidar", "--streets", "17"]) == 2
    assert "at most 16" in capsys.readouterr().err
