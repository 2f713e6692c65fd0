"""FAB (Croce and Hein 2020), untargeted: every step goes to the nearest of all linearised boundaries; with restarts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dyn_jax import _validate, objectives
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.fab_t import Walk
from dyn_jax.attacks.fmn import dual
from dyn_jax.attacks.minimal import begun
from dyn_jax.attacks.threat import Bounds, Linf, ball

_SMALL = 1e-12


@dataclasses.dataclass(frozen=True)
class NearestFab(Walk):
    """The search of `fab`."""

    restarts: int

    def step(self, problem: Problem, x: jax.Array) -> tuple[jax.Array, Steps]:
        """(one step from x towards the plane of the nearest class, record: its loss is z_t - z_y of that class)."""
        domain = problem.domain
        logits, back, output = jax.vjp(
            lambda x: (lambda o: (o.logits, o))(problem.forward(x, problem.reach)), x, has_aux=True
        )
        gaps = logits - jnp.take_along_axis(logits, problem.labels[:, None], axis=1)
        own = jax.nn.one_hot(problem.labels, logits.shape[1], dtype=logits.dtype)

        def plane(best: tuple, number: jax.Array) -> tuple[tuple, None]:
            """The nearer of the plane of one class and the best so far: distance, gap, normal."""
            aim = jax.nn.one_hot(number, logits.shape[1], dtype=logits.dtype)[None] - own
            w, bad = problem.finite(back(jnp.where(problem.attacked[:, None], aim, 0))[0])
            w = w if domain.free is None else w * domain.free
            gap = jnp.take(gaps, number, axis=1)
            far = jnp.where(
                problem.labels == number, jnp.inf, jnp.abs(gap) / (dual(self.norm, domain.split(w)) + _SMALL)
            )
            nearer = far < best[0]
            pick = lambda new, old: jnp.where(nearer, new, old)
            return (pick(far, best[0]), pick(gap, best[1]), problem.pick(nearer, w, best[2]), best[3] | bad), None

        first = (jnp.full_like(gaps[:, 0], jnp.inf), gaps[:, 0], jnp.zeros_like(x), jnp.zeros_like(problem.attacked))
        (_, gap, w, bad), _ = jax.lax.scan(plane, first, jnp.arange(logits.shape[1]))
        return self.onto(problem, x, w, gap), problem.observed(output, gap, bad)

    def started(self, problem: Problem, keys: jax.Array, reach: jax.Array) -> jax.Array:
        """A point at half of `reach` [example] from the clean value, before the box: Linf uniform, else Gaussian."""
        clean, threat = problem.domain.clean, problem.ball
        if isinstance(threat, Linf):
            draw = lambda key: jax.random.uniform(key, clean.shape[1:], clean.dtype, -1, 1)
        else:
            draw = lambda key: jax.random.normal(key, clean.shape[1:], clean.dtype)
        drawn = jax.vmap(draw)(keys)
        drawn = drawn if problem.domain.free is None else drawn * problem.domain.free
        size = self.measured(problem, clean + drawn)
        spread = problem.domain.spread(reach / 2 / jnp.where(size > 0, size, 1))
        return jnp.clip(clean + spread * drawn, *threat.bounds)

    def __call__(self, problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        problem.of_one_row("fab")
        first = begun(problem, start)

        def again(best: tuple, number: jax.Array) -> tuple[tuple, tuple]:
            if keys is None:
                return self.walk(problem, best, first, problem)
            folded = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            drawn = self.started(problem, folded, jnp.minimum(best[1], problem.ball.eps))
            return self.walk(problem, best, jnp.where(number == 0, first, drawn), problem)

        return self.found(problem, *jax.lax.scan(again, self.nothing(problem), jnp.arange(self.restarts)))


def fab(
    eps: jax.typing.ArrayLike | str,
    steps: int = 100,
    *,
    restarts: int = 1,
    norm: str = "linf",
    alpha_max: jax.typing.ArrayLike = 0.1,
    eta: jax.typing.ArrayLike = 1.05,
    beta: jax.typing.ArrayLike = 0.9,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """`fab_t` without targets: the plane of every step is that of the class whose linearised boundary is nearest.

    The distance to a boundary is ``|z_t - z_y| / ||grad(z_t - z_y)||`` in the dual norm; as many backward passes a step
    as there are classes. What eps does and what the result holds is as of `fab_t`.

    Args:
      eps, norm, bounds, steps, alpha_max, eta, beta: see `dyn_jax.attacks.fab_t`.
      restarts: walks; the first one from the clean value, others from a random point at half the smaller of eps and
        the smallest norm so far.

    Returns:
      An `Attack` that needs a ``key`` where there are restarts; a ``start`` is where the first walk begins.

    Raises:
      ValueError, TypeError: as `dyn_jax.attacks.bim`; restarts not a positive integer; ``targets`` given to the attack;
        a segmented cloud.

    Source: Croce and Hein 2020, algorithm 1 without the final search, as in AutoAttack's code.
    """
    threat = ball(norm, eps, bounds)
    _validate.positive_int("steps", steps)
    _validate.positive_int("restarts", restarts)
    number = lambda name, value: _validate.number(name, value, minimum=0)
    biased = number("alpha_max", alpha_max), number("eta", eta), number("beta", beta)
    search = NearestFab(norm, steps, *biased, restarts)
    return Attack(search, threat, objectives.margin, random=restarts > 1, reach=threat.eps)
