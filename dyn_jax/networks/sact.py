"""SACT and ACT (Figurnov et al., CVPR 2017): the units of a block run until the position, or the image, has halted."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import _validate, macs
from dyn_jax.gates import dilation
from dyn_jax.gates.halting import GlobalHalting, SpatialHalting, halting_score, halting_weights, leaky_relu, with_ponder
from dyn_jax.networks.blocks import BlockSpec, block_plan, cifar_depths, imagenet_fields
from dyn_jax.nn import BatchNorm, Conv, Dense, execute, global_mean, normalize, pad_shortcut, relu, stem
from dyn_jax.nn.normalization import MeanStd
from dyn_jax.occupancy import hard, stochastic
from dyn_jax.types import Occupancy, Output, Trace, UnitTrace

PER_IMAGE = "per_image"
MINUS_ONE_TO_ONE: MeanStd = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class SACT(nn.Module):
    """Unit: ``state_u = shortcut + o_u * branch(state_{u-1})``; block: ``sum_l w_l state_l``, see `gates.halting`.

    ``o_u = occupancy(score_u)`` with the score ``1 - epsilon - (h_1 + .. + h_{u-1})``, h read off the units' own
    states; the first unit of a block always runs. Branches are evaluated densely, as in the released code; the dilated
    mask (where a branch's first convolution must run) counts multiply-adds and never changes the logits. Units: every
    unit but the first of each block, one element for each position (``sact``) or for the image (``act``).

    In training the released ACT lets the states of finished images run on, which the batch statistics see; here they
    stay as in SACT. Outputs are the same.

    Attributes:
      depths, widths: units and channels (before expansion) of each block; blocks after the first halve the size.
      stem: which released network: ``cifar`` (leaky ReLUs, two 3x3 convolutions a unit, shortcuts without parameters)
        or ``imagenet`` (ResNet-v2 bottlenecks); or ``resnet``, the units of a `ResNet` with option-A shortcuts, whose
        trained weights `dyn_jax.networks.embed` puts here.
      mode: ``sact`` (a position halts), ``act`` (an image halts) or ``none`` (the static network).
      normalization: ``per_image`` (zero mean, unit variance over all pixels and channels of an image), a (mean, std)
        pair per channel, or None where the images come normalised.
      winograd, execution: as in `ResNet` and `DynConv`.
    """

    depths: tuple[int, ...] = (5, 5, 5)
    widths: tuple[int, ...] = (16, 32, 64)
    stem: str = "cifar"
    mode: str = "sact"
    num_classes: int = 10
    normalization: MeanStd | str | None = PER_IMAGE
    winograd: bool = False
    execution: str = "dense"

    gate_layers = ("*_halting",)  # patterns of the names of the layers that score

    @nn.compact
    def __call__(self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False) -> Output:
        """Images as in `ResNet` -> `Output` whose trace has every unit that can halt.

        Scores are [batch, height, width] (``sact``) or [batch] (``act``); default occupancy is ``hard()``, in training
        too.
        """
        images = _validate.images("images", images, 3)
        _validate.choice("mode", self.mode, ("sact", "act", "none"))
        form = FORMS[_validate.choice("stem", self.stem, FORMS)]
        occupancy = hard() if occupancy is None else occupancy
        x, static_macs = _stem(_normalized(images, self.normalization), self.widths[0], self.stem, train)
        units: list[UnitTrace] = []
        plan = block_plan(self.depths, self.widths, form.block, self.widths[0])
        for _, specs in itertools.groupby(plan, lambda spec: spec.stage):
            x, new, cost = self._block(x, list(specs), form, occupancy, train)
            units += new
            static_macs += cost
        pooled = form.pool(x, form, train)
        logits = Dense(self.num_classes, name="fc")(pooled)
        static_macs += macs.dense(pooled.shape[-1], self.num_classes)
        return Output(logits, Trace(tuple(units), static_macs))

    def _block(
        self, state: jax.Array, specs: Sequence[BlockSpec], form: Form, occupancy: Occupancy, train: bool
    ) -> tuple[jax.Array, list[UnitTrace], int]:
        """Returns the block's output, its traces, and the multiply-adds that always run."""
        states: list[jax.Array] = []
        halting, units, static_macs = [], [], 0
        for spec in specs:
            name = f"block{spec.stage + 1}_unit{spec.index + 1}"
            run = lambda x, spec=spec, name=name: form.unit(spec, form, self.winograd, name=name)(x, train)
            score = o = None
            if not halting:
                shortcut, branch = run(state)
            else:
                score = halting_score(functools.reduce(operator.add, halting))
                o = stochastic.apply(occupancy, score, lambda: self.make_rng("gate"))
                off = (state, jnp.zeros_like(state))
                skip = execute.skips(self, occupancy, train)
                shortcut, branch = execute.unit(skip, self, o > 0, run, off, state)
            before, positions = (x.shape[1] * x.shape[2] for x in (state, branch))
            last = spec is specs[-1] or self.mode == "none"
            gate = None if last else form.halting(self.mode, name=f"{name}_halting")
            local, shared = (0, 0) if gate is None else gate.macs(spec.out_features)
            first, rest, _ = spec.branch(parent=None).macs(spec.in_features)  # the same convolutions
            rest += local
            if score is None or o is None:
                reads_input = form.block == "bottleneck"
                projects = reads_input and spec.in_features != spec.out_features
                projection = macs.conv2d(1, spec.in_features, spec.out_features) if projects else 0
                static_macs += first * (before if reads_input else positions) + shared + (rest + projection) * positions
            else:
                if self.mode == "act":
                    units.append(UnitTrace(score, o, (first + rest) * positions + shared, name=name))
                else:
                    dilated, cost = dilation(o, occupancy, first, rest)
                    units.append(UnitTrace(score, o, cost, first + rest, name, {"dilated": dilated}))
                    static_macs += shared
                branch = _over(o, branch) * branch
            state = shortcut + branch
            states.append(state)
            if gate is not None:
                halting.append(gate(state, train))
        if not halting:
            return state, units, static_macs
        units[-1] = with_ponder(units)
        weights = halting_weights(halting, [unit.occupancy for unit in units])
        x = sum((_over(w, s) * s for w, s in zip(weights, states)), start=jnp.int32(0))
        return x, units, static_macs


def _over(values: jax.Array, like: jax.Array) -> jax.Array:
    """Values of positions or images, with the axes that `like` has more."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


class BasicUnit(nn.Module):
    """Shortcut and branch of a CIFAR unit: BN - leaky - conv3x3(stride) - BN - leaky twice - conv3x3 with bias.

    The released arguments apply the first convolution's activation twice, which is one of the squared slope. The very
    first unit's shortcut is the activated input, the others' the input; where the width grows it is averaged over
    stride x stride windows and gets zero channels on both sides.
    """

    spec: BlockSpec
    form: Form
    winograd: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        spec, slope = self.spec, self.form.slope
        norm = lambda name: BatchNorm(self.form.momentum, self.form.stabiliser, name=name)
        active = leaky_relu(norm("bn1")(x, train), slope)
        shortcut = active if spec.stage == spec.index == 0 else x
        padded, padding = pad_same(active, 3, spec.stride)
        y = Conv(spec.width, 3, spec.stride, padding, winograd=self.winograd, name="conv1")(padded)
        y = leaky_relu(norm("bn2")(y, train), slope * slope)
        y = Conv(spec.width, 3, 1, 1, use_bias=True, winograd=self.winograd, name="conv2")(y)
        if spec.in_features != spec.out_features:
            shortcut = nn.avg_pool(shortcut, (spec.stride,) * 2, (spec.stride,) * 2)
            shortcut = pad_shortcut(shortcut, spec.out_features, 1)
        return shortcut, y


class BottleneckUnit(nn.Module):
    """Shortcut and branch of a ResNet-v2 bottleneck: BN - ReLU - conv1x1 - BN - ReLU - conv3x3(stride) - BN - ReLU -
    conv1x1 with bias. Where the shape changes the shortcut is a conv1x1(stride) with bias of the activated input.
    """

    spec: BlockSpec
    form: Form
    winograd: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        spec = self.spec
        norm = lambda name: BatchNorm(self.form.momentum, self.form.stabiliser, name=name)
        active = relu(norm("bn1")(x, train))
        shortcut = x[:, :: spec.stride, :: spec.stride]
        if spec.in_features != spec.out_features:
            shortcut = Conv(spec.out_features, 1, spec.stride, use_bias=True, name="shortcut")(active)
        y = Conv(spec.width, 1, name="conv1")(active)
        y = relu(norm("bn2")(y, train))
        y = Conv(spec.width, 3, spec.stride, 1, winograd=self.winograd, name="conv2")(y)
        y = relu(norm("bn3")(y, train))
        return shortcut, Conv(spec.out_features, 1, use_bias=True, name="conv3")(y)


class PostActivationUnit(BasicUnit):
    """Shortcut and branch of a `ResNet` block: the closing ReLU, which opens the next unit, belongs to no state.

    So a state is what the block adds up, and a unit that does not run leaves ``ReLU(state)``, as the next would read.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        spec, shortcut = self.spec, relu(x)
        y = Conv(spec.width, 3, spec.stride, 1, winograd=self.winograd, name="conv1")(shortcut)
        y = relu(BatchNorm(name="bn1")(y, train))
        y = Conv(spec.width, 3, 1, 1, winograd=self.winograd, name="conv2")(y)
        if spec.changes_shape:
            shortcut = pad_shortcut(shortcut, spec.out_features, spec.stride)
        return shortcut, BatchNorm(name="bn2")(y, train)


def _pool_then_norm(x: jax.Array, form: Form, train: bool) -> jax.Array:
    return leaky_relu(BatchNorm(form.momentum, form.stabiliser, name="bn")(global_mean(x), train), form.slope)


def _norm_then_pool(x: jax.Array, form: Form, train: bool) -> jax.Array:
    return global_mean(leaky_relu(BatchNorm(form.momentum, form.stabiliser, name="bn")(x, train), form.slope))


class Form(NamedTuple):
    """What the networks differ in: unit, slopes of the leaky ReLUs (0: ReLU, 1: none), normalisation, the end."""

    unit: type[nn.Module]
    block: str
    slope: float
    halting_slope: float
    momentum: float
    stabiliser: float
    pool: Callable[[jax.Array, Form, bool], jax.Array]

    def halting(self, mode: str, name: str) -> GlobalHalting | SpatialHalting:
        """The gate of a unit."""
        gate = GlobalHalting if mode == "act" else SpatialHalting
        return gate(self.halting_slope, self.momentum, self.stabiliser, name=name)


FORMS = {
    "cifar": Form(BasicUnit, "basic", 0.1, 0.1, 0.1, 1e-3, _pool_then_norm),
    "imagenet": Form(BottleneckUnit, "bottleneck", 0.0, 1.0, 0.003, 1e-5, _norm_then_pool),
    "resnet": Form(PostActivationUnit, "basic", 0.0, 1.0, 0.1, 1e-5, lambda x, form, train: global_mean(relu(x))),
}


def pad_same(x: jax.Array, kernel_size: int, stride: int) -> tuple[jax.Array, int]:
    """`x` and the symmetric padding that a convolution must add, so that both make TensorFlow's ``SAME``.

    ``SAME`` has ``ceil(n / stride)`` outputs and puts the odd row of zeros last: stride 2 on an even size pads (0, 1).
    """
    edges = jax.lax.padtype_to_pads(x.shape[1:3], (kernel_size,) * 2, (stride,) * 2, "SAME")
    if len({size for edge in edges for size in edge}) == 1:
        return x, edges[0][0]
    return jnp.pad(x, ((0, 0), *edges, (0, 0))), 0


def standardize(images: jax.Array) -> jax.Array:
    """``(v - mean) / max(std, 1 / sqrt(n))`` over the n values v in 0..255 of each image, given v / 255."""
    axes = tuple(range(1, images.ndim))
    count = images[0].size
    centred = images - jnp.mean(images, axes, keepdims=True)
    variance = jnp.mean(centred * centred, axes, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.maximum(variance, 1 / (255.0**2 * count)))


def _normalized(images: jax.Array, normalization: MeanStd | str | None) -> jax.Array:
    if isinstance(normalization, str):
        _validate.choice("normalization", normalization, (PER_IMAGE,))
        return standardize(images)
    return normalize(images, normalization)


def _stem(x: jax.Array, width: int, kind: str, train: bool) -> tuple[jax.Array, int]:
    """A convolution with bias; ``imagenet`` strides it and pools. Returns the features and the multiply-adds."""
    if kind == "resnet":
        return stem(x, width, "cifar", train)
    size, stride = (3, 1) if kind == "cifar" else (7, 2)
    conv = Conv(width, size, stride, size // 2, use_bias=True, name="conv1")
    y = conv(x)
    cost = conv.macs(x.shape[-1], y.shape[1] * y.shape[2])
    return (y if kind == "cifar" else nn.max_pool(y, (3, 3), (2, 2), "SAME")), cost


def cifar(depth: int = 32, **fields: Any) -> SACT:
    """SACT ResNet-`depth` for 32x32 images, ``depth = 6 n + 2`` with n units a block (32 is the released "model 5")."""
    return SACT(**{"depths": cifar_depths(depth), **fields})


def imagenet(depth: int, **fields: Any) -> SACT:
    """SACT ResNet-50, 101 or 152 (else ValueError) for 224x224 images; 1001 classes, the first is "background"."""
    given = imagenet_fields(depth)
    if given.pop("block") != FORMS["imagenet"].block:
        raise ValueError(f"depth: got {depth}, expected 50, 101 or 152")
    return SACT(**{**given, "num_classes": 1001, "normalization": MINUS_ONE_TO_ONE, **fields})


def digits(**fields: Any) -> SACT:
    """The small network of the embedded demo: 3 blocks of 3 units."""
    return SACT(**{"depths": (3, 3, 3), "widths": (8, 16, 32), **fields})
