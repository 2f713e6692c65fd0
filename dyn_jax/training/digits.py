"""Recipes of the small image networks that ship with the package, on scikit-learn's handwritten digits."""

from __future__ import annotations

from collections.abc import Callable

import jax

from dyn_jax import _validate, networks
from dyn_jax.datasets import digits
from dyn_jax.occupancy import gumbel_sigmoid, straight_through
from dyn_jax.training.hrl import hrl_recipe, train_hrl
from dyn_jax.training.loop import Loss, Progress, Recipe, fit, mean_cross_entropy
from dyn_jax.training.manidp import manidp_recipe
from dyn_jax.training.ponder import sact_recipe
from dyn_jax.training.sparsity import sparsity_loss
from dyn_jax.types import Output, Variables


def with_budget(target: float, epochs: int, weight: float) -> Loss:
    """Mean cross-entropy plus `weight` times `sparsity_loss`."""

    def loss(output: Output, labels: jax.Array, progress: Progress) -> jax.Array:
        budget, _ = sparsity_loss(output.trace, target=target, epoch=progress.epoch, epochs=epochs)
        return mean_cross_entropy(output, labels) + weight * budget

    return loss


def skipnet_recipe(epochs: int = 40, target: float = 0.5) -> Recipe:
    """SkipNet SP (straight-through gates) with the budget loss, and no weight decay on the gates.

    Departure from the paper, whose SP stage has no penalty and leaves every gate open on data this easy: the budget's
    block bounds, which stay tight, make each gate decide by the input. (Gumbel noise on the gates, which is DynConv's
    way, was tried: it made every gate constant.)
    """
    return Recipe(
        epochs=epochs,
        decay_gates=False,
        loss=with_budget(target, 3 * epochs, weight=10.0),
        occupancy=lambda epoch: straight_through(1.0),
    )


def dynconv_recipe(epochs: int = 40, target: float = 0.5) -> Recipe:
    """DynConv as published: Gumbel noise (off in the last fifth), temperature 1, budget loss with weight 10."""
    return Recipe(
        epochs=epochs,
        loss=with_budget(target, epochs, weight=10.0),
        occupancy=lambda epoch: gumbel_sigmoid(1.0, noise=epoch <= 0.8 * epochs),
    )


RECIPES: dict[str, Callable[..., Recipe]] = {
    "skipnet-digits": skipnet_recipe,
    "dynconv-digits": dynconv_recipe,
    "sact-digits": sact_recipe,
    "manidp-digits": manidp_recipe,
}
# Two stages, see `train_hrl`.
STAGED: dict[str, tuple[Callable[..., Recipe], Callable[..., Recipe]]] = {
    "skipnet-rl-digits": (skipnet_recipe, hrl_recipe)
}


def train(
    name: str, *, seed: int = 0, epochs: int | None = None, report: Callable[[int, float], None] | None = None
) -> Variables:
    """Trains one of the embedded networks from scratch; about a minute on two cores, ``skipnet-rl-digits`` two.

    Args:
      name: a key of `RECIPES` or `STAGED`.
      seed: of everything random. Weights differ between machines all the same: rounding differs, and training
        amplifies it.
      epochs: instead of the recipe's own number (of each of its stages).
      report: called with (epoch, mean loss).

    Raises:
      ValueError: unknown name.
    """
    _validate.choice("network", name, [*RECIPES, *STAGED])
    own = () if epochs is None else (_validate.positive_int("epochs", epochs),)
    net, data = networks.create(name), digits("train")
    if name in STAGED:
        first, second = (recipe(*own) for recipe in STAGED[name])
        return train_hrl(net, data, first, second, seed=seed, report=report)
    return fit(net, data, RECIPES[name](*own), seed=seed, report=report)
