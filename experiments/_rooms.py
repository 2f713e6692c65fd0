"""What the experiments on the embedded rooms share."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from dyn_jax import demo_points, metrics, networks
from dyn_jax.datasets import rooms
from dyn_jax.sparse3d import Capacity
from dyn_jax.networks.checkpoint import load_variables
from dyn_jax.training.points import ROOM_POINTS
from dyn_jax.types import PointCloud, Variables

NETWORK = "minkunet-rooms"


class Setup(NamedTuple):
    """Network, weights, test rooms, and capacities for steps up to `step`."""

    net: nn.Module
    variables: Variables
    clouds: list[PointCloud]
    labels: list[np.ndarray]
    small: Capacity
    large: Capacity


def parser(description: str) -> argparse.ArgumentParser:
    """The options that the experiments share."""
    result = argparse.ArgumentParser(description=description.splitlines()[0])
    result.add_argument("--rooms", type=int, default=6, help="test rooms, at most 16")
    result.add_argument("--steps", type=int, default=20, help="of Point-BIM (the paper: 50)")
    result.add_argument("--weights", default=None, help="msgpack file; default: those of the package")
    result.add_argument("--results", default=None, help="folder for the JSON; default: experiments/results")
    return result


def setup(arguments: argparse.Namespace, step: float = max(demo_points.STEP.values())) -> Setup:
    """Loads what the options name."""
    if arguments.weights is None:
        net, variables = networks.pretrained(NETWORK)
    else:
        net, variables = networks.create(NETWORK), load_variables(arguments.weights)
    scenes = rooms("test", arguments.rooms, points=ROOM_POINTS)
    clouds = demo_points.clouds_of(scenes)
    small, large = demo_points.capacities(net, clouds, step)
    return Setup(net, variables, clouds, [scene.labels for scene in scenes], small, large)


def numbers(row: demo_points.RoomRow) -> dict[str, Any]:
    """A result in percent: mean IoU over all points of all rooms, and its spread over the rooms."""
    if row.overflow:
        raise RuntimeError(f"{row.gradient}, eps {row.eps}: voxels did not fit, the numbers cannot be trusted")
    return {
        "gradient": row.gradient,
        "eps (m)": row.eps,
        "before %": 100 * float(metrics.mean_iou(row.clean)),
        "after %": 100 * float(metrics.mean_iou(row.after)),
        "sd over rooms": 100 * float(np.std(row.after_rooms, ddof=1)) if len(row.after_rooms) > 1 else 0.0,
        "voxels": row.voxels,
        "GFLOPs": row.gflops,
        "s per room": row.seconds / len(row.after_rooms),
    }


def facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a record says about the data."""
    return {
        "data": f"{arguments.rooms} procedural test rooms of {ROOM_POINTS} points (dyn_jax.datasets.rooms)",
        "network": NETWORK,
        "steps": arguments.steps,
    }
