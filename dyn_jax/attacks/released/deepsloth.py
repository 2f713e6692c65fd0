"""What DeepSloth's code compares itself with: PGD on the last exit, all exits or the worst one; a universal DeepFool.

They aim at the answer, and slow a network down in passing. Every norm starts with a number from [-eps, eps] per pixel,
outside its ball.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.ascent import ascent, each_step
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.forward import Network, as_forward
from dyn_jax.attacks.mi_fgsm import l1_normalised
from dyn_jax.attacks.released.rdi import mean_of_exits, worst_of_exits
from dyn_jax.attacks.threat import L1, Ball, Number, ball, drawn
from dyn_jax.objectives import Objective, exit_objective

EPS, STEP_SIZE, STEPS = 0.03125, 0.001, 20
"""Released settings, the same numbers for every norm."""


def _pgd(norm: str, eps: Any, step_size: Any, steps: int, objective: Objective, start_of: Callable) -> Attack:
    _validate.choice("norm", norm, ("linf", "l2", "l1"))
    eps = _validate.number("eps", eps, minimum=0)
    threat: Ball = L1(eps, scaled=True) if norm == "l1" else ball(norm, eps)
    direction = each_step(l1_normalised if norm == "l1" else threat.direction)
    first = lambda problem, keys: start_of(problem.domain.clean, keys, eps)
    fields = {"objective": objective, "random": True, "attack_all": True}
    return ascent(threat, step_size, steps, direction, start_of=first, **fields)


def _random(clean: jax.Array, keys: jax.Array, eps: jax.Array) -> jax.Array:
    return clean + eps * drawn(jax.random.uniform, keys, clean, -1, 1)


def _contrast(clean: jax.Array, keys: jax.Array, eps: jax.Array) -> jax.Array:
    """The start of `pgd_max`: meant to be random, but the drawn numbers are not used."""
    return clean + (2 * clean - 1) * eps


def pgd(norm: str = "linf", eps: Number = EPS, step_size: Number = STEP_SIZE, steps: int = STEPS) -> Attack:
    """PGD on the last exit's cross-entropy; the last iterate is returned.

    Args:
      norm: ``linf``, ``l2`` or ``l1``: the gradient's sign, or divided by its norm; what leaves the ball is scaled.
      eps, step_size, steps: see `dyn_jax.attacks.bim`.

    Source: released code of Hong et al. 2021.
    """
    return _pgd(norm, eps, step_size, steps, exit_objective(-1), _random)


def pgd_average(norm: str = "linf", eps: Number = EPS, step_size: Number = STEP_SIZE, steps: int = STEPS) -> Attack:
    """`pgd` on the mean of all exits' cross-entropies."""
    return _pgd(norm, eps, step_size, steps, mean_of_exits, _random)


def pgd_max(norm: str = "linf", eps: Number = EPS, step_size: Number = STEP_SIZE, steps: int = STEPS) -> Attack:
    """One run for every exit, all from one start; per image the one with the largest sum over exits."""
    return worst_of_exits(_pgd(norm, eps, step_size, steps, mean_of_exits, _contrast))


class Fooled(NamedTuple):
    """What `deepfool` found for one image: the perturbation [height, width, channel], iterations, the new class."""

    delta: jax.Array
    iterations: jax.Array
    label: jax.Array


def deepfool(logits: Callable, image: jax.Array, overshoot: float = 0.02, steps: int = 10) -> Fooled:
    """The nearest boundary of a linearised classifier, again and again until the answer changes (L2).

    Args:
      logits: images -> [batch, class].
      image: [height, width, channel].
      overshoot: the query and the result are ``1 + overshoot`` times what was added up.
      steps: most iterations.

    Source: Moosavi-Dezfooli et al. 2016, algorithm 2 (whose own code adds 1e-4 to every distance).
    """
    first = logits(image[None])[0]
    label = jnp.argmax(first)

    def step(state: tuple) -> tuple:
        total, number, _ = state
        x = image + (1 + overshoot) * total
        values, pull = jax.vjp(lambda x: logits(x[None])[0], x)
        rows = jax.vmap(lambda one: pull(one)[0])(jnp.eye(len(values), dtype=values.dtype))
        away = rows - rows[label][None]
        length = jnp.sqrt(jnp.sum(away**2, axis=(1, 2, 3)))
        own = jnp.arange(len(values)) == label
        reach = jnp.where(own, jnp.inf, jnp.abs(values - values[label]) / jnp.where(own, 1, length))
        best = jnp.argmin(reach)
        total = total + reach[best] * away[best] / length[best]
        said = jnp.argmax(logits((image + (1 + overshoot) * total)[None])[0])
        return total, number + 1, said

    going = lambda state: (state[2] == label) & (state[1] < steps)
    total, number, said = jax.lax.while_loop(going, step, (jnp.zeros_like(image), jnp.int32(0), label))
    return Fooled((1 + overshoot) * total, number, said)


class UAP(NamedTuple):
    """A universal perturbation."""

    delta: jax.Array  # [height, width, channel]
    after: jax.Array  # [visit, height, width, channel], what it was after each visit
    visits: jax.Array  # [visit, 4]: image, iterations of `deepfool`, old and new class; -1 where it had changed already
    rate: jax.Array  # share of the images whose answer it changes


def uap(
    forward: Network,
    images: jax.Array,
    *,
    eps: Number = EPS,
    passes: int = 10,
    fooled: float = 0.8,
    overshoot: float = 0.02,
    steps: int = 10,
) -> UAP:
    """`deepfool` on the last exit of each image that does not change its answer yet, added up and cut to ``+-eps``.

    Args:
      forward: images -> `Output` of an early-exit network; the early exits play no part.
      images: [batch, height, width, channel], visited in their order (the release shuffles them).
      eps: Linf radius.
      passes: most passes over the images; none is made once the share `fooled` has changed its answer.
      overshoot, steps: see `deepfool`; what took ``steps - 1`` iterations or more is not added.

    Source: Moosavi-Dezfooli et al. 2017; released code of Hong et al. 2021.
    """
    images, network = _validate.images("images", images), as_forward(forward)
    radius: Any = _validate.number("eps", eps, minimum=0)
    _validate.positive_int("passes", passes)
    logits = lambda x: network(x).trace.exits[:, -1]  # type: ignore[index]
    clean = jnp.argmax(logits(images), axis=1)
    rate_of = lambda d: jnp.mean(jnp.argmax(logits(images + d[None]), axis=1) != clean, dtype=images.dtype)

    def visit(state: tuple, number: jax.Array) -> tuple[tuple, tuple]:
        d, rate = state
        image = images[number % len(images)]
        x = image + d
        old = jnp.argmax(logits(image[None])[0])
        busy = (jnp.argmax(logits(x[None])[0]) == old) & (rate < fooled)
        found = jax.lax.cond(
            busy,
            lambda: deepfool(logits, x, overshoot, steps),
            lambda: Fooled(jnp.zeros_like(d), jnp.int32(-1), jnp.zeros_like(old) - 1),
        )
        taken = busy & (found.iterations < steps - 1)
        d = jnp.where(taken, jnp.clip(d + found.delta, -radius, radius), d)
        ends = (number + 1) % len(images) == 0
        rate = jax.lax.cond(ends, lambda: rate_of(d), lambda: rate)
        row = jnp.stack([number % len(images), found.iterations, jnp.where(busy, old, -1), found.label])
        return (d, rate), (d, row)

    begin = (jnp.zeros_like(images[0]), jnp.zeros((), images.dtype))
    (d, rate), (after, visits) = jax.lax.scan(visit, begin, jnp.arange(passes * len(images)))
    return UAP(d, after, visits, rate)
