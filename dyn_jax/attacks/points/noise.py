"""Random perturbation: the baseline that every attack has to beat."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax.attacks.points.base import Found, PointAttack, PointProblem, Steps, check_eps
from dyn_jax.objectives import resolve


def point_noise(eps: jax.typing.ArrayLike) -> PointAttack:
    """Every coordinate moves by a uniform number in [-eps, eps]; no gradient is taken.

    Args:
      eps: metres.

    Source: LGM paper Table XI, "random perturbation" (its distribution is not said; uniform in the cube here).
    """
    eps = check_eps(eps)

    def search(problem: PointProblem, key: jax.Array | None) -> Found:
        clean = problem.cloud.xyz
        rows = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(clean.shape[0]))
        noise = jax.vmap(lambda k: jax.random.uniform(k, (3,), clean.dtype, -1.0, 1.0))(rows)
        none = jnp.zeros(0, clean.dtype)
        return Found(
            clean + jnp.asarray(eps, clean.dtype) * noise,
            Steps(none, none.astype(jnp.int32), none, none.astype(bool), none.astype(bool)),
        )

    return PointAttack(search, eps, resolve("ce"), random=True)
