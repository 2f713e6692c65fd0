"""SkipNet's hybrid reinforcement learning: the gates' policy gradient beside the cross-entropy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax import _validate, objectives
from dyn_jax.occupancy import bernoulli
from dyn_jax.training.recipe import SGD, Recipe, edited
from dyn_jax.training.sparsity import skipnet_recipe
from dyn_jax.types import Output, Variables


class HRLParts(NamedTuple):
    """Mean cross-entropy, the policy surrogate, and the return [gate, batch] of every action."""

    cross_entropy: jax.Array
    surrogate: jax.Array
    returns: jax.Array


def hrl_loss(
    output: Output, labels: jax.Array, *, alpha: float = 0.1, rl_weight: float = 0.01, gamma: float = 1.0
) -> tuple[jax.Array, HRLParts]:
    """``mean CE - rl_weight * sum_{gate, example} R log(p(action) + 1e-6)``.

    A skipped block earns ``alpha / gates``. The return of gate k is ``R_k = sum_{j >= k} gamma^(j - k) r_j - CE`` of
    that example, without gradient. Actions are the occupancies of a forward pass under
    `dyn_jax.occupancy.bernoulli`; their probabilities are the sigmoid of the scores.

    Args:
      output, labels: of a network with one element per unit, [batch] scores (SkipNet).
      alpha: reward of skipping everything.
      rl_weight: weight of the surrogate; summed, not averaged, over examples, as released.
      gamma: discount.

    Source: SkipNet section 3.3, eq. 3 to 5; the CIFAR training of the released code.
    """
    losses = objectives.cross_entropy(output, labels)
    scores = jnp.stack([unit.score for unit in output.trace.units])
    actions = jax.lax.stop_gradient(jnp.stack([unit.occupancy for unit in output.trace.units]))
    rewards = alpha / scores.shape[0] * (1 - actions)

    def accumulate(following: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = reward + gamma * following
        return value, value

    _, skipped = jax.lax.scan(accumulate, jnp.zeros_like(losses), rewards, reverse=True)
    returns = jax.lax.stop_gradient(skipped - losses[None, :])
    probability = jax.nn.sigmoid(jnp.where(actions > 0.5, scores, -scores))
    surrogate = -rl_weight * jnp.sum(returns * jnp.log(probability + 1e-6))
    cross_entropy = jnp.mean(losses)
    return cross_entropy + surrogate, HRLParts(cross_entropy, surrogate, returns)


def hrl_recipe(
    epochs: int = 6,
    alpha: float = 1.0,
    *,
    rl_weight: float = 0.01,
    gamma: float = 1.0,
    learning_rate: float = 5e-3,
    before: Recipe | None = None,
    temperature: float = 0.02,
) -> Recipe:
    """Hybrid reinforcement learning: `hrl_loss` under sampled gates, batch statistics, no decay of the gates.

    Departures from the CIFAR training of the released code, which makes 10,000 iterations of 128 images at a constant
    1e-4 with ``alpha`` 0.1: some 120 iterations of 64 images on the digits, hence a learning rate that starts 50 times
    higher (and falls as a cosine, with Nesterov momentum, as all recipes here); ``alpha`` 1, since 0.1 skips little
    there (and opens every gate where the temperature is left out). `rl_weight`, `gamma`, momentum and weight decay are
    the released ones, but the gates are not decayed.

    Args:
      epochs, learning_rate: see `Recipe`, `SGD`.
      alpha, rl_weight, gamma: see `hrl_loss`. More `alpha` skips more.
      before: the supervised stage, with straight-through gates; None: the run starts from given variables.
      temperature: of `hotter`, between the two stages; 1 leaves it out.

    Source: SkipNet section 3.3 (hybrid reinforcement learning with supervised pre-training).
    """
    _validate.positive("temperature", temperature)
    loss = lambda output, labels, progress: hrl_loss(output, labels, alpha=alpha, rl_weight=rl_weight, gamma=gamma)[0]
    sgd, sampled = SGD(learning_rate, weight_decay=1e-4), lambda epoch: bernoulli()
    between = lambda variables: hotter(variables, temperature)
    return Recipe(epochs, 64, sgd, loss, sampled, decay_gates=False, before=before, between=between)


def skipnet_rl_recipe(*epochs: int) -> Recipe:
    """``skipnet-rl-digits``: `skipnet_recipe`, then `hrl_recipe`; `epochs` instead of both their own numbers.

    Departures from the paper, on the digits: the supervised stage has the budget loss (without it, after 15 epochs,
    every gate was shut for every image, with scores of -3 and less). With it the scores lie within some hundredths of
    the threshold, where sampled gates are coin tosses that forget what the supervised stage learned: hence the
    temperature, which the release uses for ImageNet (there 0.05).
    """
    return hrl_recipe(*epochs, before=skipnet_recipe(*epochs))


def hotter(variables: Variables, temperature: float) -> Variables:
    """Divides the weight and the bias that make the recurrent gates' scores by `temperature`.

    Hard gates stay what they are; sampled ones come closer to them the smaller the temperature.

    Raises:
      ValueError: variables of no `SkipNet` with recurrent gates, or a temperature that is not positive.

    Source: the released ImageNet training, between its two stages, with 0.05.
    """
    _validate.positive("temperature", temperature)
    if "control" not in variables["params"]:
        raise ValueError("variables: got none of recurrent gates (params/control), expected those of SkipNet rnn")
    return edited(variables, "params/control/proj/*", lambda leaf: leaf / temperature)
