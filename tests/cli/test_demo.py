"""The demo's comparison and pictures on tiny untrained networks; the shipped weights load and are adaptive."""

import jax
import numpy as np
import pytest

from dyn_jax import networks, occupancy, plotting
from dyn_jax.cli import demo
from dyn_jax.datasets import digits

TINY = {"depths": (1, 1), "widths": (4, 8)}


@pytest.mark.parametrize("name", ["skipnet-digits", "dynconv-digits"])
def test_compare_and_picture(name, tmp_path, quick_programs):
    net = networks.create(name, **TINY)
    data = digits("test")
    images, labels = data.images[:4], data.labels[:4]
    variables = net.init(jax.random.key(0), images)
    gradients = {"FGM": occupancy.hard(), "LGM 3": occupancy.sigmoid(3.0)}
    rows = []
    for row, result in demo.compare(name, net, variables, images, labels, gradients, eps=("0", "8/255")):
        rows.append(row)
        if row.eps == "0":
            np.testing.assert_array_equal(result.adversarial, images)
            assert row.accuracy == row.clean_accuracy and row.macs_adversarial == row.macs_clean
    assert [(r.attack, r.eps, r.gradient) for r in rows][:3] == [
        ("FGSM", "0", "FGM"),
        ("FGSM", "0", "LGM 3"),
        ("FGSM", "8/255", "FGM"),
    ]
    assert len(rows) == 8 and all(demo.format_row(row).startswith(name) for row in rows)
    path = plotting.attack_figure(jax.tree.map(np.asarray, result), images, labels, str(tmp_path / "a" / "x.png"))
    with open(path, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_flip_map_by_hand():
    colours = plotting.flip_map(np.array([1, 0, 1, 0]), np.array([1, 0, 0, 1]))
    expected = [plotting.ON, plotting.OFF, plotting.SWITCHED_OFF, plotting.SWITCHED_ON]
    np.testing.assert_array_equal(colours, expected)


def test_unknown_pretrained_network():
    with pytest.raises(ValueError, match="skipnet-digits"):
        networks.pretrained("skipnet-digit")
