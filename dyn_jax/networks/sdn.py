"""Shallow-Deep Networks (Kaya, Hong and Dumitras 2019): a trunk with internal classifiers, left at the first sure one.

`SDN` is the network; its trunk is a value, one a file (`sdn_vgg`, `sdn_resnet`, `sdn_mobilenet`). Another family of
stages is another `Trunk`: its layers, and where they differ its exits and its head.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import _validate, macs
from dyn_jax.gates import early_exit
from dyn_jax.nn import Dense, execute, flatten, global_mean, mixed_pool
from dyn_jax.nn.normalization import DIGITS_MEAN_STD, IMAGENET_MEAN_STD, MeanStd, inputs
from dyn_jax.nn.parameter import parameter
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

# N(0, 0.01), the VGG's; U(-1/sqrt(in), 1/sqrt(in)), PyTorch's default, which narrow networks need to start learning.
LINEAR_INITS = {
    "small": nn.initializers.normal(0.01),
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


class Layer(NamedTuple):
    """What a trunk's layer hands on.

    Attributes:
      features: [batch, height, width, channel], for the next layer.
      seen: the same shape, what an exit behind this layer reads.
      macs: multiply-adds of one example, since the layer before.
    """

    features: jax.Array
    seen: jax.Array
    macs: int


@dataclasses.dataclass(frozen=True)
class Trunk(abc.ABC):
    """A network of layers, without the exits; its methods run inside `SDN` and make their layers there.

    Those here are the Shallow-Deep Networks': a family replaces what differs, and always writes `layers`.
    """

    @abc.abstractmethod
    def layers(self, x: jax.Array, train: bool) -> Iterator[Layer]:
        """Normalised images [batch, size, size, 3] -> the layers in order; an exit may stand behind each of them."""

    def exit(self, x: jax.Array, layer: int, num_classes: int, init: Any, train: bool) -> tuple[jax.Array, int]:
        """The exit behind a layer: its logits [batch, class] and the multiply-adds of one example."""
        classifier = InternalClassifier(num_classes, init, name=f"layers_{layer}_output")
        return classifier(x), classifier.macs(x.shape[1], x.shape[-1])

    def head(self, x: jax.Array, num_classes: int, init: Any, train: bool) -> tuple[jax.Array, int]:
        """What follows the last layer, as `exit`: the mean over the map, then one linear layer."""
        logits = Dense(num_classes, init, name="fc")(global_mean(x))
        return logits, macs.dense(x.shape[-1], num_classes)


class InternalClassifier(nn.Module):
    """Mixed pooling to 4 x 4, then one linear layer: [batch, S, S, channel] -> logits [batch, class].

    Maps smaller than 4 x 4 are not pooled and have no ``alpha``; on 4 x 4 maps pooling is the identity and ``alpha``
    has no effect. Source: Kaya, Hong and Dumitras 2019, section 4.1 ("feature reduction").
    """

    num_classes: int
    kernel_init: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[1]
        if size >= 4:
            alpha = parameter(self, "alpha", nn.initializers.uniform(1.0), (1,))
            x = mixed_pool(x, alpha, size // 4)
        return Dense(self.num_classes, self.kernel_init, name="linear")(flatten(x))

    def macs(self, size: int, channels: int) -> int:
        """Multiply-adds of one example with a `size` x `size` map; pooling is free."""
        pooled = size // (size // 4) if size >= 4 else size
        return macs.dense(pooled * pooled * channels, self.num_classes)


class SDN(nn.Module):
    """A trunk with exits; stage i, up to exit i, is a unit that runs while no exit before has fired.

    ``logits = sum_i e_i answer_i`` (see `dyn_jax.gates.early_exit.exit_weights`); with hard occupancy that is the
    deployed network. Every stage is evaluated, unless `execution` is ``conditional``: then a stage that no example
    reaches is not, and its logits and scores in the trace are those of zeros. What the exits save is
    `dyn_jax.metrics.executed_macs`.

    Attributes:
      trunk: what the stages are made of, e.g. ``sdn_vgg.VggTrunk()``.
      exit_after: layers (from 0) that an exit follows; () is the static network.
      threshold: when the network leaves, one number or one for every exit but the last.
      rule: ``confidence``, ``entropy``, ``patience``, or a `dyn_jax.gates.early_exit.Rule`.
      answer: who answers when no exit has fired, ``most_confident`` of all or the ``last``; or an
        `dyn_jax.gates.early_exit.Answer`.
      linear_init: ``torch`` or ``small``, see LINEAR_INITS.
      image_size: height and width of the images: the exits' weights fit one size only.
      normalization, execution: as in `ResNet` and `DynConv`.
    """

    trunk: Trunk
    exit_after: tuple[int, ...] = ()
    threshold: float | tuple[float, ...] = 0.8
    rule: str | early_exit.Rule = "confidence"
    answer: str | early_exit.Answer = "most_confident"
    linear_init: str = "torch"
    num_classes: int = 10
    image_size: int = 32
    normalization: MeanStd | None = IMAGENET_MEAN_STD
    execution: str = "dense"

    @nn.nowrap
    def clone(self, **fields: Any) -> SDN:
        """A copy with other fields, of the network or of its trunk."""
        own = {field.name for field in dataclasses.fields(self.trunk)} & set(fields)
        if own:
            trunk = fields.get("trunk", self.trunk)
            fields["trunk"] = dataclasses.replace(trunk, **{name: fields.pop(name) for name in own})
        return super().clone(**fields)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        occupancy: Occupancy | None = None,
        train: bool = False,
        threshold: jax.typing.ArrayLike | tuple | None = None,
    ) -> Output:
        """Images as in `ResNet`, of `image_size` -> `Output`: units are the stages after the first, scores [batch].

        Default occupancy is ``hard()``; `train` turns the trunk's dropout on, too.

        Args:
          threshold: instead of the field; may be traced.

        Raises:
          ValueError, TypeError: see `ResNet`; sizes that make no trunk; thresholds out of range or of another number;
            an exit after a layer that does not exist.
        """
        x = inputs(images, self.normalization, self.image_size)
        init = LINEAR_INITS[_validate.choice("linear_init", self.linear_init, LINEAR_INITS)]
        occupancy = hard() if occupancy is None else occupancy
        thresholds = jnp.zeros(0)
        if self.exit_after:
            threshold = self.threshold if threshold is None else threshold
            thresholds = early_exit.check_thresholds(threshold, self.rule, len(self.exit_after))
        skip = execute.skips(self, occupancy, train)
        layers, stage_macs, number = enumerate(self.trunk.layers(x, train)), [], 0

        def classified(x: jax.Array, *passed: jax.Array) -> jax.Array:
            """[batch, exit, class]: all exits that `passed` lacks, by the layers that are left."""
            nonlocal number
            exits, cost = [], 0
            for number, layer in layers:
                x, cost = layer.features, cost + layer.macs
                if number in self.exit_after:
                    logits, work = self.trunk.exit(layer.seen, number, self.num_classes, init, train)
                    exits.append(logits)
                    stage_macs.append(cost + work)
                    cost = 0
                    if skip:
                        return self._unless_fired(classified, x, (*passed, logits), thresholds)
            if tuple(self.exit_after) != tuple(i for i in range(number + 1) if i in self.exit_after):
                raise ValueError(
                    f"exit_after: got {self.exit_after}, expected ascending layer numbers in [0, {number}]"
                )
            logits, work = self.trunk.head(x, self.num_classes, init, train)
            stage_macs.append(cost + work)
            return early_exit.columns([*exits, logits])

        every = classified(x)
        if not self.exit_after:
            return Output(every[:, 0], Trace((), stage_macs[0]))
        scores = early_exit.exit_scores(every[:, :-1], thresholds, self.rule)
        units = []
        for i, score in enumerate(scores.T, start=1):
            o = stochastic.apply(occupancy, score, lambda: self.make_rng("gate"))
            units.append(UnitTrace(score, o, stage_macs[i], name=f"stage{i}"))
        weights = early_exit.exit_weights(early_exit.columns(unit.occupancy for unit in units))
        answers = early_exit.answers(every, thresholds, self.answer)
        return Output(jnp.sum(weights[:, :, None] * answers, axis=1), Trace(tuple(units), stage_macs[0], every))

    def _unless_fired(
        self, classified: Callable[..., jax.Array], x: jax.Array, passed: tuple[jax.Array, ...], thresholds: jax.Array
    ) -> jax.Array:
        """[batch, exit, class]: the last of `passed`, then what is behind it; zeros where every example has left."""
        behind = len(thresholds) + 1 - len(passed)
        zeros = jnp.zeros((len(x), behind, self.num_classes), passed[-1].dtype)
        known = jnp.concatenate([early_exit.columns(passed), zeros], axis=1)[:, :-1]
        runs = early_exit.exit_scores(known, thresholds, self.rule)[:, len(passed) - 1] >= 0
        rest = execute.unit(True, self, runs, lambda x: classified(x, *passed), zeros, x)
        return jnp.concatenate([passed[-1][:, None], rest], axis=1)


def build(dataset: str, trunk: Trunk, **fields: Any) -> SDN:
    """`SDN` of `trunk` for a data set of DATASETS (ValueError: another), with other fields of network or trunk."""
    _validate.choice("dataset", dataset, DATASETS)
    return SDN(trunk, **DATASETS[dataset]).clone(**fields)
