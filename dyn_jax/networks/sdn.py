"""Shallow-Deep Networks (Kaya, Hong and Dumitras 2019): a trunk with internal classifiers, left at the first sure one.

What the three trunks (`sdn_vgg`, `sdn_resnet`, `sdn_mobilenet`) share: the internal classifier, and how the exits'
logits become an `Output` whose units are the stages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from dyn_jax import _validate, macs
from dyn_jax.gates.early_exit import answer, exit_scores, exit_weights
from dyn_jax.nn import DIGITS_MEAN_STD, IMAGENET_MEAN_STD
from dyn_jax.nn.normalization import MeanStd
from dyn_jax.occupancy import hard, stochastic
from dyn_jax.types import Occupancy, Output, Trace, UnitTrace

CIFAR100_MEAN_STD: MeanStd = ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))
TINY_IMAGENET_MEAN_STD: MeanStd = ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))

# The authors normalise CIFAR-10 with ImageNet's statistics.
DATASETS: dict[str, dict] = {
    "cifar10": {"num_classes": 10, "image_size": 32, "normalization": IMAGENET_MEAN_STD},
    "cifar100": {"num_classes": 100, "image_size": 32, "normalization": CIFAR100_MEAN_STD},
    "tinyimagenet": {"num_classes": 200, "image_size": 64, "normalization": TINY_IMAGENET_MEAN_STD},
    "digits": {"num_classes": 10, "image_size": 32, "normalization": DIGITS_MEAN_STD},
}

# U(-1/sqrt(in), 1/sqrt(in)) and N(0, 0.01): PyTorch's default, and the VGG's.
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
small_init = nn.initializers.normal(0.01)


class Linear(nn.Module):
    """``x @ kernel + bias`` with a choice of initialisation; the bias starts at 0."""

    features: int
    init: Callable = torch_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias)
        y = x @ kernel
        return y + jnp.broadcast_to(bias, y.shape)


def windows(x: jax.Array, size: int) -> jax.Array:
    """[batch, h, w, c] -> [batch, h // size, size, w // size, size, c]; rows and columns left over are dropped."""
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size]
    return x.reshape(batch, rows, size, columns, size, channels)


def max_pool(x: jax.Array, size: int) -> jax.Array:
    """``MaxPool2d(size)``: windows side by side.

    Of equal values the first in row-major order takes the gradient, as in PyTorch. Equal positive values are common:
    deep ReLU maps are zero over whole regions, and what is computed from them is constant there.
    """
    cells = windows(x, size)
    columns = functools.reduce(_first_largest, [cells[:, :, :, :, j] for j in range(size)])
    return functools.reduce(_first_largest, [columns[:, :, i] for i in range(size)])


def _first_largest(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(a >= b, a, b)


def mixed_pool(x: jax.Array, alpha: jax.Array, size: int) -> jax.Array:
    """``alpha * MaxPool(size) + (1 - alpha) * AvgPool(size)``, windows side by side.

    Source: Lee, Gallagher and Tu 2016, eq. 3; one alpha for the whole map, neither clipped nor squashed.
    """
    mix = alpha.astype(x.dtype).reshape(1, 1, 1, 1)
    return mix * max_pool(x, size) + (1 - mix) * jnp.mean(windows(x, size), axis=(2, 4))


def flatten(x: jax.Array) -> jax.Array:
    """[batch, h, w, c] -> [batch, c * h * w] in PyTorch's order (channel, row, column)."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


class InternalClassifier(nn.Module):
    """Mixed pooling to 4 x 4, then one linear layer: [batch, S, S, channel] -> logits [batch, class].

    Maps smaller than 4 x 4 are not pooled and have no ``alpha``; on 4 x 4 maps pooling is the identity and ``alpha``
    has no effect. Source: Kaya, Hong and Dumitras 2019, section 4.1 ("feature reduction").
    """

    num_classes: int
    init: Callable = torch_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[1]
        if size >= 4:
            alpha = self.param("alpha", nn.initializers.uniform(1.0), (1,))
            x = mixed_pool(x, alpha, size // 4)
        return Linear(self.num_classes, self.init, name="linear")(flatten(x))

    def macs(self, size: int, channels: int) -> int:
        """Multiply-adds of one example with a `size` x `size` map; pooling is free."""
        pooled = size // (size // 4) if size >= 4 else size
        return macs.dense(pooled * pooled * channels, self.num_classes)


def early_exit_output(
    exits: Sequence[jax.Array],
    stage_macs: Sequence[int],
    *,
    occupancy: Occupancy | None,
    threshold: jax.typing.ArrayLike,
    rule: str,
    how: str,
    make_key: Callable[[], jax.Array],
) -> Output:
    """Logits of all exits -> `Output` with one unit for every stage after the first.

    ``logits = sum_i e_i logits_i`` (see `dyn_jax.gates.early_exit.exit_weights`); with hard occupancy that is the
    deployed network. Every stage is evaluated; what the exits save is `dyn_jax.metrics.executed_macs`.

    Args:
      exits: logits [batch, class] in depth order, the final ones last.
      stage_macs: multiply-adds of every stage with its exit.
      occupancy: score [batch] -> value; default ``hard()``.
      threshold, rule: see `dyn_jax.gates.early_exit.exit_scores`.
      how: ``most_confident`` or ``last``, who answers when no exit has fired.
      make_key: a fresh key, for a `Stochastic` occupancy.

    Returns:
      A static network's `Output` where there is only one exit.
    """
    if len(exits) == 1:
        return Output(exits[0], Trace((), stage_macs[0]))
    occupancy = hard() if occupancy is None else occupancy
    units = []
    for number, score in enumerate(exit_scores(exits[:-1], threshold, rule), start=1):
        o = stochastic.apply(occupancy, score, make_key)
        units.append(UnitTrace(score, o, stage_macs[number], name=f"stage{number}"))
    weights = exit_weights([unit.occupancy for unit in units], units[0].occupancy)
    every = jnp.concatenate([logits[None] for logits in exits])
    return Output(answer(every, weights, how), Trace(tuple(units), stage_macs[0], every))


def check_exits(exit_after: tuple[int, ...], layers: int) -> None:
    """Raises ValueError unless `exit_after` are ascending layer numbers in [0, `layers`)."""
    if list(exit_after) != sorted(set(exit_after)) or any(not 0 <= i < layers for i in exit_after):
        raise ValueError(f"exit_after: got {exit_after}, expected ascending layer numbers in [0, {layers - 1}]")


def check_size(images: jax.Array, image_size: int) -> jax.Array:
    """Checks images [batch, size, size, 3]: the classifiers' weights fit one size only."""
    images = _validate.images("images", images, 3)
    if images.shape[1:3] != (image_size, image_size):
        raise ValueError(f"images: got {images.shape[1]}x{images.shape[2]}, expected {image_size}x{image_size}")
    return images
