"""MinkowskiFCNN: classification of point clouds, features of four strides gathered back at the points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.nn.norm import BatchNorm
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d.allocate import Capacity, capacity_for
from dyn_jax.sparse3d.entry import check_cloud, flag_overflow
from dyn_jax.sparse3d.layers import Convolution
from dyn_jax.sparse3d.passage import PROTOCOLS, Passage, coarser_values, pyramid
from dyn_jax.sparse3d.pooling import batch_items, global_average, global_max, pool_max
from dyn_jax.sparse3d.segments import any_of, segments, spread
from dyn_jax.sparse3d.sites import Sites, floor_to
from dyn_jax.sparse3d.voxelize import hard_voxels, mean_over, near_voxels, point_scores, soft_features
from dyn_jax.types import Output, PointCloud, Trace, UnitTrace

LEVELS = 8
"""Strides 1, 2, 4, ..., 128: a convolution and a pooling after it halve the resolution by turns."""
LEAK = 0.01
"""Slope of the leaky ReLUs below 0."""


class _Points(NamedTuple):
    """How values of points become values of voxels, and come back.

    Attributes:
      sites: the finest level.
      exists: [voxel] bool.
      occupancy: [voxel] of the network's relation, or None.
      gather: [point, channel] -> [voxel, channel].
      again: [voxel, channel] -> [voxel, channel], to the points and back.
      overflow: scalar bool.
    """

    sites: Sites
    exists: jax.Array
    occupancy: jax.Array | None
    gather: Callable[[jax.Array], jax.Array]
    again: Callable[[jax.Array], jax.Array]
    overflow: jax.Array


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
        occupancy: Any = None,
        capacity: Any = None,
        protocol: str = "paper",
        train: bool = False,
        clouds: int = 1,
    ) -> Output:
        """Scores per cloud.

        The paper has no equations for a soft occupancy in this network. Chosen here: points become voxels by eq. 37-38,
        both at the input and where the gathered features are averaged again. Convolutions (and norms) are multiplied
        as in every network, see `Passage`. A max pooling takes existing voxels only (the 0 of a voxel that is off is
        no neutral element of a maximum), and is multiplied where a norm is: in ``release``, whose convolutions read
        all voxels. A point gathers the values of the coarser voxels in which the voxels near it lie, in a mean
        weighted by the output relation (eq. 40; ``release``: a sum). The global maximum is over existing voxels, the
        global average is weighted by the occupancy. With steep relations all this becomes the original network.

        Args:
          inputs: a `PointCloud`, of one or several clouds.
          occupancy: None or ``hard()`` is the original network; a relation of `dyn_jax.occupancy.voxel`, ``lgm(...)``
            or ``fgm(...)`` are its differentiable forms.
          capacity: a `sparse3d.Capacity` of 8 levels; None: computed where the coordinates are concrete, else every
            level as large as there are points (safe and slow).
          protocol: ``paper`` or ``release``, see above.
          train: batch statistics in the norms, and dropout, which needs an rng called ``dropout``.
          clouds: how many clouds `inputs.batch` tells apart, static. A cloud without points has logits, but no meaning.

        Returns:
          `Output`: logits [cloud, class]; the trace has one unit for the layer on points and one per kernel map, over
          all clouds together.

        Raises:
          TypeError: not a point cloud; an occupancy that is no relation.
          ValueError: wrong widths or shapes; unknown protocol; batch indices outside [0, clouds); a single cloud in
            training; capacity for another number of levels, or (outside jit) too small.
        """
        _validate.choice("protocol", protocol, PROTOCOLS)
        if train and clouds == 1 and not self.is_initializing():
            raise ValueError("clouds: got 1 in training, expected at least 2: the classifier's norms are over clouds")
        cloud, strays = self._checked(inputs, clouds)
        occupancy = voxel.resolve(occupancy)
        if capacity is None:
            extends = occupancy is not None and occupancy.extends
            capacity = capacity_for(cloud, self.voxel_size, LEVELS, extends=extends)
        points = _enter(cloud, occupancy, capacity, self.voxel_size, protocol)
        levels = pyramid(points.sites, (2,) * (LEVELS - 1), capacity.levels)
        exists, occupied = coarser_values(levels, points.exists, points.occupancy)
        passage = Passage(levels, exists, occupied, protocol)
        logits = self._network(cloud, points, passage, train, clouds)
        counted = cloud.valid.astype(logits.dtype)[None]
        macs = cloud.features.shape[1] * self.channels[0]
        units = (UnitTrace(counted - 0.5, counted, macs, name="points"), *passage.units())
        head = 2 * self.embedding * self.hidden + self.hidden * (self.hidden + self.num_classes)
        overflow = flag_overflow(points.overflow | passage.overflow | strays)
        return Output(logits, Trace(units, clouds * head, overflow=overflow))

    def _checked(self, cloud: PointCloud, clouds: int) -> tuple[PointCloud, jax.Array]:
        """(the cloud with the features that the network takes, whether traced batch indices are out of range)."""
        if not isinstance(cloud, PointCloud):
            raise TypeError(f"inputs: got {type(cloud).__name__}, expected a PointCloud")
        if self.coordinate_features:
            cloud = cloud.replace(features=cloud.xyz)
        check_cloud(cloud)
        if cloud.features.shape[1] != self.in_features:
            raise ValueError(f"features: got shape {cloud.features.shape}, expected [points, {self.in_features}]")
        _validate.positive_int("clouds", clouds)
        if cloud.batch is None:
            if clouds > 1:
                raise ValueError(f"batch: got None with clouds={clouds}, expected [{cloud.xyz.shape[0]}] integers")
            return cloud, jnp.zeros((), bool)
        if cloud.batch.shape != cloud.valid.shape or not jnp.issubdtype(cloud.batch.dtype, jnp.integer):
            raise ValueError(
                f"batch: got {cloud.batch.dtype}{list(cloud.batch.shape)}, expected integers [{cloud.xyz.shape[0]}]"
            )
        if _validate.is_concrete(cloud.batch, cloud.valid):
            used = np.asarray(cloud.batch)[np.asarray(cloud.valid)]
            if used.min() < 0 or used.max() >= clouds:
                raise ValueError(f"batch: got indices in [{used.min()}, {used.max()}], expected [0, {clouds - 1}]")
        inside = (cloud.batch >= 0) & (cloud.batch < clouds)
        return cloud.replace(valid=cloud.valid & inside), jnp.any(cloud.valid & ~inside)

    def _network(self, cloud: PointCloud, points: _Points, passage: Passage, train: bool, clouds: int) -> jax.Array:
        def dense(x: jax.Array, features: int, linear: str, norm: str, where: jax.Array | None = None) -> jax.Array:
            return nn.leaky_relu(BatchNorm(name=norm)(Convolution(features, name=linear)(x), train, where), LEAK)

        def layer(x: jax.Array, source: int, target: int, features: int, name: str) -> jax.Array:
            passage.bill(source, target, 3, x.shape[-1] * features)
            pairs = passage.pairs(source, target, 3)
            y = passage.convolved(Convolution(features, name=f"{name}_0")(passage.read(x, source), pairs), target)
            y = BatchNorm(name=f"{name}_1")(y, train, passage.exists[target])
            return nn.leaky_relu(passage.normed(y, target), LEAK)

        soft = passage.occupancy is not None
        x = points.gather(dense(cloud.features, self.channels[0], "mlp1_0", "mlp1_1", cloud.valid))
        pooled, level = [], 0
        for number, features in enumerate(self.channels[1:], start=1):
            target = level + (number > 1)
            x = layer(x, level, target, features, f"conv{number}")
            level = target + 1
            x = pool_max(x, passage.pairs(target, level, 3), passage.exists[target] if soft else None)
            x = passage.normed(x, level)
            pooled.append(_at_finest(x, passage.levels[0], passage.levels[level]))
        x = points.again(jnp.concatenate(pooled, axis=1))
        for number, features in enumerate((self.embedding // 4, self.embedding // 2, self.embedding)):
            x = layer(x, number, number + 1, features, f"conv5_{number}")
        sites = passage.levels[3]
        highest = global_max(x, batch_items(sites, clouds, passage.exists[3] if soft else None))
        average = global_average(x, batch_items(sites, clouds), passage.occupancy[3] if soft else None)
        x = jnp.concatenate([highest, average], axis=1)
        x = dense(x, self.hidden, "final_0_0", "final_0_1")
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = dense(x, self.hidden, "final_2_0", "final_2_1")
        return Convolution(self.num_classes, use_bias=True, name="final_3")(x)


def _enter(
    cloud: PointCloud,
    occupancy: voxel.VoxelOccupancy | None,
    capacity: Capacity,
    voxel_size: float,
    protocol: str,
) -> _Points:
    """Eq. 21-23 with the mean of a voxel's points; eq. 29-31, 37-38, 40 for a soft occupancy."""
    if occupancy is None:
        sites, groups, overflow = hard_voxels(cloud, voxel_size, capacity.levels[0])
        # all points of a voxel gather the same values, so that averaging them again changes nothing
        return _Points(sites, sites.valid, None, lambda x: mean_over(x, groups), lambda x: x, overflow)
    reaching = cloud if occupancy.extends else cloud.replace(reach=None)
    pairs = near_voxels(reaching, voxel_size, voxels=capacity.levels[0], pairs=capacity.pairs)
    network = None
    if occupancy.extends:
        network = any_of(voxel.relate(occupancy.network, pairs.distance, pairs.inside), pairs.voxels)
    to_input = voxel.relate(occupancy.input, pairs.distance, pairs.inside)
    to_output = voxel.relate(occupancy.output, pairs.distance, pairs.inside)
    filled = any_of(to_input, pairs.voxels)[:, None]

    def gather(x: jax.Array) -> jax.Array:
        return filled * soft_features(x, to_input, pairs)

    def again(x: jax.Array) -> jax.Array:
        return gather(point_scores(x, to_output, pairs, normalise=protocol == "paper"))

    return _Points(pairs.sites, pairs.exists, network, gather, again, pairs.overflow)


def _at_finest(x: jax.Array, finest: Sites, level: Sites) -> jax.Array:
    """Values of a coarser level at the voxels of the finest, each that of the voxel it lies in."""
    row, _ = level.find(floor_to(finest.coordinates, level.stride), finest.valid)
    return spread(x, segments(row, level.capacity))


def modelnet40(**fields: Any) -> MinkowskiFCNN:
    """The network for ModelNet40: 40 classes, coordinates as features, voxels of 5 cm (objects of radius 1 m)."""
    return MinkowskiFCNN(**fields)


def objects(**fields: Any) -> MinkowskiFCNN:
    """A small one for the embedded objects: `dyn_jax.datasets.objects`."""
    given = {
        "channels": (16, 16, 24, 24, 32),
        "embedding": 64,
        "hidden": 64,
        "num_classes": 10,
        "voxel_size": 0.1,
    }
    return MinkowskiFCNN(**{**given, **fields})
