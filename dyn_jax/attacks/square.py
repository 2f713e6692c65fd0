"""Square attack (Andriushchenko et al. 2020): random squares, kept where the victim's margin falls; no gradient."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.criteria import Criterion, misclassified
from dyn_jax.attacks.domains import Pixels
from dyn_jax.attacks.fmn import checked
from dyn_jax.attacks.threat import Bounds, Linf, ball, norm

CHANGES = (0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)  # iterations of 10,000 from which p is halved
_TINY = 1e-10


class SquareDraws(flax.struct.PyTreeNode):
    """The random numbers of a run: what `square` draws itself, or replays where they are given.

    ``q`` is the number of proposals. For every number per image or per image and channel, an axis of
    length 1 shares one number. Starts and squares of one norm only are read:

    Attributes:
      start_signs: Linf: [image, width, channel], the stripes' -1 or 1. L2: [tile, image, channel].
      start_turned: L2: [tile, image] bool, the tile's bump is transposed.
      row, col: [q, image], upper left corner of the square.
      signs: [q, image, channel], -1 or 1.
      row2, col2: L2: [q, image], corner of the square that is emptied.
      turned: L2: [q, image] bool, the bump is transposed.
    """

    start_signs: jax.typing.ArrayLike
    row: jax.typing.ArrayLike
    col: jax.typing.ArrayLike
    signs: jax.typing.ArrayLike
    start_turned: jax.typing.ArrayLike | None = None
    row2: jax.typing.ArrayLike | None = None
    col2: jax.typing.ArrayLike | None = None
    turned: jax.typing.ArrayLike | None = None


def schedule(queries: int, *, p: float = 0.8, rescale: bool = False) -> np.ndarray:
    """[queries], the share of the image that a square covers: `p`, halved at the iterations of `CHANGES`.

    Args:
      queries: of the whole run.
      p: first share.
      rescale: stretch the 10,000 iterations of the paper to `queries` (AutoAttack: no).
    """
    number = np.arange(queries)
    if rescale:
        number = (number / queries * 10000).astype(int)
    halvings = np.searchsorted(np.array(CHANGES), number, side="right") - 1
    return p / 2.0**halvings


def windows(p: np.ndarray, height: int, width: int, norm: str) -> np.ndarray:
    """Side of the square for every share p: ``round(sqrt(p h w))``, at least 1; L2: odd and at least 3."""
    side = np.maximum(np.round(np.sqrt(p * height * width)).astype(int), 1 if norm == "linf" else 3)
    if norm == "l2":
        side = side + (side % 2 == 0)
    return np.minimum(side, min(height, width))


def bump(side: int) -> np.ndarray:
    """[side, side], a positive bump in the upper half and a negative one below, of unit L2 norm."""

    def half(rows: int, cols: int) -> np.ndarray:
        values = np.zeros((rows, cols))
        row, col = rows // 2, cols // 2
        for k in range(max(row, col) + 1):
            top, left = max(row - k, 0), max(col - k, 0)
            values[top : row + k + 1, left : col + k + 1] += 1 / (k + 1) ** 2
        return values / np.sqrt(np.sum(values**2))

    upper = side // 2
    values = np.concatenate([half(upper, side), -half(side - upper, side)]) if upper else np.ones((1, 1))
    return values / np.sqrt(np.sum(values**2))


class _State(NamedTuple):
    number: jax.Array
    x: jax.Array  # the best so far
    value: jax.Array  # [example], its objective
    done: jax.Array  # [example] bool
    records: Steps  # [query, example]


@dataclasses.dataclass(frozen=True)
class Square:
    """The search of `square`, attributes as its arguments."""

    queries: int
    p: float
    criterion: Criterion
    rescale: bool
    draws: SquareDraws | None

    def __call__(self, problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        domain = problem.domain
        if not isinstance(domain, Pixels):
            raise TypeError("inputs: got a PointCloud, expected images: squares are regions of an image")
        shape = domain.clean.shape
        moves: type[_LinfMoves | _L2Moves] = _LinfMoves if isinstance(problem.ball, Linf) else _L2Moves
        kind = moves(problem, (shape[1], shape[2]))
        share = schedule(self.queries, p=self.p, rescale=self.rescale)
        of_query = windows(share, shape[1], shape[2], kind.norm)
        sides, kinds = jnp.asarray(of_query, jnp.int32), tuple(sorted(set(of_query.tolist())))
        draws = None if self.draws is None else kind.checked(self.draws, shape, self.queries)

        def judged(x: jax.Array) -> tuple[jax.Array, jax.Array, Steps]:
            output = problem.victim(x)
            value = problem.losses(output)
            return value, self.criterion.holds(problem, output), problem.observed(output, value, ~jnp.isfinite(value))

        if start is None:
            start = kind.start(keys) if draws is None else kind.started(draws)
        start = problem.project(start)

        def query(state: _State) -> _State:
            number = state.number
            first = number == 0  # the start; here, so that the network is compiled once
            side = sides[number - 1]
            drawn = kind.draw(keys, number, side) if draws is None else kind.replayed(draws, number - 1)
            x = jnp.where(first, start, problem.project(kind.proposal(state.x, side, kinds, drawn)))
            value, held, steps = judged(x)
            better = first | ~state.done & ((value > state.value) | held)
            # an example that is done keeps repeating what it last saw
            steps = jax.tree.map(lambda new, old: jnp.where(state.done, old[number - 1], new), steps, state.records)
            records = jax.tree.map(lambda all, one: all.at[number].set(one), state.records, steps)
            # NaN: nothing is better than it, so that the first finite value may be
            value = jnp.where(first & jnp.isnan(value), -jnp.inf, value)
            x, value = problem.pick(better, x, state.x), jnp.where(better, value, state.value)
            done = state.done | held | first & ~problem.attacked
            return _State(number + 1, x, value, done, records)

        value = problem.losses(problem.clean)
        steps = problem.observed(problem.clean, value, jnp.zeros_like(value, bool))
        empty = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, shape=(self.queries + 1, *leaf.shape)), steps)
        begin = _State(jnp.int32(0), start, jnp.zeros_like(value), jnp.zeros_like(value, bool), empty)
        going = lambda state: (state.number <= self.queries) & ~jnp.all(state.done)
        state = jax.lax.while_loop(going, query, begin)
        rows = jnp.arange(self.queries + 1)[:, None] < state.number
        fill = lambda leaf: jnp.where(rows, leaf, leaf[state.number - 1][None])
        return Found(state.x, jax.tree.map(fill, state.records))


@dataclasses.dataclass(frozen=True)
class _Moves:
    """Where squares lie: positions, masks, random corners."""

    problem: Problem
    size: tuple[int, int]

    @property
    def channels(self) -> int:
        return self.problem.domain.clean.shape[3]

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

    def keys_of(self, keys: jax.Array, number: int | jax.Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in, (0, None))(keys, number)

    def spread_over(self, leaf: Any, name: str, shape: tuple[int, ...]) -> jax.Array:
        """A given array, with the shape that it must have."""
        got = jnp.shape(leaf)
        if leaf is None or len(got) != len(shape) or any(a not in (1, b) for a, b in zip(got[1:], shape[1:])):
            raise ValueError(f"draws: got {name} of shape {None if leaf is None else got}, expected {shape}")
        if got[0] < shape[0]:
            raise ValueError(f"draws: got {name} of {got[0]} rows, expected at least {shape[0]}")
        return jnp.broadcast_to(jnp.asarray(leaf)[: shape[0]], shape)


def _signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return 2 * jax.random.bernoulli(key, shape=shape).astype(jnp.float32) - 1


class _LinfMoves(_Moves):
    """Vertical stripes to start with, then squares that go from one face of the cube to another."""

    norm = "linf"

    def checked(self, draws: SquareDraws, shape: tuple[int, ...], count: int) -> SquareDraws:
        batch, _, width, channels = shape
        of = lambda name, shape: self.spread_over(getattr(draws, name), name, shape)
        numbers = {"row": of("row", (count, batch)), "col": of("col", (count, batch))}
        signs = of("signs", (count, batch, channels))
        return SquareDraws(start_signs=of("start_signs", (batch, width, channels)), signs=signs, **numbers)

    def start(self, keys: jax.Array) -> jax.Array:
        draw = jax.vmap(lambda key: _signs(key, (self.size[1], self.channels)))
        return self._striped(draw(self.keys_of(keys, 0)))

    def started(self, draws: SquareDraws) -> jax.Array:
        return self._striped(jnp.asarray(draws.start_signs))

    def _striped(self, signs: jax.Array) -> jax.Array:
        clean = self.problem.domain.clean
        return clean + self.problem.ball.eps * signs[:, None].astype(clean.dtype)

    def draw(self, keys: jax.Array, number: jax.Array, side: jax.Array) -> tuple:
        def of(key: jax.Array) -> tuple:
            where, sign = jax.random.split(key)
            return *self.corner(where, side), _signs(sign, (self.channels,))

        return jax.vmap(of)(self.keys_of(keys, number))

    def replayed(self, draws: SquareDraws, number: jax.Array) -> tuple:
        return tuple(jnp.asarray(leaf)[number] for leaf in (draws.row, draws.col, draws.signs))

    def proposal(self, x: jax.Array, side: jax.Array, kinds: tuple[int, ...], drawn: tuple) -> jax.Array:
        row, col, signs = drawn
        move = 2 * self.problem.ball.eps * signs[:, None, None, :].astype(x.dtype)
        return x + jnp.where(self.inside(row, col, side), move, 0)


class _L2Moves(_Moves):
    """A grid of bumps to start with; then one square's norm goes to a bump in another square."""

    norm = "l2"

    @property
    def tiles(self) -> tuple[int, int, int]:
        """(side, rows, columns) of the grid."""
        side = max(self.size[0] // 5, 1)
        return side, self.size[0] // side, self.size[1] // side

    def checked(self, draws: SquareDraws, shape: tuple[int, ...], count: int) -> SquareDraws:
        batch, _, _, channels = shape
        _, rows, cols = self.tiles
        of = lambda name, shape: self.spread_over(getattr(draws, name), name, shape)
        names = ("row", "col", "row2", "col2", "turned")
        start = {
            "start_signs": of("start_signs", (rows * cols, batch, channels)),
            "start_turned": of("start_turned", (rows * cols, batch)),
        }
        signs = of("signs", (count, batch, channels))
        return SquareDraws(**start, signs=signs, **{name: of(name, (count, batch)) for name in names})

    def start(self, keys: jax.Array) -> jax.Array:
        _, rows, cols = self.tiles

        def of(key: jax.Array) -> tuple:
            sign, turn = jax.random.split(key)
            return _signs(sign, (rows * cols, self.channels)), jax.random.bernoulli(turn, shape=(rows * cols,))

        return self._tiled(*jax.vmap(of, out_axes=1)(self.keys_of(keys, 0)))

    def started(self, draws: SquareDraws) -> jax.Array:
        return self._tiled(jnp.asarray(draws.start_signs), jnp.asarray(draws.start_turned))

    def _tiled(self, signs: jax.Array, turned: jax.Array) -> jax.Array:
        clean = self.problem.domain.clean
        side, rows, cols = self.tiles
        one = jnp.asarray(bump(side), clean.dtype)
        tile = jnp.where(turned[..., None, None].astype(bool), one.T, one)[..., None] * signs[:, :, None, None, :]
        batch = signs.shape[1]
        grid = tile.reshape(rows, cols, batch, side, side, -1).transpose(2, 0, 3, 1, 4, 5)
        grid = grid.reshape(batch, rows * side, cols * side, -1).astype(clean.dtype)
        top, left = ((n - k * side) // 2 for n, k in zip(self.size, (rows, cols)))
        below, right = self.size[0] - rows * side - top, self.size[1] - cols * side - left
        return clean + self._to_eps(jnp.pad(grid, ((0, 0), (top, below), (left, right), (0, 0))))

    def _to_eps(self, delta: jax.Array) -> jax.Array:
        delta = delta if self.problem.domain.free is None else delta * self.problem.domain.free
        size = norm(delta)
        return delta * (self.problem.ball.eps / jnp.where(size > 0, size, 1))

    def draw(self, keys: jax.Array, number: jax.Array, side: jax.Array) -> tuple:
        def of(key: jax.Array) -> tuple:
            first, second, sign, turn = jax.random.split(key, 4)
            corners = (*self.corner(first, side), *self.corner(second, side))
            return *corners, _signs(sign, (self.channels,)), jax.random.bernoulli(turn)

        return jax.vmap(of)(self.keys_of(keys, number))

    def replayed(self, draws: SquareDraws, number: jax.Array) -> tuple:
        leaves = (draws.row, draws.col, draws.row2, draws.col2, draws.signs, draws.turned)
        return tuple(jnp.asarray(leaf)[number] for leaf in leaves)

    def proposal(self, x: jax.Array, side: jax.Array, kinds: tuple[int, ...], drawn: tuple) -> jax.Array:
        row, col, row2, col2, signs, turned = drawn
        clean = self.problem.domain.clean
        eps = jnp.asarray(self.problem.ball.eps, x.dtype)
        delta = x - clean
        new, old = self.inside(row, col, side), self.inside(row2, col2, side)
        size = lambda values: jnp.sqrt(jnp.sum(values * values, axis=(1, 2), keepdims=True))
        whole = jnp.sum(delta * delta, axis=(1, 2, 3), keepdims=True)
        here = jnp.where(new, delta, 0)
        union = size(jnp.where(new | old, delta, 0))
        placed = self.placed(row, col, side, kinds, turned, x.dtype) * signs[:, None, None, :].astype(x.dtype)
        fresh = placed + here / (_TINY + size(here))
        free = jnp.maximum(eps * eps - whole, 0) / self.channels
        fresh = fresh * (jnp.sqrt(free + union**2) / (_TINY + size(fresh)))
        delta = jnp.where(new, fresh, jnp.where(old, 0, delta))
        return clean + self._to_eps(delta)

    def placed(
        self, row: jax.Array, col: jax.Array, side: jax.Array, kinds: tuple[int, ...], turned: jax.Array, dtype: Any
    ) -> jax.Array:
        """[image, height, width, 1], the bump of the square at its place, 0 elsewhere."""
        largest = max(kinds)
        table = np.stack([np.pad(bump(k), (0, largest - k)) for k in kinds])
        one = jnp.asarray(table, dtype)[jnp.argmax(jnp.array(kinds) == side)]
        rows, cols = (
            jnp.clip(jnp.arange(n)[None, :] - at[:, None], 0, largest - 1) for n, at in zip(self.size, (row, col))
        )
        straight, across = one[rows[:, :, None], cols[:, None, :]], one.T[rows[:, :, None], cols[:, None, :]]
        values = jnp.where(turned[:, None, None].astype(bool), across, straight)[..., None]
        return jnp.where(self.inside(row, col, side), values, 0)


def square(
    eps: jax.typing.ArrayLike | str,
    queries: int = 5000,
    *,
    norm: str = "linf",
    criterion: Criterion | None = None,
    p: float = 0.8,
    rescale: bool = False,
    draws: SquareDraws | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Random search on the surface of the ball; it asks the victim only, and needs no gradient.

    Linf: the start is clean + eps times a sign per column and channel; a proposal adds 2 eps times a sign per channel
    in a square and is clipped to ball and box. L2: the start is a grid of bumps; a proposal empties one square and
    gives its norm, and what is free, to a bump in another one. A proposal is kept where the objective rises or the
    criterion holds; an example stops when it holds.

    Squares, signs and places are drawn for every image by its own key, so that results do not depend on the batch. (The
    released code draws one square, and for Linf one sign a channel, for the whole batch.)

    Args:
      eps, norm, bounds: see `dyn_jax.attacks.bim`.
      queries: proposals for an image; its start is evaluated too.
      criterion: of `dyn_jax.attacks.criteria`; default ``misclassified()``, with the margin; ``never(energy())``
        looks for the most computation.
      p: share of the image that the first squares cover, see `schedule`.
      rescale: see `schedule`.
      draws: random numbers to replay instead of those of the key, see `SquareDraws`.

    Returns:
      An `Attack` on images that needs a ``key``; a ``start`` replaces the stripes or the grid.

    Raises:
      ValueError, TypeError: as `dyn_jax.attacks.bim`; p outside (0, 1]; draws that do not fit the images or are fewer
        than queries; a point cloud.

    Source: Andriushchenko et al. 2020, algorithms 1 to 3, with the constants of AutoAttack's code.
    """
    threat = ball(norm, eps, bounds)
    _validate.positive_int("queries", queries)
    if not 0 < _validate.number("p", p) <= 1:
        raise ValueError(f"p: got {p}, expected a share in (0, 1]")
    criterion = misclassified() if criterion is None else checked(criterion)
    search = Square(queries, p, criterion, rescale, draws)
    return Attack(search, threat, criterion.objective, random=True, attack_all=criterion.attack_all)
