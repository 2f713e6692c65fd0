"""SPSA (Uesato et al. 2018): Adam on a gradient that is estimated from readings of the victim alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.criteria import Criterion, checked
from dyn_jax.attacks.restarts import better_of, folded, nothing
from dyn_jax.attacks.threat import Bounds, Number, ball, drawn


def spsa(
    eps: Number,
    steps: int = 100,
    *,
    samples: int = 128,
    delta: jax.typing.ArrayLike = 0.01,
    learning_rate: jax.typing.ArrayLike = 0.01,
    norm: str = "linf",
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """``g = mean_v (J(x + delta v) - J(x - delta v)) v / (2 delta)``, v random signs; Adam's step, projected.

    Needs no gradient of the network: J is read on the victim, also where it is a meter of energy
    (``criterion=criteria.never(criteria.executed_share)``). An example stops where the criterion holds; otherwise its
    largest objective is returned. ``steps * (2 * samples + 1)`` evaluations of an example.

    Args:
      eps, norm, bounds: see `dyn_jax.attacks.bim`.
      steps: of Adam.
      samples: pairs of readings for one step, one after the other.
      delta: length of v's components; of points in metres. What x + delta v has outside the bounds is clipped.
      learning_rate: Adam's.
      criterion: of `dyn_jax.attacks.criteria`; default ``misclassified()``, with the margin.

    Needs a ``key``. Raises as `dyn_jax.attacks.bim`; samples not a positive integer; delta or rate not positive.
    Source: Uesato et al. 2018, algorithm 1 (Adam, signs, the margin).
    """
    threat = ball(norm, eps, bounds)
    _validate.positive_int("steps", steps)
    _validate.positive_int("samples", samples)
    delta = _validate.positive("delta", delta)
    adam = optax.adam(_validate.positive("learning_rate", learning_rate))
    criterion = checked(criterion)

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        domain = problem.domain

        def estimate(x: jax.Array, number: jax.Array) -> jax.Array:
            def one(total: jax.Array, sample: jax.Array) -> tuple[jax.Array, None]:
                of_sample = folded(keys, number * samples + sample)
                v = domain.moving(drawn(jax.random.rademacher, of_sample, x))
                read = lambda step: problem.losses(problem.victim(jnp.clip(x + step * v, *problem.ball.bounds)))
                slope = (read(jnp.asarray(delta)) - read(-jnp.asarray(delta))) / (2 * delta)
                return total + domain.spread(jnp.where(problem.attacked, slope, 0)) * v, None

            return jax.lax.scan(one, jnp.zeros_like(x), jnp.arange(samples))[0] / samples

        def judged(x: jax.Array, best: tuple) -> tuple[tuple, Steps]:
            value, held, record = criterion.asked(problem, x)
            return better_of(problem, (x, (held, value)), best), record

        def step(state: tuple, number: jax.Array) -> tuple[tuple, Steps]:
            x, adam_state, best = state
            gradient, _ = problem.finite(estimate(x, number))
            update, adam_state = adam.update(-gradient, adam_state)
            x = problem.pick(best[1][0], x, problem.project(x + update))
            best, record = judged(x, best)
            return (x, adam_state, best), record

        x = domain.clean if start is None else problem.project(start)
        best, first = judged(x, nothing(problem))
        (_, _, best), records = jax.lax.scan(step, (x, adam.init(x), best), jnp.arange(steps))
        return Found(best[0], jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, records))

    return criterion.attack(search, threat, random=True, reach=learning_rate)
