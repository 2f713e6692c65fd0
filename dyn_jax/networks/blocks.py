"""Where the blocks of a residual network sit and what they look like: shared by every ResNet-shaped family."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax

from dyn_jax import _validate, macs
from dyn_jax.nn.residual import BRANCHES, BasicBranch, BottleneckBranch, Projection, branch_macs, pad_shortcut


class BlockSpec(NamedTuple):
    """One block: stage and index in it (from 0), width before expansion, stride, channels in and out, kind."""

    stage: int
    index: int
    width: int
    stride: int
    in_features: int
    out_features: int
    block: str = "basic"

    @property
    def name(self) -> str:
        return f"layer{self.stage + 1}_{self.index}"

    @property
    def changes_shape(self) -> bool:
        return self.stride != 1 or self.in_features != self.out_features

    def branch(self, winograd: bool = False, **where: Any) -> BasicBranch | BottleneckBranch:
        """The layers between the shortcut's ends; `where` is their ``name`` or ``parent``."""
        return BRANCHES[self.block](self.width, self.stride, winograd, **where)


def block_plan(depths: tuple[int, ...], widths: tuple[int, ...], block: str, stem_width: int) -> Iterator[BlockSpec]:
    """The blocks in execution order; the first block of every stage but the first has stride 2.

    ValueError where `depths` and `widths` differ in length, a stage is empty, or `block` is unknown.
    """
    _validate.choice("block", block, BRANCHES)
    if len(depths) != len(widths) or not depths or min(depths) < 1:
        raise ValueError(f"depths, widths: got {depths} and {widths}, expected one depth >= 1 for every width")
    expansion = BRANCHES[block].expansion
    features = stem_width
    for stage, (depth, width) in enumerate(zip(depths, widths)):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            yield BlockSpec(stage, index, width, stride, features, width * expansion, block)
            features = width * expansion


def runs(plan: Iterable[BlockSpec]) -> list[list[BlockSpec]]:
    """The blocks in execution order, those of one stage that have one shape together."""
    return [list(group) for _, group in itertools.groupby(plan, lambda spec: spec._replace(index=0))]


def shortcut(x: jax.Array, spec: BlockSpec, name: str, train: bool, kind: str = "B") -> tuple[jax.Array, int]:
    """What a block adds its branch to, and the multiply-adds of one example; called inside a network's compact method.

    That is `x`, and where the shape changes `pad_shortcut` (``A``) or a `Projection` called `name` (``B``).
    """
    if not spec.changes_shape:
        return x, 0
    if kind == "A":
        return pad_shortcut(x, spec.out_features, spec.stride), 0
    x = Projection(spec.out_features, spec.stride, name=name)(x, train)
    return x, macs.conv2d(1, spec.in_features, spec.out_features, x.shape[1] * x.shape[2])


def static_block(
    x: jax.Array, spec: BlockSpec, name: str, train: bool, kind: str = "B", winograd: bool = False
) -> tuple[jax.Array, jax.Array, int]:
    """The two that a static block adds up, and the multiply-adds of one example; see `shortcut`."""
    identity, cost = shortcut(x, spec, f"{name}_downsample", train, kind)
    branch = spec.branch(winograd, name=name)
    y = branch(x, train)
    return identity, y, cost + branch_macs(branch, spec.in_features, y.shape[1] * y.shape[2])


def cifar_depths(depth: int) -> tuple[int, ...]:
    """(n, n, n), blocks per stage of a CIFAR ResNet of ``depth = 6 n + 2`` layers; ValueError where there is no n."""
    _validate.positive_int("depth", depth, 8)
    if (depth - 2) % 6:
        raise ValueError(f"depth: got {depth}, expected 6 n + 2 (for example 38)")
    return ((depth - 2) // 6,) * 3


IMAGENET_FORMS = {
    18: ((2, 2, 2, 2), "basic"),
    34: ((3, 4, 6, 3), "basic"),
    50: ((3, 4, 6, 3), "bottleneck"),
    101: ((3, 4, 23, 3), "bottleneck"),
    152: ((3, 8, 36, 3), "bottleneck"),
}


def imagenet_fields(depth: int) -> dict[str, Any]:
    """Fields of an ImageNet ResNet (He et al. 2016, table 1); ValueError for another depth."""
    if depth not in IMAGENET_FORMS:
        raise ValueError(f"depth: got {depth}, expected one of {sorted(IMAGENET_FORMS)}")
    depths, block = IMAGENET_FORMS[depth]
    return {"depths": depths, "block": block, "widths": (64, 128, 256, 512), "stem": "imagenet", "num_classes": 1000}
