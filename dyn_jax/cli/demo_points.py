"""Point-BIM on the embedded rooms under FGM and LGM: ``dyn-jax demo --points``, and what the experiments share."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, plotting
from dyn_jax.datasets import IGNORE, ROOM_CLASSES, Scene, rooms
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d import PAPER, Capacity, Form, bucket, capacity_for, point_cloud
from dyn_jax.training.points import ROOM_POINTS
from dyn_jax.types import PointCloud, Reach, Variables

STEP = {0.005: 0.0025, 0.01: 0.005, 0.02: 0.01, 0.05: 0.01}  # eps -> step size, metres, the same for FGM and LGM
GRADIENTS: dict[str, voxel.VoxelOccupancy] = {"FGM": voxel.fgm(), "LGM": voxel.lgm()}
SLACK = 2.5  # room for points that move: an attack scatters the points of a surface over more voxels, on every level
PAIR_SLACK = 3.0


@dataclasses.dataclass(frozen=True)
class RoomRow:
    """One line of the table."""

    gradient: str  # FGM or LGM
    eps: float  # metres
    clean: np.ndarray  # confusion matrix of the deployed network over all rooms
    after: np.ndarray
    clean_rooms: np.ndarray  # [room] mean IoU
    after_rooms: np.ndarray
    voxels: float  # sites in the gradient's forward pass, mean over steps and rooms
    gflops: float  # twice the multiply-adds of that pass, in billions, mean over steps and rooms
    overflow: bool  # some pass did not fit
    seconds: float  # the fastest room's, times the rooms


def clouds_of(scenes: Sequence[Scene]) -> list[PointCloud]:
    """Clouds with colours minus 1/2 as features."""
    return [point_cloud(scene.xyz, np.asarray(scene.colours) - np.float32(0.5)) for scene in scenes]


def capacities(
    net: nn.Module, clouds: Sequence[PointCloud], step: float, slack: float = SLACK
) -> tuple[Capacity, Capacity]:
    """(of the existing voxels, of those within `step` as well) that all clouds share, with room for moving points."""
    points = max(cloud.xyz.shape[0] for cloud in clouds)
    shared = []
    for reach in (None, Reach(step)):
        need = capacity_for(clouds, net.voxel_size, net.levels, reach=reach)
        pairs = None if need.pairs is None else bucket(int(PAIR_SLACK * need.pairs))
        most = bucket(points) if pairs is None else pairs  # no more voxels than pairs
        shared.append(Capacity(tuple(min(bucket(int(slack * level)), most) for level in need.levels), pairs))
    return shared[0], shared[1]


def attack_function(
    net: nn.Module,
    small: Capacity,
    large: Capacity,
    *,
    steps: int,
    form: Form = PAPER,
    factory: Callable[..., attacks.Attack] = attacks.point_bim,
    ignore: int = IGNORE,
    **options: Any,
) -> Callable[..., attacks.AttackResult]:
    """Jitted ``(variables, cloud, labels, eps, step, occupancy) -> result``: eps, step and slopes do not recompile.

    Args:
      small, large: capacities of hard and of looking-ahead passes, see `capacities`.
      form: of the network that is differentiated, see `dyn_jax.sparse3d.Form`.
      factory: (eps, step size, steps, **options) -> attack.
      ignore: the label of points that do not count.
    """

    @jax.jit
    def run(
        variables: Variables,
        cloud: PointCloud,
        labels: jax.Array,
        eps: jax.Array,
        step: jax.Array,
        occupancy: voxel.VoxelOccupancy,
    ) -> attacks.AttackResult:
        capacity = large if occupancy.extends else small
        forward = partial(net.apply, variables, occupancy=occupancy, capacity=capacity, form=form)
        victim = partial(net.apply, variables, capacity=small)
        return factory(eps, step, steps, **options)(forward, cloud, labels, victim=victim, ignore=ignore)

    return run


def attack_rooms(
    run: Callable[..., attacks.AttackResult],
    variables: Variables,
    clouds: Sequence[PointCloud],
    labels: Sequence[np.ndarray],
    gradient: str,
    occupancy: voxel.VoxelOccupancy,
    eps: float,
    step: float,
) -> tuple[RoomRow, list[attacks.AttackResult]]:
    """Attacks every room with one setting."""
    arguments = (jnp.float32(eps), jnp.float32(step), occupancy)
    results, times = [], []
    for cloud, y in zip(clouds, labels):
        began = time.perf_counter()
        results.append(jax.tree.map(np.asarray, run(variables, cloud, y, *arguments)))
        times.append(time.perf_counter() - began)
    seconds = min(times) * len(times)  # the first may hold the compilation

    def of_rooms(logits: str) -> list[np.ndarray]:
        pairs = [(getattr(result, logits), y) for result, y in zip(results, labels)]
        return [np.asarray(metrics.confusion(np.argmax(z, axis=1), y, z.shape[1])) for z, y in pairs]

    clean, after = of_rooms("logits_clean"), of_rooms("logits_adversarial")
    work = {name: np.mean([result.steps.work[name].mean() for result in results]) for name in ("voxels", "macs")}
    row = RoomRow(
        gradient=gradient,
        eps=eps,
        clean=np.sum(clean, axis=0),
        after=np.sum(after, axis=0),
        clean_rooms=np.array([float(metrics.mean_iou(matrix)) for matrix in clean]),
        after_rooms=np.array([float(metrics.mean_iou(matrix)) for matrix in after]),
        voxels=float(work["voxels"]),
        gflops=2e-9 * float(work["macs"]),
        overflow=any(bool(result.overflow.any()) for result in results),
        seconds=seconds,
    )
    return row, results


def compared(
    run: Callable[..., attacks.AttackResult],
    variables: Variables,
    clouds: Sequence[PointCloud],
    labels: Sequence[np.ndarray],
    steps: Mapping[float, float],
    gradients: Mapping[str, voxel.VoxelOccupancy],
) -> Iterator[tuple[RoomRow, list[attacks.AttackResult]]]:
    """`attack_rooms` for every eps of `steps` (with its step size) and every gradient."""
    for eps, step in steps.items():
        for name, occupancy in gradients.items():
            yield attack_rooms(run, variables, clouds, labels, name, occupancy, eps, step)


def shown(
    rows: Iterable[tuple[RoomRow, list[attacks.AttackResult]]],
    line: Callable[[RoomRow], str],
    draw: Callable[[attacks.AttackResult, str], Any],
    stem: str,
) -> None:
    """Prints the rows as `line` says them, and draws the first cloud of every eps under LGM into a file of its own."""
    for row, results in rows:
        print(line(row), flush=True)
        if row.gradient == "LGM":
            path = f"{stem}_eps_{row.eps:g}.png"
            draw(results[0], path)
            print(f"picture: {path}")


HEADER = f"{'gradient':8} {'eps (m)':>8} {'mIoU before %':>14} {'after %':>8} {'voxels':>8} {'GFLOPs':>7} {'s':>6}"


def format_row(row: RoomRow) -> str:
    """One line of the printed table."""
    flag = "  (did not fit)" if row.overflow else ""
    return (
        f"{row.gradient:8} {row.eps:8.3f} {100 * float(metrics.mean_iou(row.clean)):14.1f} "
        f"{100 * float(metrics.mean_iou(row.after)):8.1f} {row.voxels:8.0f} {row.gflops:7.2f} {row.seconds:6.1f}{flag}"
    )


def run(output: str, count: int, steps: int = 10) -> None:
    """Prints the table for `count` test rooms and draws the first one for every eps into the folder `output`."""
    net, variables = networks.pretrained("minkunet-rooms")
    scenes = rooms("test", count, points=ROOM_POINTS)
    clouds, labels = clouds_of(scenes), [np.asarray(scene.labels) for scene in scenes]
    function = attack_function(net, *capacities(net, clouds, max(STEP.values())), steps=steps)
    draw = lambda result, path: plotting.cloud_figure(result, scenes[0].xyz, labels[0], ROOM_CLASSES, path)
    print(f"{count} test rooms of {ROOM_POINTS} points, {steps} steps of Point-BIM")
    print(HEADER)
    rows = compared(function, variables, clouds, labels, STEP, GRADIENTS)
    shown(rows, format_row, draw, os.path.join(output, "room"))
