"""What a training run is told: the recipe, its optimisers, its source of image batches, its cross-entropy."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dyn_jax.datasets import IGNORE, ImageData, augment_crop_flip, batches, to_float
from dyn_jax.types import Occupancy, Output, Variables


class Progress(NamedTuple):
    """Where training is: the epoch (from 0), and the mean cross-entropy of the epoch before.

    Before the first epoch that is infinity, or with `Recipe.measured` the mean over the training images of the network
    as it starts, in evaluation mode.
    """

    epoch: jax.Array
    cross_entropy: jax.Array


Loss = Callable[[Output, jax.Array, Progress], jax.Array]

cross_entropies = optax.softmax_cross_entropy_with_integer_labels
"""Logits [..., class], labels [...] -> [...]: the one cross-entropy of every recipe but SkipNet's policy gradient."""


def mean_cross_entropy(output: Output, labels: jax.Array, progress: Progress | None = None) -> jax.Array:
    """Mean over the rows of the logits, points labelled `IGNORE` aside; the progress has no part in it."""
    counted = (labels != IGNORE) | (output.logits.shape[-1] > IGNORE)  # where it is a class
    each = cross_entropies(output.logits, jnp.where(counted, labels, 0))
    return jnp.sum(jnp.where(counted, each, 0)) / jnp.maximum(jnp.sum(counted), 1)


Decayed = Callable[[Any], Any]  # parameters -> a tree of bools like them: where weight decay acts

Optimizer = Callable[[int, int, Decayed], optax.GradientTransformation]  # (epochs, steps of an epoch, decayed) -> optax


@dataclasses.dataclass(frozen=True)
class SGD:
    """L2 in the gradient, then SGD with momentum, or Adam.

    From each of the `milestones`, epochs counted from 1, on the rate is `gamma` times what it was; None: it falls to 0
    as a cosine.
    """

    learning_rate: float = 0.1  # at the start
    weight_decay: float = 5e-4  # factor of the parameters in the gradient
    momentum: float | None = 0.9  # None is Adam
    nesterov: bool = True
    milestones: tuple[int, ...] | None = None
    gamma: float = 0.1

    def rate(self, epoch: int) -> float:
        """Learning rate of `epoch`, counted from 1, under milestones."""
        return self.learning_rate * self.gamma ** sum(epoch >= milestone for milestone in self.milestones or ())

    def __call__(self, epochs: int, per_epoch: int, decayed: Decayed) -> optax.GradientTransformation:
        if self.milestones is None:
            schedule = optax.cosine_decay_schedule(self.learning_rate, epochs * per_epoch)
        else:
            rates = np.asarray([self.rate(epoch + 1) for epoch in range(epochs)], np.float32)
            schedule = lambda count: jnp.asarray(rates)[count // per_epoch]
        direction = optax.scale_by_adam() if self.momentum is None else optax.trace(self.momentum, self.nesterov)
        decay = optax.add_decayed_weights(self.weight_decay, mask=decayed)
        return optax.chain(decay, direction, optax.scale_by_learning_rate(schedule))


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW with a cosine schedule to 0, gradients clipped to a global norm; no decay of biases and norms."""

    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    clip: float = 1.0

    def __call__(self, epochs: int, per_epoch: int, decayed: Decayed) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(self.learning_rate, epochs * per_epoch)
        mask = lambda params: jax.tree.map(lambda leaf, own: own and leaf.ndim > 1, params, decayed(params))
        clip = optax.clip_by_global_norm(self.clip)
        return optax.chain(clip, optax.adamw(schedule, weight_decay=self.weight_decay, mask=mask))


Batches = Iterator[tuple[Any, np.ndarray]]


class Source(Protocol):
    """Where batches come from: pairs (inputs, labels of the rows of the logits), all of one shape.

    `count` says how many examples the data hold, `example` makes an input for the shapes of the variables, `keys`
    (key of the initialisation, key of gate noise and dropout), `options` the static and hashable arguments of the
    forward pass for batches ``like`` these. `batches` shuffles and augments by (seed, epoch) alone, so that a run can
    go on in its middle; what is left over comes in another epoch's order; epoch -1 is the one that `options` looks at.
    `in_order` gives all of the data once, as they are; rows that only fill a batch up have labels below 0.
    """

    def count(self, data: Any) -> int: ...
    def example(self, net: nn.Module, data: Any) -> Any: ...
    def keys(self, seed: int) -> Any: ...
    def options(self, net: nn.Module, like: Batches) -> dict[str, Any]: ...
    def batches(self, data: Any, size: int, seed: int, epoch: int) -> Batches: ...
    def in_order(self, data: Any) -> Batches: ...


@dataclasses.dataclass(frozen=True)
class Images:
    """`Source` of an `ImageData`."""

    shift: int = 4  # pixels of random translation
    flip: bool = False  # whether half of the images are mirrored
    first: int = 0  # number of the first epoch in the seeds of order and augmentation
    most: int | None = None  # images of an epoch, drawn anew for each; None: all of them

    def count(self, data: ImageData) -> int:
        return len(data.images) if self.most is None else min(len(data.images), self.most)

    def example(self, net: nn.Module, data: ImageData) -> np.ndarray:
        return to_float(data.images[:1])

    def keys(self, seed: int) -> jax.Array:
        return jax.random.split(jax.random.key(seed))

    def options(self, net: nn.Module, like: Batches) -> dict[str, Any]:
        return {}

    def batches(self, data: ImageData, size: int, seed: int, epoch: int) -> Batches:
        rng = np.random.default_rng((seed, epoch + self.first, 1))
        whole = batches(data, size, seed=(seed, epoch + self.first))
        for batch in itertools.islice(whole, self.count(data) // size):
            yield augment_crop_flip(to_float(batch.images), rng, self.shift, self.flip), batch.labels

    def in_order(self, data: ImageData) -> Batches:
        for batch in batches(data, 250, pad_last=True):
            yield to_float(batch.images), np.where(batch.valid, batch.labels, -1)


def edited(variables: Variables, pattern: str, change: Callable[[Any], Any]) -> Any:
    """The variables with `change` made to every leaf whose names, joined by slashes, match a shell pattern."""
    matches = lambda path: fnmatch.fnmatchcase("/".join(part.key for part in path), pattern)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: change(leaf) if matches(path) else leaf, variables)


def two_stages(given: tuple[int, ...], first: int, second: int) -> tuple[int, ...]:
    """Epochs of two stages: none given: the recipe's own; one: for both; two. ValueError: more than two."""
    if len(given) > 2:
        raise ValueError(f"epochs: got {given}, expected at most two numbers, one for each stage")
    return (first, second) if not given else (given[0], given[-1])


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
      occupancy: epoch (from 0) -> the occupancy of that epoch's training steps, None for the network's own. Return
        equal objects for epochs that shall share a compiled step.
      trains: whether the layer of a name, directly below the network, is trained; None: every one is.
      after_epoch: ``(batch statistics, epoch, examples of the epoch) -> batch statistics``, after every epoch (ManiDP
        sets its thresholds there).
      between: variables that `before` trained -> those that this stage starts from.
      perturb: ``(apply, inputs, labels, key) -> inputs`` before every step, with ``apply(inputs, occupancy=...)`` the
        network as it is now, in evaluation mode; None: the inputs as they are. See `adversarial`.
    """

    epochs: int
    batch_size: int = 64
    optimizer: Optimizer = SGD()
    loss: Loss = mean_cross_entropy
    occupancy: Callable[[int], Occupancy | None] = lambda epoch: None
    source: Source = Images()
    decay_gates: bool = True  # whether weight decay acts on the parameters of the network's ``gate_layers`` too
    trains: Callable[[str], bool] | None = None
    after_epoch: Callable[[Any, int, int], Any] = lambda batch_stats, epoch, count: batch_stats
    measured: bool = False  # whether the cross-entropy before the first epoch is, see `Progress`
    before: Recipe | None = None  # the stage before this one, of the same network
    between: Callable[[Variables], Variables] = lambda variables: variables
    perturb: Callable[[Callable, Any, jax.Array, jax.Array], Any] | None = None

    @property
    def stages(self) -> list[Recipe]:
        """The stages in order, this one last."""
        return [*(self.before.stages if self.before else ()), self]
