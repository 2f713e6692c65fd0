"""MinkUNet (Choy et al. 2019): a U-Net of sparse 3D convolutions, on voxels or on points end to end."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.nn.norm import BatchNorm
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d.allocate import Capacity
from dyn_jax.sparse3d.entry import enter, flag_overflow
from dyn_jax.sparse3d.form import PAPER, Form, check_form
from dyn_jax.sparse3d.layers import Convolution
from dyn_jax.sparse3d.passage import Passage, Size, passage_over, pyramid
from dyn_jax.sparse3d.tensor import SparseTensor
from dyn_jax.types import Output, PointCloud, Reach, Trace

ENCODER = ("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")
DECODER = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")


def convolution(
    x: jax.Array, passage: Passage, at: tuple[int, int], size: Size | None, features: int, name: str
) -> jax.Array:
    """A convolution, billed, times the occupancy; called inside a compact method.

    x [row, in] of the first of the levels `at` -> [row, features] of the second; size None: a product of every row.
    """
    source, target = at
    passage.bill(source, target, size, x.shape[-1] * features)
    layer = Convolution(features, name=name)
    y = layer(x) if size is None else layer(passage.read(x, source), passage.pairs(source, target, size))
    return passage.convolved(y, target)


def normed(x: jax.Array, passage: Passage, level: int, name: str, train: bool) -> jax.Array:
    """Batch normalisation over the voxels that exist, times the occupancy; called inside a compact method."""
    return passage.normed(BatchNorm(name=name)(x, train, passage.exists[level]), level)


class Block(nn.Module):
    """``relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))``, both convolutions 3x3x3 on one level."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, passage: Passage, level: int, train: bool) -> jax.Array:
        def layer(x: jax.Array, size: int | None, conv: str, norm: str) -> jax.Array:
            y = convolution(x, passage, (level, level), size, self.features, conv)
            return normed(y, passage, level, norm, train)

        shortcut = x
        if x.shape[-1] != self.features:
            shortcut = layer(x, None, "downsample_0", "downsample_1")
        y = nn.relu(layer(x, 3, "conv1", "norm1"))
        return nn.relu(layer(y, 3, "conv2", "norm2") + shortcut)


class MinkUNet(nn.Module):
    """MinkUNet with four strided convolutions down, four transposed ones up, and residual blocks at every stage.

    Attributes:
      planes: channels of the eight stages.
      layers: residual blocks of the eight stages.
      in_features: channels of a voxel.
      num_classes: classes.
      stem_features, stem_size: of the first convolution.
      voxel_size: metres, for point clouds.
      coordinate_features: append each voxel's coordinates, x and y centred, to the features of a point cloud (S3DIS).

    Source: Choy et al. 2019; layer plan and names as in MinkowskiEngine's examples.
    """

    planes: tuple[int, ...] = (32, 64, 128, 256, 256, 128, 96, 96)
    layers: tuple[int, ...] = (2, 3, 4, 6, 2, 2, 2, 2)
    in_features: int = 3
    num_classes: int = 20
    stem_features: int = 32
    stem_size: int = 5
    voxel_size: float = 0.02
    coordinate_features: bool = False

    @property
    def levels(self) -> int:
        """Levels of a capacity, from stride 1 to 16."""
        return len(ENCODER) + 1

    def example_input(self) -> SparseTensor:
        """The smallest input, for the shapes of the variables."""
        row = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, self.in_features))
        return SparseTensor(*row, jnp.ones(1, bool), jnp.zeros((), bool))

    @nn.compact
    def __call__(
        self,
        inputs: SparseTensor | PointCloud,
        *,
        reach: Reach | jax.typing.ArrayLike | None = None,
        occupancy: Any = None,
        capacity: Capacity | None = None,
        form: Form = PAPER,
        train: bool = False,
    ) -> Output:
        """Scores per voxel row or per point.

        Args:
          inputs: a `SparseTensor` of stride 1, or a `PointCloud`, of one or several clouds.
          reach: how far the points of a cloud may move in the next step: a `Reach`, or its step in metres; see
            `sparse3d.near_voxels`. Occupancies that look at existing voxels only ignore it.
          occupancy: for point clouds: None or ``hard()`` is the original network; a relation of
            `dyn_jax.occupancy.voxel`, ``lgm(...)`` or ``fgm(...)`` are its differentiable forms.
          capacity: a `sparse3d.Capacity`; None: counted where the coordinates are concrete, else what always fits
            (large and slow), see `sparse3d.capacity_for`.
          form: `sparse3d.PAPER` or `sparse3d.RELEASE`, or fields of one's own.
          train: batch statistics in the norms.

        Returns:
          `Output`: logits [row or point, class]; the trace has one unit per kernel map, and a row for
          each cloud (for a sparse tensor one row).

        Raises:
          TypeError: neither a sparse tensor nor a point cloud; dtypes that do not fit; no relation as an occupancy.
          ValueError: wrong widths or shapes; a step beyond a voxel; capacity for another number of levels, or (outside
            jit) too small. See `sparse3d.cloud.check_cloud` for what jit turns into `Trace.overflow`.
        """
        check_form(form)
        entry = enter(
            inputs,
            voxel.resolve(occupancy),
            capacity,
            reach=reach,
            form=form,
            levels=self.levels,
            in_features=self.in_features,
            voxel_size=self.voxel_size,
            coordinate_features=self.coordinate_features,
        )
        levels = pyramid(entry.sites, (2,) * len(ENCODER), entry.capacities)
        kernels = [(0, 0, self.stem_size), *((level, level, 3) for level in range(self.levels))]
        kernels += [(level, level + 1, 2) for level in range(len(ENCODER))]
        passage = passage_over(levels, entry.exists, entry.occupancy, form, entry.clouds, kernels=kernels, below=2)
        logits = entry.back(self._network(entry.features, passage, train))
        overflow = flag_overflow(entry.overflow | passage.overflow)
        return Output(logits, Trace(passage.units(), 0, overflow=overflow))

    def _network(self, x: jax.Array, passage: Passage, train: bool) -> jax.Array:
        def layer(x: jax.Array, at: tuple[int, int], size: int, features: int, conv: str, norm: str) -> jax.Array:
            y = convolution(x, passage, at, size, features, conv)
            return nn.relu(normed(y, passage, at[1], norm, train))

        def stage(x: jax.Array, level: int, number: int) -> jax.Array:
            for index in range(self.layers[number]):
                x = Block(self.planes[number], name=f"block{number + 1}_{index}")(x, passage, level, train)
            return x

        x = layer(x, (0, 0), self.stem_size, self.stem_features, "conv0p1s1", "bn0")
        skips = [x]
        for number, name in enumerate(ENCODER):
            x = layer(x, (number, number + 1), 2, x.shape[-1], name, f"bn{number + 1}")
            x = stage(x, number + 1, number)
            skips.append(x)
        skips.pop()
        for number, name in enumerate(DECODER, start=4):
            level = 7 - number
            x = layer(x, (level + 1, level), 2, self.planes[number], name, "bntr" + name[6])
            x = stage(jnp.concatenate([x, skips.pop()], axis=1), level, number)
        passage.bill(0, 0, None, x.shape[-1] * self.num_classes)
        # the last convolution is not multiplied: eq. 39 would divide by the same occupancy again
        return Convolution(self.num_classes, use_bias=True, name="final")(x)


_PLANES = {"a": (32, 64, 128, 256, 128, 128, 96, 96), "c": (32, 64, 128, 256, 256, 128, 96, 96)}
_LAYERS = {14: (1,) * 8, 18: (2,) * 8, 34: (2, 3, 4, 6, 2, 2, 2, 2)}


def scannet(form: str, **fields: Any) -> MinkUNet:
    """MinkUNet ``14a``, ``18a`` or ``34c`` for ScanNet: 20 classes, colours minus 1/2, voxels of 2 cm."""
    _validate.choice("form", form, ("14a", "18a", "34c"))
    return MinkUNet(**{"planes": _PLANES[form[2]], "layers": _LAYERS[int(form[:2])], **fields})


def s3dis(**fields: Any) -> MinkUNet:
    """Res16UNet34 for S3DIS: 13 classes, colours and centred voxel coordinates, voxels of 5 cm."""
    planes = (32, 64, 128, 256, 256, 256, 256, 256)
    given = {"planes": planes, "in_features": 6, "num_classes": 13, "voxel_size": 0.05, "coordinate_features": True}
    return MinkUNet(**{**given, **fields})


def rooms(**fields: Any) -> MinkUNet:
    """A small MinkUNet for the embedded rooms: `dyn_jax.datasets.rooms`."""
    given = {"planes": (20, 32, 40, 56, 40, 32, 20, 20), "layers": (1,) * 8, "num_classes": 10}
    given |= {"stem_features": 16, "voxel_size": 0.1}
    return MinkUNet(**{**given, **fields})
