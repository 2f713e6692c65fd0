"""Static residual networks: CIFAR form (He et al. 2016, section 4.2) and ImageNet form (section 4.1)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax

from dyn_jax import _validate, macs
from dyn_jax.networks.blocks import block_plan, cifar_depths, imagenet_fields, runs, static_block
from dyn_jax.nn import IMAGENET_MEAN_STD, Dense, add_relu, global_mean, inputs, stem
from dyn_jax.nn.normalization import MeanStd
from dyn_jax.nn.repeat import scanned
from dyn_jax.nn.residual import branch_macs
from dyn_jax.types import Occupancy, Output, Trace


class ResNet(nn.Module):
    """The static network: every unit always runs, the trace has no units.

    Attributes:
      depths: blocks per stage; the first block of every stage after the first has stride 2.
      widths: channels per stage (before the bottleneck's expansion by 4).
      block: ``basic`` or ``bottleneck``.
      stem: ``cifar`` or ``imagenet``.
      shortcut: ``A`` (zero-padded identity) or ``B`` (1x1 projection) where the shape changes.
      normalization: (mean, std) per channel, or None where the images come normalised.
      winograd: faster 3x3 convolutions on CPU at a larger rounding error, see `dyn_jax.nn.conv2d`.
      scan_from: runs of at least so many equal blocks, 2 or more, are one loop, compiled once (not in training); None:
        none is. The loop's steps are slower, so that only a very deep network has one by default;
        `python -m benchmarks.compile_time` measures both.
      remat: the loops of `scan_from` keep nothing inside a block for the backward pass, see `dyn_jax.nn.repeat`.
    """

    depths: tuple[int, ...] = (5, 5, 5)
    widths: tuple[int, ...] = (16, 32, 64)
    block: str = "basic"
    stem: str = "cifar"
    shortcut: str = "A"
    num_classes: int = 10
    normalization: MeanStd | None = IMAGENET_MEAN_STD
    winograd: bool = False
    scan_from: int | None = 64
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False) -> Output:
        """Images [batch, height, width, 3] in [0, 1] -> `Output`.

        Args:
          images: float NHWC, any size that the strides divide.
          occupancy: score -> value; accepted, and without effect here.
          train: batch statistics instead of running ones (make ``batch_stats`` mutable).

        Raises:
          ValueError, TypeError: wrong rank, channels, dtype or size of the images; an occupancy that changes shape;
            fields that are out of range or unknown.
        """
        del occupancy
        x = inputs(images, self.normalization)
        _validate.choice("shortcut", self.shortcut, ("A", "B"))
        x, cost = stem(x, self.widths[0], self.stem, train)
        alone = self.scan_from is None or train or self.is_initializing()
        least = math.inf if alone else _validate.positive_int("scan_from", self.scan_from, 2)
        for run in runs(block_plan(self.depths, self.widths, self.block, self.widths[0])):
            if len(run) < least:
                for spec in run:
                    identity, y, work = static_block(x, spec, spec.name, train, self.shortcut, self.winograd)
                    x, cost = add_relu(identity, y), cost + work
                continue
            branch = run[0].branch(self.winograd, parent=None)
            step = lambda x, v, branch=branch: (add_relu(x, branch.apply(v["branch"], x)), None)
            x, _ = scanned(self, [{"branch": spec.name} for spec in run], step, x, self.remat)
            cost += len(run) * branch_macs(branch, run[0].in_features, x.shape[1] * x.shape[2])
        logits = Dense(self.num_classes, name="fc")(global_mean(x))
        return Output(logits, Trace((), cost + macs.dense(x.shape[-1], self.num_classes)))


def cifar(depth: int, **fields: Any) -> ResNet:
    """ResNet-`depth` for 32x32 images, ``depth = 6 n + 2`` (20, 32, 44, 56, 110, ...); any field can be given.

    The default normalisation is the one that the published option-A weights were trained with (ImageNet's).
    """
    return ResNet(depths=cifar_depths(depth), **fields)


def imagenet(depth: int, **fields: Any) -> ResNet:
    """ResNet-18, 34 (basic), 50, 101 or 152 (bottleneck) with projection shortcuts; any field can be given."""
    return ResNet(**{**imagenet_fields(depth), "shortcut": "B", **fields})
