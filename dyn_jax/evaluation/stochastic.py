"""Networks that draw: gradients averaged over draws, verdicts by fresh ones.

An attack calls its network as a function of the images alone. A random one becomes such a function by taking its key
from the images: every iterate is another image, so it meets other draws, the same image the same ones, and attacks made
for deterministic networks run as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack
from dyn_jax.objectives import Objective
from dyn_jax.types import Output


class Draws(Output):
    """The mean output of several draws, and all of them: ``each`` has a leading axis [draw]."""

    each: Output | None = None


def key_of(x: jax.Array, key: jax.Array) -> jax.Array:
    """A key that changes with any bit of x."""
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x).astype(jnp.float32), jnp.uint32).reshape(-1)
    place = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761) + jnp.uint32(1)
    mixed = (bits ^ (bits >> 15)) * place
    return jax.random.fold_in(key, jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32))


def averaged(forward: Callable[..., Output], key: jax.Array, draws: int) -> Callable[[jax.Array], Draws]:
    """images -> `Draws` of `draws` fresh draws; every example draws for itself, whatever batch it is in.

    Args:
      forward: (images, key) -> `Output`.
      key: of the attack; a verdict needs another one.
      draws: at least 1.
    """
    _validate.positive_int("draws", draws)

    def one(x: jax.Array, key: jax.Array) -> Output:
        return jax.tree.map(lambda leaf: leaf[0], forward(x[None], key))

    def call(x: jax.Array) -> Draws:
        keys = jax.vmap(lambda image: jax.random.split(key_of(image, key), draws))(x)
        each = jax.vmap(jax.vmap(one), (None, 1))(x, keys)
        mean = lambda leaf: jnp.mean(leaf, axis=0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf[-1]
        output = jax.tree.map(mean, each)
        return Draws(logits=output.logits, trace=output.trace, each=each)

    return call


def expected(attack: Attack) -> Attack:
    """The attack with the mean of its objective over draws: the gradient is the mean of the draws' gradients.

    An attack that brings its own loss (`apgd_t`, the energy attacks) meets the mean output instead.
    """

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        if not isinstance(output, Draws) or output.each is None:
            return inner(output, labels, targets)
        return jnp.mean(jax.vmap(lambda each: inner(each, labels, targets))(output.each), axis=0)

    inner: Objective = attack.objective
    return dataclasses.replace(attack, objective=objective)


def votes(forward: Callable[..., Output], key: jax.Array, draws: int) -> Callable[[jax.Array], Output]:
    """images -> `Output` whose logits are the share of draws that say each class: its answer is the majority's.

    Logits of a draw that are not finite make the votes NaN: nothing can be said.
    """
    mean = averaged(forward, key, draws)

    def call(x: jax.Array) -> Output:
        each = mean(x)
        assert each.each is not None
        logits = each.each.logits
        said = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1], dtype=jnp.float32)
        finite = jnp.all(jnp.isfinite(logits), axis=(0, -1))
        share = jnp.where(finite[:, None], jnp.mean(said, axis=0), jnp.nan)
        # equal votes: the mean logits decide, by less than one vote
        tie = 0.5 / draws * jax.nn.softmax(each.logits)
        return Output(share + jnp.where(finite[:, None], tie, 0), each.trace)

    return call
