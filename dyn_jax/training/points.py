"""Recipes of the small 3D networks that ship with the package, on procedural rooms, objects and streets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.datasets import IGNORE, Objects, Scan, Scene
from dyn_jax.datasets.points import check_objects, check_scene
from dyn_jax.datasets.streets import check_scan
from dyn_jax.objectives import lovasz_softmax
from dyn_jax.sparse3d import Capacity, bucket
from dyn_jax.sparse3d.allocate import capacity_for
from dyn_jax.training.recipe import AdamW, Batches, Progress, Recipe, mean_cross_entropy
from dyn_jax.types import Output, PointCloud

ROOM_POINTS = 12288
OBJECT_POINTS = 1024
SCAN_POINTS = 5120  # of a scan in training, drawn anew every time
SLACK = 1.1

Chosen = Callable[[Any, np.ndarray, np.random.Generator | None], tuple[PointCloud, np.ndarray]]
"""(data, rows, rng) -> (those clouds in one, labels of the rows of the logits); moved at random unless rng is None."""


@dataclasses.dataclass(frozen=True)
class Clouds:
    """`dyn_jax.training.recipe.Source` of clouds, `size` of them side by side in one."""

    chosen: Chosen  # picks and moves them
    test_size: int = 1  # clouds side by side when a network is evaluated

    def count(self, data: Any) -> int:
        return len(data.labels) if hasattr(data, "labels") else len(data)

    def example(self, net: nn.Module, data: Any) -> Any:
        return net.example_input()

    def keys(self, seed: int) -> tuple[jax.Array, jax.Array]:
        key = jax.random.key(seed)
        return key, key  # of the shipped weights

    def options(self, net: nn.Module, like: Batches) -> dict[str, Any]:
        """The capacity that they need, and a tenth more."""
        clouds: list[PointCloud] = [cloud for cloud, _ in like]
        needs = [capacity_for(cloud, net.voxel_size, net.levels).levels for cloud in clouds]
        return {"capacity": Capacity(tuple(bucket(int(SLACK * max(column))) for column in zip(*needs)))}

    def batches(self, data: Any, size: int, seed: int, epoch: int) -> Batches:
        rng = np.random.default_rng((seed, epoch + 1))
        order = rng.permutation(self.count(data))
        for start in range(0, len(order) - size + 1, size):
            yield self.chosen(data, order[start : start + size], rng)

    def in_order(self, data: Any) -> Batches:
        count = self.count(data)
        for start in range(0, count, self.test_size):
            yield self.chosen(data, np.arange(start, min(start + self.test_size, count)), None)


def room_batch(data: list[Scene], rows: np.ndarray, rng: np.random.Generator | None) -> tuple[PointCloud, np.ndarray]:
    """Rooms turned, shifted and recoloured a little; labels [point]."""
    scenes = [data[row] for row in rows]
    xyz, colours = [scene.xyz for scene in scenes], [scene.colours for scene in scenes]
    if rng is not None:
        xyz = [_turn(a, rng) + rng.uniform(-1, 1, 3) + 0.003 * rng.normal(size=a.shape) for a in xyz]
        colours = [a * rng.uniform(0.8, 1.2, 3) + rng.uniform(-0.1, 0.1, 3) for a in colours]
    return _side_by_side(xyz, [a - 0.5 for a in colours]), np.concatenate([scene.labels for scene in scenes])


def object_batch(data: Objects, rows: np.ndarray, rng: np.random.Generator | None) -> tuple[PointCloud, np.ndarray]:
    """Objects turned, scaled, shifted and jittered, after MinkowskiEngine's ModelNet40 example; labels [cloud]."""
    xyz = data.xyz[rows]
    if rng is not None:
        xyz = np.stack([_turn(cloud, rng) for cloud in xyz])
        xyz = xyz * rng.uniform(0.9, 1.1, (len(rows), 1, 3)) + rng.uniform(-0.1, 0.1, (len(rows), 1, 3))
        xyz = xyz + 0.01 * rng.normal(size=xyz.shape)
    return _side_by_side(list(xyz), [np.zeros((xyz.shape[1], 0))] * len(rows)), data.labels[rows]


def scan_batch(data: list[Scan], rows: np.ndarray, rng: np.random.Generator | None) -> tuple[PointCloud, np.ndarray]:
    """Scans turned, scaled and shifted a little, as Cylinder3D's are, `SCAN_POINTS` of each; labels [point]."""
    xyz, shine, labels = [], [], []
    draw = np.random.default_rng(0) if rng is None else rng
    for scan in (data[row] for row in rows):
        assert scan.labels is not None
        chosen = np.sort(draw.choice(len(scan.xyz), SCAN_POINTS, replace=len(scan.xyz) < SCAN_POINTS))
        points = scan.xyz[chosen]
        if rng is not None:
            points = _turn(points, rng) * np.append(rng.uniform(0.95, 1.05, 2), 1) + 0.1 * rng.normal(size=3)
        xyz.append(points)
        shine.append(scan.intensity[chosen, None])
        labels.append(scan.labels[chosen])
    return _side_by_side(xyz, shine), np.concatenate(labels)


def segmentation_loss(output: Output, labels: jax.Array, progress: Progress | None = None) -> jax.Array:
    """Cross-entropy plus Lovasz-softmax, Cylinder3D's loss, on points; label 0 marks those that do not count."""
    probabilities = jax.nn.softmax(output.logits)
    counted = (labels != 0) & (labels != IGNORE)
    entropy = mean_cross_entropy(output, jnp.where(counted, labels, IGNORE), progress)
    return entropy + lovasz_softmax(probabilities, labels, counted)


def check_clouds(data: Any, classes: int | None) -> None:
    """Checks `Objects`, or a list of `Scene` or `Scan`, that a network shall be trained on; other data pass.

    Labels lie in [0, classes), or are `IGNORE` (no loss looks at such points); None: not compared. ValueError: a cloud
    without labels, a scene without colours; see `check_scene`, `check_scan`, `check_objects`.
    """
    if isinstance(data, Objects):
        check_objects(data, "data", classes)
        return
    for number, cloud in enumerate(data if isinstance(data, (list, tuple)) else ()):
        if isinstance(cloud, (Scene, Scan)):
            where = f"data[{number}] ({cloud.name})"
            missing = [name for name in ("labels", "colours") if getattr(cloud, name, ()) is None]
            if missing:
                raise ValueError(f"{where}: got no {missing[0]}, expected some to train on")
            if isinstance(cloud, Scan):
                check_scan(cloud, where)
            check_scene(Scene(cloud.xyz, getattr(cloud, "colours", None), cloud.labels, cloud.name), where, classes)


def _turn(xyz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """xyz [point, 3] turned about the vertical axis, half of them mirrored."""
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    if rng.random() < 0.5:
        turn[0] *= -1
    return xyz @ turn.T


def _side_by_side(xyz: list[np.ndarray], features: list[np.ndarray]) -> PointCloud:
    number = np.repeat(np.arange(len(xyz), dtype=np.int32), [len(cloud) for cloud in xyz])
    joined = (np.concatenate(part).astype(np.float32) for part in (xyz, features))
    arrays: list[Any] = [*joined, np.ones(len(number), bool), number]  # on the host, until a jitted step takes them
    return PointCloud(*arrays, clouds=len(xyz))


def rooms_recipe(epochs: int = 30) -> Recipe:
    """``minkunet-rooms``: AdamW, four rooms a step."""
    return Recipe(epochs, 4, AdamW(), source=Clouds(room_batch))


def objects_recipe(epochs: int = 20) -> Recipe:
    """``minkfcnn-objects``: AdamW, 32 objects a step."""
    return Recipe(epochs, 32, AdamW(), source=Clouds(object_batch, test_size=50))


def streets_recipe(epochs: int = 8) -> Recipe:
    """``cylinder3d-streets``: AdamW, two scans a step."""
    return Recipe(epochs, 2, AdamW(1e-2), segmentation_loss, source=Clouds(scan_batch))
