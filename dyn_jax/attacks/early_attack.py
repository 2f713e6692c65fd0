"""Early Attack (2308.08709, section 6): every early exit changes its mind, the last one does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.domains import Domain, l2
from dyn_jax.attacks.restarts import filled, recorded
from dyn_jax.attacks.threat import Box, drawn
from dyn_jax.objectives import Objective, exits_of
from dyn_jax.objectives.answers import untargeted, without_targets

_NO_TARGETS = "Early Attack has no target class"


def early_loss(
    exits: jax.Array, kept: jax.Array, alpha: jax.typing.ArrayLike, classes: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """(T2 - alpha T1, alpha T1), ``T1 = sum_{j != p} max(y^N_p - y^N_j, 0)``, ``T2 = sum_{i < N} y^i_p``, [batch].

    Args:
      exits: logits [batch, exit, class]; y^i is the softmax of exit i, N the last.
      kept: [batch], p, the class that the last exit shall keep saying.
      alpha: weight of T1.
      classes: T1 sums over the first `classes` classes; default all.
    """
    probabilities = jax.nn.softmax(exits)
    own = jnp.take_along_axis(probabilities, kept[:, None, None], axis=2)[..., 0]
    gaps = jax.nn.relu(own[:, -1:] - probabilities[:, -1, :classes])  # 0 at p itself
    first = jnp.asarray(alpha, exits.dtype) * jnp.sum(gaps, axis=1)
    return jnp.sum(own[:, :-1], axis=1) - first, first


def early_objective(alpha: jax.typing.ArrayLike = 1.0) -> Objective:
    """``alpha T1 - T2`` of `early_loss` with the labels as p: an objective for any attack (a projected one, say)."""
    alpha = _validate.number("alpha", alpha, minimum=0)
    return without_targets(lambda output, labels: -early_loss(exits_of(output.trace), labels, alpha)[0], _NO_TARGETS)


def fools_early_exits(exits: jax.Array, kept: jax.Array) -> jax.Array:
    """[batch] bool: the last exit says `kept`, every other one something else, and all logits are finite."""
    predictions = jnp.argmax(exits, axis=-1)
    finite = jnp.all(jnp.isfinite(exits), axis=(1, 2))
    return (predictions[:, -1] == kept) & jnp.all(predictions[:, :-1] != kept[:, None], axis=1) & finite


@dataclasses.dataclass(frozen=True)
class EarlyForm:
    """What the paper and the released code do differently."""

    distance: Callable[[Domain, jax.Array], jax.Array] = l2  # (domain, x) -> [batch]
    first_return: int = 0  # iteration from which a success ends the search for an example
    classes: int | None = None  # T1 sums over the first so many classes; None: all


PAPER = EarlyForm()
"""L2 distance between images in [0, 1]; an example returns its first success; T1 over all classes."""


def early_attack(
    *,
    alpha: jax.typing.ArrayLike = 1.0,
    constant: jax.typing.ArrayLike = 50.0,
    steps: int = 1000,
    learning_rate: jax.typing.ArrayLike = 0.01,
    form: EarlyForm = PAPER,
) -> Attack:
    """Adam on w, minimising ``||x - clean|| + c (T2 - alpha T1)`` with ``x = (tanh(w) + 1) / 2`` in [0, 1].

    p is what the last exit says about the clean image. w starts uniform in [0, 1), independent of the image (give the
    attack ``start=images`` to begin there instead). An example returns its first iterate that succeeds, else its last.
    Whether it succeeded is `dyn_jax.metrics.exits.early_success` of the result's traces; ``result.success`` says, as
    for every attack, whether the deployed network errs.

    Args:
      alpha: weight of keeping the last exit's class; the paper tries .001, .01, .1, 1, 20, 40. May be traced.
      constant: c, weight of the exits against the distance. May be traced.
      steps: most iterations.
      learning_rate: Adam's (from the released code; the paper names no optimiser).
      form: see `EarlyForm`; the release's is `dyn_jax.attacks.released.early_attack`.

    Raises:
      ValueError, TypeError: a number out of range; when called, a network without exits, or targets.

    Source: 2308.08709, section 6.1, eq. 1 (T2 over all exits but the last, as its text and code have it).
    """
    alpha = _validate.number("alpha", alpha, minimum=0)
    constant = _validate.number("constant", constant, minimum=0)
    _validate.positive_int("steps", steps)
    adam = optax.adam(_validate.positive("learning_rate", learning_rate))

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        untargeted(problem.targets, _NO_TARGETS)
        domain = problem.domain
        said = lambda output: jnp.argmax(exits_of(output.trace)[:, -1], axis=-1)
        kept, kept_by_victim = said(problem.forward(domain.clean)), said(problem.clean)
        w = drawn(jax.random.uniform, keys, domain.clean) if start is None else domain.to_free(start)

        def total(w: jax.Array) -> tuple[jax.Array, tuple]:
            x = problem.project(domain.from_free(w))
            output = problem.forward(x)
            loss, _ = early_loss(exits_of(output.trace), kept, alpha, form.classes)
            values = form.distance(domain, x) + constant * loss
            return jnp.sum(jnp.where(problem.attacked, values, 0)), (x, values, output)

        def step(state: tuple) -> tuple:
            number, w, adam_state, best, done, records = state
            gradient, (x, values, output) = jax.grad(total, has_aux=True)(w)
            gradient, bad = problem.finite(gradient)
            exits = exits_of(problem.judged(x, output).trace)
            success = fools_early_exits(exits, kept_by_victim) & (number >= form.first_return)
            best = problem.pick(done, best, x)
            nonfinite = records.nonfinite.at[number].set(bad & ~done)
            records = recorded(records, number, problem.observed(output, -values, bad), done)
            records = records.replace(nonfinite=nonfinite)
            update, adam_state = adam.update(gradient, adam_state)
            return number + 1, w + update, adam_state, best, done | success, records

        begin = (jnp.int32(0), w, adam.init(w), domain.clean, ~problem.attacked, problem.no_steps(steps))
        unfinished = lambda state: (state[0] < steps) & ~jnp.all(state[4])
        number, _, _, best, _, records = jax.lax.while_loop(unfinished, step, begin)
        return Found(best, filled(records, number).replace(nonfinite=records.nonfinite))

    return Attack(search, Box((0.0, 1.0)), early_objective(alpha), random=True, attack_all=True)
