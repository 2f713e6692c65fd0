"""What the experiments on embedded rooms, objects and streets share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, sparse3d
from dyn_jax.cli import demo_points
from dyn_jax.datasets import IGNORE, Objects, rooms
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d import Capacity, bucket, capacity_for
from dyn_jax.training.points import ROOM_POINTS
from dyn_jax.types import PointCloud, Variables
from experiments import _run
from experiments._weights import load

NETWORK = "minkunet-rooms"
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {"form": sparse3d.PAPER, "factory": attacks.point_bim},
    "release": {"form": sparse3d.RELEASE, "factory": attacks.lgm.point_bim},
}
"""Protocol -> form of the network and Point-BIM, as `demo_points.attack_function` takes them."""


class Setup(NamedTuple):
    """Network, weights, clouds with labels, and capacities of passes over existing voxels and over those in reach."""

    net: nn.Module
    variables: Variables
    clouds: list[PointCloud]
    labels: list[np.ndarray]
    small: Capacity
    large: Capacity

    def attack(self, steps: int, **how: Any) -> Callable[..., attacks.AttackResult]:
        """See `demo_points.attack_function`."""
        return demo_points.attack_function(self.net, self.small, self.large, steps=steps, **how)

    def compared(
        self, run: Callable, steps: Mapping[float, float], gradients: Mapping[str, voxel.VoxelOccupancy]
    ) -> Iterator[tuple[demo_points.RoomRow, list[attacks.AttackResult]]]:
        """See `demo_points.compared`."""
        return demo_points.compared(run, self.variables, self.clouds, self.labels, steps, gradients)

    def scattered(self, eps: float, ignore: int = IGNORE) -> np.ndarray:
        """[cloud, class, class], confusion after random moves in the cube."""

        @jax.jit
        def run(variables: Variables, cloud: PointCloud, labels: jax.Array, key: jax.Array) -> jax.Array:
            forward = partial(self.net.apply, variables, capacity=self.small)
            result = attacks.point_noise(jnp.float32(eps))(forward, cloud, labels, key=key, ignore=ignore)
            return confusion(result.logits_adversarial, labels)

        pairs = enumerate(zip(self.clouds, self.labels))
        return np.stack([run(self.variables, *pair, jax.random.key(number)) for number, pair in pairs])


def parser(doc: str | None, rooms: int = 6) -> argparse.ArgumentParser:
    """The options that the experiments share."""
    result = _run.parser(doc, rooms=rooms, points=ROOM_POINTS, steps=20)
    result.add_argument("--weights", metavar="FILE", help="msgpack; default: those of the package")
    return result


def setup(how: argparse.Namespace, weights: str | None = None, step: float | None = None) -> Setup:
    """Network and the first test rooms, for steps of up to `step` (default: the largest of `demo_points.STEP`)."""
    net, variables = load(NETWORK, weights)
    scenes = rooms("test", how.rooms, points=how.points)
    clouds = demo_points.clouds_of(scenes)
    small, large = demo_points.capacities(net, clouds, step or max(demo_points.STEP.values()))
    return Setup(net, variables, clouds, [scene.labels for scene in scenes], small, large)


def of_objects(name: str, data: Objects, step: float, weights: str | None = None) -> tuple[Setup, PointCloud]:
    """Network and objects, each with its label; and all of them in one cloud of arrays [object, ...]."""
    net, variables = load(name, weights)
    points = data.xyz.shape[1]
    cloud = lambda xyz: PointCloud(xyz, jnp.zeros((points, 0)), jnp.ones(points, bool))
    clouds = jax.vmap(cloud)(jnp.asarray(data.xyz))
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], clouds) for i in range(len(data.labels))]
    need, large = (capacity_for(each, net.voxel_size, net.levels, slack=1.8, reach=reach) for reach in (None, step))
    small = Capacity((bucket(points), *need.levels[1:]))
    return Setup(net, variables, each, list(data.labels), small, large), clouds


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


def facts(how: argparse.Namespace, net: nn.Module) -> dict[str, Any]:
    """What a record says about data and network."""
    return {
        "data": f"{how.rooms} procedural test rooms of {how.points} points (dyn_jax.datasets.rooms)",
        "network": NETWORK,
        **{name: getattr(how, name) for name in ("steps", "rooms", "points")},
        "voxel size (m)": net.voxel_size,
        "eps (m)": list(demo_points.STEP),
    }
