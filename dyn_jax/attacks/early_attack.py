"""Early Attack (2308.08709, section 6): every early exit changes its mind, the last one does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.threat import Box, safe_norm
from dyn_jax.objectives import Objective
from dyn_jax.types import Output

PROTOCOLS = ("paper", "release")
RELEASE_FIRST_RETURN = 200  # the released loop looks at success from this iteration on
RELEASE_CLASSES = 10  # and sums T1 over this many classes, CIFAR-100's too
IMAGENET_STD = (0.229, 0.224, 0.225)
_INSIDE = 0.999999  # keeps arctanh finite at the bounds


def exits_of(output: Output) -> jax.Array:
    """The logits [exit, batch, class] of all exits.

    Raises:
      ValueError: the network has no early exits.
    """
    exits = output.trace.exits
    if exits is None or exits.shape[0] < 2:
        raise ValueError("forward: got a network without early exits (trace.exits is None), expected at least two")
    return exits


def early_loss(
    exits: jax.Array, kept: jax.Array, alpha: jax.typing.ArrayLike, classes: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """(T2 - alpha T1, alpha T1) with ``T1 = sum_{j != p} max(y^N_p - y^N_j, 0)`` and ``T2 = sum_{i < N} y^i_p``.

    Args:
      exits: logits [exit, batch, class]; y^i is the softmax of exit i, N the last.
      kept: [batch], p, the class that the last exit shall keep saying.
      alpha: weight of T1.
      classes: T1 sums over the first `classes` classes; default all.

    Returns:
      Two [batch].
    """
    probabilities = jax.nn.softmax(exits)
    index = jnp.broadcast_to(kept[None, :, None], (exits.shape[0], kept.shape[0], 1))
    own = jnp.take_along_axis(probabilities, index, axis=2)[..., 0]
    gaps = jax.nn.relu(own[-1][:, None] - probabilities[-1][:, :classes])  # 0 at p itself
    first = jnp.asarray(alpha, exits.dtype) * jnp.sum(gaps, axis=1)
    return jnp.sum(own[:-1], axis=0) - first, first


def early_objective(alpha: jax.typing.ArrayLike = 1.0) -> Objective:
    """``alpha T1 - T2`` of `early_loss` with the labels as p: an objective for any attack (a projected one, say)."""
    alpha = _validate.number("alpha", alpha, minimum=0)

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        if targets is not None:
            raise ValueError("targets: got some, expected None: Early Attack has no target class")
        return -early_loss(exits_of(output), labels, alpha)[0]

    return objective


def fools_early_exits(exits: jax.Array, kept: jax.Array) -> jax.Array:
    """[batch] bool: the last exit says `kept`, every other one something else, and all logits are finite."""
    predictions = jnp.argmax(exits, axis=-1)
    finite = jnp.all(jnp.isfinite(exits), axis=(0, 2))
    return (predictions[-1] == kept) & jnp.all(predictions[:-1] != kept[None, :], axis=0) & finite


def early_attack(
    *,
    alpha: jax.typing.ArrayLike = 1.0,
    constant: jax.typing.ArrayLike = 50.0,
    steps: int = 1000,
    learning_rate: float = 0.01,
    protocol: str = "paper",
    std: tuple[float, ...] = IMAGENET_STD,
) -> Attack:
    """Adam on w, minimising ``||x - clean|| + c (T2 - alpha T1)`` with ``x = (tanh(w) + 1) / 2`` in [0, 1].

    p is what the last exit says about the clean image. w starts uniform in [0, 1), independent of the image (give the
    attack ``start=images`` to begin there instead). An example returns its first iterate that succeeds, else its last.
    Whether it succeeded is `dyn_jax.exits.early_success` of the result's traces; ``result.success`` says, as for every
    attack, whether the deployed network errs.

    Args:
      alpha: weight of keeping the last exit's class; the paper tries .001, .01, .1, 1, 20, 40. May be traced.
      constant: c, weight of the exits against the distance. May be traced.
      steps: most iterations.
      learning_rate: Adam's (from the released code; the paper names no optimiser).
      protocol: ``paper``: L2 distance between images in [0, 1]. ``release``: squared L2 distance between normalised
        images; no return before iteration 201; T1 over the first ten classes only, whatever their number.
      std: of the normalisation, for the distance of ``release``; one number per channel.

    Raises:
      ValueError, TypeError: a number out of range; unknown protocol; when called, a network without exits, or targets.

    Source: 2308.08709, section 6.1, eq. 1 (T2 over all exits but the last, as its text and code have it).
    """
    alpha = _validate.number("alpha", alpha, minimum=0)
    constant = _validate.number("constant", constant, minimum=0)
    _validate.positive_int("steps", steps)
    if not _validate.number("learning_rate", learning_rate) > 0:
        raise ValueError(f"learning_rate: got {learning_rate}, expected a positive number")
    _validate.choice("protocol", protocol, PROTOCOLS)
    released = protocol == "release"
    first_return = RELEASE_FIRST_RETURN if released else 0
    classes = RELEASE_CLASSES if released else None
    adam = optax.adam(learning_rate)

    def distance(x: jax.Array, clean: jax.Array) -> jax.Array:
        if not released:
            return safe_norm(x - clean)[:, 0, 0, 0]
        scaled = (x - clean) / jnp.asarray(std, x.dtype).reshape(1, 1, 1, -1)
        return jnp.sum(scaled * scaled, axis=(1, 2, 3))

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        if problem.targets is not None:
            raise ValueError("targets: got some, expected None: Early Attack has no target class")
        images = problem.images
        kept = jnp.argmax(exits_of(problem.forward(images))[-1], axis=-1)
        kept_by_victim = jnp.argmax(exits_of(problem.victim(images))[-1], axis=-1)
        if start is None:
            w = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], images.dtype))(keys)
        else:
            w = jnp.arctanh(jnp.clip(2 * start - 1, -_INSIDE, _INSIDE))

        def total(w: jax.Array) -> tuple[jax.Array, tuple]:
            x = problem.project((jnp.tanh(w) + 1) / 2)
            output = problem.forward(x)
            loss, _ = early_loss(exits_of(output), kept, alpha, classes)
            values = distance(x, images) + constant * loss
            return jnp.sum(jnp.where(problem.attacked, values, 0)), (x, values, output)

        def step(state: tuple) -> tuple:
            number, w, adam_state, best, done, history, nonfinite = state
            gradient, (x, values, output) = jax.grad(total, has_aux=True)(w)
            bad = ~jnp.all(jnp.isfinite(gradient), axis=(1, 2, 3))
            gradient = jnp.where(bad[:, None, None, None], 0, gradient)
            judged = output if problem.victim is problem.forward else problem.victim(x)
            success = fools_early_exits(exits_of(judged), kept_by_victim) & (number >= first_return)
            best = jnp.where(done[:, None, None, None], best, x)
            history = history.at[number].set(jnp.where(done, history[number - 1], -values))
            update, adam_state = adam.update(gradient, adam_state)
            return number + 1, w + update, adam_state, best, done | success, history, nonfinite + (bad & ~done)

        def unfinished(state: tuple) -> jax.Array:
            return (state[0] < steps) & ~jnp.all(state[4])

        batch = images.shape[0]
        begin = (
            jnp.int32(0),
            w,
            adam.init(w),
            images,
            ~problem.attacked,
            jnp.zeros((steps, batch), images.dtype),
            jnp.zeros(batch, jnp.int32),
        )
        number, _, _, best, _, history, nonfinite = jax.lax.while_loop(unfinished, step, begin)
        rows = jnp.arange(steps)[:, None] < number
        return Found(best, jnp.where(rows, history, history[number - 1][None, :]), nonfinite)

    return Attack(search, Box((0.0, 1.0)), early_objective(alpha), random=True, attack_all=True)
