"""What the attacks that minimise a norm share: an unbounded threat set, and what they record of every example."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.base import Found, Problem, Steps
from dyn_jax.attacks.criteria import Criterion
from dyn_jax.attacks.domains import Domain, l2
from dyn_jax.attacks.threat import BALLS, Ball, Bounds, check_bounds


class MinimalNorm(flax.struct.PyTreeNode):
    """The record of an attack that minimises a norm.

    Attributes:
      norm: [example, step], of the perturbation that the victim judged; of a cloud, over all of its points.
      held: [example, step] bool, the criterion held there.
    """

    norm: jax.Array
    held: jax.Array

    @property
    def smallest(self) -> jax.Array:
        """[example], the smallest norm that held: 0 where it held on the clean value, infinite where nothing did."""
        return jnp.min(jnp.where(self.held, self.norm, jnp.inf), axis=1)


class State(NamedTuple):
    x: jax.Array
    eps: jax.Array  # [example], radius of the ball
    best: tuple[jax.Array, jax.Array]  # the nearest x that held, its norm


@dataclasses.dataclass(frozen=True)
class Descent(abc.ABC):
    """What `fmn` and `ddn` share, attributes as their arguments: a walk inside a radius that follows the boundary."""

    steps: int
    criterion: Criterion
    init_norm: jax.typing.ArrayLike

    @abc.abstractmethod
    def step(self, problem: Problem, state: State, number: jax.Array) -> tuple[State, tuple[Steps, MinimalNorm]]:
        """(the next state, what was seen at this one's x)."""

    def begin(self, problem: Problem, start: jax.Array | None) -> State:
        clean = problem.domain.clean
        none = jnp.full_like(l2(problem.domain, clean), jnp.inf)
        return State(begun(problem, start), jnp.full_like(none, self.init_norm), (clean, none))

    def __call__(self, problem: Problem, keys: None, start: jax.Array | None) -> Found:
        walk = lambda state, number: self.step(problem, state, number)
        state, (steps, record) = jax.lax.scan(walk, self.begin(problem, start), jnp.arange(self.steps))
        return Found(state.best[0], steps, record)


def unbounded(norm: str, bounds: Bounds) -> Ball:
    """A ball without end: whatever the box allows, measured in the norm `norm`. ValueError for an unknown one."""
    _validate.choice("norm", norm, BALLS)
    check_bounds(bounds)
    return BALLS[norm](jnp.inf, bounds)


def length(threat: Ball, parts: jax.Array) -> jax.Array:
    """[example], the threat set's norm of differences [example, ...]."""
    return threat.distance(parts, jnp.zeros_like(parts))


def largest_norm(domain: Domain, threat: Ball) -> jax.Array:
    """[example], the largest norm that the box allows; infinite where there is none."""
    low, high = threat.bounds
    room = jnp.maximum(domain.clean - low, high - domain.clean)
    if not all(map(math.isfinite, threat.bounds)):
        return jnp.full_like(length(threat, domain.split(domain.clean)), jnp.inf)
    return length(threat, domain.split(domain.moving(room)))


def cosine(first: float, last: float, done: jax.Array) -> jax.Array:
    """A schedule from `first` to `last`, ``last + (first - last) (1 + cos(pi done)) / 2``."""
    return last + (first - last) * (1 + jnp.cos(jnp.pi * done)) / 2


def closest(problem: Problem, new: tuple, old: tuple) -> tuple[jax.Array, jax.Array]:
    """(x, norm [example]) of the smaller norm, `new` being (x, norm, where the criterion holds)."""
    x, norm, held = new
    better = held & (norm < old[1])
    return problem.pick(better, x, old[0]), jnp.where(better, norm, old[1])


def begun(problem: Problem, start: jax.Array | None) -> jax.Array:
    """Where a search begins: the clean value, or `start` inside the box and clean where nothing may move.

    The search measures what it has found, and a norm that only a forbidden value reaches is none.
    """
    return problem.domain.clean if start is None else problem.in_radius(jnp.inf).project(start)


def within(problem: Problem, x: jax.Array) -> jax.Array:
    """x where it lies within eps, else the clean value: AutoAttack's rule, without a projection."""
    domain, threat = problem.domain, problem.ball
    far = domain.any_row(threat.distance(x, domain.clean) > threat.eps)
    return problem.pick(far, domain.clean, x)
