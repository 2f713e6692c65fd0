"""What the experiments on the embedded rooms share."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, sparse3d
from dyn_jax.cli import demo_points
from dyn_jax.datasets import rooms
from dyn_jax.sparse3d import Capacity
from dyn_jax.training.points import ROOM_POINTS
from dyn_jax.types import PointCloud, Variables
from experiments._weights import load

NETWORK = "minkunet-rooms"
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {"form": sparse3d.PAPER, "factory": attacks.point_bim},
    "release": {"form": sparse3d.RELEASE, "factory": attacks.lgm.point_bim},
}
"""Protocol -> form of the network and Point-BIM, as `demo_points.attack_function` takes them."""


class Setup(NamedTuple):
    """Network, weights, test rooms, and capacities for steps up to `step`."""

    net: nn.Module
    variables: Variables
    clouds: list[PointCloud]
    labels: list[np.ndarray]
    small: Capacity
    large: Capacity


def add_points(parser: argparse.ArgumentParser) -> None:
    """The option for the size of a room."""
    parser.add_argument("--points", type=int, default=ROOM_POINTS, help="of a room")


def parser(description: str, rooms: int = 6) -> argparse.ArgumentParser:
    """The options that the experiments share."""
    result = argparse.ArgumentParser(description=description.splitlines()[0])
    result.add_argument("--rooms", type=int, default=rooms, help="test rooms, at most 16")
    add_points(result)
    result.add_argument("--steps", type=int, default=20, help="of Point-BIM (the paper: 50)")
    result.add_argument("--weights", default=None, help="msgpack file; default: those of the package")
    result.add_argument("--results", default=None, help="folder for the JSON; default: experiments/results")
    return result


def setup(count: int, points: int, weights: str | None = None, step: float = max(demo_points.STEP.values())) -> Setup:
    """Network and the first `count` test rooms."""
    net, variables = load(NETWORK, weights)
    scenes = rooms("test", count, points=points)
    clouds = demo_points.clouds_of(scenes)
    small, large = demo_points.capacities(net, clouds, step)
    return Setup(net, variables, clouds, [scene.labels for scene in scenes], small, large)


def confusion(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[class, class], of one room."""
    return metrics.confusion(jnp.argmax(logits, axis=1), labels, logits.shape[1])


def trusted(overflow: Any, what: str) -> None:
    """Raises RuntimeError where some pass overflowed."""
    if np.any(overflow):
        raise RuntimeError(f"{what}: voxels did not fit, the numbers cannot be trusted")


def deviation(values: Any) -> float:
    """Between rooms; 0 of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def after(matrices: np.ndarray) -> dict[str, float]:
    """In percent: mean IoU over all points of all rooms from [room, class, class], and its spread over the rooms."""
    return {
        "after %": 100 * float(metrics.mean_iou(matrices.sum(0))),
        "sd over rooms": 100 * deviation([float(metrics.mean_iou(matrix)) for matrix in matrices]),
    }


def numbers(row: demo_points.RoomRow) -> dict[str, Any]:
    """A result in percent."""
    trusted(row.overflow, f"{row.gradient}, eps {row.eps}")
    return {
        "gradient": row.gradient,
        "eps (m)": row.eps,
        "before %": 100 * float(metrics.mean_iou(row.clean)),
        "after %": 100 * float(metrics.mean_iou(row.after)),
        "sd over rooms": 100 * deviation(row.after_rooms),
        "voxels": row.voxels,
        "GFLOPs": row.gflops,
        "s per room": row.seconds / len(row.after_rooms),
    }


def facts(arguments: argparse.Namespace, net: nn.Module) -> dict[str, Any]:
    """What a record says about data and network."""
    return {
        "data": f"{arguments.rooms} procedural test rooms of {arguments.points} points (dyn_jax.datasets.rooms)",
        "network": NETWORK,
        "steps": arguments.steps,
        "rooms": arguments.rooms,
        "points": arguments.points,
        "voxel size (m)": net.voxel_size,
        "eps (m)": list(demo_points.STEP),
    }
