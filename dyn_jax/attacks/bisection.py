"""Adam on a distance with a weighted objective, and a search over the weight: C&W, PointPert and KNNPert share it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate
from dyn_jax.attacks.base import Found, Problem, Steps
from dyn_jax.attacks.restarts import better_of, folded, nothing
from dyn_jax.attacks.threat import drawn
from dyn_jax.objectives import margin

Penalty = Callable[[Problem, jax.Array], jax.Array]  # (problem, x) -> [example]


@dataclasses.dataclass(frozen=True)
class Bisection:
    """Minimises ``penalty(x) - c * objective(x)`` for every example and a sequence of c.

    c goes up tenfold while an example has no success and is bisected afterwards. The answer is the iterate with the
    smallest penalty among those that succeed on the victim; without any, the clean value, or the iterate with the
    largest objective.
    """

    penalty: Penalty
    steps: int  # of Adam, for every c
    learning_rate: jax.typing.ArrayLike  # Adam's, in the domain's free variable
    constant: jax.typing.ArrayLike  # the first c
    search_steps: int  # how many values of c
    confidence: float = 0.0  # logits by which the margin must exceed 0 to count as a success; 0: any success
    jitter: float = 0.0  # standard deviation of the start around the clean value; needs keys
    best_effort: bool = False  # the largest objective is returned where nothing succeeds, instead of the clean value

    def __post_init__(self) -> None:
        _validate.positive_int("steps", self.steps)
        _validate.positive_int("search_steps", self.search_steps)
        _validate.positive("learning_rate", self.learning_rate)
        _validate.positive("constant", self.constant)
        _validate.number("confidence", self.confidence, minimum=0)

    def __call__(self, problem: Problem, keys: Any, start: jax.Array | None) -> Found:
        domain = problem.domain
        adam = optax.adam(self.learning_rate)  # pyright: ignore[reportArgumentType]: optax names no numpy scalars
        first = domain.clean if start is None else start

        def total(w: jax.Array, constant: jax.Array) -> tuple[jax.Array, tuple]:
            x = problem.project(domain.from_free(w))
            output = problem.forward(x, problem.reach)
            losses, penalties = problem.losses(output), self.penalty(problem, x)
            value = jnp.sum(jnp.where(problem.attacked, penalties - constant * losses, 0))
            return value, (x, penalties, losses, output)

        def step(state: tuple, constant: jax.Array) -> tuple[tuple, Steps]:
            w, adam_state, best, hit = state
            gradient, (x, penalties, losses, output) = jax.grad(total, has_aux=True)(w, constant)
            gradient, bad = problem.finite(gradient)
            judged = problem.judged(x, output)
            success = problem.succeeds(judged.logits)
            if self.confidence != 0:
                margins = margin(judged, problem.labels, problem.targets)
                success &= domain.mean(margins, problem.counted) > self.confidence
            otherwise = problem.losses(judged) if self.best_effort else jnp.full_like(losses, -jnp.inf)
            best = better_of(problem, (x, (success, jnp.where(success, -penalties, otherwise))), best)
            update, adam_state = adam.update(gradient, adam_state)
            state = (domain.settled(w + update), adam_state, best, hit | success)
            return state, problem.observed(output, losses, bad)

        def round_of(state: tuple, number: jax.Array) -> tuple[tuple, Steps]:
            constant, lower, upper, best = state
            origin = domain.to_free(first)
            if self.jitter:
                origin = origin + self.jitter * drawn(jax.random.normal, folded(keys, number), origin)
            begin = (origin, adam.init(origin), best, jnp.zeros_like(problem.attacked))
            along = jnp.broadcast_to(constant, (self.steps, *constant.shape))
            (_, _, best, hit), records = jax.lax.scan(step, begin, along)
            upper = jnp.where(hit, jnp.minimum(upper, constant), upper)
            lower = jnp.where(hit, lower, jnp.maximum(lower, constant))
            constant = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, constant * 10)
            return (constant, lower, upper, best), records

        like = problem.losses(problem.clean)
        full = lambda value: jnp.full_like(like, value)
        begin = (full(jnp.asarray(self.constant, like.dtype)), full(0), full(jnp.inf), nothing(problem))
        (_, _, _, best), records = jax.lax.scan(round_of, begin, jnp.arange(self.search_steps))
        return Found(best[0], jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), records))
