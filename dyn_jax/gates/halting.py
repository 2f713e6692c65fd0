"""Halting of adaptive computation time: every unit of a block says how much of the answer it settles, then stops.

A block is a chain of units with states ``s_1 .. s_U`` (one set of numbers for an image, or for every position). Unit u
gives ``h_u`` in [0, 1]; a position has finished once the ``h`` so far reach ``1 - epsilon``. The block's output is
``sum_l w_l s_l`` with the ``h`` as weights, and what is left of 1 as the last weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import macs
from dyn_jax.nn import BatchNorm, Conv, relu
from dyn_jax.types import Trace, UnitTrace

EPSILON = 0.01  # so that one unit can settle everything

# N(0, sqrt(2 / (k * k * in))): the fan out, 1, would make the first h all but 0 or 1.
halting_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Ponder(NamedTuple):
    """What a position cost in one block: ``units`` (N, how many ran) and ``remainder`` (R, the last one's weight)."""

    units: jax.Array
    remainder: jax.Array

    @property
    def cost(self) -> jax.Array:
        """``N + R``, the ponder cost, in [2, U + 1]; its derivative by h is -1 before unit N and 0 from there on."""
        return self.units + self.remainder


def halting_score(halted: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """``1 - epsilon - halted``, with ``halted`` the sum of the h before: the next unit runs where this is >= 0.

    A position that has reached ``1 - epsilon`` exactly has finished: its score is just below 0 (by half a rounding
    step of 1), the derivative stays -1.

    Source: Figurnov et al. 2017, algorithm 2, and released code; Graves 2016.
    """
    score = jnp.asarray(1 - epsilon, halted.dtype) - halted
    return jnp.where(score == 0, score - 0.5 * jnp.finfo(halted.dtype).eps, score)


def halting_scores(halting: Sequence[jax.Array], epsilon: float = EPSILON) -> list[jax.Array]:
    """Scores of the units after the first, from the h [batch, *positions] of every unit but the last."""
    scores, halted = [], None
    for h in halting:
        halted = h if halted is None else halted + h
        scores.append(halting_score(halted, epsilon))
    return scores


def halting_weights(halting: Sequence[jax.Array], occupancies: Sequence[jax.Array]) -> list[jax.Array]:
    """``w_l = o_l (o_{l+1} h_l + (1 - o_{l+1}) (1 - sum_{j<l} h_j))`` with ``o_1 = 1`` and ``o_{U+1} = 0``.

    At hard occupancy: h_l before unit N, the remainder ``1 - h_1 - .. - h_{N-1}`` there, 0 behind it. The sum is 1
    whenever no unit is on behind one that is off; else ``1 + sum_{l>1} o_l (1 - o_{l-1}) (1 - sum_{j<l} h_j)``.

    Args:
      halting: h [batch, *positions] of every unit but the last.
      occupancies: o [batch, *positions] of every unit but the first.

    Returns:
      One weight [batch, *positions] for each unit.

    Raises:
      ValueError: not as many of the one as of the other, or none.

    Source: Figurnov et al. 2017, algorithm 2; the form for occupancies between 0 and 1 is this library's.
    """
    if len(halting) != len(occupancies) or not halting:
        raise ValueError(
            f"halting, occupancies: got {len(halting)} and {len(occupancies)}, expected as many, at least 1"
        )
    weights, own, remainder = [], 1.0, jnp.ones_like(halting[0])
    for h, following in zip(halting, occupancies):
        weights.append(own * (following * h + (1 - following) * remainder))
        own, remainder = following, remainder - h
    return [*weights, own * remainder]


def ponder(scores: Sequence[jax.Array], epsilon: float = EPSILON) -> Ponder:
    """`Ponder` of one block from the scores [batch, *positions] of its units after the first.

    ``R`` is the score of the last unit that runs, plus epsilon (the first one's score is ``1 - epsilon``); comparisons
    and N have no derivative. It looks at the scores alone: units count as on where these are >= 0.

    Source: Figurnov et al. 2017, algorithm 2.
    """
    units, smallest = jnp.ones_like(scores[0]), jnp.full_like(scores[0], 1 - epsilon)
    for score in scores:
        units = units + (score >= 0).astype(score.dtype)
        smallest = jnp.where(score >= 0, score, smallest)
    return Ponder(units, smallest + epsilon)


def with_ponder(units: Sequence[UnitTrace]) -> UnitTrace:
    """The last unit of a block, given all that can halt, with the block's `Ponder` among its extras."""
    units_run, remainder = ponder([unit.score for unit in units])
    extras = {"ponder_units": units_run, "ponder_remainder": remainder}
    return units[-1].replace(extras={**units[-1].extras, **extras})


def ponder_of_trace(trace: Trace) -> dict[str, Ponder]:
    """`Ponder` of every block of a network, by the name of the block's last unit.

    Blocks of a single unit have no adaptive one and are missing: their cost is always 2. ValueError: no unit halts.
    """
    blocks = {
        unit.name: Ponder(unit.extras["ponder_units"], unit.extras["ponder_remainder"])
        for unit in trace.units
        if "ponder_units" in unit.extras
    }
    if not blocks:
        raise ValueError("ponder: got a trace without units that halt, expected that of SACT or ACT")
    return blocks


def halting_of_trace(trace: Trace) -> jax.Array:
    """h of every layer and token of an A-ViT (else ValueError), [batch, layer, token]; the class token is token 0."""
    if not trace.units or "halting" not in trace.units[-1].extras:
        raise ValueError("halting: got a trace without the h of tokens, expected that of an A-ViT")
    return trace.units[-1].extras["halting"]


def prior_target(layers: int, centre: int) -> jax.Array:
    """Where tokens should halt, [layer]: a normal density around `centre`, whose first `centre` values sum to 0.98.

    Source: A-ViT section 3.3 (distributional prior); released code for the scale.
    """
    density = jnp.exp(-0.5 * (jnp.arange(layers) - float(centre)) ** 2)
    return 0.98 * density / jnp.sum(density[:centre])


def halting_prior(halting: jax.Array, target: jax.Array) -> jax.Array:
    """``sum_l t_l (log t_l - log v_l) / L``, v the share of the mean h of each layer, cut to [0.01, 0.99]: a scalar.

    Args:
      halting: mean h [layer], over images and tokens: `mean_halting`, or the release's other choice.
      target: t [layer], see `prior_target`.

    Source: A-ViT eq. 10; released code for the cut and the division by the layers.
    """
    if halting.shape != target.shape:
        raise ValueError(f"halting, target: got shapes {halting.shape} and {target.shape}, expected [layer] each")
    share = jnp.clip(halting / jnp.sum(halting), 0.01, 0.99)
    return jnp.mean(jax.scipy.special.xlogy(target, target) - target * jnp.log(share))


def mean_halting(trace: Trace) -> jax.Array:
    """Mean h over images and patches, the class token left out: [layer]."""
    return jnp.mean(halting_of_trace(trace)[:, :, 1:], axis=(0, 2))


def leaky_relu(x: jax.Array, slope: float) -> jax.Array:
    """x where it is >= 0, else ``slope * x``; 1 is no activation at all, 0 is the ReLU."""
    if slope == 1:
        return x
    return jax.nn.leaky_relu(x, slope) if slope else relu(x)


class _Halting(nn.Module):
    """What both gates have.

    Attributes:
      slope: of the leaky ReLU behind the batch normalisation; 1: none.
      momentum, stabiliser: of the batch normalisation.
      bias: where the convolution's bias starts.
    """

    slope: float = 1.0
    momentum: float = 0.1
    stabiliser: float = 1e-5
    bias: float | None = -3.0

    def _logit(self, x: jax.Array, at: str, size: int, bias: float | None, train: bool) -> jax.Array:
        active = leaky_relu(BatchNorm(self.momentum, self.stabiliser, name=f"{at}_bn")(x, train), self.slope)
        inits: dict[str, Any] = {"kernel_init": halting_init, "bias_init": nn.initializers.constant(bias or 0)}
        return Conv(1, size, 1, size // 2, bias is not None, **inits, name=f"{at}_conv")(active)


class GlobalHalting(_Halting):
    """ACT: ``h = sigmoid(conv1x1(BN(mean over the positions of x)))``, one number for an image.

    Source: Graves 2016, as in the released code of Figurnov et al. 2017.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """State [batch, height, width, channel] -> h [batch]."""
        mean = jnp.mean(x, axis=(1, 2), keepdims=True)
        return jax.nn.sigmoid(self._logit(mean, "global", 1, self.bias, train))[:, 0, 0, 0]

    def macs(self, features: int) -> tuple[int, int]:
        """Multiply-adds of a position's h alone, and of what the positions of an image share."""
        return 0, macs.conv2d(1, features, 1)


class SpatialHalting(_Halting):
    """SACT: ``h = sigmoid(conv3x3(BN(x)) + conv1x1(BN(mean over the positions of x)))``, one number for a position.

    The second convolution has no bias. Source: Figurnov et al. 2017, and released code.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """State [batch, height, width, channel] -> h [batch, height, width]."""
        local = self._logit(x, "local", 3, self.bias, train)
        mean = jnp.mean(x, axis=(1, 2), keepdims=True)
        return jax.nn.sigmoid(local + self._logit(mean, "global", 1, None, train))[..., 0]

    def macs(self, features: int) -> tuple[int, int]:
        """As in `GlobalHalting`."""
        return macs.conv2d(3, features, 1), macs.conv2d(1, features, 1)
