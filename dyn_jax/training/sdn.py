"""Training of early-exit networks: static, classifiers only, and all exits at once, as Shallow-Deep Networks do it."""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.networks.checkpoint import check_finite
from dyn_jax.objectives import exits_of
from dyn_jax.training.recipe import SGD, Images, Loss, Progress, Recipe, cross_entropies
from dyn_jax.types import Output, Variables

STAGES = ("static", "classifiers", "full")
CAPS = (0.15, 0.30, 0.45, 0.60, 0.75, 0.90)


def exit_weights(epoch: int, epochs: int, classifiers: int) -> np.ndarray:
    """[classifiers], the weights of the internal classifiers' losses in full training, for epochs counted from 1.

    ``min(T_i, 0.01 + T_i epoch / epochs)`` with T = .15, .30, ..., .90. ValueError: more than six classifiers.
    """
    if classifiers > len(CAPS):
        raise ValueError(f"classifiers: got {classifiers}, expected at most {len(CAPS)}")
    caps = np.asarray(CAPS[:classifiers], np.float32)
    return np.minimum(caps, np.float32(0.01) + caps * np.float32(epoch / epochs))


def exit_loss(stage: str, epochs: int) -> Loss:
    """``sum_exits weight mean_batch cross-entropy`` with the weights of a stage, see `sdn_recipe`."""

    def weights(epoch: int, classifiers: int) -> np.ndarray:
        inner = exit_weights(epoch + 1, epochs, classifiers) if stage == "full" else np.ones(classifiers, np.float32)
        return np.append(inner, np.float32(stage == "full"))

    def loss(output: Output, labels: jax.Array, progress: Progress) -> jax.Array:
        if stage == "static":
            exits = output.trace.exits
            return jnp.mean(cross_entropies(output.logits if exits is None else exits[:, -1], labels))
        exits = exits_of(output.trace)
        table = jnp.asarray(np.stack([weights(epoch, exits.shape[1] - 1) for epoch in range(epochs)]))
        each = jnp.mean(cross_entropies(exits, jnp.broadcast_to(labels[:, None], exits.shape[:2])), axis=0)
        return jnp.sum(table[progress.epoch.astype(jnp.int32)] * each)

    return loss


def sdn_recipe(
    stage: str, epochs: int, optimizer: SGD, batch_size: int = 128, *, shift: int = 4, flip: bool = True
) -> Recipe:
    """How an early-exit network, or its static twin, is trained.

    Args:
      stage: ``static``: cross-entropy of the final exit. ``classifiers``: the sum of the internal classifiers'
        cross-entropies, the trunk frozen (its batch norm still sees batch statistics and moves its running ones, and
        dropout is on, as released). ``full``: final exit plus `exit_weights` times the internal ones.
      epochs, optimizer, batch_size, shift, flip: see `Recipe` and `Images`.

    ValueError: unknown stage.
    """
    _validate.choice("stage", stage, STAGES)
    source, trains = Images(shift, flip, first=1), is_classifier if stage == "classifiers" else None
    return Recipe(epochs, batch_size, optimizer, exit_loss(stage, epochs), source=source, trains=trains)


def published(stage: str, variant: str, *, shift: int = 4) -> Recipe:
    """The authors' recipe for CIFAR.

    Args:
      stage: ``static``, ``classifiers`` (Adam, 25 epochs) or ``full`` (SGD, 100 epochs).
      variant: ``vgg16`` (weight decay 5e-4), ``resnet56`` or ``mobilenet`` (1e-4).
      shift: 8 for Tiny ImageNet (whose colour jitter is left out here).

    Raises:
      ValueError: unknown stage or variant.

    Source: Kaya, Hong and Dumitras 2019, section 5; released code. As published, full training stops with an error (an
    attribute that only classifier training sets); this is what it was to do.
    """
    _validate.choice("stage", stage, STAGES)
    _validate.choice("variant", variant, ("vgg16", "resnet56", "mobilenet"))
    decay = 5e-4 if variant == "vgg16" else 1e-4
    if stage == "classifiers":
        return sdn_recipe(stage, 25, SGD(1e-3, decay, momentum=None, milestones=(15,)), shift=shift)
    return sdn_recipe(stage, 100, SGD(0.1, decay, nesterov=False, milestones=(35, 60, 85)), shift=shift)


def digits_recipe(stage: str = "full", epochs: int = 20) -> Recipe:
    """The small networks on handwritten digits: the published form, shorter, without mirroring."""
    milestones = tuple(max(1, round(epochs * share)) for share in (0.5, 0.8))
    optimizer = SGD(0.05, 1e-4, nesterov=False, milestones=milestones)
    return sdn_recipe(stage, epochs, optimizer, batch_size=64, shift=2, flip=False)


def is_classifier(layer: str) -> bool:
    """Whether the layer of that name is an internal classifier."""
    return re.fullmatch(r"layers_\d+_output", layer) is not None


def with_classifiers(net: nn.Module, static: Variables, seed: int = 0) -> dict[str, Any]:
    """Variables of the early-exit network `net` with the trunk of its trained static twin and new classifiers.

    ValueError: `static` lacks a leaf of the trunk, has another shape, or is not finite.
    """
    _validate.positive_int("seed", seed, 0)
    check_finite("static", static)
    images = jnp.zeros((1, net.image_size, net.image_size, 3))
    fresh = jax.jit(net.init)(jax.random.key(seed), images)
    trained = dict(jax.tree_util.tree_leaves_with_path(static))

    def pick(path: tuple, leaf: jax.Array) -> np.ndarray:
        if is_classifier(path[1].key):
            return np.asarray(leaf)
        own = trained.get(path)
        shape = () if own is None else np.shape(own)
        if own is None or shape != leaf.shape:
            raise ValueError(f"static: got {shape} at {jax.tree_util.keystr(path)}, expected {leaf.shape}")
        return np.asarray(own)

    return jax.tree_util.tree_map_with_path(pick, fresh)
