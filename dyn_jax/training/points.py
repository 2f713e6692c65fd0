"""Recipes of the two small 3D networks that ship with the package, on procedural rooms and objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dyn_jax import _validate, metrics, networks
from dyn_jax.datasets import objects, rooms
from dyn_jax.sparse3d import Capacity, bucket
from dyn_jax.sparse3d.allocate import capacity_for
from dyn_jax.types import PointCloud, Variables

ROOM_POINTS = 12288
OBJECT_POINTS = 1024


class Batch(NamedTuple):
    """Several clouds in one, with a label per row of the logits."""

    cloud: PointCloud
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class PointRecipe:
    """How a 3D network is trained: AdamW with a cosine schedule.

    Attributes:
      epochs, batch_size: of the whole run; clouds in one batch.
      learning_rate: at the start; falls to 0.
      weight_decay: of AdamW.
      examples: clouds in the training set.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    examples: int


RECIPES = {
    "minkunet-rooms": PointRecipe(epochs=30, batch_size=4, learning_rate=4e-3, weight_decay=1e-2, examples=96),
    "minkfcnn-objects": PointRecipe(epochs=20, batch_size=32, learning_rate=4e-3, weight_decay=1e-2, examples=1280),
}


def train(
    name: str, *, seed: int = 0, epochs: int | None = None, report: Callable[[int, float], None] | None = None
) -> Variables:
    """Trains one of the embedded 3D networks from scratch.

    Args:
      name: ``minkunet-rooms`` or ``minkfcnn-objects``.
      seed: of initialisation, order, augmentation and dropout.
      epochs: instead of the recipe's own number.
      report: called with (epoch, mean loss).

    Raises:
      ValueError: unknown name.
      FloatingPointError: the loss of an epoch is not finite, or a batch did not fit.
    """
    _validate.choice("network", name, RECIPES)
    recipe = RECIPES[name]
    if epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=_validate.positive_int("epochs", epochs))
    if name == "minkunet-rooms":
        batches, options = _room_batches(recipe), {}
    else:
        batches, options = _object_batches(recipe), {"clouds": recipe.batch_size}
    return _fit(networks.create(name), recipe, batches, options, seed, report)


def _turn(xyz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """xyz [..., point, 3] turned about the vertical axis, half of them mirrored."""
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    if rng.random() < 0.5:
        turn[0] *= -1
    return xyz @ turn.T


def _room_batches(recipe: PointRecipe) -> Callable[[np.random.Generator], Iterator[Batch]]:
    """Rooms turned, shifted and recoloured a little, `batch_size` of them in one cloud."""
    data = rooms("train", recipe.examples, points=ROOM_POINTS)

    def epoch(rng: np.random.Generator) -> Iterator[Batch]:
        order = rng.permutation(len(data))
        for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
            chosen = [data[i] for i in order[start : start + recipe.batch_size]]
            xyz = [
                _turn(scene.xyz, rng) + rng.uniform(-1, 1, 3) + 0.003 * rng.normal(size=scene.xyz.shape)
                for scene in chosen
            ]
            colours = [scene.colours * rng.uniform(0.8, 1.2, 3) + rng.uniform(-0.1, 0.1, 3) - 0.5 for scene in chosen]
            number = np.repeat(np.arange(len(chosen), dtype=np.int32), ROOM_POINTS)
            cloud = PointCloud(
                np.concatenate(xyz).astype(np.float32),
                np.concatenate(colours).astype(np.float32),
                np.ones(len(number), bool),
                number,
            )
            yield Batch(cloud, np.concatenate([scene.labels for scene in chosen]))

    return epoch


def _object_batches(recipe: PointRecipe) -> Callable[[np.random.Generator], Iterator[Batch]]:
    """Objects turned, scaled, shifted and jittered, after the recipe of MinkowskiEngine's ModelNet40 example."""
    data = objects("train", recipe.examples, points=OBJECT_POINTS)

    def epoch(rng: np.random.Generator) -> Iterator[Batch]:
        order = rng.permutation(len(data.labels))
        for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
            chosen = order[start : start + recipe.batch_size]
            xyz = np.stack([_turn(cloud, rng) for cloud in data.xyz[chosen]])
            xyz = xyz * rng.uniform(0.9, 1.1, (len(chosen), 1, 3)) + rng.uniform(-0.1, 0.1, (len(chosen), 1, 3))
            xyz = xyz + 0.01 * rng.normal(size=xyz.shape)
            yield Batch(objects_cloud(xyz), data.labels[chosen])

    return epoch


def _capacity(net: nn.Module, epoch: Callable, seed: int) -> Capacity:
    """What the batches of one epoch need, and a tenth more."""
    needs = [capacity_for(batch.cloud, net.voxel_size, net.levels) for batch in epoch(np.random.default_rng((seed, 0)))]
    return Capacity(tuple(bucket(int(1.1 * max(column))) for column in zip(*(need.levels for need in needs))))


def _fit(
    net: nn.Module,
    recipe: PointRecipe,
    epoch_of: Callable[[np.random.Generator], Iterator[Batch]],
    options: dict[str, Any],
    seed: int,
    report: Callable[[int, float], None] | None,
) -> Variables:
    capacity = _capacity(net, epoch_of, seed)
    key = jax.random.key(seed)
    steps = recipe.epochs * (recipe.examples // recipe.batch_size)
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, steps)
    decayed = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=recipe.weight_decay, mask=decayed)
    )
    variables = jax.jit(lambda key: net.init(key, net.example_input()))(key)
    params, stats = variables["params"], variables["batch_stats"]
    state = optimiser.init(params)

    @jax.jit
    def step(params: Variables, stats: Variables, state: optax.OptState, batch: Batch, key: jax.Array) -> tuple:
        def loss_of(params: Variables) -> tuple:
            output, changed = net.apply(
                {"params": params, "batch_stats": stats},
                batch.cloud,
                capacity=capacity,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
                **options,
            )
            loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output.logits, batch.labels))
            return jnp.where(output.trace.overflow, jnp.nan, loss), changed["batch_stats"]

        (loss, stats_), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        update, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, update), stats_, state, loss

    number = 0
    for epoch in range(1, recipe.epochs + 1):
        losses = []
        for batch in epoch_of(np.random.default_rng((seed, epoch))):
            params, stats, state, loss = step(params, stats, state, batch, jax.random.fold_in(key, number))
            losses.append(loss)
            number += 1
        mean = float(jnp.mean(jnp.stack(losses)))
        if not np.isfinite(mean):
            raise FloatingPointError(f"epoch {epoch}: got a loss of {mean} (or a batch beyond {capacity})")
        if report is not None:
            report(epoch, mean)
    return jax.tree.map(np.asarray, {"params": params, "batch_stats": stats})


def evaluate(name: str, net: nn.Module, variables: Variables) -> dict[str, float]:
    """Accuracy of the hard network on the test split, in [0, 1]; for rooms of the points, and the mean IoU as well."""
    _validate.choice("network", name, RECIPES)
    if name == "minkunet-rooms":
        return evaluate_rooms(net, variables)
    data = objects("test", points=OBJECT_POINTS)
    batch = 50
    hits = 0
    for start in range(0, len(data.labels), batch):
        cloud, labels = objects_cloud(data.xyz[start : start + batch]), data.labels[start : start + batch]
        logits = net.apply(variables, cloud, clouds=len(labels)).logits
        hits += int(np.sum(np.argmax(logits, axis=1) == labels))
    return {"accuracy": hits / len(data.labels)}


def objects_cloud(xyz: np.ndarray) -> PointCloud:
    """Objects [object, point, 3] in one cloud, told apart by the batch index."""
    number, count = xyz.shape[:2]
    return PointCloud(
        jnp.asarray(xyz.reshape(-1, 3), jnp.float32),
        jnp.zeros((number * count, 0)),
        jnp.ones(number * count, bool),
        jnp.repeat(jnp.arange(number, dtype=jnp.int32), count),
    )


def evaluate_rooms(net: nn.Module, variables: Variables, count: int = 16) -> dict[str, float]:
    """{``accuracy``, ``mean_iou``} of the hard network over all points of the test rooms."""
    data = rooms("test", count, points=ROOM_POINTS)
    ones = np.ones(ROOM_POINTS, bool)
    clouds = [PointCloud(scene.xyz, scene.colours - np.float32(0.5), ones) for scene in data]
    needs = [capacity_for(cloud, net.voxel_size, net.levels).levels for cloud in clouds]
    capacity = Capacity(tuple(map(max, zip(*needs))))

    @jax.jit
    def matrix(variables: Variables, cloud: PointCloud, labels: jax.Array) -> jax.Array:
        logits = net.apply(variables, cloud, capacity=capacity).logits
        return metrics.confusion(jnp.argmax(logits, axis=1), labels, logits.shape[1])

    total = sum(matrix(variables, cloud, scene.labels) for cloud, scene in zip(clouds, data))
    accuracy = float(jnp.trace(total) / jnp.sum(total))
    return {"accuracy": accuracy, "mean_iou": float(metrics.mean_iou(total))}
