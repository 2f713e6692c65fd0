"""SPSA (Uesato et al. 2018): Adam on a gradient that is estimated from readings of the victim alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.criteria import Criterion, misclassified
from dyn_jax.attacks.fmn import checked
from dyn_jax.attacks.restarts import better_of
from dyn_jax.attacks.threat import Bounds, ball


def spsa(
    eps: jax.typing.ArrayLike | str,
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

    Returns:
      An `Attack` that needs a ``key``.

    Raises:
      ValueError, TypeError: as `dyn_jax.attacks.bim`; samples not a positive integer; delta or rate not positive.

    Source: Uesato et al. 2018, algorithm 1 (Adam, signs, the margin).
    """
    threat = ball(norm, eps, bounds)
    _validate.positive_int("steps", steps)
    _validate.positive_int("samples", samples)
    delta = _validate.positive("delta", delta)
    adam = optax.adam(_validate.positive("learning_rate", learning_rate))
    criterion = misclassified() if criterion is None else checked(criterion)

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        domain = problem.domain

        def estimate(x: jax.Array, number: jax.Array) -> jax.Array:
            def one(total: jax.Array, sample: jax.Array) -> tuple[jax.Array, None]:
                of_sample = jax.vmap(jax.random.fold_in, (0, None))(keys, number * samples + sample)
                v = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))(of_sample)
                v = v if domain.free is None else v * domain.free
                read = lambda step: problem.losses(problem.victim(jnp.clip(x + step * v, *problem.ball.bounds)))
                slope = (read(jnp.asarray(delta)) - read(-jnp.asarray(delta))) / (2 * delta)
                return total + domain.spread(jnp.where(problem.attacked, slope, 0)) * v, None

            return jax.lax.scan(one, jnp.zeros_like(x), jnp.arange(samples))[0] / samples

        def judged(x: jax.Array, best: tuple) -> tuple[tuple, Steps]:
            output = problem.victim(x)
            value = problem.losses(output)
            best = better_of(problem, (x, (criterion.holds(problem, output), value)), best)
            return best, problem.observed(output, value, ~jnp.isfinite(value))

        def step(state: tuple, number: jax.Array) -> tuple[tuple, Steps]:
            x, adam_state, best = state
            gradient, _ = problem.finite(estimate(x, number))
            update, adam_state = adam.update(-gradient, adam_state)
            x = problem.pick(best[1][0], x, problem.project(x + update))
            best, record = judged(x, best)
            return (x, adam_state, best), record

        x = domain.clean if start is None else problem.project(start)
        value = problem.losses(problem.clean)
        nothing = (domain.clean, (jnp.zeros_like(problem.attacked), jnp.full_like(value, -jnp.inf)))
        best, first = judged(x, nothing)
        (_, _, best), records = jax.lax.scan(step, (x, adam.init(x), best), jnp.arange(steps))
        return Found(best[0], jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, records))

    return Attack(
        search, threat, criterion.objective, random=True, attack_all=criterion.attack_all, reach=learning_rate
    )
