"""One jitted training step and the loop over epochs: SGD with momentum and a cosine schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dyn_jax import metrics
from dyn_jax.datasets import Batch, ImageData, augment_crop_flip, batches, to_float
from dyn_jax.types import Occupancy, Output, Variables


class Progress(NamedTuple):
    """Where training is: the epoch (from 0), and the mean cross-entropy of the epoch before.

    Before the first epoch it is that of the untrained network on the training images, in evaluation mode.
    """

    epoch: jax.Array
    cross_entropy: jax.Array


Loss = Callable[[Output, jax.Array, Progress], jax.Array]


def mean_cross_entropy(output: Output, labels: jax.Array, progress: Progress | None = None) -> jax.Array:
    """Mean over the batch; the progress has no part in it."""
    del progress
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output.logits, labels))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
      epochs, batch_size: of the whole run.
      learning_rate: at the start; falls to 0 as a cosine.
      decay_gates: whether weight decay acts on the gates' parameters too.
      loss: ``loss(output, labels, progress) -> scalar``.
      occupancy: epoch -> the occupancy of that epoch's training steps, None for the network's own. Return equal
        objects for epochs that shall share a compiled step.
      shift: pixels of random translation of the training images.
      flip: whether half of the training images are mirrored.
      after_epoch: ``(batch statistics, epoch, training images in the epoch) -> batch statistics``, between epochs
        (ManiDP sets its thresholds there).
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_gates: bool = True
    loss: Loss = mean_cross_entropy
    occupancy: Callable[[int], Occupancy | None] = lambda epoch: None
    shift: int = 4
    flip: bool = False
    after_epoch: Callable[[Any, int, int], Any] = lambda batch_stats, epoch, count: batch_stats


def fit(
    net: nn.Module,
    data: ImageData,
    recipe: Recipe,
    *,
    seed: int = 0,
    initial: Variables | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Variables:
    """Trains `net` from `initial`, or from scratch.

    Args:
      net: a network of `dyn_jax.networks`.
      data: training images and labels.
      recipe: see `Recipe`.
      seed: of initialisation, order, augmentation and gate noise.
      initial: variables to start from (the second stage of a two-stage recipe).
      report: called with (epoch, mean loss) after each epoch.

    Returns:
      Variables of numpy arrays.

    Raises:
      FloatingPointError: the loss of an epoch is not finite.
    """
    images = to_float(data.images)
    init_key, gate_key = jax.random.split(jax.random.key(seed))
    variables = jax.jit(net.init)(init_key, images[:1]) if initial is None else initial
    per_epoch = len(images) // recipe.batch_size
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, recipe.epochs * per_epoch)
    optimizer = optax.chain(
        optax.add_decayed_weights(recipe.weight_decay, mask=lambda params: _decayed(params, recipe.decay_gates)),
        optax.sgd(schedule, recipe.momentum, nesterov=True),
    )

    @jax.jit
    def step(state: tuple, x: jax.Array, y: jax.Array, key: jax.Array, progress: Progress, occupancy: Any) -> tuple:
        params, batch_stats, opt_state = state

        def loss(params: Any) -> tuple[jax.Array, tuple]:
            output, updated = net.apply(
                {"params": params, "batch_stats": batch_stats},
                x,
                occupancy=occupancy,
                train=True,
                rngs={"gate": key},
                mutable=["batch_stats"],
            )
            return recipe.loss(output, y, progress), (updated["batch_stats"], mean_cross_entropy(output, y))

        (value, (batch_stats, entropy)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), value, entropy

    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    evaluated = jax.jit(lambda v, x, y: mean_cross_entropy(net.apply(v, x), y))
    entropy = np.mean([evaluated(variables, b.images, b.labels) for b in _whole(data, images, recipe, (seed, 0))])
    for epoch in range(recipe.epochs):
        rng = np.random.default_rng((seed, epoch, 1))
        values, entropies = [], []
        for number, batch in enumerate(_whole(data, images, recipe, (seed, epoch))):
            x = augment_crop_flip(batch.images, rng, pad=recipe.shift, flip=recipe.flip)
            key = jax.random.fold_in(gate_key, epoch * per_epoch + number)
            progress = Progress(jnp.float32(epoch), jnp.float32(entropy))
            state, value, own = step(state, x, batch.labels, key, progress, recipe.occupancy(epoch))
            values.append(value)
            entropies.append(own)
        entropy = np.mean(jax.device_get(entropies))
        state = (state[0], recipe.after_epoch(state[1], epoch, per_epoch * recipe.batch_size), state[2])
        mean = float(np.mean(jax.device_get(values)))
        if not np.isfinite(mean):
            raise FloatingPointError(f"fit: the loss of epoch {epoch} is {mean}; lower the learning rate")
        if report is not None:
            report(epoch, mean)
    return jax.tree.map(np.asarray, {"params": state[0], "batch_stats": state[1]})


def _whole(data: ImageData, images: np.ndarray, recipe: Recipe, seed: tuple[int, int]) -> Iterator[Batch]:
    """Batches of one shape; the left-over examples come in another epoch's order."""
    every = batches(data._replace(images=images), recipe.batch_size, seed=seed)
    return (batch for batch in every if len(batch.images) == recipe.batch_size)


GATE_LAYERS = ("gate", "control", "masker", "mb1", "mb2")


def _decayed(params: Any, decay_gates: bool) -> Any:
    """True for the leaves that weight decay acts on."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: decay_gates or not any(name in part.key for name in GATE_LAYERS for part in path), params
    )


def evaluate(net: nn.Module, variables: Variables, data: ImageData, batch_size: int = 250) -> dict[str, Any]:
    """Clean accuracy, occupancy rates and executed multiply-adds of the deployed (hard) network.

    Returns:
      ``accuracy``; for an adaptive network also ``occupancy_rate`` [unit], ``varying`` [unit] (standard deviation
      between examples of an example's share of elements that are on) and ``macs_share`` (executed of dense).
    """
    apply = jax.jit(net.apply)
    parts = [
        (apply(variables, to_float(b.images)), b.labels, b.valid) for b in batches(data, batch_size, pad_last=True)
    ]
    correct = np.concatenate([(np.argmax(o.logits, -1) == y)[v] for o, y, v in parts])
    report: dict[str, Any] = {"accuracy": float(correct.mean())}
    if parts[0][0].trace.units:
        shares = np.concatenate([np.asarray(_example_shares(o))[v] for o, _, v in parts])
        executed = np.concatenate([np.asarray(metrics.executed_macs(o.trace))[v] for o, _, v in parts])
        report["occupancy_rate"] = shares.mean(0).round(4).tolist()
        report["varying"] = shares.std(0).round(4).tolist()
        report["macs_share"] = float(executed.mean() / metrics.dense_macs(parts[0][0].trace))
    return report


def _example_shares(output: Output) -> jax.Array:
    """[batch, unit], share of a unit's elements that are on."""
    units = output.trace.units
    return jnp.stack([u.occupancy.reshape(u.occupancy.shape[0], -1).mean(1) for u in units], axis=1)
