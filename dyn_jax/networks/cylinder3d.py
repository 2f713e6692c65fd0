"""Cylinder3D (Zhu et al. 2021): a network on points, cylindrical cells, and asymmetric sparse convolutions."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.networks.minkunet import convolution, normed
from dyn_jax.nn.norm import BatchNorm
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d.allocate import Capacity
from dyn_jax.sparse3d.cloud import check_cloud
from dyn_jax.sparse3d.cylinder import FEATURES, Cylinder, Partition, check_partition, filled_cells, partition
from dyn_jax.sparse3d.cylinder_near import near_cells
from dyn_jax.sparse3d.entry import default_capacity, flag_overflow
from dyn_jax.sparse3d.form import PAPER, Form, check_form
from dyn_jax.sparse3d.layers import Convolution
from dyn_jax.sparse3d.passage import Passage, passage_over, reaching
from dyn_jax.sparse3d.pooling import global_max
from dyn_jax.sparse3d.segments import Segments, any_of, segments, spread
from dyn_jax.sparse3d.sites import Sites
from dyn_jax.sparse3d.voxelize import Voxels, point_scores, soft_features
from dyn_jax.types import Output, PointCloud, Reach, Trace, UnitTrace

Shape = tuple[int, int, int]
LEAK = 0.01
"""Slope of the leaky ReLUs below 0."""
_RHO_Z, _PHI_Z, _CUBE = (3, 1, 3), (1, 3, 3), (3, 3, 3)
_AXES = (3, 1, 1), (1, 3, 1), (1, 1, 3)


class _Cells(NamedTuple):
    """The finest level and what lies in it.

    Attributes:
      sites, exists, occupancy: of the cells; see `Passage`.
      rows: [row, 9], the features of the points, and behind them of the cells that are only near points.
      groups: the rows grouped by cell.
      own: the points grouped by cell.
      pairs: of a soft occupancy, else None; with it `output` [pair], the relation of eq. 40.
      overflow: scalar bool.
    """

    sites: Sites
    exists: jax.Array
    occupancy: jax.Array | None
    rows: jax.Array
    groups: Segments
    own: Segments
    pairs: Voxels | None
    output: jax.Array | None
    overflow: jax.Array


def _soft_cells(
    cloud: PointCloud,
    points: Partition,
    occupancy: voxel.VoxelOccupancy,
    reach: Reach | jax.typing.ArrayLike | None,
    capacity: Capacity,
    cylinder: Cylinder,
    form: Form,
) -> _Cells:
    """A cell that is only near points has one row, the mean of their features by the input's relation (eq. 37); a
    cell that holds some has theirs, and that row as well where others are near it."""
    limits = {"voxels": capacity.levels[0], "pairs": capacity.pairs}
    pairs = near_cells(cloud, cylinder, reach=reach, **limits, released=form.shifted_neighbours)
    network = any_of(voxel.relate(occupancy.network, pairs.distance, pairs.inside), pairs.voxels)
    mean = soft_features(points.features, voxel.relate(occupancy.input, pairs.distance, pairs.inside), pairs)
    size = pairs.sites.capacity
    row, _ = pairs.sites.find(points.cells, points.valid)
    own = segments(row, size)
    is_near = jnp.where(pairs.voxels.count > own.count, jnp.arange(size, dtype=jnp.int32), size)
    groups = segments(jnp.concatenate([row, is_near]), size)
    output = voxel.relate(occupancy.output, pairs.distance, pairs.inside)
    rows = jnp.concatenate([points.features, mean])
    return _Cells(pairs.sites, pairs.exists, network, rows, groups, own, pairs, output, pairs.overflow)


class PointNet(nn.Module):
    """Four linear layers on every row, the largest value of each cell, and a linear layer with a ReLU on the cells.

    The largest value's derivative goes to one row, the first of equals.
    """

    features: tuple[int, ...]
    cell_features: int

    @nn.compact
    def __call__(self, cells: _Cells, passage: Passage, train: bool) -> jax.Array:
        counted = cells.groups.group < cells.groups.size
        occupancy = None
        if passage.form.multiplies_points and passage.occupancy is not None:
            occupancy = spread(passage.occupancy[0], cells.groups)[:, None]

        def times(y: jax.Array) -> jax.Array:
            return y if occupancy is None else y * occupancy

        # padding may hold anything, and 0 * NaN is NaN in a gradient
        x = times(jnp.where(counted[:, None], cells.rows, 0))
        x = times(BatchNorm(name="bn_0")(x, train, counted))
        for number, width in enumerate(self.features):
            x = times(Convolution(width, use_bias=True, name=f"linear_{3 * number + 1}")(x))
            if number + 1 < len(self.features):
                x = nn.relu(times(BatchNorm(name=f"bn_{3 * number + 2}")(x, train, counted)))
        x = global_max(x, cells.groups)
        x = nn.relu(Convolution(self.cell_features, use_bias=True, name="compression")(x))
        return passage.convolved(x, 0)

    def macs(self) -> tuple[int, int]:
        """Multiply-adds of a row, of a cell."""
        widths = (FEATURES, *self.features)
        return sum(a * b for a, b in zip(widths, widths[1:])), widths[-1] * self.cell_features


class Layers(nn.Module):
    """What the blocks of Cylinder3D share: convolutions on one level whose neighbourhood may be another kernel's."""

    features: int
    neighbourhoods: str

    def convolve(self, x: jax.Array, passage: Passage, level: int, size: Shape, shared: Shape, name: str) -> jax.Array:
        """A convolution times the occupancy; of a kernel larger than the neighbourhood, the first slices."""
        used = shared if self.neighbourhoods == "shared" else size
        return convolution(x, passage, (level, level), used, self.features, name)

    def activated(self, y: jax.Array, passage: Passage, level: int, norm: str, train: bool) -> jax.Array:
        """Leaky ReLU, then the norm."""
        return normed(nn.leaky_relu(y, LEAK), passage, level, norm, train)


class ResBlock(Layers):
    """Two branches of two asymmetric convolutions each, summed; ``first`` is the kernel that both meet first."""

    first: Shape = _RHO_Z
    pools: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, passage: Passage, level: int, train: bool) -> tuple[jax.Array, jax.Array]:
        """(values of the coarser level, values of this one); the same twice where it does not pool."""
        first, second = self.first, (_PHI_Z if self.first == _RHO_Z else _RHO_Z)

        def layer(x: jax.Array, size: Shape, conv: str, norm: str) -> jax.Array:
            y = self.convolve(x, passage, level, size, first, conv)
            return self.activated(y, passage, level, norm, train)

        shortcut = layer(layer(x, first, "conv1", "bn0"), second, "conv1_2", "bn0_2")
        y = shortcut + layer(layer(x, second, "conv2", "bn1"), first, "conv3", "bn2")
        if not self.pools:
            return y, y
        return convolution(y, passage, (level, level + 1), _CUBE, self.features, "pool"), y


class UpBlock(Layers):
    """A convolution on the coarser level, its values brought to the finer one and added to the skip, three more."""

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, passage: Passage, level: int, train: bool) -> jax.Array:
        low = level + 1
        x = self.convolve(x, passage, low, _CUBE, _CUBE, "trans_dilao")
        x = self.activated(x, passage, low, "bn_trans", train)
        x = convolution(x, passage, (low, level), _CUBE, self.features, "up_subm") + skip
        for number, size in enumerate((_PHI_Z, _RHO_Z, _CUBE), start=1):
            x = self.convolve(x, passage, level, size, _PHI_Z, f"conv{number}")
            x = self.activated(x, passage, level, f"bn{number}", train)
        return x


class ReconBlock(Layers):
    """The input times the sum of three sigmoids, each of a convolution along one axis."""

    @nn.compact
    def __call__(self, x: jax.Array, passage: Passage, level: int, train: bool) -> jax.Array:
        gate = jnp.zeros_like(x)
        for size, name in zip(_AXES, ("", "_2", "_3")):
            y = self.convolve(x, passage, level, size, _AXES[0], f"conv1{name}")
            gate = gate + jax.nn.sigmoid(normed(y, passage, level, f"bn0{name}", train))
        return gate * x


class Cylinder3D(nn.Module):
    """Cylinder3D for semantic segmentation of a LiDAR scan.

    Attributes:
      cylinder: bounds and grid.
      features: channels of the finest level, doubled on every coarser one.
      point_features: of the layers on points.
      cell_features: of a cell where it enters the convolutions.
      num_classes: classes.
      neighbourhoods: ``shared``: all convolutions of a block that share a key in the released code meet the neighbours
        of the first of them, whatever the shape of their own kernels: what spconv 1.2 did, and what every published
        weight was trained with. ``own``: each kernel its own, as the paper draws them.

    Source: Zhu et al. 2021; layer plan and names as in the released code.
    """

    cylinder: Cylinder = Cylinder()
    features: int = 32
    point_features: tuple[int, ...] = (64, 128, 256, 256)
    cell_features: int = 16
    num_classes: int = 20
    neighbourhoods: str = "shared"

    @property
    def levels(self) -> int:
        """Levels of a capacity."""
        return 5

    @property
    def voxel_size(self) -> Cylinder:
        """What `sparse3d.capacity_for` counts by."""
        return self.cylinder

    def example_input(self) -> PointCloud:
        """The smallest input, for the shapes of the variables."""
        return PointCloud(jnp.ones((1, 3)), jnp.zeros((1, 1)), jnp.ones(1, bool))

    @nn.compact
    def __call__(
        self,
        inputs: PointCloud | Partition,
        *,
        reach: Reach | jax.typing.ArrayLike | None = None,
        occupancy: Any = None,
        capacity: Capacity | None = None,
        form: Form = PAPER,
        train: bool = False,
    ) -> Output:
        """Scores per point.

        The paper has no equations of its own for this network. Chosen here: a cell that points are only near gets
        their mean features (eq. 37) as a row of the network on points; the value of a cell there, and every
        convolution, is multiplied by the occupancy (eq. 27, 38); on coarser levels the occupancy is "any of" what the
        strided kernel meets; a point's scores are those of the cells it is near, by the output's relation (eq. 40).

        Args:
          inputs: a `PointCloud` whose feature is the intensity [point, 1], of one or several clouds, or its
            `Partition` (then without a soft occupancy).
          reach, train: as in `MinkUNet`, with cells in place of voxels (`sparse3d.near_cells`).
          occupancy: as in `MinkUNet`, but ``fgm()`` is the original network, too.
          capacity: as in `MinkUNet`, of 5 levels.
          form: `sparse3d.PAPER` or `sparse3d.OUTDOOR_RELEASE`, or fields of one's own.

        Returns:
          `Output`: logits [point, class]; the trace has one unit for the network on points and one per kernel map,
          with a row for each cloud. The first has the extras ``cell`` [cloud, point], each point's row among the
          cells, and ``scores`` [cloud, cell, class], theirs.

        Raises:
          TypeError, ValueError: as in `MinkUNet`; neither a point cloud nor a partition; no point inside the bounds; an
            unknown neighbourhood.
        """
        check_form(form)
        _validate.choice("neighbourhoods", self.neighbourhoods, ("shared", "own"))
        soft = voxel.resolve(occupancy)
        soft = soft if soft is not None and soft.extends else None
        if isinstance(inputs, Partition):
            if soft is not None:
                raise TypeError("occupancy: got a soft one with a Partition, expected a PointCloud: cells do not move")
            points, lost, cloud = check_partition(inputs, self.cylinder), jnp.zeros((), bool), None
        else:
            cloud, lost = check_cloud(inputs, self.cylinder.finest, 1)
            points = partition(cloud, self.cylinder)
            lost |= self._none_inside(cloud)
        given = points if cloud is None else cloud
        capacity = default_capacity(given, soft, capacity, reach, self.cylinder, self.levels, form)
        if soft is None or cloud is None:
            sites, own = filled_cells(points, capacity.levels[0])
            cells = _Cells(sites, sites.valid, None, points.features, own, own, None, None, sites.overflow)
        else:
            cells = _soft_cells(cloud, points, soft, reach, capacity, self.cylinder, form)
        factors, grid = self.cylinder.factors, self.cylinder.grid
        sizes = (cells.sites.capacity, *capacity.levels[1:])
        levels, kernels = reaching(cells.sites, factors, grid, sizes), self._kernels()
        passage = passage_over(
            levels, cells.exists, cells.occupancy, form, points.clouds, kernels=kernels, below=3, region="dense"
        )
        invalid = jnp.any(points.valid != given.valid)
        overflow = flag_overflow(cells.overflow | passage.overflow | lost | invalid)  # before any convolution
        net = PointNet(self.point_features, self.cell_features, name="generator")
        scores = self._convolutions(net(cells, passage, train), passage, train)
        if cells.pairs is None or cells.output is None or form.multiplies_scores:
            logits = spread(scores, cells.own)
        else:
            logits = point_scores(scores, cells.output, cells.pairs, normalise=form.normalises_scores)
        units = (self._on_points(points, cells, passage, scores, net.macs()), *passage.units())
        return Output(logits, Trace(units, 0, overflow=overflow))

    def _kernels(self) -> list[tuple[int, int, Shape]]:
        """(level in, level out, size) of what the convolutions meet."""
        own = self.neighbourhoods == "own"
        kernels = [(level, level, size) for level in range(4) for size in (_PHI_Z, _RHO_Z, _CUBE)]
        kernels += [(4, 4, _CUBE), *((level, level + 1, _CUBE) for level in range(4))]
        return kernels + [(0, 0, size) for size in (_AXES if own else _AXES[:1])]

    def _convolutions(self, x: jax.Array, passage: Passage, train: bool) -> jax.Array:
        """[cell, class]."""
        width, kind = self.features, self.neighbourhoods
        x, _ = ResBlock(width, kind, _PHI_Z, False, name="downCntx")(x, passage, 0, train)
        skips = []
        for number in range(4):
            width *= 2
            x, skip = ResBlock(width, kind, name=f"resBlock{number + 2}")(x, passage, number, train)
            skips.append(skip)
        for number in range(4):
            level = 3 - number
            x = UpBlock(width, kind, name=f"upBlock{number}")(x, skips.pop(), passage, level, train)
            width //= 2
        x = jnp.concatenate([ReconBlock(2 * width, kind, name="ReconNet")(x, passage, 0, train), x], axis=1)
        passage.bill(0, 0, _CUBE, x.shape[-1] * self.num_classes)
        head = Convolution(self.num_classes, use_bias=True, name="logits")
        scores = head(passage.read(x, 0), passage.pairs(0, 0, _CUBE))
        return passage.convolved(scores, 0) if passage.form.multiplies_scores else scores

    def _none_inside(self, cloud: PointCloud) -> jax.Array:
        """Scalar bool: every point is beyond the bounds; an error outside jit."""
        radius = jnp.hypot(cloud.xyz[:, 0], cloud.xyz[:, 1])
        (near, _, low), (far, _, high) = self.cylinder.low, self.cylinder.high
        inside = (radius >= near) & (radius < far) & (cloud.xyz[:, 2] >= low) & (cloud.xyz[:, 2] < high)
        none = ~jnp.any(inside & cloud.valid)
        if _validate.is_concrete(none) and bool(none):
            raise ValueError(
                f"xyz: got no point within {far:g} m of the sensor and at heights of {low:g} to {high:g} m, expected "
                "some: metres, with the sensor at the origin"
            )
        return none

    def _on_points(
        self, points: Partition, cells: _Cells, passage: Passage, scores: jax.Array, macs: tuple[int, int]
    ) -> UnitTrace:
        """The unit of the network on points, [cloud, point]; a cell's layer is billed to its points in equal parts."""
        dtype = scores.dtype
        cloud = jnp.arange(points.clouds, dtype=jnp.int32)[:, None]
        counted = (points.valid[None] & (points.cells[None, :, 0] == cloud)).astype(dtype)
        share = 1 / jnp.maximum(spread(cells.own.count.astype(dtype), cells.own), 1)
        cost = (macs[0] + macs[1] * share)[None] * counted
        of_cloud = (cells.sites.valid[None] & (cells.sites.coordinates[None, :, 0] == cloud)).astype(dtype)
        extras = {
            "cell": jnp.broadcast_to(cells.own.group[None], counted.shape),
            "scores": scores[None] * of_cloud[:, :, None],
        }
        return UnitTrace(counted - 0.5, counted, jax.lax.stop_gradient(cost), None, "points", extras)


def semantickitti(**fields: Any) -> Cylinder3D:
    """The network for SemanticKITTI: 20 classes of which 0 is unlabelled, heights of -4 to 2 m."""
    return Cylinder3D(**fields)


def streets(**fields: Any) -> Cylinder3D:
    """A small one for the simulated streets: `dyn_jax.datasets.streets`."""
    given = {"cylinder": Cylinder(high=(50.0, 3.1415926, 4.0), grid=(100, 120, 20)), "features": 4}
    given |= {"point_features": (16, 32, 32), "cell_features": 12, "num_classes": 11}
    return Cylinder3D(**{**given, **fields})


def nuscenes(**fields: Any) -> Cylinder3D:
    """The network for nuScenes: 17 classes of which 0 is unlabelled, heights of -5 to 3 m."""
    cylinder = Cylinder(low=(0.0, -3.1415926, -5.0), high=(50.0, 3.1415926, 3.0))
    return Cylinder3D(**{"cylinder": cylinder, "num_classes": 17, **fields})
