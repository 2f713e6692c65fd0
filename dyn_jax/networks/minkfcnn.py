"""MinkowskiFCNN: classification of point clouds, features of four strides gathered back at the points."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax.networks.minkunet import convolution, normed
from dyn_jax.nn.norm import BatchNorm
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d.allocate import Capacity
from dyn_jax.sparse3d.cloud import check_cloud
from dyn_jax.sparse3d.entry import HardPoints, SoftPoints, default_capacity, flag_overflow, points_in_voxels
from dyn_jax.sparse3d.form import PAPER, Form, check_form
from dyn_jax.sparse3d.layers import Convolution
from dyn_jax.sparse3d.passage import Passage, passage_over, pyramid
from dyn_jax.sparse3d.pooling import batch_items, global_average, global_max, pool_max
from dyn_jax.sparse3d.segments import segments, spread
from dyn_jax.sparse3d.sites import Sites, floor_to
from dyn_jax.types import Output, PointCloud, Reach, Trace, UnitTrace

LEVELS = 8
"""Strides 1, 2, 4, ..., 128: a convolution and a pooling after it halve the resolution by turns."""
LEAK = 0.01
"""Slope of the leaky ReLUs below 0."""


class MinkowskiFCNN(nn.Module):
    """A layer on points, four sparse convolutions each with a max pooling, their outputs gathered at the points, three
    more convolutions, global maximum and average, and a classifier.

    Attributes:
      channels: of the layer on points and of the four convolutions.
      embedding: channels of the last of the three convolutions; the two before have a quarter and half of them.
      hidden: channels of the classifier's two hidden layers.
      in_features: channels of a point; 3 with `coordinate_features`.
      num_classes: classes.
      voxel_size: metres.
      coordinate_features: a point's features are its coordinates, and those of the cloud are ignored (they may have
        no channels): the gradient in ``xyz`` then holds both ways in which a network sees a point.
      dropout: rate between the classifier's layers, in training.

    Source: layer plan as in MinkowskiEngine's ModelNet40 example.
    """

    channels: tuple[int, ...] = (32, 48, 64, 96, 128)
    embedding: int = 1024
    hidden: int = 512
    in_features: int = 3
    num_classes: int = 40
    voxel_size: float = 0.05
    coordinate_features: bool = True
    dropout: float = 0.5

    @property
    def levels(self) -> int:
        """Levels of a capacity, from stride 1 to 128."""
        return LEVELS

    def example_input(self) -> PointCloud:
        """The smallest input, for the shapes of the variables."""
        return PointCloud(jnp.zeros((1, 3)), jnp.zeros((1, self.in_features)), jnp.ones(1, bool))

    @nn.compact
    def __call__(
        self,
        inputs: PointCloud,
        *,
        reach: Reach | jax.typing.ArrayLike | None = None,
        occupancy: Any = None,
        capacity: Capacity | None = None,
        form: Form = PAPER,
        train: bool = False,
    ) -> Output:
        """Scores per cloud.

        The paper has no equations for a soft occupancy in this network. Chosen here: points become voxels by eq. 37-38,
        both at the input and where the gathered features are averaged again. Convolutions (and norms) are multiplied
        as in every network, see `Passage`. A max pooling takes existing voxels only (the 0 of a voxel that is off is
        no neutral element of a maximum), and is multiplied where norms are. A point gathers the values of the coarser
        voxels in which the voxels near it lie, in a mean weighted by the output relation (eq. 40; a sum where the form
        does not normalise). The global maximum is over existing voxels, the global average is weighted by the
        occupancy. With steep relations all this becomes the original network.

        Args:
          inputs: a `PointCloud`, of one or several clouds.
          reach, occupancy, form: as in `MinkUNet`.
          capacity: as in `MinkUNet`, of 8 levels.
          train: batch statistics in the norms, and dropout, which needs an rng called ``dropout``.

        Returns:
          `Output`: logits [cloud, class], without meaning for a cloud without points; the trace has one unit for the
          layer on points and one per kernel map, and a row for each cloud.

        Raises:
          TypeError, ValueError: as in `MinkUNet`; not a point cloud; batch indices outside [0, clouds); a single cloud
            in training.
        """
        check_form(form)
        if isinstance(inputs, PointCloud) and self.coordinate_features:
            inputs = inputs.replace(features=inputs.xyz)
        cloud, lost = check_cloud(inputs, self.voxel_size, self.in_features)
        if train and cloud.clouds == 1 and not self.is_initializing():
            raise ValueError("clouds: got 1 in training, expected at least 2: the classifier's norms are over clouds")
        occupancy = voxel.resolve(occupancy)
        capacity = default_capacity(cloud, occupancy, capacity, reach, self.voxel_size, LEVELS)
        points = points_in_voxels(cloud, occupancy, capacity, reach, self.voxel_size, form)
        levels = pyramid(points.sites, (2,) * (LEVELS - 1), capacity.levels)
        kernels = [(0, 0, 3), *((level, level + 1, 3) for level in range(LEVELS - 1))]
        passage = passage_over(levels, points.exists, points.occupancy, form, cloud.clouds, kernels=kernels, below=2)
        logits = self._network(cloud, points, passage, train)
        head = 2 * self.embedding * self.hidden + self.hidden * (self.hidden + self.num_classes)
        overflow = flag_overflow(points.overflow | passage.overflow | lost)
        units = (self._on_points(cloud, logits.dtype), *passage.units())
        return Output(logits, Trace(units, head, overflow=overflow))

    def _on_points(self, cloud: PointCloud, dtype: jnp.dtype) -> UnitTrace:
        """The unit of the layer on points, [cloud, point]."""
        counted = cloud.valid[None]
        if cloud.batch is not None:
            counted = counted & (cloud.batch[None] == jnp.arange(cloud.clouds)[:, None])
        counted = counted.astype(dtype)
        return UnitTrace(counted - 0.5, counted, float(self.in_features * self.channels[0]) * counted, None, "points")

    def _network(self, cloud: PointCloud, points: HardPoints | SoftPoints, passage: Passage, train: bool) -> jax.Array:
        def dense(x: jax.Array, features: int, linear: str, norm: str, where: jax.Array | None = None) -> jax.Array:
            return nn.leaky_relu(BatchNorm(name=norm)(Convolution(features, name=linear)(x), train, where), LEAK)

        def layer(x: jax.Array, at: tuple[int, int], features: int, name: str) -> jax.Array:
            y = convolution(x, passage, at, 3, features, f"{name}_0")
            return nn.leaky_relu(normed(y, passage, at[1], f"{name}_1", train), LEAK)

        soft = passage.occupancy is not None
        x = points.gather(dense(cloud.features, self.channels[0], "mlp1_0", "mlp1_1", cloud.valid))
        pooled, level = [], 0
        for number, features in enumerate(self.channels[1:], start=1):
            target = level + (number > 1)
            x = layer(x, (level, target), features, f"conv{number}")
            level = target + 1
            x = pool_max(x, passage.pairs(target, level, 3), passage.exists[target] if soft else None)
            x = passage.normed(x, level)
            pooled.append(_at_finest(x, passage.levels[0], passage.levels[level]))
        x = jnp.concatenate(pooled, axis=1)
        if isinstance(points, SoftPoints):  # else all points of a voxel gather the same, and averaging changes nothing
            x = points.gather(points.back(x))
        for number, features in enumerate((self.embedding // 4, self.embedding // 2, self.embedding)):
            x = layer(x, (number, number + 1), features, f"conv5_{number}")
        sites, clouds = passage.levels[3], passage.clouds
        highest = global_max(x, batch_items(sites, clouds, passage.exists[3] if soft else None))
        weights = None if passage.occupancy is None else passage.occupancy[3]
        average = global_average(x, batch_items(sites, clouds), weights)
        x = jnp.concatenate([highest, average], axis=1)
        x = dense(x, self.hidden, "final_0_0", "final_0_1")
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = dense(x, self.hidden, "final_2_0", "final_2_1")
        return Convolution(self.num_classes, use_bias=True, name="final_3")(x)


def _at_finest(x: jax.Array, finest: Sites, level: Sites) -> jax.Array:
    """Values of a coarser level at the voxels of the finest, each that of the voxel it lies in."""
    row, _ = level.find(floor_to(finest.coordinates, level.stride), finest.valid)
    return spread(x, segments(row, level.capacity))


def modelnet40(**fields: Any) -> MinkowskiFCNN:
    """The network for ModelNet40: 40 classes, coordinates as features, voxels of 5 cm (objects of radius 1 m)."""
    return MinkowskiFCNN(**fields)


def objects(**fields: Any) -> MinkowskiFCNN:
    """A small one for the embedded objects: `dyn_jax.datasets.objects`."""
    given = {"channels": (16, 16, 24, 24, 32), "embedding": 64, "hidden": 64, "num_classes": 10, "voxel_size": 0.1}
    return MinkowskiFCNN(**{**given, **fields})
