"""Point-BIM on a simulated street under FGM and LGM: ``dyn-jax demo --lidar``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import networks, plotting
from dyn_jax.cli.demo_points import GRADIENTS, RoomRow, attack_function, capacities, compared, shown
from dyn_jax.datasets import STREET_CLASSES, Scan, scan_iou, streets
from dyn_jax.sparse3d import point_cloud
from dyn_jax.training.points import SCAN_POINTS
from dyn_jax.types import PointCloud

STEP = {0.02: 0.01, 0.05: 0.01, 0.1: 0.02}  # eps -> step size, metres, the same for FGM and LGM
HEADER = f"{'gradient':8} {'eps (m)':>8} {'mIoU before %':>14} {'after %':>8} {'GFLOPs':>7} {'s':>6}"


def of_one_size(scans: Sequence[Scan], points: int | None = None) -> tuple[list[PointCloud], list[np.ndarray]]:
    """Clouds of `points` (default: `SCAN_POINTS`) of each scan, so that they share one program, and their labels."""
    points = SCAN_POINTS if points is None else points
    clouds, labels = [], []
    for scan in scans:
        assert scan.labels is not None
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(len(scan.xyz), points, replace=len(scan.xyz) < points))
        clouds.append(point_cloud(scan.xyz[rows], scan.intensity[rows, None]))
        labels.append(scan.labels[rows])
    return clouds, labels


def format_row(row: RoomRow) -> str:
    """One line of the printed table."""
    before, after = (100 * float(scan_iou(matrix)) for matrix in (row.clean, row.after))
    flag = "  (did not fit)" if row.overflow else ""
    work = f"{row.gflops:7.2f} {row.seconds:6.1f}{flag}"
    return f"{row.gradient:8} {row.eps:8.3f} {before:14.1f} {after:8.1f} {work}"


def run(output: str, count: int, steps: int = 10) -> None:
    """Prints the table for `count` test streets and draws the first one for every eps into the folder `output`."""
    net, variables = networks.pretrained("cylinder3d-streets")
    clouds, labels = of_one_size(streets("test", count))
    function = attack_function(net, *capacities(net, clouds, max(STEP.values())), steps=steps)
    print(f"{count} simulated test streets, {SCAN_POINTS} points of each, {steps} steps of Point-BIM")
    settings = jnp.float32(min(STEP)), jnp.float32(STEP[min(STEP)])
    with ThreadPoolExecutor() as pool:  # almost all of the time is compilation: both programs side by side
        compile_one = lambda gradient: function(variables, clouds[0], labels[0], *settings, gradient)
        jax.block_until_ready(list(pool.map(compile_one, GRADIENTS.values())))
    print(HEADER)
    first = np.asarray(clouds[0].xyz), labels[0], STREET_CLASSES
    draw = lambda result, path: plotting.scan_figure(result, *first, path, iou=scan_iou)
    rows = compared(function, variables, clouds, labels, STEP, GRADIENTS)
    shown(rows, format_row, draw, os.path.join(output, "street"))
