"""Training of early-exit networks: static, classifiers only, and all exits at once, as Shallow-Deep Networks do it.

``python -m dyn_jax.training.sdn sdn-resnet56-digits --output FILE`` trains one of the small networks.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dyn_jax import _validate
from dyn_jax.datasets import ImageData, augment_crop_flip, batches, to_float
from dyn_jax.networks.checkpoint import load_variables, save_variables
from dyn_jax.types import Variables

STAGES = ("static", "classifiers", "full")
CAPS = (0.15, 0.30, 0.45, 0.60, 0.75, 0.90)


@dataclasses.dataclass(frozen=True)
class SDNRecipe:
    """How an early-exit network, or its static twin, is trained.

    Attributes:
      stage: ``static``: cross-entropy of the answer. ``classifiers``: the sum of the internal classifiers'
        cross-entropies, the trunk frozen (its batch norm still sees batch statistics and moves its running ones, and
        dropout is on, as released). ``full``: final exit plus `exit_weights` times the internal ones.
      epochs, batch_size: of the whole run; epochs count from 1.
      learning_rate, milestones, gamma: the rate is multiplied by `gamma` from each milestone epoch on.
      momentum: of SGD; None is Adam.
      weight_decay: L2 in the gradient of every trained parameter, batch norm, biases and alpha included.
      shift, flip: pixels of random translation of the training images; whether half of them are mirrored.
    """

    stage: str = "full"
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 0.1
    milestones: tuple[int, ...] = (35, 60, 85)
    gamma: float = 0.1
    momentum: float | None = 0.9
    weight_decay: float = 1e-4
    shift: int = 4
    flip: bool = True

    def rate(self, epoch: int) -> float:
        """Learning rate of `epoch` (from 1)."""
        return self.learning_rate * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


def published(stage: str, variant: str, **fields: Any) -> SDNRecipe:
    """The authors' recipe for CIFAR.

    Args:
      stage: ``static``, ``classifiers`` (Adam, 25 epochs) or ``full`` (SGD, 100 epochs).
      variant: ``vgg16`` (weight decay 5e-4), ``resnet56`` or ``mobilenet`` (1e-4).
      **fields: of `SDNRecipe` to change; ``shift=8`` for Tiny ImageNet (whose colour jitter is left out here).

    Raises:
      ValueError: unknown stage or variant.

    Source: Kaya, Hong and Dumitras 2019, section 5; released code. As published, full training stops with an error (an
    attribute that only classifier training sets); this is what it was to do.
    """
    _validate.choice("stage", stage, STAGES)
    _validate.choice("variant", variant, ("vgg16", "resnet56", "mobilenet"))
    fields = {"weight_decay": 5e-4 if variant == "vgg16" else 1e-4, **fields}
    if stage == "classifiers":
        fields = {"epochs": 25, "learning_rate": 1e-3, "milestones": (15,), "momentum": None, **fields}
    return SDNRecipe(stage=stage, **fields)


def exit_weights(epoch: int, epochs: int, classifiers: int) -> np.ndarray:
    """``min(T_i, 0.01 + T_i epoch / epochs)`` with T = .15, .30, ..., .90, for epochs counted from 1.

    Returns:
      [classifiers], the weights of the internal classifiers' losses in full training.

    Raises:
      ValueError: more than six classifiers.
    """
    if classifiers > len(CAPS):
        raise ValueError(f"classifiers: got {classifiers}, expected at most {len(CAPS)}")
    caps = np.asarray(CAPS[:classifiers], np.float32)
    return np.minimum(caps, np.float32(0.01) + caps * np.float32(epoch / epochs))


def with_classifiers(net: nn.Module, static: Variables, seed: int = 0) -> dict[str, Any]:
    """Variables of the early-exit network `net` with the trunk of its trained static twin and new classifiers.

    Raises:
      ValueError: `static` lacks a leaf of the trunk, or has another shape.
    """
    images = jnp.zeros((1, net.image_size, net.image_size, 3))
    fresh = jax.jit(net.init)(jax.random.key(seed), images)

    def pick(path: tuple, leaf: jax.Array) -> np.ndarray:
        if _is_classifier(path[1].key):
            return np.asarray(leaf)
        node = static
        for part in path:
            node = node.get(part.key) if hasattr(node, "get") else None
        if node is None or np.shape(node) != leaf.shape:
            raise ValueError(f"static: got {np.shape(node)} at {jax.tree_util.keystr(path)}, expected {leaf.shape}")
        return np.asarray(node)

    return jax.tree_util.tree_map_with_path(pick, fresh)


def fit(
    net: nn.Module,
    data: ImageData,
    recipe: SDNRecipe,
    *,
    seed: int = 0,
    initial: Variables | None = None,
    checkpoint: str | os.PathLike | None = None,
    report: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Trains `net`, from scratch, from `initial`, or from where a checkpoint stopped.

    Args:
      net: a network of `dyn_jax.networks.sdn_vgg`, `sdn_resnet` or `sdn_mobilenet`.
      data: training images and labels.
      recipe: see `SDNRecipe`.
      seed: of everything random: epoch e depends on (seed, e) only, so a resumed run gives the same weights.
      initial: variables to start from; ``classifiers`` needs them (`with_classifiers`).
      checkpoint: a file written after every epoch; if it exists, training goes on from there.
      report: called with (epoch, mean loss).

    Returns:
      Variables of numpy arrays.

    Raises:
      ValueError: unknown stage; a network without exits and a stage that trains them; no `initial` for ``classifiers``;
        fewer examples than a batch; a checkpoint of another seed or number of epochs.
      FloatingPointError: the loss of an epoch is not finite.
    """
    _validate.choice("stage", recipe.stage, STAGES)
    if recipe.stage != "static" and not net.exit_after:
        raise ValueError(f"net: got one without early exits, expected some for the stage {recipe.stage!r}")
    if recipe.stage == "classifiers" and initial is None:
        raise ValueError("initial: got None, expected the trained trunk for the stage 'classifiers'")
    if len(data.images) < recipe.batch_size:
        raise ValueError(f"data: got {len(data.images)} examples, expected at least a batch of {recipe.batch_size}")
    images = to_float(data.images)
    init_key, noise_key = jax.random.split(jax.random.key(seed))
    variables = jax.jit(net.init)(init_key, images[:1]) if initial is None else initial
    step, chain = _step(net, recipe.stage, recipe.weight_decay, recipe.momentum)
    state = (variables["params"], variables["batch_stats"], chain.init(variables["params"]))
    done = 0
    run = np.asarray([seed, recipe.epochs], np.int64)
    if checkpoint is not None and os.path.exists(checkpoint):
        state, done = _load(checkpoint, state, run)

    for epoch in range(done + 1, recipe.epochs + 1):
        rng = np.random.default_rng((seed, epoch, 1))
        rate, weights = jnp.float32(recipe.rate(epoch)), jnp.asarray(_loss_weights(net, recipe, epoch))
        values = []
        for number, batch in enumerate(batches(data._replace(images=images), recipe.batch_size, seed=(seed, epoch))):
            if len(batch.images) < recipe.batch_size:
                break  # one shape; the left-over examples come in another epoch's order
            x = augment_crop_flip(batch.images, rng, pad=recipe.shift, flip=recipe.flip)
            key = jax.random.fold_in(jax.random.fold_in(noise_key, epoch), number)
            state, value = step(state, x, batch.labels, key, rate, weights)
            values.append(value)
        mean = float(np.mean(jax.device_get(values)))
        if not np.isfinite(mean):
            raise FloatingPointError(f"fit: the loss of epoch {epoch} is {mean}; lower the learning rate")
        if checkpoint is not None:
            _save(checkpoint, state, run, epoch)
        if report is not None:
            report(epoch, mean)
    return jax.tree.map(np.asarray, {"params": state[0], "batch_stats": state[1]})


@functools.lru_cache(maxsize=16)
def _step(
    net: nn.Module, stage: str, weight_decay: float, momentum: float | None
) -> tuple[Callable, optax.GradientTransformation]:
    """(jitted training step, optax chain without the learning rate); kept, so that a second seed compiles nothing."""
    direction = optax.scale_by_adam() if momentum is None else optax.trace(momentum)
    chain = optax.chain(optax.add_decayed_weights(weight_decay), direction)

    @jax.jit
    def step(state: tuple, x: jax.Array, y: jax.Array, key: jax.Array, rate: jax.Array, weights: jax.Array) -> tuple:
        params, batch_stats, chain_state = state

        def loss(params: Any) -> tuple[jax.Array, Any]:
            output, updated = net.apply(
                {"params": params, "batch_stats": batch_stats},
                x,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            exits = output.logits[None] if output.trace.exits is None else output.trace.exits
            labels = jnp.broadcast_to(y[None, :], exits.shape[:2])
            each = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(exits, labels), axis=1)
            return jnp.sum(weights * each), updated["batch_stats"]

        (value, batch_stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, chain_state = chain.update(gradient, chain_state, params)
        updates = {
            name: jax.tree.map(lambda u, name=name: -rate * u if _is_trained(name, stage) else 0 * u, layer)
            for name, layer in updates.items()
        }
        return (optax.apply_updates(params, updates), batch_stats, chain_state), value

    return step, chain


def _is_classifier(layer: str) -> bool:
    return layer.startswith("layers_") and layer.endswith("_output")


def _is_trained(layer: str, stage: str) -> bool:
    return stage != "classifiers" or _is_classifier(layer)


def _loss_weights(net: nn.Module, recipe: SDNRecipe, epoch: int) -> np.ndarray:
    """[exit], the weight of every exit's cross-entropy, the final one last."""
    classifiers = len(net.exit_after)
    if recipe.stage == "full":
        return np.append(exit_weights(epoch, recipe.epochs, classifiers), np.float32(1))
    inner = 1.0 if recipe.stage == "classifiers" else 0.0
    return np.append(np.full(classifiers, inner, np.float32), np.float32(1.0 - inner))


def _save(path: str | os.PathLike, state: tuple, run: np.ndarray, epoch: int) -> None:
    optimizer = flax.serialization.to_state_dict(jax.tree.map(np.asarray, state[2]))
    content = {"params": state[0], "batch_stats": state[1], "optimizer": optimizer}
    save_variables(path, {**content, "run": {"of": run, "epoch": np.asarray(epoch)}})


def _load(path: str | os.PathLike, like: tuple, run: np.ndarray) -> tuple[tuple, int]:
    content = load_variables(path)
    if "run" not in content or not np.array_equal(content["run"]["of"], run):
        got = content.get("run", {}).get("of")
        raise ValueError(f"checkpoint: {os.fspath(path)!r} is of (seed, epochs) {got}, expected {run}")
    optimizer = flax.serialization.from_state_dict(like[2], content["optimizer"])
    return (content["params"], content["batch_stats"], optimizer), int(content["run"]["epoch"])


def digits_recipe(stage: str = "full", epochs: int = 20) -> SDNRecipe:
    """The small networks on handwritten digits: the published form, shorter, without mirroring."""
    milestones = tuple(max(1, round(epochs * share)) for share in (0.5, 0.8))
    return SDNRecipe(stage, epochs, batch_size=64, learning_rate=0.05, milestones=milestones, shift=2, flip=False)


def train_digits(name: str, *, seed: int = 0, epochs: int = 20, report: Callable | None = None) -> dict[str, Any]:
    """Trains ``sdn-*-digits`` (all exits at once) or ``cnn-*-digits`` from scratch; under a minute on two cores.

    Raises:
      ValueError: unknown name.
    """
    from dyn_jax import networks
    from dyn_jax.datasets import digits

    variants = [f"{family}-{v}-digits" for family in ("sdn", "cnn") for v in ("vgg16", "resnet56", "mobilenet")]
    _validate.choice("network", name, variants)
    recipe = digits_recipe("full" if name.startswith("sdn") else "static", epochs)
    return fit(networks.create(name), digits("train"), recipe, seed=seed, report=report)


def _main() -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m dyn_jax.training.sdn")
    parser.add_argument("network", help="sdn-{vgg16,resnet56,mobilenet}-digits or its static twin cnn-*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", required=True, metavar="FILE", help="variables, flax msgpack")
    arguments = parser.parse_args()
    variables = train_digits(
        arguments.network,
        seed=arguments.seed,
        epochs=arguments.epochs,
        report=lambda epoch, loss: print(f"epoch {epoch}: loss {loss:.4f}", flush=True),
    )
    print(f"{arguments.output}: {save_variables(arguments.output, variables)} bytes")


if __name__ == "__main__":
    _main()
