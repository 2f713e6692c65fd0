"""Adam on the coordinates with a distance in the loss, and a search over its weight: PointPert and KNNPert share it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate
from dyn_jax.attacks.points.base import Found, PointProblem
from dyn_jax.types import Reach

Penalty = Callable[[PointProblem, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class AdamSearch:
    """Minimises ``penalty(p) - c * objective(p)`` by Adam inside the cube, for a bisected sequence of c.

    The answer is the iterate with the smallest penalty among those where every row that counts succeeds on the
    victim; if there is none, the one with the largest objective on the victim.

    Attributes:
      penalty: (problem, xyz) -> scalar.
      steps: of Adam, for every c.
      learning_rate: metres.
      constant: first c; it grows tenfold until a success, then is bisected.
      search_steps: how many values of c.
      reach: metres a point can get in one step, for occupancies that look ahead.
      start_noise: standard deviation of the start around the clean cloud, metres.
    """

    penalty: Penalty
    steps: int
    learning_rate: jax.typing.ArrayLike
    constant: jax.typing.ArrayLike
    search_steps: int
    reach: jax.typing.ArrayLike
    start_noise: float = 1e-5

    def __post_init__(self) -> None:
        _validate.positive_int("steps", self.steps)
        _validate.positive_int("search_steps", self.search_steps)
        for name in ("learning_rate", "constant", "reach"):
            _validate.number(name, getattr(self, name), minimum=0)

    def __call__(self, problem: PointProblem, key: jax.Array | None) -> Found:
        clean = problem.cloud.xyz
        adam = optax.adam(self.learning_rate)
        reach = Reach(self.reach)

        def step(carry: tuple, constant: jax.Array) -> tuple[tuple, object]:
            xyz, state, best, best_score = carry
            gradient, record, _ = problem.gradient(xyz, reach, lambda p: self.penalty(problem, p), constant)
            update, state = adam.update(-gradient, state)
            xyz = problem.project(xyz + update)
            score = self._score(problem, xyz)
            better = _before(score, best_score)
            best = jnp.where(better, xyz, best)
            return (xyz, state, best, jax.tree.map(lambda a, b: jnp.where(better, a, b), score, best_score)), record

        def round_of(carry: tuple, number: jax.Array) -> tuple[tuple, object]:
            constant, low, high, best, best_score = carry
            noise = jax.random.normal(jax.random.fold_in(key, number), clean.shape, clean.dtype)
            start = problem.project(clean + self.start_noise * noise)
            worst = (jnp.zeros((), bool), jnp.asarray(-jnp.inf, clean.dtype))
            inner = (start, adam.init(start), start, worst)
            (_, _, found, score), records = jax.lax.scan(step, inner, jnp.full(self.steps, constant))
            better = _before(score, best_score)
            best = jnp.where(better, found, best)
            best_score = jax.tree.map(lambda a, b: jnp.where(better, a, b), score, best_score)
            low, high = jnp.where(score[0], low, constant), jnp.where(score[0], constant, high)
            constant = jnp.where(jnp.isfinite(high), (low + high) / 2, constant * 10)
            return (constant, low, high, best, best_score), records

        zero = jnp.zeros((), clean.dtype)
        worst = (jnp.zeros((), bool), jnp.asarray(-jnp.inf, clean.dtype))
        start = (jnp.asarray(self.constant, clean.dtype), zero, zero + jnp.inf, clean, worst)
        (_, _, _, best, _), records = jax.lax.scan(round_of, start, jnp.arange(self.search_steps))
        return Found(best, jax.tree.map(lambda leaf: leaf.reshape(-1), records))

    def _score(self, problem: PointProblem, xyz: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(success of all rows, minus the penalty where successful, else the victim's objective)."""
        output = problem.victim(problem.at(xyz))
        prediction = jnp.argmax(output.logits, axis=1)
        hit = prediction != problem.labels if problem.targets is None else prediction == problem.targets
        finite = jnp.all(jnp.isfinite(output.logits), axis=1)
        success = jnp.all((hit & finite) | ~problem.counted)
        return success, jnp.where(success, -self.penalty(problem, xyz), problem.mean_loss(output))


def _before(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Whether score a is better than score b: a success first, then the larger number."""
    return (a[0] & ~b[0]) | ((a[0] == b[0]) & (a[1] > b[1]))


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """[n, m] squared distances of points a [n, 3] and b [m, 3]: n m 3 numbers are held, so for clouds of thousands."""
    difference = a[:, None, :] - b[None, :, :]
    return jnp.sum(difference * difference, axis=-1)
