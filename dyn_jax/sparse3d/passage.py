"""What the layers of a sparse network share in one forward pass: levels, kernel maps, occupancies, and the bill."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from functools import cached_property

import jax
import jax.numpy as jnp

from dyn_jax.sparse3d.blocked import ROWS
from dyn_jax.sparse3d.form import PAPER, Form
from dyn_jax.sparse3d.kernel import Size, scaled, triple
from dyn_jax.sparse3d.maps import KernelMap, Wanted, kernel_map, kernel_maps
from dyn_jax.sparse3d.pooling import pool_any
from dyn_jax.sparse3d.sites import Sites, floor_to, reached, sites_of
from dyn_jax.types import UnitTrace


def pyramid(sites: Sites, factors: Sequence[Size], capacities: Sequence[int] | None = None) -> tuple[Sites, ...]:
    """Levels of a network, from the finest: each what `coarsen` makes of the one before by its factor, all at once.

    `capacities` are rows of every level, the finest included, else ValueError; default as many as the finest has.
    """
    if capacities is not None and len(capacities) != len(factors) + 1:
        raise ValueError(f"capacity: got {len(capacities)} levels {tuple(capacities)}, expected {len(factors) + 1}")
    if not factors:
        return (sites,)
    sizes = (sites.capacity,) * len(factors) if capacities is None else tuple(capacities[1:])
    steps = list(itertools.accumulate(factors, scaled, initial=sites.stride))[1:]
    coordinates = jnp.stack([floor_to(sites.coordinates, step) for step in steps])
    coarser = jax.vmap(lambda rows: sites_of(rows, sites.valid, max(sizes)))(coordinates)
    levels = [sites]
    for number, (step, size) in enumerate(zip(steps, sizes)):
        level: Sites = jax.tree.map(operator.itemgetter(number), coarser)
        level = level.replace(stride=step, overflow=level.overflow | sites.overflow)
        levels.append(level.cut(size))
    return tuple(levels)


@dataclasses.dataclass
class Passage:
    """Made afresh in every forward pass.

    Attributes:
      levels: from `pyramid`.
      exists: per level, [voxel] bool: holds a point. (Other voxels are only near one.)
      occupancy: per level, [voxel], or None: the original network on the voxels that exist.
      form: what a soft occupancy multiplies, and what convolutions read (eq. 27).
      clouds: rows of the trace: how many clouds the batch column tells apart.
      region: order of the kernels' slices, see `offsets`.
      maps: the kernel maps by (level in, level out, size); one that is missing is made when a layer asks for it.
    """

    levels: tuple[Sites, ...]
    exists: tuple[jax.Array, ...]
    occupancy: tuple[jax.Array, ...] | None = None
    form: Form = PAPER
    clouds: int = 1
    region: str = "cube"
    maps: dict[tuple, KernelMap] = dataclasses.field(default_factory=dict)
    _macs: dict[tuple, int] = dataclasses.field(default_factory=dict)

    def pairs(self, source: int, target: int, kernel_size: Size) -> KernelMap:
        """The kernel map between two levels (transposed where the target is the finer one)."""
        key = (source, target, triple("kernel_size", kernel_size))
        if key not in self.maps:
            if target < source:
                self.maps[key] = self.pairs(target, source, kernel_size).swap()
            else:
                self.maps[key] = kernel_map(self.levels[source], self.levels[target], kernel_size, region=self.region)
        return self.maps[key]

    def read(self, x: jax.Array, level: int) -> jax.Array:
        """What a convolution with neighbours reads of `x` [voxel, channel]."""
        if self.occupancy is None or self.form.near_feed:
            return x
        return x * self.exists[level][:, None].astype(x.dtype)

    def convolved(self, y: jax.Array, level: int) -> jax.Array:
        """A convolution's output, times the occupancy (eq. 27)."""
        return y if self.occupancy is None else y * self.occupancy[level][:, None]

    def normed(self, y: jax.Array, level: int) -> jax.Array:
        """A norm's output, times the occupancy once more where the form says so."""
        return self.convolved(y, level) if self.form.multiplies_norms else y

    def bill(self, source: int, target: int, kernel_size: Size | None, macs: int) -> None:
        """Writes `macs` multiply-adds per pair on the account of a kernel map; None: one pair per voxel."""
        key = (source, target, None if kernel_size is None else triple("kernel_size", kernel_size))
        self._macs[key] = self._macs.get(key, 0) + macs

    def units(self) -> tuple[UnitTrace, ...]:
        """One unit per kernel map: an element is an output voxel, which costs the map's bill for every neighbour.

        Arrays are [cloud, voxel]: a row holds the occupancies and costs of its cloud's voxels, and 0 elsewhere; the
        score is the occupancy minus 1/2. Costs are floats, so that they may exceed 2^31.
        """
        return tuple(self._unit(key, macs) for key, macs in self._macs.items())

    def _unit(self, key: tuple, macs: int) -> UnitTrace:
        source, target, size = key
        dtype = jnp.float32 if self.occupancy is None else self.occupancy[target].dtype
        value = self.exists[target].astype(dtype) if self.occupancy is None else self.occupancy[target]
        value = jnp.where(self.levels[target].valid, value, 0)
        if size is None:
            neighbours = self.levels[target].valid.astype(dtype)
        elif target < source:
            neighbours = _received(self.maps[(source, target, size)]).astype(dtype)
        else:
            neighbours = self.maps[key].neighbours.astype(dtype)
        name = f"level{target}" + ("" if source == target else f"_from{source}")
        name += "_pointwise" if size is None else "_k" + "x".join(map(str, size))
        value, cost = self._by_cloud(value, target), self._by_cloud(float(macs) * neighbours, target)
        return UnitTrace(value - 0.5, value, cost, None, name)

    def _by_cloud(self, values: jax.Array, level: int) -> jax.Array:
        """[voxel] -> [cloud, voxel], 0 for the voxels of other clouds."""
        if self.clouds == 1:
            return values[None]
        cloud = jnp.arange(self.clouds, dtype=jnp.int32)[:, None]
        return jnp.where(self.levels[level].coordinates[None, :, 0] == cloud, values[None], 0)

    @cached_property
    def overflow(self) -> jax.Array:
        """Scalar bool, some level did not fit."""
        return jnp.any(jnp.stack([level.overflow for level in self.levels]))


def _received(pairs: KernelMap) -> jax.Array:
    """[size_out], pairs of every output row of a map without mirror or centre."""
    used = jnp.arange(pairs.rows_out.shape[0])[:, None] < pairs.blocks
    rows = jnp.where(used, pairs.rows_out, pairs.size_out)
    return jnp.zeros(pairs.size_out, jnp.int32).at[rows.reshape(-1)].add(1, mode="drop", **ROWS)


def passage_over(
    levels: Sequence[Sites],
    exists: jax.Array,
    occupancy: jax.Array | None,
    form: Form,
    clouds: int = 1,
    *,
    kernels: Sequence[tuple[int, int, Size]],
    below: Size,
    region: str = "cube",
) -> Passage:
    """The passage through levels and what is known of the finest one.

    A coarser voxel exists where the kernel between two levels meets one that does, and its occupancy is "any of" what
    that kernel meets: with children as what it meets, the same as gathering from the points (eq. 31).

    Args:
      levels: from the finest.
      exists, occupancy: [voxel] of the finest level; without an occupancy every voxel exists.
      form, clouds, region: see `Passage`.
      kernels: (level in, level out, size), what the network's convolutions and poolings use; made together, see
        `kernel_maps`. A transposed one counts as that from the finer level.
      below: size of the kernel between two levels that tells what exists; 2 with a stride of 2: the children.
    """
    between = [(number, number + 1, below) for number in range(len(levels) - 1)]
    wanted = [*kernels, *between] if occupancy is not None else kernels
    keys = list(dict.fromkeys((a, b, triple("kernel_size", size)) for a, b, size in wanted))
    made = kernel_maps([Wanted(levels[a], levels[b], size, region=region) for a, b, size in keys])
    passage = Passage(tuple(levels), (exists,), None, form, clouds, region, dict(zip(keys, made)))
    if occupancy is None:
        passage.exists = (exists, *(level.valid for level in levels[1:]))
        return passage
    all_exist, all_occupied = [exists], [occupancy]
    for number, _, size in between:
        pairs = passage.pairs(number, number + 1, size)
        all_exist.append(jax.lax.stop_gradient(pool_any(all_exist[-1].astype(occupancy.dtype), pairs)) > 0.5)
        all_occupied.append(pool_any(all_occupied[-1], pairs))
    passage.exists, passage.occupancy = tuple(all_exist), tuple(all_occupied)
    return passage


def reaching(sites: Sites, factors: Sequence[Size], bounds: Size, capacities: Sequence[int]) -> tuple[Sites, ...]:
    """Levels that are all that a kernel of size 3 reaches, from the finest; see `sites.reached`."""
    levels = [sites]
    for factor, capacity in zip(factors, capacities[1:], strict=True):
        levels.append(reached(levels[-1], factor, 3, bounds=bounds, capacity=capacity))
    return tuple(levels)
