"""ResNet-56 (He et al. 2016, section 4.2, projection shortcuts) with internal classifiers."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from dyn_jax import macs
from dyn_jax.networks.blocks import block_plan
from dyn_jax.networks.sdn import (
    DATASETS,
    InternalClassifier,
    Linear,
    check_exits,
    check_size,
    early_exit_output,
    small_init,
    torch_init,
)
from dyn_jax.nn import IMAGENET_MEAN_STD, BatchNorm, Conv, Projection, global_mean, normalize
from dyn_jax.nn.layers import add_relu, relu
from dyn_jax.nn.normalization import MeanStd
from dyn_jax.nn.residual import BasicBranch, branch_macs
from dyn_jax.types import Occupancy, Output

EXIT_AFTER = (3, 7, 11, 15, 19, 23)


class SDNResNet(nn.Module):
    """Basic residual blocks; an exit reads the residual sum of its block before the closing ReLU.

    (The authors' code feeds the ReLU to the next block only. A network converted in memory from a static one shares an
    in-place ReLU and shows its exits the rectified map; the trained and evaluated networks are rebuilt and do not.)

    Attributes:
      depths, widths: blocks and channels of each group; the first block of every group but the first has stride 2.
      stem_stride: of the first convolution (2 for 64x64 images).
      exit_after: blocks (from 0) that an internal classifier follows; () is the static network.
      threshold, rule, answer: when and with what the network leaves, see `dyn_jax.gates.early_exit`.
      image_size: height and width of the images.
      normalization: (mean, std) per channel, or None where the images come normalised.
      winograd: see `dyn_jax.nn.conv2d`.
    """

    depths: tuple[int, ...] = (9, 9, 9)
    widths: tuple[int, ...] = (16, 32, 64)
    stem_stride: int = 1
    exit_after: tuple[int, ...] = EXIT_AFTER
    threshold: float = 0.8
    rule: str = "confidence"
    answer: str = "most_confident"
    num_classes: int = 10
    image_size: int = 32
    normalization: MeanStd | None = IMAGENET_MEAN_STD
    winograd: bool = False

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        occupancy: Occupancy | None = None,
        train: bool = False,
        threshold: jax.typing.ArrayLike | None = None,
    ) -> Output:
        """Images [batch, size, size, 3] in [0, 1] -> `Output`: units are the stages after the first.

        Args:
          images: float NHWC.
          occupancy: score [batch] -> value; default ``hard()``.
          train: batch statistics instead of running ones (make ``batch_stats`` mutable).
          threshold: instead of the field; may be traced.

        Raises:
          ValueError, TypeError: wrong rank, size, channels or dtype of the images; threshold outside (0, 1]; unknown
            rule or answer; an exit after a block that does not exist.
        """
        images = check_size(images, self.image_size)
        check_exits(self.exit_after, sum(self.depths))
        x = normalize(images, self.normalization)
        x = Conv(self.widths[0], 3, self.stem_stride, 1, name="conv1")(x)
        cost = macs.conv2d(3, 3, self.widths[0], x.shape[1] * x.shape[2])
        x = relu(BatchNorm(name="bn1")(x, train))
        exits, stage_macs = [], []
        for i, spec in enumerate(block_plan(self.depths, self.widths, "basic", self.widths[0])):
            identity = x
            if spec.changes_shape:
                identity = Projection(spec.out_features, spec.stride, name=f"layers_{i}_downsample")(x, train)
            branch = BasicBranch(spec.width, spec.stride, self.winograd, name=f"layers_{i}")
            out = branch(x, train)
            positions = out.shape[1] * out.shape[2]
            cost += branch_macs(branch, spec.in_features, positions)
            if spec.changes_shape:
                cost += macs.conv2d(1, spec.in_features, spec.out_features, positions)
            x = add_relu(identity, out)
            if i in self.exit_after:
                head = InternalClassifier(self.num_classes, torch_init, name=f"layers_{i}_output")
                exits.append(head(identity + out))
                stage_macs.append(cost + head.macs(out.shape[1], out.shape[-1]))
                cost = 0
        pooled = global_mean(x)
        init = torch_init if self.exit_after else small_init
        exits.append(Linear(self.num_classes, init, name="fc")(pooled))
        stage_macs.append(cost + macs.dense(pooled.shape[-1], self.num_classes))
        return early_exit_output(
            exits,
            stage_macs,
            occupancy=occupancy,
            threshold=self.threshold if threshold is None else threshold,
            rule=self.rule,
            how=self.answer,
            make_key=lambda: self.make_rng("gate"),
        )


def resnet56(dataset: str = "cifar10", **fields: Any) -> SDNResNet:
    """ResNet-56 with exits after blocks 3, 7, 11, 15, 19, 23: about 15, 30, ..., 90 % of the work.

    Args:
      dataset: ``cifar10``, ``cifar100``, ``tinyimagenet`` (64x64, stride 2 in the first convolution) or ``digits``
        (ResNet-20 of half the channels, exits after blocks 1, 2, 3, 5, 6, 7).
      **fields: any field of `SDNResNet`; ``exit_after=()`` is the static network.
    """
    defaults = dict(DATASETS[dataset])
    if dataset == "tinyimagenet":
        defaults["stem_stride"] = 2
    if dataset == "digits":
        defaults |= {"depths": (3, 3, 3), "widths": (8, 16, 32), "exit_after": (1, 2, 3, 5, 6, 7)}
    return SDNResNet(**{**defaults, **fields})
