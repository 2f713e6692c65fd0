"""Voxel occupancies: how "is a point in this voxel?" becomes a number, an argument of a 3D network's forward pass.

A *relation* is any callable ``(distance, inside) -> value``: ``distance`` [..., 3] is ``|x + 1/2 - p / L|`` per axis in
voxel edges (eq. 29), ``inside`` [...] whether the point lies in the voxel. The occupancy of a voxel is
``1 - prod (1 - r)`` over the points near it (`sparse3d.any_of`, eq. 31).

FGM and LGM differ in the relation of the network's convolutions only: `fgm` has the constant `hard` one there, `lgm` a
soft one. Relations are pytrees with their slope as a leaf: a sweep over it is a ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.occupancy.gate import Hard as GateHard

Relation = Callable[[jax.Array, jax.Array], jax.Array]


@flax.struct.dataclass
class Hard:
    """1 where the point is inside, derivative 0: see `hard`."""

    def __call__(self, distance: jax.Array, inside: jax.Array) -> jax.Array:
        return inside.astype(distance.dtype)


@flax.struct.dataclass
class Sigmoid:
    """Product of three falling sigmoids: see `sigmoid`."""

    lam: jax.typing.ArrayLike

    def __call__(self, distance: jax.Array, inside: jax.Array) -> jax.Array:
        del inside
        return jnp.prod(jax.nn.sigmoid(jnp.asarray(self.lam, distance.dtype) * (0.5 - distance)), axis=-1)


@flax.struct.dataclass
class Bilinear:
    """``prod (1 - d)``: see `bilinear`."""

    def __call__(self, distance: jax.Array, inside: jax.Array) -> jax.Array:
        del inside
        return jnp.prod(1 - distance, axis=-1)


@flax.struct.dataclass
class RBF:
    """``exp(-|d|^2) / alpha``: see `rbf`."""

    outside: jax.typing.ArrayLike = 26.0

    def __call__(self, distance: jax.Array, inside: jax.Array) -> jax.Array:
        alpha = jnp.where(inside, 1.0, jnp.asarray(self.outside, distance.dtype)).astype(distance.dtype)
        return jnp.exp(-jnp.sum(distance * distance, axis=-1)) / alpha


@flax.struct.dataclass
class StraightThrough:
    """Value of `hard`, derivative of another relation: see `straight_through`."""

    relation: Relation

    def __call__(self, distance: jax.Array, inside: jax.Array) -> jax.Array:
        soft = self.relation(distance, inside)
        return (soft - jax.lax.stop_gradient(soft)) + inside.astype(soft.dtype)


def hard() -> Hard:
    """``r = 1`` if the point lies in the voxel, else 0; derivative 0.

    Source: LGM paper eq. 25 (the constant o-bar).
    """
    return Hard()


def sigmoid(lam: jax.typing.ArrayLike = 10.0) -> Sigmoid:
    """``r = prod_i 1 / (1 + exp(lam (d_i - 1/2)))``.

    Args:
      lam: slope at the faces of the voxel is ``lam / 4`` per voxel edge; positive, a leaf.

    Raises:
      ValueError: lam is not a finite positive number.

    Source: LGM paper eq. 30.
    """
    return Sigmoid(_validate.positive("lam", lam))


def bilinear() -> Bilinear:
    """``r = prod_i (1 - d_i)``: tri-linear weights. Negative where a distance exceeds one voxel edge.

    Source: LGM paper eq. 32 (Tu et al. 2020).
    """
    return Bilinear()


def rbf(outside: jax.typing.ArrayLike = 26.0) -> RBF:
    """``r = exp(-|d|^2) / alpha``, alpha = 1 for the point's own voxel and `outside` for its neighbours.

    Raises:
      ValueError: outside is not a positive number.

    Source: LGM paper eq. 33 (Qian et al. 2020).
    """
    return RBF(_validate.positive("outside", outside))


def straight_through(relation: Relation | None = None) -> StraightThrough:
    """Value of `hard`, derivative of `relation` (default ``sigmoid(10)``).

    With more than one point in a voxel, eq. 31 then leaves a point no gradient: the others keep the voxel on.
    """
    return StraightThrough(sigmoid() if relation is None else relation)


@flax.struct.dataclass
class VoxelOccupancy:
    """The three places where a relation stands in the pipeline points -> voxels -> network -> points.

    Attributes:
      input: of the soft voxel features (eq. 37-38).
      network: multiplies the convolutions (eq. 27); `Hard` is the dynamics-unaware network, on the real voxels alone.
      output: of the point scores (eq. 40).
    """

    input: Relation
    network: Relation
    output: Relation

    @property
    def extends(self) -> bool:
        """Whether voxels that are only near a point take part."""
        return not isinstance(self.network, Hard)


def lgm(
    network: Relation | None = None, *, input: Relation | None = None, output: Relation | None = None
) -> VoxelOccupancy:
    """The leaded gradient: `network` (default ``sigmoid(10)``) everywhere, unless `input` or `output` differ.

    The released code's best slopes (input, network, output) on ScanNet are 10, 25, 10 at eps 0.005; 10, 10, 10 at
    0.01 and 0.02; 10, 15, 10 at 0.05; on S3DIS 45, 55, 45.

    Raises:
      TypeError: a relation that is not callable.
    """
    network = sigmoid() if network is None else network
    return VoxelOccupancy(
        _relation("input", network if input is None else input),
        _relation("network", network),
        _relation("output", network if output is None else output),
    )


def fgm(input: Relation | None = None, *, output: Relation | None = None) -> VoxelOccupancy:
    """The dynamics-unaware gradient: `hard` in the network; voxel features and point scores stay soft.

    Args:
      input, output: relations of voxelisation and devoxelisation; default ``sigmoid(20)``, the release's on ScanNet.

    Raises:
      TypeError: a relation that is not callable.
    """
    input = sigmoid(20.0) if input is None else input
    return VoxelOccupancy(_relation("input", input), Hard(), _relation("output", input if output is None else output))


def resolve(occupancy: Relation | VoxelOccupancy | None) -> VoxelOccupancy | None:
    """What a 3D network's ``occupancy=`` means: None or a hard one: the original network (None); a relation: `lgm`."""
    if occupancy is None or isinstance(occupancy, (Hard, GateHard)):
        return None
    if isinstance(occupancy, VoxelOccupancy):
        return occupancy
    return lgm(_relation("occupancy", occupancy))


def _relation(name: str, relation: Relation) -> Relation:
    if not callable(relation):
        raise TypeError(f"{name}: got {type(relation).__name__}, expected a relation (distance, inside) -> value")
    return relation


def relate(relation: Relation, distance: jax.Array, inside: jax.Array) -> jax.Array:
    """``relation(distance, inside)``, checked for its shape."""
    value = relation(distance, inside)
    if jnp.shape(value) != inside.shape:
        raise ValueError(
            f"relation: got values of shape {jnp.shape(value)} for {inside.shape} pairs, expected one a pair"
        )
    return value
