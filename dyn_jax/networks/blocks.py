"""Where the blocks of a residual network sit and what they look like: shared by every ResNet-shaped family."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dyn_jax import _validate
from dyn_jax.nn.residual import BRANCHES

SCAN_FROM = 12
"""Equal blocks from which a loop is the default."""


class BlockSpec(NamedTuple):
    """One block: stage and index in it (from 0), width before expansion, stride, channels in and out."""

    stage: int
    index: int
    width: int
    stride: int
    in_features: int
    out_features: int

    @property
    def changes_shape(self) -> bool:
        return self.stride != 1 or self.in_features != self.out_features


def block_plan(depths: tuple[int, ...], widths: tuple[int, ...], block: str, stem_width: int) -> Iterator[BlockSpec]:
    """The blocks in execution order; the first block of every stage but the first has stride 2.

    Raises:
      ValueError: `depths` and `widths` differ in length, a stage is empty, or `block` is unknown.
    """
    _validate.choice("block", block, BRANCHES)
    if len(depths) != len(widths) or not depths or min(depths) < 1:
        raise ValueError(f"depths, widths: got {depths} and {widths}, expected one depth >= 1 for every width")
    expansion = BRANCHES[block].expansion
    features = stem_width
    for stage, (depth, width) in enumerate(zip(depths, widths)):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            yield BlockSpec(stage, index, width, stride, features, width * expansion)
            features = width * expansion


def runs(plan: Iterable[BlockSpec]) -> list[list[BlockSpec]]:
    """The blocks in execution order, those of one stage that have one shape together."""
    return [list(group) for _, group in itertools.groupby(plan, lambda spec: spec._replace(index=0))]


def blocks_per_stage(depth: int, outside: int) -> int:
    """n of a CIFAR ResNet of ``depth = 6 n + outside`` layers.

    Raises:
      ValueError: no such n.
    """
    _validate.positive_int("depth", depth, outside + 6)
    if (depth - outside) % 6:
        raise ValueError(f"depth: got {depth}, expected 6 n + {outside} (for example {outside + 6 * 6})")
    return (depth - outside) // 6


IMAGENET_FORMS = {
    18: ((2, 2, 2, 2), "basic"),
    34: ((3, 4, 6, 3), "basic"),
    50: ((3, 4, 6, 3), "bottleneck"),
    101: ((3, 4, 23, 3), "bottleneck"),
    152: ((3, 8, 36, 3), "bottleneck"),
}


def imagenet_form(depth: int) -> tuple[tuple[int, ...], str]:
    """(blocks per stage, kind of block) of an ImageNet ResNet (He et al. 2016, table 1).

    Raises:
      ValueError: `depth` is none of 18, 34, 50, 101, 152.
    """
    if depth not in IMAGENET_FORMS:
        raise ValueError(f"depth: got {depth}, expected one of {sorted(IMAGENET_FORMS)}")
    return IMAGENET_FORMS[depth]
