"""ManiDP's training: saliencies sparse where an image is easy, alike where features are alike; thresholds by rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.training.recipe import SGD, Loss, Progress, Recipe, cross_entropies
from dyn_jax.types import Output, Trace

_LEAST_NORM = 1e-12


def remain_rate(epoch: int, epochs: int, target: float) -> float:
    """Share of channels to keep after `epoch` (from 0): ``(1 - t)/2 cos(pi (epoch + 1) / epochs) + (1 + t)/2``.

    From about 1 down to the target t after the last epoch, and t from there on. Source: released code.
    """
    return (1 - target) / 2 * math.cos(math.pi * min((epoch + 1) / epochs, 1)) + (1 + target) / 2


def thresholds(mask_sum: jax.typing.ArrayLike, count: int, rate: float) -> np.ndarray:
    """The ``ceil(rate C)``-th largest of a gate's C mean saliencies.

    Single images decide against it, so the share of channels that they keep is near `rate`, not equal to it.

    Args:
      mask_sum: [C], sum of the saliency over `count` images; what is returned is [1], of its dtype.
      rate: in (0, 1], else a ValueError. Products ``rate C`` within 1e-9 above an integer count as that integer.

    Source: released code.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate: got {rate}, expected a share in (0, 1]")
    means = np.asarray(mask_sum) / count
    kept = max(1, math.ceil(rate * means.size - 1e-9))
    return np.sort(means)[::-1][kept - 1 : kept].astype(means.dtype)


def threshold_hook(epochs: int, target: float, first: int = 1) -> Callable[[Any, int, int], Any]:
    """`Recipe.after_epoch` that sets every gate's threshold, from the epoch `first` on, and empties its sum.

    Epochs count from 0; `epochs` and `target` are `remain_rate`'s. Source: released code (its first update comes after
    the second epoch).
    """

    def after_epoch(batch_stats: Any, epoch: int, count: int) -> Any:
        if not isinstance(batch_stats, Mapping):
            return batch_stats
        if "mask_sum" not in batch_stats:
            return {name: after_epoch(node, epoch, count) for name, node in batch_stats.items()}
        thre, total = batch_stats["thre"], np.asarray(batch_stats["mask_sum"])
        if epoch >= first:
            thre = jnp.asarray(thresholds(total, count, remain_rate(epoch, epochs, target)))
        return {**batch_stats, "thre": thre, "mask_sum": jnp.zeros_like(total)}

    return after_epoch


def lasso_loss(
    trace: Trace,
    cross_entropies: jax.Array,
    previous: jax.typing.ArrayLike,
    *,
    ratio: float = 0.5,
    gamma: float = 1.0,
) -> jax.Array:
    """Saliencies shrink on easy images: ``sum_gates mean_i w_i mean_c s_ic``.

    ``w_i = max((r L - CE_i) / (r L), 1e-10)^gamma`` where the image's cross-entropy CE_i is below r L, else 0. The
    gradient goes through the weights too, as released: an easy image is paid for becoming less easy.

    Args:
      trace: of a `ManiDP` network; ``extras['value']`` of its units is the saliency s, before the threshold.
      cross_entropies: [batch], CE_i.
      previous: L, the mean cross-entropy of the epoch before; `ratio` is r.

    Source: Tang et al. 2021 (the complexity of an instance); ratio, gamma and the floor from the released code.
    """
    limit = jnp.asarray(ratio * previous, cross_entropies.dtype)
    ease = (limit - cross_entropies) / jnp.where(limit > 0, limit, 1)
    weight = (cross_entropies < limit) * jnp.maximum(ease, 1e-10) ** gamma
    losses = (jnp.mean(weight * jnp.mean(unit.extras["value"], axis=1)) for unit in trace.units)
    return sum(losses, start=jnp.int32(0))


def graph_loss(trace: Trace) -> jax.Array:
    """Saliencies are alike where features are: ``sum_gates |cos(f) - cos(s)|_F^2 / batch^2``.

    ``cos`` [batch, batch] holds the cosines between the images' pooled features f (of the map that the gate masks,
    before it does) or saliencies s (before the threshold). A row shorter than 1e-12 has cosine 0 with every row, and
    derivative 0.

    Source: Tang et al. 2021 (the similarity between instances); which features from the released code.
    """
    pairs = [(unit.extras["pooled"], unit.extras["value"]) for unit in trace.units]
    losses = (jnp.mean((_cosines(features) - _cosines(saliencies)) ** 2) for features, saliencies in pairs)
    return sum(losses, start=jnp.int32(0))


def _cosines(rows: jax.Array) -> jax.Array:
    square = jnp.sum(rows**2, axis=1, keepdims=True)
    there = square > _LEAST_NORM**2
    unit = jnp.where(there, rows, 0) / jnp.sqrt(jnp.where(there, square, 1))
    return unit @ unit.T


def manidp_loss(lasso: float = 0.1, graph: float = 0.1, *, ratio: float = 0.5, gamma: float = 1.0) -> Loss:
    """Mean cross-entropy + `lasso` times `lasso_loss` + `graph` times `graph_loss`, for `Recipe.loss`.

    Defaults are the released code's; for ResNet-56 on CIFAR-10 its authors give 5e-3 and 1 at a target of 0.6. A
    cross-entropy of the epoch before that is worse than chance, or not finite, counts as chance: before the first
    epoch a network that starts from scratch (the authors' do not) can overflow in evaluation mode.
    """

    def loss(output: Output, labels: jax.Array, progress: Progress) -> jax.Array:
        each = cross_entropies(output.logits, labels)
        chance = math.log(output.logits.shape[-1])
        previous = jnp.where(progress.cross_entropy < chance, progress.cross_entropy, chance)
        sparsity = lasso_loss(output.trace, each, previous, ratio=ratio, gamma=gamma)
        return jnp.mean(each) + lasso * sparsity + graph * graph_loss(output.trace)

    return loss


def manidp_recipe(epochs: int = 40, target: float = 0.65, lasso: float = 0.1, graph: float = 0.1) -> Recipe:
    """``manidp-digits`` as released but from scratch and shorter; no weight decay on the gates.

    Departure: the authors start from a trained static network; here ``gate_init`` of the network takes its place.
    """
    loss, hook = manidp_loss(lasso, graph), threshold_hook(epochs, target)
    return Recipe(epochs, 64, SGD(0.05), loss, decay_gates=False, after_epoch=hook, measured=True)
