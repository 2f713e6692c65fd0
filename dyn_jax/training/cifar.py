"""Recipes of the adaptive networks on CIFAR-10, each from a trained static network put inside it."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.networks.blocks import block_plan
from dyn_jax.networks.manidp import ManiDP
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.occupancy import gumbel_sigmoid
from dyn_jax.training import sparsity
from dyn_jax.training.manidp import manidp_loss, threshold_hook
from dyn_jax.training.ponder import ponder_loss
from dyn_jax.training.recipe import SGD, Images, Progress, Recipe, edited, two_stages
from dyn_jax.training.sdn import sdn_recipe
from dyn_jax.training.sparsity import with_budget
from dyn_jax.types import Output, Trace, Variables

EPOCH = 12_800
"""Images of an epoch here, 100 batches of 128: what changes by epoch is to change smoothly in a short run."""
_LEAST = 1e-6
IMAGES = Images(flip=True, most=EPOCH)


def dynconv_recipe(epochs: int = 40, target: float = 0.6) -> Recipe:
    """DynConv as published, shorter: Gumbel noise (off in the last fifth), budget loss of weight 10."""
    small = sparsity.dynconv_recipe(epochs, target)
    return dataclasses.replace(small, batch_size=128, optimizer=SGD(0.03), source=IMAGES)


def skipnet_recipe(epochs: int = 40, target: float = 0.7, information: float = 0.5) -> Recipe:
    """SkipNet with gates that decide by the input: Gumbel noise, each block's budget, and `information_loss`.

    Departure from the paper, whose supervised stage has no penalty. Without noise a budget draws every score to the
    threshold, where nothing rewards a margin; without `information_loss` the noisy gates become constant.
    """
    noise = lambda epoch: gumbel_sigmoid(1.0, noise=epoch <= 0.7 * epochs)
    budget = with_budget(target, 3 * epochs)

    def loss(output: Output, labels: jax.Array, progress: Progress) -> jax.Array:
        return budget(output, labels, progress) + information * information_loss(output.trace)

    return Recipe(epochs, 128, SGD(0.03), loss, noise, IMAGES, decay_gates=False)


def spread_gates(net: SkipNet, variables: Variables, images: jax.Array | np.ndarray, spread: float = 1.0) -> Any:
    """Recurrent gates that see their input: what a gate's LSTM reads is standardised, scores have mean 0 and a spread.

    As initialised, pooled features of a trained network hardly differ between images after their first linear layer,
    all images get one score, and a constant gate is a stationary point of `information_loss`.

    Args:
      net, variables: with recurrent gates; all units count as on.
      images: [batch, height, width, 3] in [0, 1]: the layers before the LSTM are rescaled by their statistics.
      spread: standard deviation of the scores, between images, that the median gate gets.

    The variables that are returned have other ``group*_gate*`` and ``control/proj``.
    """
    of_gate = lambda name: fnmatch.fnmatchcase(name or "", "group*_gate*")
    wanted = lambda module, method: method == "__call__" and of_gate(module.name)
    on = lambda score: jnp.ones_like(score)

    @jax.jit
    def run(v: Any, x: jax.Array) -> tuple[Output, Any]:
        return net.apply(v, x, occupancy=on, capture_intermediates=wanted, mutable=["intermediates"])

    params = dict(variables["params"])
    _, found = run(variables, images)
    for name, values in found["intermediates"].items():
        y = np.asarray(values["__call__"][0])
        mean, std = y.mean(0), np.maximum(y.std(0), 1e-6)
        layer = jax.device_get(params[name])
        params[name] = {"kernel": layer["kernel"] / std, "bias": (layer["bias"] - mean) / std}
    result = {**variables, "params": params}
    output, _ = run(result, images)
    scores = np.stack([np.asarray(unit.score) for unit in output.trace.units])
    factor = spread / np.median(scores.std(1))
    result = edited(result, "params/control/proj/bias", lambda bias: jax.device_get(bias) - scores.mean())
    return edited(result, "params/control/proj/*", lambda leaf: jax.device_get(leaf) * factor)


def information_loss(trace: Trace) -> jax.Array:
    """Minus the mutual information, in nats, of a unit's decision and the input: ``mean_i H(p_i) - H(mean_i p_i)``.

    p is the sigmoid of the scores [batch, *elements], H the entropy of a coin; the mean is over units and elements.
    Small where each input decides, and not all alike.

    Source: Bridle, Heading and MacKay 1991 (unsupervised classifiers, "firm but fair").
    """

    def of_unit(score: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(score)
        each = p * jax.nn.softplus(-score) + (1 - p) * jax.nn.softplus(score)
        return jnp.mean(each) - jnp.mean(_entropy(jnp.mean(p, axis=0)))

    return jnp.mean(jnp.stack([of_unit(unit.score) for unit in trace.units]))


def _entropy(p: jax.Array) -> jax.Array:
    p = jnp.clip(p, _LEAST, 1 - _LEAST)  # at 0 and 1 its slope is infinite
    return jax.scipy.special.entr(p) + jax.scipy.special.entr(1 - p)


def sact_recipe(*epochs: int, tau: float = 0.1, readiness: float = 2.0) -> Recipe:
    """SACT in two stages: the released price of a unit (0.01), then gates that are readier to halt, and `tau`.

    Departure: at the released price, made for far longer training, a halting score that starts at 0.05 hardly moves
    in so few, and next to nothing is saved.

    Args:
      epochs: of the two stages instead of 22 and 12; one number is for both.
      tau: price of a unit in the second stage.
      readiness: of `readier`, between the stages.
    """
    first, second = two_stages(epochs, 22, 12)
    priced = lambda tau: lambda output, labels, progress: ponder_loss(output, labels, tau)
    before = Recipe(first, 128, SGD(0.03, 2e-4), priced(0.01), source=IMAGES)
    ready = lambda variables: readier(variables, readiness)
    return dataclasses.replace(before, epochs=second, loss=priced(tau), before=before, between=ready)


def readier(variables: Variables, by: float) -> Any:
    """The variables of a `SACT` network with `by` added to the logit of every position's halting score."""
    return edited(variables, "params/*_halting/local_conv/bias", lambda bias: bias + np.float32(by))


def manidp_recipe(*epochs: int, target: float = 0.7, lasso: float = 5e-3, graph: float = 3.0) -> Recipe:
    """ManiDP as published, shorter, from a trained static network; then at the share of channels that it has come to.

    Departures: the second stage (weights see the last thresholds, which go on following the saliencies, so that their
    share stays); a graph loss three times the authors', who train for far longer; see `spread_saliencies`.

    Args:
      epochs: of the two stages instead of 30 and 10; one number is for both.
      target: share of channels at the end.
      lasso, graph: see `manidp_loss`; the authors have 5e-3 and 1 for ResNet-56 on CIFAR-10.
    """
    first, second = two_stages(epochs, 30, 10)
    common = {"batch_size": 128, "loss": manidp_loss(lasso, graph), "source": IMAGES, "decay_gates": False}
    falls, stays = threshold_hook(first, target), threshold_hook(1, target, first=0)
    before = Recipe(first, optimizer=SGD(0.03), after_epoch=falls, measured=True, **common)
    return Recipe(second, optimizer=SGD(0.02), after_epoch=stays, measured=True, before=before, **common)


def spread_saliencies(
    net: ManiDP, variables: Variables, images: jax.Array | np.ndarray, spread: float = 0.3, seed: int = 0
) -> Any:
    """Saliencies that see their input: each has mean 1 and a standard deviation of `spread` between images.

    A network that was put inside starts with saliencies of 1 for every image, and what the thresholds then find is
    the order of the channels' means: masks that hardly depend on the input. Weights lie along the inner layer's
    covariance: directions in which images differ little would need weights so large that training diverges.

    Args:
      net, variables: its gates see a batch of `images`, one after the other, each what the gates before it leave.
      images: [batch, height, width, 3] in [0, 1].
      spread: standard deviation of a saliency before it is cut at 0.
      seed: of the directions.

    The variables that are returned have other ``mb*/fc1`` and ``mb*/fc2``.
    """
    wanted = lambda module, method: method == "__call__" and module.name == "fc1"

    @jax.jit
    def inner(v: Any, x: jax.Array) -> Any:
        _, found = net.apply(v, x, capture_intermediates=wanted, mutable=["intermediates"])
        return found["intermediates"]

    rng = np.random.default_rng(seed)
    params = jax.tree.map(np.array, variables["params"])
    for spec in block_plan(net.depths, net.widths, "basic", net.widths[0]):
        block = f"stage_{spec.stage + 1}_{spec.index}"
        for name in net.gate_layers:
            found, gate = inner({**variables, "params": params}, images)[block][name], params[block][name]
            hidden = np.maximum(np.asarray(found["fc1"]["__call__"][0]), 0)
            size = np.maximum(np.sqrt(np.mean(hidden**2)), _LEAST)
            gate["fc1"]["kernel"], hidden = gate["fc1"]["kernel"] / size, hidden / size
            kernel = np.cov(hidden.T).astype(np.float32) @ rng.normal(size=gate["fc2"]["kernel"].shape)
            kernel = kernel * spread / np.maximum((hidden @ kernel).std(0), _LEAST)
            bias = 1 - (hidden @ kernel).mean(0)
            gate["fc2"] = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return {**variables, "params": params}


def sdn_resnet56_recipe(epochs: int = 4) -> Recipe:
    """The internal classifiers of a Shallow-Deep Network on a frozen trunk, as published, shorter and faster."""
    recipe = sdn_recipe("classifiers", epochs, SGD(5e-3, 1e-4, momentum=None))
    return dataclasses.replace(recipe, source=IMAGES)
