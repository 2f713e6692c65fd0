"""Networks of a few numbers with the arguments, the fields and the traces of the real ones: quick to compile."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax.gates.experts import expert_scores
from dyn_jax.networks.sdn import Layer, Trunk
from dyn_jax.occupancy import hard, stochastic
from dyn_jax.sparse3d import PAPER, Form, SparseTensor
from dyn_jax.types import Occupancy, Output, PointCloud, Tap, Trace, UnitTrace

WIDTH, COST = 6, 100


def coarse(images: jax.Array) -> jax.Array:
    """[batch, 4, 4, 3], the means of 8 x 8 pixels."""
    return images.reshape(len(images), 4, 8, 4, 8, 3).mean((2, 4))


class Gated(nn.Module):
    """Two gated layers over a coarse image; `family` says what its units carry besides score and occupancy."""

    family: str = "skipnet"
    winograd: bool = False
    normalization: tuple = ((0.5,) * 3, (0.25,) * 3)
    scan_from: int | None = None
    remat: bool = False
    execution: str = "dense"

    @nn.compact
    def __call__(
        self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False, tap: Tap | None = None
    ) -> Output:
        h = jnp.tanh(nn.Dense(WIDTH)(coarse(images).reshape(len(images), -1)))
        units = []
        for number in range(2):
            trunk, seen = (h, h) if tap is None else tap(h, number)
            score = nn.Dense(1)(seen)[:, 0]
            o = stochastic.apply(hard() if occupancy is None else occupancy, score, lambda: self.make_rng("gate"))
            h = trunk + o[:, None] * jnp.tanh(nn.Dense(WIDTH)(trunk))
            extras = {"probability": jax.nn.sigmoid(score)}
            extras |= {"manidp": {"value": nn.relu(score)}, "sact": {}, "dynconv": {"dilated": o}}.get(self.family, {})
            if self.family in ("manidp", "sact"):
                del extras["probability"]
            units.append(UnitTrace(score, o, COST, name=f"block1_unit{number + 2}", extras=extras))
        return Output(nn.Dense(10)(h), Trace(tuple(units), COST))


class Routed(nn.Module):
    """One choice among three experts, linear layers of a coarse image."""

    @nn.compact
    def __call__(self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False) -> Output:
        h = coarse(images).reshape(len(images), -1)
        score = expert_scores(nn.Dense(3)(h))
        o = (occupancy or hard())(score)
        h = jnp.einsum("be,bef->bf", o, jnp.tanh(nn.DenseGeneral((3, WIDTH))(h)))
        unit = UnitTrace(score, o, COST, name="experts", extras={"kept": jnp.ones_like(score)}, constant=True)
        return Output(nn.Dense(10)(h), Trace((unit,), COST))


@dataclasses.dataclass(frozen=True)
class Stages(Trunk):
    """Three linear layers of a coarse image, and linear exits: a trunk of `dyn_jax.networks.sdn.SDN`."""

    winograd: bool = False

    def layers(self, x: jax.Array, train: bool) -> Iterator[Layer]:
        x = coarse(x)
        for number in range(3):
            x = jnp.tanh(nn.Dense(WIDTH, name=f"layers_{number}")(x))
            yield Layer(x, x, COST)

    def exit(self, x: jax.Array, layer: int, num_classes: int, init: Any, train: bool) -> tuple[jax.Array, int]:
        return nn.Dense(num_classes, name=f"layers_{layer}_output")(x.mean((1, 2))), COST


class Points(nn.Module):
    """A linear layer for every point or voxel, one unit of them; with `whole` the answer is one for the cloud."""

    whole: bool = False
    voxel_size: float = 0.1
    levels: int = 2
    classes: int = 10

    def example_input(self) -> SparseTensor:
        rows = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 3))
        return SparseTensor(*rows, jnp.ones(1, bool), jnp.zeros((), bool))

    @nn.compact
    def __call__(
        self,
        inputs: SparseTensor | PointCloud,
        *,
        reach: Any = None,
        occupancy: Any = None,
        capacity: Any = None,
        form: Form = PAPER,
        train: bool = False,
    ) -> Output:
        x = inputs.xyz if isinstance(inputs, PointCloud) else inputs.features
        h = jnp.tanh(nn.Dense(WIDTH)(x))
        score = nn.Dense(1)(h).T
        logits = nn.Dense(self.classes)(h * jax.nn.sigmoid(score.T))
        unit = UnitTrace(score, jax.nn.sigmoid(score), COST + jnp.zeros_like(score), None, "points")
        logits = jnp.mean(logits, axis=0, keepdims=True) if self.whole else logits
        return Output(logits, Trace((unit,), 0, overflow=jnp.zeros((), bool)))
