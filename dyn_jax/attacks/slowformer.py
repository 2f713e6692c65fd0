"""SlowFormer (Navaneet et al., CVPR 2024): one patch that makes a network run its units on whatever image it is on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dyn_jax import _validate, gates, objectives
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.domains import Pixels
from dyn_jax.attacks.threat import Box
from dyn_jax.nn import IMAGENET_MEAN_STD
from dyn_jax.nn.normalization import MeanStd
from dyn_jax.objectives import Objective
from dyn_jax.objectives.answers import untargeted
from dyn_jax.types import Output

Levels = Callable[[jax.Array, np.ndarray, np.ndarray], jax.Array]
"""(patch, lowest, highest value [channel]), in normalised units -> what is pasted: inside, on 8-bit levels."""


def position(patch: jax.Array, low: np.ndarray, high: np.ndarray) -> jax.Array:
    """``(clip(patch) - low) / (high - low) * 255``, divided as written (XLA would multiply by a reciprocal)."""
    span = jax.lax.optimization_barrier(jnp.broadcast_to(high - low, patch.shape))
    return jax.lax.div(jnp.clip(patch, low[None, None], high[None, None]) - low[None, None], span) * 255


def at_level(level: jax.Array, low: np.ndarray, high: np.ndarray) -> jax.Array:
    """``level / 255 * (high - low) + low`` [rows, columns, channel] of whole levels, looked up: rounded as written."""
    table = np.arange(256, dtype=low.dtype)[:, None] / low.dtype.type(255) * (high - low) + low
    return jnp.asarray(table)[level.astype(jnp.int32), jnp.arange(len(low)).reshape(1, 1, -1)]


def nearest_level(patch: jax.Array, low: np.ndarray, high: np.ndarray) -> jax.Array:
    """The nearest of the 256 levels between `low` and `high`; what is on one stays."""
    return at_level(jnp.round(position(patch, low, high)), low, high)


class PatchSteps(flax.struct.PyTreeNode):
    """What every step saw: the ``patch`` in pixel units [step, rows, columns, channel] and the ``objective`` [step]."""

    patch: jax.Array
    objective: jax.Array


class PatchRecord(flax.struct.PyTreeNode):
    """``objective`` [example, step]: the mean over the step's batch, the same for every example."""

    objective: jax.Array


@dataclasses.dataclass(frozen=True)
class PatchSearch:
    """Adam on a patch, ascending the mean objective of a batch of images that carry it; attributes as of `slowformer`.

    It starts uniform in [-1/2, 1/2] in normalised units, on its levels. The batch of step k is the k-th of the images
    in their order, beginning again behind the last.
    """

    size: tuple[int, int]
    steps: int
    batch_size: int | None
    learning_rate: jax.typing.ArrayLike
    objective: Objective
    place: tuple[int, int]
    mean_std: MeanStd
    levels: Levels

    def __call__(self, problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        untargeted(problem.targets)
        if not isinstance(problem.domain, Pixels):
            raise ValueError("inputs: got a point cloud, expected images: a patch is made of pixels")
        clean = problem.domain.clean
        check_place(clean, self.size, self.place)
        if len(self.mean_std[0]) != clean.shape[-1]:
            raise ValueError(f"mean_std: got {len(self.mean_std[0])} channels, expected the images' {clean.shape[-1]}")
        drawn = jax.random.uniform(keys[0], (*self.size, clean.shape[-1]), clean.dtype, -0.5, 0.5)
        patch = self.pasted(drawn) if start is None else self.normalized(cut(start[0], self.size, self.place))
        patch, steps = self.fit(problem.forward, clean, problem.labels, patch)
        record = PatchRecord(jnp.broadcast_to(steps.objective[:, None], (self.steps, len(clean))))
        return Found(paste_at(clean, self.pixels(self.pasted(patch)), self.place), record=record)

    def fit(
        self, forward: Callable[[jax.Array], Output], images: jax.Array, labels: jax.Array, patch: jax.Array
    ) -> tuple[jax.Array, PatchSteps]:
        """(the patch as Adam left it, of which ``pasted(patch)`` is pasted, record), from `patch` on.

        Images [n, height, width, channel] in [0, 1], labels [n], patches [rows, columns, channel] in normalised units.
        """
        size = len(images) if self.batch_size is None else self.batch_size
        if len(images) % size:
            raise ValueError(f"batch_size: got {size}, expected a divisor of the {len(images)} images")
        adam = optax.adam(self.learning_rate)  # pyright: ignore[reportArgumentType]: optax names no numpy scalars

        def step(state: tuple, number: jax.Array) -> tuple[tuple, PatchSteps]:
            patch, adam_state = state
            used = self.pasted(patch)
            at = number * size % len(images)
            batch, of = (jax.lax.dynamic_slice_in_dim(values, at, size) for values in (images, labels))
            value, gradient = self.gradient(forward, batch, of, used)
            update, adam_state = adam.update(-jnp.where(jnp.isfinite(gradient), gradient, 0), adam_state)
            return (optax.apply_updates(used, update), adam_state), PatchSteps(self.pixels(used), value)

        (patch, _), steps = jax.lax.scan(step, (patch, adam.init(patch)), jnp.arange(self.steps))
        return patch, steps

    def gradient(
        self, forward: Callable[[jax.Array], Output], images: jax.Array, labels: jax.Array, patch: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The mean objective of images that carry `patch`, and its gradient in normalised units."""

        def total(patch: jax.Array) -> jax.Array:
            output = forward(paste_at(images, self.pixels(patch), self.place))
            return jnp.mean(self.objective(output, labels, None))

        return jax.value_and_grad(total)(patch)

    def pasted(self, patch: jax.Array) -> jax.Array:
        """The patch on its levels, in normalised units."""
        mean, std = (np.asarray(values, patch.dtype) for values in self.mean_std)
        return self.levels(patch, (0 - mean) / std, (1 - mean) / std)

    def pixels(self, patch: jax.Array) -> jax.Array:
        """Normalised units -> [0, 1]."""
        mean, std = (jnp.asarray(values, patch.dtype) for values in self.mean_std)
        return patch * std[None, None] + mean[None, None]

    def normalized(self, pixels: jax.Array) -> jax.Array:
        """[0, 1] -> normalised units."""
        mean, std = (jnp.asarray(values, pixels.dtype) for values in self.mean_std)
        return (pixels - mean[None, None]) / std[None, None]


def slowformer(
    size: tuple[int, int] = (64, 64),
    steps: int = 1000,
    *,
    learning_rate: jax.typing.ArrayLike = 0.2,
    batch_size: int | None = None,
    objective: str | Objective | None = None,
    place: tuple[int, int] = (0, 0),
    mean_std: MeanStd = IMAGENET_MEAN_STD,
    levels: Levels = nearest_level,
) -> Attack:
    """One patch for all images, by Adam on the energy: ``max_P mean_x objective(network(x with P pasted))``.

    The images given are those the patch is made on; the result's ``adversarial`` are the same images with it, and
    ``cut(result.adversarial[0], size, place)`` is the patch, for `paste_at` on others. ``record`` is a `PatchRecord`.
    A start given to the attack counts by what its first image holds in the patch's place.

    Args:
      size: rows and columns, pixels; the paper's patch covers 8 % of an image.
      steps: of Adam.
      learning_rate: in normalised units; may be traced.
      batch_size: images of a step, taken in order; a divisor of their number; None: all.
      objective: what is ascended: default `objectives.energy`, which every adaptive network has; `ponder_objective` is
        paper's on an A-ViT.
      place: row and column of the upper left corner.
      mean_std: (mean, std) per channel of the network's normalisation: the unit that Adam moves in.
      levels: what is pasted of what Adam says; default 8-bit levels.

    Raises:
      ValueError, TypeError: sizes, steps or rates that are not positive; when called, a patch that does not fit in
        the images, a batch size that does not divide their number, targets, point clouds; a network of constant cost
        or without adaptive units; no key.

    Source: SlowFormer section 3; the released settings are `released.slowformer`.
    """
    rows, columns = (_validate.positive_int("size", n) for n in _pair("size", size))
    top, left = (_validate.positive_int("place", n, 0) for n in _pair("place", place))
    _validate.positive_int("steps", steps)
    if batch_size is not None:
        _validate.positive_int("batch_size", batch_size)
    rate = _validate.positive("learning_rate", learning_rate)
    for mean, std in zip(*mean_std, strict=True):
        _validate.number("mean_std", mean)
        _validate.positive("mean_std", std)
    objective = objectives.energy() if objective is None else objectives.resolve(objective)
    search = PatchSearch((rows, columns), steps, batch_size, rate, objective, (top, left), mean_std, levels)
    return Attack(search, Box(), objective, random=True, attack_all=True)


def ponder_objective(weight: float = 5e-4, prior: float = 0.0, target: jax.Array | None = None) -> Objective:
    """``weight * mean over tokens or positions of (N + R)`` of networks whose units halt, ``- prior * halting_prior``.

    Args:
      weight: of the ponder cost; it matters to Adam, whose epsilon is 1e-8.
      prior: of an A-ViT's prior where that is positive, over the whole batch.
      target: where tokens should halt, `gates.prior_target`; needed with a prior.

    Raises:
      ValueError: a prior without a target; when called, a network whose units do not halt.

    Source: SlowFormer section 3, for A-ViT.
    """
    if prior and target is None:
        raise ValueError("target: got None, expected gates.prior_target(layers, centre) for a prior")

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        costs = [jnp.mean(p.cost.reshape(len(p.cost), -1), 1) for p in gates.ponder_of_trace(output.trace).values()]
        value = weight * sum(costs[1:], start=costs[0])
        if target is None or not prior:
            return value
        loss = gates.halting_prior(gates.mean_halting(output.trace), target)
        return value - prior * jax.nn.relu(loss)

    return objective


def paste_at(images: jax.Array, patch: jax.Array, place: tuple[int, int] = (0, 0)) -> jax.Array:
    """Images [n, height, width, channel] whose pixels from `place` on are `patch` [rows, columns, channel].

    Raises ValueError where it does not fit.
    """
    check_place(images, patch.shape[:2], place)
    (rows, columns), (top, left) = patch.shape[:2], place
    area = jnp.broadcast_to(patch.astype(images.dtype)[None], (len(images), *patch.shape))
    return jnp.asarray(images).at[:, top : top + rows, left : left + columns].set(area)


def cut(image: jax.Array, size: tuple[int, int], place: tuple[int, int] = (0, 0)) -> jax.Array:
    """What an image [height, width, channel] holds where the patch is: [rows, columns, channel]."""
    return image[place[0] : place[0] + size[0], place[1] : place[1] + size[1]]


def check_place(images: jax.Array, size: tuple[int, ...], place: tuple[int, int]) -> None:
    """Raises ValueError unless a patch of `size` at `place` lies inside the images."""
    for name, length, begin, whole in zip(("rows", "columns"), size, place, images.shape[1:3]):
        if begin < 0 or begin + length > whole:
            room = f"at most {whole - begin}" if begin >= 0 else f"them in the images' {whole}"
            raise ValueError(f"size: got {length} {name} from {begin} on, expected {room}")


def _pair(name: str, got: Any) -> tuple[Any, Any]:
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise ValueError(f"{name}: got {got!r}, expected (rows, columns)")
    return got[0], got[1]
