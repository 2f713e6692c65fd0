"""Square attack (Andriushchenko et al. 2020): random squares, kept where the victim's margin falls; no gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.criteria import Criterion, checked
from dyn_jax.attacks.domains import pixels_of
from dyn_jax.attacks.restarts import filled, recorded
from dyn_jax.attacks.squares import MOVES, SquareDraws, windows
from dyn_jax.attacks.squares import bump as bump
from dyn_jax.attacks.threat import Bounds, Number, ball

CHANGES = (0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)  # iterations of 10,000 from which p is halved


def schedule(queries: int, *, p: float = 0.8, rescale: bool = False) -> np.ndarray:
    """[queries], the share of the image that a square covers: first `p`, halved at the iterations of `CHANGES`.

    `rescale` stretches the 10,000 iterations of the paper to `queries` (AutoAttack: no).
    """
    number = np.arange(queries)
    if rescale:
        number = (number / queries * 10000).astype(int)
    halvings = np.searchsorted(np.array(CHANGES), number, side="right") - 1
    return p / 2.0**halvings


class _State(NamedTuple):
    number: jax.Array
    x: jax.Array  # the best so far
    value: jax.Array  # [example], its objective
    done: jax.Array  # [example] bool
    records: Steps  # [query, example]


def square(
    eps: Number,
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
    in a square and is clipped to ball and box. L2 and L1: the start is a grid of bumps; a proposal empties one square
    and gives its norm, and what is free, to a bump in another one. A proposal is kept where the objective rises or the
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

    Needs images and a ``key``; a ``start`` replaces the stripes or the grid. Raises as `dyn_jax.attacks.bim`; p outside
    (0, 1]; draws that do not fit the images or are fewer than queries; a point cloud. Source: Andriushchenko et al.
    2020, algorithms 1 to 3, with the constants of AutoAttack's code; L1: the same code, and Croce and Hein 2021.
    """
    threat = ball(norm, eps, bounds)
    _validate.positive_int("queries", queries)
    if not 0 < _validate.number("p", p) <= 1:
        raise ValueError(f"p: got {p}, expected a share in (0, 1]")
    criterion = checked(criterion)

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        domain = pixels_of(problem.domain, "squares are regions of an image")
        shape = domain.clean.shape
        kind = MOVES[type(problem.ball)](problem, (shape[1], shape[2]))
        share = schedule(queries, p=p, rescale=rescale)
        of_query = windows(share, shape[1], shape[2], kind.norm)
        sides, kinds = jnp.asarray(of_query, jnp.int32), tuple(sorted(set(of_query.tolist())))
        replayed = None if draws is None else kind.checked(draws, queries)
        start = problem.project(kind.start(keys, replayed) if start is None else start)

        def query(state: _State) -> _State:
            number = state.number
            first = number == 0  # the start; here, so that the network is compiled once
            side = sides[number - 1]
            drawn = kind.draw(keys, number, side, replayed)
            x = jnp.where(first, start, problem.project(kind.proposal(state.x, side, kinds, drawn)))
            value, held, steps = criterion.asked(problem, x)
            better = first | ~state.done & ((value > state.value) | held)
            records = recorded(state.records, number, steps, state.done)
            # NaN: nothing is better than it, so that the first finite value may be
            value = jnp.where(first & jnp.isnan(value), -jnp.inf, value)
            x, value = problem.pick(better, x, state.x), jnp.where(better, value, state.value)
            done = state.done | held | first & ~problem.attacked
            return _State(number + 1, x, value, done, records)

        empty = problem.no_steps(queries + 1)
        begin = _State(jnp.int32(0), start, empty.loss[0], empty.error[0], empty)
        going = lambda state: (state.number <= queries) & ~jnp.all(state.done)
        state = jax.lax.while_loop(going, query, begin)
        return Found(state.x, filled(state.records, state.number))

    return criterion.attack(search, threat, random=True)
