"""C&W-L2 (Carlini and Wagner 2017): the smallest perturbation, by binary search over the loss's constant."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.threat import Bounds, Box, check_bounds
from dyn_jax.objectives import hinge_margin, margin

_NO_UPPER = 1e10
_INSIDE = 0.999999  # keeps arctanh finite at the bounds


class _Best(NamedTuple):
    x: jax.Array
    distance: jax.Array  # squared; inf until a success


def carlini_wagner(
    *,
    steps: int = 1000,
    search_steps: int = 9,
    learning_rate: float = 0.01,
    initial_constant: float = 1e-3,
    confidence: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
    attack_all: bool = False,
) -> Attack:
    """Minimises ``||x - clean||^2 + c * max(z_y - max_other z, -confidence)`` over ``x = (tanh(w) + 1) / 2``.

    For every example, c goes up tenfold while no success is found and is bisected afterwards. The closest success on
    the victim over all searches is returned, the clean image where there is none.

    Args:
      steps: Adam steps per value of c (the paper's code: 10,000).
      search_steps: values of c.
      learning_rate: Adam's.
      initial_constant: first c.
      confidence: kappa, in logits; a success must exceed this margin on the victim.
      bounds: lowest and highest pixel value; x is mapped onto this range.
      attack_all: also perturb images that are misclassified to begin with.

    Raises:
      ValueError, TypeError: a number out of range.

    Source: Carlini and Wagner 2017, section V and VI.A (f_6). Without the released code's early abort.
    """
    for name, value in (("learning_rate", learning_rate), ("initial_constant", initial_constant)):
        if not _validate.number(name, value) > 0:
            raise ValueError(f"{name}: got {value}, expected a positive number")
    _validate.positive_int("steps", steps)
    _validate.positive_int("search_steps", search_steps)
    check_bounds(bounds)
    objective = hinge_margin(confidence)
    adam = optax.adam(learning_rate)
    low, high = bounds

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        images = problem.images
        first = images if start is None else start
        origin = jnp.arctanh((2 * (first - low) / (high - low) - 1) * _INSIDE)

        def to_image(w: jax.Array) -> jax.Array:
            return problem.project(low + (high - low) * (jnp.tanh(w) + 1) / 2)

        def total(w: jax.Array, constant: jax.Array) -> tuple[jax.Array, tuple]:
            x = to_image(w)
            output = problem.forward(x)
            losses = objective(output, problem.labels, problem.targets)
            squared = jnp.sum((x - images) ** 2, axis=(1, 2, 3))
            value = jnp.sum(jnp.where(problem.attacked, squared - constant * losses, 0))
            return value, (x, squared, losses, output)

        def step(state: tuple, _: None) -> tuple[tuple, tuple]:
            w, adam_state, constant, best, hit = state
            gradient, (x, squared, losses, output) = jax.grad(total, has_aux=True)(w, constant)
            bad = ~jnp.all(jnp.isfinite(gradient), axis=(1, 2, 3))
            gradient = jnp.where(bad[:, None, None, None], 0, gradient)
            judged = output if problem.victim is problem.forward else problem.victim(x)
            enough = margin(judged, problem.labels, problem.targets) > confidence
            success = problem.succeeds(judged.logits) & (enough | (confidence == 0))
            closer = success & (squared < best.distance)
            best = _Best(jnp.where(closer[:, None, None, None], x, best.x), jnp.where(closer, squared, best.distance))
            update, adam_state = adam.update(gradient, adam_state)
            return (w + update, adam_state, constant, best, hit | success), (losses, bad)

        def bisect(state: tuple, _: None) -> tuple[tuple, tuple]:
            constant, lower, upper, best = state
            run = (origin, adam.init(origin), constant, best, jnp.zeros_like(problem.attacked))
            (_, _, _, best, hit), (losses, bad) = jax.lax.scan(step, run, None, length=steps)
            upper = jnp.where(hit, jnp.minimum(upper, constant), upper)
            lower = jnp.where(hit, lower, jnp.maximum(lower, constant))
            constant = jnp.where(upper < _NO_UPPER, (lower + upper) / 2, constant * 10)
            return (constant, lower, upper, best), (losses, jnp.sum(bad, axis=0, dtype=jnp.int32))

        batch, dtype = images.shape[:1], images.dtype
        state = (
            jnp.full(batch, initial_constant, dtype),
            jnp.zeros(batch, dtype),
            jnp.full(batch, _NO_UPPER, dtype),
            _Best(images, jnp.full(batch, jnp.inf, dtype)),
        )
        (_, _, _, best), (history, bad) = jax.lax.scan(bisect, state, None, length=search_steps)
        return Found(best.x, history.reshape(-1, *batch), jnp.sum(bad, axis=0))

    return Attack(search, Box(bounds), objective, attack_all=attack_all)
