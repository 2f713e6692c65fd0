"""Random occupancies, used in training: sampled gates (HRL) and Gumbel noise (DynConv).

They are called as ``occupancy(score, key=key)``; networks draw the key from the ``gate`` stream:
``net.apply(variables, x, train=True, rngs={'gate': key}, ...)``. Noise is drawn per example by
``fold_in(key, example index)``, so that it does not depend on the batch size.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.occupancy.gate import Hard, StraightThrough


class Stochastic(abc.ABC):
    """An occupancy that is called with ``key=`` as well."""

    @abc.abstractmethod
    def __call__(self, score: jax.Array, *, key: jax.Array) -> jax.Array:
        """As every occupancy, drawn with the key."""


def _per_example(key: jax.Array, score: jax.Array, draw: Callable) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(score.shape[0]))
    return jax.vmap(lambda k: draw(k, score.shape[1:], score.dtype))(keys)


@flax.struct.dataclass
class Bernoulli(Stochastic):
    """1 with probability ``sigmoid(score)``, derivative 0: see `bernoulli`."""

    def __call__(self, score: jax.Array, *, key: jax.Array) -> jax.Array:
        uniform = _per_example(key, score, jax.random.uniform)
        return (uniform < jax.nn.sigmoid(jax.lax.stop_gradient(score))).astype(score.dtype)


@flax.struct.dataclass
class GumbelSigmoid(Stochastic):
    """Step of the noisy score, derivative of its tempered sigmoid: see `gumbel_sigmoid`."""

    temperature: jax.typing.ArrayLike
    noise: bool = flax.struct.field(pytree_node=False, default=True)

    def __call__(self, score: jax.Array, *, key: jax.Array) -> jax.Array:
        if self.noise:
            score = with_noise(score, key)
        return StraightThrough(1.0 / jnp.asarray(self.temperature, score.dtype))(score)


def with_noise(score: jax.Array, key: jax.Array) -> jax.Array:
    """``score + g1 - g2`` with standard Gumbel noise, per example."""
    first, second = jax.random.split(key)
    score = score + _gumbel(_per_example(first, score, jax.random.uniform))
    return score - _gumbel(_per_example(second, score, jax.random.uniform))


def _gumbel(uniform: jax.Array) -> jax.Array:
    return -jnp.log(-jnp.log(uniform + 1e-8) + 1e-8)


def bernoulli() -> Bernoulli:
    """Samples the action "run" with probability ``sigmoid(score)``; no gradient passes (REINFORCE supplies it).

    Source: SkipNet section 3.3 (hybrid reinforcement learning).
    """
    return Bernoulli()


def gumbel_sigmoid(temperature: jax.typing.ArrayLike = 1.0, *, noise: bool = True) -> GumbelSigmoid:
    """``step(score + g1 - g2)`` forward, derivative of ``sigmoid((score + g1 - g2) / temperature)`` backward.

    Args:
      temperature: positive; the papers use 1 (CIFAR) and 5, 2.5, 1 (ImageNet, by epoch). A leaf.
      noise: False leaves the Gumbel noise out (last fifth of DynConv's training).

    Source: DynConv section 3.2 (Gumbel-softmax with two classes, straight-through).
    """
    return GumbelSigmoid(_validate.positive("temperature", temperature), noise)


def apply(occupancy: Callable, score: jax.Array, make_key: Callable[[], jax.Array]) -> jax.Array:
    """Calls `occupancy` on `score`, with a fresh key from `make_key` if it is `Stochastic`."""
    value = occupancy(score, key=make_key()) if isinstance(occupancy, Stochastic) else occupancy(score)
    if jnp.shape(value) != score.shape:
        raise ValueError(
            f"occupancy: got values of shape {jnp.shape(value)} for scores of shape {score.shape}, "
            "expected an elementwise function score -> value"
        )
    return value


def deterministic(occupancy: Callable) -> Callable:
    """The occupancy to use where no fresh noise is wanted (a dilated mask): `hard` for a `Stochastic` one."""
    return Hard() if isinstance(occupancy, Stochastic) else occupancy
