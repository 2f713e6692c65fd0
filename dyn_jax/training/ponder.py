"""Training of networks that halt (SACT, ACT, A-ViT): cross-entropy plus the ponder cost."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dyn_jax.gates.halting import halting_prior, mean_halting, ponder_of_trace, prior_target
from dyn_jax.training.recipe import SGD, AdamW, Images, Progress, Recipe, mean_cross_entropy, two_stages
from dyn_jax.types import Output

DEPTH = 6  # layers of `networks.avit.digits`


def ponder_loss(output: Output, labels: jax.Array, tau: float) -> jax.Array:
    """``cross-entropy + tau * sum over blocks of mean over batch and positions of (N + R)``.

    Args:
      output: of a network whose units halt, see `dyn_jax.gates.halting`; a ValueError where the trace has no units.
      tau: the price of a unit; the released models have 0.01 (CIFAR) and 0.005 (ImageNet).

    Source: Figurnov et al. 2017, and released code.
    """
    costs = [jnp.mean(ponder.cost) for ponder in ponder_of_trace(output.trace).values()]
    return mean_cross_entropy(output, labels) + tau * sum(costs)


def sact_recipe(epochs: int = 15, tau: float = 0.05) -> Recipe:
    """The small network on digits, with the published loss and L2 coefficient.

    Departures from the paper's CIFAR recipe: the price of a unit is five times as high (at 0.02 the digits network
    saves 4 % of its multiply-adds, at 0.05 a third, at 0.1 a half), the learning rate falls as a cosine, and the decay
    acts on biases and normalisation too, as in all recipes of this package.
    """
    loss = lambda output, labels, progress: ponder_loss(output, labels, tau)
    return Recipe(epochs, optimizer=SGD(weight_decay=2e-4), loss=loss)


def avit_loss(tau: float, alpha: float, target: jax.Array) -> Callable[[Output, jax.Array, Progress], jax.Array]:
    """``ponder_loss + alpha * max(halting_prior, 0)``: what an A-ViT is trained with.

    `tau` is the price of a layer for a token, 5e-4 in the released models, whose training starts from a trained DeiT;
    `alpha` is 1e-3 there; `target` says where tokens should halt, `gates.prior_target`.

    Source: A-ViT eq. 11. The released prior looks at all tokens of all images but the first of the batch; here at the
    patches of all images, as in the paper.
    """

    def loss(output: Output, labels: jax.Array, progress: Progress) -> jax.Array:
        prior = halting_prior(mean_halting(output.trace), target)
        return ponder_loss(output, labels, tau) + alpha * jax.nn.relu(prior)

    return loss


def avit_recipe(*epochs: int, tau: float = 4e-3, alpha: float = 1e-3) -> Recipe:
    """The small A-ViT on digits: trained as a plain transformer, then, as in the paper, with the price and the prior.

    Departures: gates that start nearly shut but open to a gradient (see `networks.avit.digits`), and eight times the
    price of a layer, which shows in so short a run (at twenty times, all tokens halt at once and never come back).

    Args:
      epochs: of the two stages instead of 60 and 40; one number is for both.
      tau, alpha: see `avit_loss`.
    """
    first, second = two_stages(epochs, 60, 40)
    source = Images(shift=2)
    before = Recipe(first, 64, AdamW(2e-3, 0.05), source=source)
    loss = avit_loss(tau, alpha, prior_target(DEPTH, DEPTH // 2))
    return Recipe(second, 64, AdamW(1e-3, 0.05), loss, source=source, before=before)
