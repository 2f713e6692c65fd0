"""FAB (Croce and Hein 2020), untargeted: every step goes to the nearest of all linearised boundaries; with restarts."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from dyn_jax import _validate, objectives
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.fab_t import Walk
from dyn_jax.attacks.fmn import dual
from dyn_jax.attacks.minimal import begun
from dyn_jax.attacks.restarts import folded
from dyn_jax.attacks.threat import Bounds, Linf, Number, ball, drawn

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
            w = domain.moving(w)
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
        domain, threat = problem.domain, problem.ball
        draw = partial(jax.random.uniform, minval=-1, maxval=1) if isinstance(threat, Linf) else jax.random.normal
        moves = domain.moving(drawn(draw, keys, domain.clean))
        size = self.measured(problem, domain.clean + moves)
        spread = domain.spread(reach / 2 / jnp.where(size > 0, size, 1))
        return jnp.clip(domain.clean + spread * moves, *threat.bounds)

    def __call__(self, problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        problem.of_one_row("fab")
        first = begun(problem, start)

        def again(best: tuple, number: jax.Array) -> tuple[tuple, tuple]:
            if keys is None:
                return self.walk(problem, best, first, problem)
            other = self.started(problem, folded(keys, number), jnp.minimum(best[1], problem.ball.eps))
            return self.walk(problem, best, jnp.where(number == 0, first, other), problem)

        return self.found(problem, *jax.lax.scan(again, self.nothing(problem), jnp.arange(self.restarts)))


def fab(
    eps: Number,
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

    Needs a ``key`` where there are restarts; a ``start`` is where the first walk begins. Raises as
    `dyn_jax.attacks.bim`; restarts not a positive integer; ``targets`` given to the attack; a segmented cloud. Source:
    Croce and Hein 2020, algorithm 1 without the final search, as in AutoAttack's code.
    """
    threat = ball(norm, eps, bounds)
    _validate.positive_int("restarts", restarts)
    search = NearestFab(norm, steps, alpha_max, eta, beta, restarts)
    return Attack(search, threat, objectives.margin, random=restarts > 1, reach=threat.eps)
