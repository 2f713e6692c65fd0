"""Where Square's squares lie and what is put into them: random numbers, windows, bumps, and a proposal in each norm."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.attacks.base import Problem
from dyn_jax.attacks.restarts import folded
from dyn_jax.attacks.threat import L1, L2, Ball, Linf, norm

_TINY = 1e-10


class SquareDraws(flax.struct.PyTreeNode):
    """The random numbers of a run: what `square` draws itself, or replays where they are given.

    ``q`` is the number of proposals. For every number per image or per image and channel, an axis of
    length 1 shares one number. Starts and squares of one norm only are read:

    Attributes:
      start_signs: Linf: [image, width, channel], the stripes' -1 or 1. L2, L1: [tile, image, channel].
      start_turned: L2, L1: [tile, image] bool, the tile's bump is transposed.
      row, col: [q, image], upper left corner of the square.
      signs: [q, image, channel], -1 or 1.
      row2, col2: L2, L1: [q, image], corner of the square that is emptied.
      turned: L2, L1: [q, image] bool, the bump is transposed.
    """

    start_signs: jax.typing.ArrayLike
    row: jax.typing.ArrayLike
    col: jax.typing.ArrayLike
    signs: jax.typing.ArrayLike
    start_turned: jax.typing.ArrayLike | None = None
    row2: jax.typing.ArrayLike | None = None
    col2: jax.typing.ArrayLike | None = None
    turned: jax.typing.ArrayLike | None = None


def windows(p: np.ndarray, height: int, width: int, norm: str) -> np.ndarray:
    """Side of the square for every share p: ``round(sqrt(p h w))``, at least 1; L2 and L1: odd and at least 3."""
    side = np.maximum(np.round(np.sqrt(p * height * width)).astype(int), 1 if norm == "linf" else 3)
    if norm != "linf":
        side = side + (side % 2 == 0)
    return np.minimum(side, min(height, width))


def bump(side: int, norm: str = "l2") -> np.ndarray:
    """[side, side], a positive bump in the upper half and a negative one below, of unit L2 (or L1) norm.

    Half a bump is the sum of ``1 / (k + 1)^2`` (L1: ``^4``) on squares of side 2 k + 1 around its middle.
    """
    steep, length = {"l2": (2, lambda v: np.sqrt(np.sum(v**2))), "l1": (4, lambda v: np.sum(np.abs(v)))}[norm]

    def half(rows: int, cols: int) -> np.ndarray:
        values = np.zeros((rows, cols))
        row, col = rows // 2, cols // 2
        for k in range(max(row, col) + 1):
            top, left = max(row - k, 0), max(col - k, 0)
            values[top : row + k + 1, left : col + k + 1] += 1 / (k + 1) ** steep
        return values / length(values)

    upper = side // 2
    values = np.concatenate([half(upper, side), -half(side - upper, side)]) if upper else np.ones((1, 1))
    return values / length(values)


def _signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return 2 * jax.random.bernoulli(key, shape=shape).astype(jnp.float32) - 1


@dataclasses.dataclass(frozen=True)
class Moves:
    """Where squares lie and what they hold, at the start and in a proposal.

    `fields` of `SquareDraws` make a proposal, in the order in which it takes them.
    """

    problem: Problem
    size: tuple[int, int]
    norm: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]

    @property
    def channels(self) -> int:
        return self.problem.domain.clean.shape[3]

    def given(self, draws: SquareDraws, count: int, **start: tuple[int, ...]) -> SquareDraws:
        """The fields that this norm reads, in the shapes that they must have."""
        batch = len(self.problem.domain.clean)
        each = {name: (count, batch, *((self.channels,) if name == "signs" else ())) for name in self.fields}
        return SquareDraws(**{n: self.spread_over(getattr(draws, n), n, shape) for n, shape in (start | each).items()})

    def spread_over(self, leaf: Any, name: str, shape: tuple[int, ...]) -> jax.Array:
        """A given array, with the shape that it must have."""
        got = jnp.shape(leaf)
        if leaf is None or len(got) != len(shape) or any(a not in (1, b) for a, b in zip(got[1:], shape[1:])):
            raise ValueError(f"draws: got {name} of shape {None if leaf is None else got}, expected {shape}")
        if got[0] < shape[0]:
            raise ValueError(f"draws: got {name} of {got[0]} rows, expected at least {shape[0]}")
        return jnp.broadcast_to(jnp.asarray(leaf)[: shape[0]], shape)

    def numbers(self, one: Callable, keys: jax.Array, number: jax.Array, draws: SquareDraws | None) -> tuple:
        """The random numbers of proposal `number`, from 1: ``one(key)`` for every image, or those given."""
        if draws is None:
            return jax.vmap(one)(folded(keys, number))
        return tuple(getattr(draws, name)[number - 1] for name in self.fields)

    def corner(self, key: jax.Array, side: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A corner; the last row and column are never drawn, as in the released code."""
        u = jax.random.uniform(key, (2,))
        room = jnp.array(self.size) - side
        at = jnp.minimum((u * room).astype(jnp.int32), jnp.maximum(room - 1, 0))
        return at[0], at[1]

    def inside(self, row: jax.Array, col: jax.Array, side: jax.Array) -> jax.Array:
        """[image, height, width, 1] bool, the squares."""
        rows, cols = (jnp.arange(n)[None, :] - at[:, None] for n, at in zip(self.size, (row, col)))
        in_rows, in_cols = (rows >= 0) & (rows < side), (cols >= 0) & (cols < side)
        return (in_rows[:, :, None] & in_cols[:, None, :])[..., None]


class LinfMoves(Moves):
    """Vertical stripes to start with, then squares that go from one face of the cube to another."""

    norm = "linf"
    fields = ("row", "col", "signs")

    def checked(self, draws: SquareDraws, count: int) -> SquareDraws:
        return self.given(draws, count, start_signs=(len(self.problem.domain.clean), self.size[1], self.channels))

    def start(self, keys: jax.Array, draws: SquareDraws | None) -> jax.Array:
        clean, draw = self.problem.domain.clean, lambda key: _signs(key, (self.size[1], self.channels))
        signs = jax.vmap(draw)(folded(keys, 0)) if draws is None else jnp.asarray(draws.start_signs)
        return clean + self.problem.ball.eps * signs[:, None].astype(clean.dtype)

    def draw(self, keys: jax.Array, number: jax.Array, side: jax.Array, draws: SquareDraws | None) -> tuple:
        def one(key: jax.Array) -> tuple:
            where, sign = jax.random.split(key)
            return *self.corner(where, side), _signs(sign, (self.channels,))

        return self.numbers(one, keys, number, draws)

    def proposal(self, x: jax.Array, side: jax.Array, kinds: tuple[int, ...], drawn: tuple) -> jax.Array:
        row, col, signs = drawn
        move = 2 * self.problem.ball.eps * signs[:, None, None, :].astype(x.dtype)
        return x + jnp.where(self.inside(row, col, side), move, 0)


class BumpMoves(Moves, abc.ABC):
    """A grid of bumps to start with; then one square's norm goes to a bump in another square."""

    fields = ("row", "col", "row2", "col2", "signs", "turned")

    @property
    def tiles(self) -> tuple[int, int, int]:
        """(side, rows, columns) of the grid."""
        side = max(self.size[0] // 5, 1)
        return side, self.size[0] // side, self.size[1] // side

    def checked(self, draws: SquareDraws, count: int) -> SquareDraws:
        tiles = self.tiles[1] * self.tiles[2], len(self.problem.domain.clean)
        return self.given(draws, count, start_signs=(*tiles, self.channels), start_turned=tiles)

    def start(self, keys: jax.Array, draws: SquareDraws | None) -> jax.Array:
        clean = self.problem.domain.clean
        side, rows, cols = self.tiles

        def of(key: jax.Array) -> tuple:
            sign, turn = jax.random.split(key)
            return _signs(sign, (rows * cols, self.channels)), jax.random.bernoulli(turn, shape=(rows * cols,))

        drawn = jax.vmap(of, out_axes=1)(folded(keys, 0)) if draws is None else (draws.start_signs, draws.start_turned)
        signs, turned = map(jnp.asarray, drawn)
        one = jnp.asarray(bump(side, self.norm), clean.dtype)
        tile = jnp.where(turned[..., None, None].astype(bool), one.T, one)[..., None] * signs[:, :, None, None, :]
        batch = signs.shape[1]
        grid = tile.reshape(rows, cols, batch, side, side, -1).transpose(2, 0, 3, 1, 4, 5)
        grid = grid.reshape(batch, rows * side, cols * side, -1).astype(clean.dtype)
        top, left = ((n - k * side) // 2 for n, k in zip(self.size, (rows, cols)))
        below, right = self.size[0] - rows * side - top, self.size[1] - cols * side - left
        return clean + self.to_eps(jnp.pad(grid, ((0, 0), (top, below), (left, right), (0, 0))))

    def to_eps(self, delta: jax.Array) -> jax.Array:
        """A perturbation with what it is short of eps, or too long (the runner projects it)."""
        return delta

    @abc.abstractmethod
    def length(self, values: jax.Array) -> jax.Array:
        """The norm of every channel, [image, 1, 1, channel]."""

    @abc.abstractmethod
    def refilled(self, delta: jax.Array, both: jax.Array) -> jax.Array:
        """The norm of the new square, of what `both` squares had and a channel's share of what is free."""

    def draw(self, keys: jax.Array, number: jax.Array, side: jax.Array, draws: SquareDraws | None) -> tuple:
        def one(key: jax.Array) -> tuple:
            first, second, sign, turn = jax.random.split(key, 4)
            corners = (*self.corner(first, side), *self.corner(second, side))
            return *corners, _signs(sign, (self.channels,)), jax.random.bernoulli(turn)

        return self.numbers(one, keys, number, draws)

    def proposal(self, x: jax.Array, side: jax.Array, kinds: tuple[int, ...], drawn: tuple) -> jax.Array:
        row, col, row2, col2, signs, turned = drawn
        clean = self.problem.domain.clean
        delta = x - clean
        new, old = self.inside(row, col, side), self.inside(row2, col2, side)
        placed = self.placed(row, col, side, kinds, turned, x.dtype) * signs[:, None, None, :].astype(x.dtype)
        # the bump is added to the direction that was there
        here, both = jnp.where(new, delta, 0), self.length(jnp.where(new | old, delta, 0))
        fresh = placed + here / (_TINY + self.length(here))
        fresh = fresh * (self.refilled(delta, both) / (_TINY + self.length(fresh)))
        return clean + self.to_eps(jnp.where(new, fresh, jnp.where(old, 0, delta)))

    def placed(
        self, row: jax.Array, col: jax.Array, side: jax.Array, kinds: tuple[int, ...], turned: jax.Array, dtype: Any
    ) -> jax.Array:
        """[image, height, width, 1], the bump of the square at its place, 0 elsewhere."""
        largest = max(kinds)
        table = np.stack([np.pad(bump(k, self.norm), (0, largest - k)) for k in kinds])
        one = jnp.asarray(table, dtype)[jnp.argmax(jnp.array(kinds) == side)]
        rows, cols = (
            jnp.clip(jnp.arange(n)[None, :] - at[:, None], 0, largest - 1) for n, at in zip(self.size, (row, col))
        )
        straight, across = one[rows[:, :, None], cols[:, None, :]], one.T[rows[:, :, None], cols[:, None, :]]
        values = jnp.where(turned[:, None, None].astype(bool), across, straight)[..., None]
        return jnp.where(self.inside(row, col, side), values, 0)


class L2Moves(BumpMoves):
    """A perturbation is stretched to length eps; a channel gets what its squares had and its share of the rest."""

    norm = "l2"

    def to_eps(self, delta: jax.Array) -> jax.Array:
        delta = self.problem.domain.moving(delta)
        size = norm(delta)
        return delta * (self.problem.ball.eps / jnp.where(size > 0, size, 1))

    def length(self, values: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(values * values, axis=(1, 2), keepdims=True))

    def refilled(self, delta: jax.Array, both: jax.Array) -> jax.Array:
        eps = jnp.asarray(self.problem.ball.eps, delta.dtype)
        whole = jnp.sum(delta * delta, axis=(1, 2, 3), keepdims=True)
        return jnp.sqrt(jnp.maximum(eps * eps - whole, 0) / self.channels + both**2)


class L1Moves(BumpMoves):
    """A channel gets what its squares had and its share of the rest, times the channels; the projection thins it."""

    norm = "l1"

    def length(self, values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(values), axis=(1, 2), keepdims=True)

    def refilled(self, delta: jax.Array, both: jax.Array) -> jax.Array:
        eps = jnp.asarray(self.problem.ball.eps, delta.dtype)
        whole = jnp.sum(jnp.abs(delta), axis=(1, 2, 3), keepdims=True)
        return (jnp.maximum(eps - whole, 0) / self.channels + both) * self.channels


MOVES: dict[type[Ball], type[LinfMoves] | type[BumpMoves]] = {Linf: LinfMoves, L2: L2Moves, L1: L1Moves}
