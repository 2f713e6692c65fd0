"""What the experiments on LiDAR scans share: simulated streets, or SemanticKITTI where its folder is given."""

from __future__ import annotations

import argparse
import itertools
from typing import Any, NamedTuple

import numpy as np

from dyn_jax import metrics
from dyn_jax.cli import demo_lidar, demo_points
from dyn_jax.datasets import SEMANTICKITTI_CLASSES, STREET_CLASSES, scan_iou, semantickitti, streets
from experiments import _rooms, _run
from experiments._weights import load

STREETS, KITTI = "cylinder3d-streets", "cylinder3d-semantickitti"
IGNORE = 0
HELD_SEED = 1  # the network was trained on streets of seed 0


class Setup(NamedTuple):
    """Network with scans of equally many points, those an attack may be tuned on, names of the classes, facts.

    The latter are streets that neither trained nor test the network; on SemanticKITTI its training sequences.
    """

    test: _rooms.Setup
    held: _rooms.Setup
    classes: tuple[str, ...]
    facts: dict[str, Any]


def parser(doc: str | None, scans: int = 2, steps: int = 15) -> argparse.ArgumentParser:
    """The options that these experiments share."""
    result = _run.parser(doc, points=demo_lidar.SCAN_POINTS, steps=steps)
    result.add_argument("--streets", type=int, default=scans, help="test streets, at most 16, or scans of sequence 08")
    result.add_argument("--held-out", type=int, default=1, help="other scans, which slopes are chosen on")
    result.add_argument("--semantickitti", metavar="FOLDER", help="with --weights: scans of it in place of streets")
    result.add_argument("--weights", metavar="FILE", help=f"msgpack of {KITTI}, see python -m weights_convert")
    return result


def setup(arguments: argparse.Namespace, step: float) -> Setup:
    """Network and scans, with capacities for steps of up to `step` metres."""
    if (arguments.semantickitti is None) != (arguments.weights is None):
        raise ValueError(
            "--semantickitti, --weights: got one of them, expected both: the folder and the network for it"
        )
    if arguments.semantickitti is None:
        name, classes, kind = STREETS, STREET_CLASSES, "simulated streets"
        scans, held = streets("test", arguments.streets), streets("train", arguments.held_out, seed=HELD_SEED)
    else:
        name, classes, kind = KITTI, SEMANTICKITTI_CLASSES, "scans of SemanticKITTI, sequence 08"
        of = lambda split, count: list(itertools.islice(semantickitti(split, arguments.semantickitti), count))
        scans, held = of("val", arguments.streets), of("train", arguments.held_out)
    net, variables = load(name, arguments.weights)
    test, tune = (demo_lidar.of_one_size(some, arguments.points) for some in (scans, held))
    capacities = demo_points.capacities(net, [*test[0], *tune[0]], step)
    facts = {"network": name, "data": f"{len(scans)} {kind}, {arguments.points} points of each"}
    return Setup(*(_rooms.Setup(net, variables, *part, *capacities) for part in (test, tune)), classes, facts)


def percent(matrix: np.ndarray) -> float:
    """Mean IoU of the benchmark, in percent."""
    return round(100 * float(scan_iou(matrix)), 2)


def by_class(matrix: np.ndarray) -> list[float | None]:
    """IoU of every class but the first, in percent; None for one that neither occurs nor is predicted."""
    values = 100 * np.asarray(metrics.iou(np.asarray(matrix)[1:, 1:]), float)
    return [None if np.isnan(value) else round(float(value), 1) for value in values]
