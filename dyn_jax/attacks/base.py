"""The runner that every attack shares: checks the input, runs the search, and trusts nothing it returns.

An attack file supplies a *search*: ``search(problem, keys, start) -> Found``. The runner projects what was found,
leaves alone the images that were misclassified to begin with, and judges success on the victim from the returned
array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.threat import Threat
from dyn_jax.objectives import Objective
from dyn_jax.types import Output, Trace


@flax.struct.dataclass
class AttackResult:
    """What an attack returns.

    Attributes:
      adversarial: [batch, height, width, channel], inside the threat set.
      success: [batch] bool, the victim errs on `adversarial` (targeted: says the target) with finite logits.
      clean_success: [batch] bool, it already did so on the clean image.
      loss: [batch], the objective on the victim at `adversarial`.
      loss_history: [step, batch], the objective on `forward` along the search.
      nonfinite_gradients: [batch], in how many steps the gradient was not finite (and was taken as 0).
      distance: [batch], the threat set's norm of the perturbation.
      logits_clean, logits_adversarial: [batch, class] of the victim.
      trace_clean, trace_adversarial: the victim's traces.
      record: what else the search recorded, see the attack; None for most.
    """

    adversarial: jax.Array
    success: jax.Array
    clean_success: jax.Array
    loss: jax.Array
    loss_history: jax.Array
    nonfinite_gradients: jax.Array
    distance: jax.Array
    logits_clean: jax.Array
    logits_adversarial: jax.Array
    trace_clean: Trace
    trace_adversarial: Trace
    record: Any = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a search sees: networks as functions, the images, and which of them to attack ([batch] bool).

    `clean` is what the victim says about the images.
    """

    forward: Callable[[jax.Array], Output]
    victim: Callable[[jax.Array], Output]
    images: jax.Array
    labels: jax.Array
    targets: jax.Array | None
    mask: jax.Array | None
    attacked: jax.Array
    threat: Threat
    objective: Objective
    clean: Output

    def succeeds(self, logits: jax.Array) -> jax.Array:
        """[batch] bool: finite logits that are adversarial."""
        return is_adversarial(logits, self.labels, self.targets)

    def losses(self, x: jax.Array) -> jax.Array:
        """Objective [batch] of `forward` at x."""
        return self.objective(self.forward(x), self.labels, self.targets)

    def losses_and_gradient(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(losses [batch], gradient like x, [batch] bool "was not finite"), 0 outside the mask and the attacked."""

        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses = self.losses(x)
            return jnp.sum(jnp.where(self.attacked, losses, 0)), losses

        gradient, losses = jax.grad(total, has_aux=True)(x)
        bad = ~jnp.all(jnp.isfinite(gradient), axis=(1, 2, 3))
        keep = self.attacked & ~bad
        gradient = jnp.where(keep[:, None, None, None], gradient, 0)
        return losses, gradient if self.mask is None else gradient * self.mask, bad

    def project(self, x: jax.Array) -> jax.Array:
        """Nearest allowed image: unchanged outside the pixel mask, inside the threat set."""
        if self.mask is not None:
            x = self.images + (x - self.images) * self.mask
        return self.threat.project(x, self.images)


@flax.struct.dataclass
class Found:
    """What a search returns: the candidate x, the loss history [step, batch], non-finite steps [batch], a record."""

    x: jax.Array
    loss_history: jax.Array
    nonfinite_gradients: jax.Array
    record: Any = None


Search = Callable[[Problem, jax.Array | None, jax.Array | None], Found]


@dataclasses.dataclass(frozen=True)
class Attack:
    """``attack(forward, images, labels, ...) -> AttackResult``: pure, works under jit and vmap.

    Made by the factories of `dyn_jax.attacks` (`bim`, `pgd`, ...), or from a search of your own.

    Attributes:
      search: see the module.
      threat: the set that the result is projected into.
      objective: what is ascended.
      random: whether a ``key`` is needed.
      attack_all: also perturb images on which the criterion already holds (default: leave them alone, as LGM and
        AutoAttack do).
      keep_start: images that are left alone keep the start of the search instead of the clean pixels (LGM's release).
    """

    search: Search
    threat: Threat
    objective: Objective
    random: bool = False
    attack_all: bool = False
    keep_start: bool = False

    def __call__(
        self,
        forward: Callable[[jax.Array], Output | jax.Array],
        images: jax.Array,
        labels: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        victim: Callable[[jax.Array], Output | jax.Array] | None = None,
        targets: jax.Array | None = None,
        mask: jax.Array | None = None,
        start: jax.Array | None = None,
        index: jax.Array | None = None,
    ) -> AttackResult:
        """Attacks a batch.

        Args:
          forward: images -> `Output` (or bare logits), differentiated at every step, e.g.
            ``functools.partial(net.apply, variables, occupancy=occupancy.sigmoid(10.0))``.
          images: [batch, height, width, channel], float, inside the threat set's bounds.
          labels: [batch] integer, the true classes; None: what the victim says about the clean images.
          key: typed PRNG key, for attacks with a random start; example i uses ``fold_in(key, index[i])``.
          victim: images -> `Output`, the network that success is judged on; default `forward`.
          targets: [batch] integer classes to reach: a targeted attack.
          mask: pixels that may change, 1 or 0: [height, width] or broadcastable to `images`.
          start: where the search begins, like `images`, instead of the attack's own start.
          index: [batch] numbers of the examples for their keys; default 0, 1, ...

        Returns:
          An `AttackResult`.

        Raises:
          ValueError, TypeError: wrong rank, channels or dtype; pixels outside the bounds or NaN; labels out of range;
            a target equal to the label; an empty batch; no key for a random attack. (Inside jit, values are traced
            and only shapes and dtypes are checked.)
        """
        forward = as_forward(forward)
        victim = forward if victim is None else as_forward(victim)
        images = _validate.images("images", images)
        _validate.within("images", images, self.threat.bounds)
        clean = victim(images)
        batch, classes = clean.logits.shape
        labels = jnp.argmax(clean.logits, axis=-1) if labels is None else labels
        labels = _validate.labels("labels", labels, batch, classes)
        if targets is not None:
            targets = _validate.labels("targets", targets, batch, classes)
            _validate.differ("targets", targets, labels)
        mask = _pixel_mask(mask, images)
        keys = self._keys(key, index, batch)
        if start is not None and jnp.shape(start) != images.shape:
            raise ValueError(f"start: got shape {jnp.shape(start)}, expected {images.shape}")

        clean_success = is_adversarial(clean.logits, labels, targets)
        attacked = jnp.ones_like(clean_success) if self.attack_all else ~clean_success
        problem = Problem(forward, victim, images, labels, targets, mask, attacked, self.threat, self.objective, clean)
        found = self.search(problem, keys, start)

        x = problem.project(jnp.where(jnp.isfinite(found.x), found.x, images))
        if not self.keep_start:
            x = jnp.where(attacked[:, None, None, None], x, images)
        x = jax.lax.stop_gradient(x)
        adversarial = victim(x)
        return AttackResult(
            adversarial=x,
            success=is_adversarial(adversarial.logits, labels, targets),
            clean_success=clean_success,
            loss=self.objective(adversarial, labels, targets),
            loss_history=found.loss_history,
            nonfinite_gradients=found.nonfinite_gradients,
            distance=self.threat.distance(x, images),
            logits_clean=clean.logits,
            logits_adversarial=adversarial.logits,
            trace_clean=clean.trace,
            trace_adversarial=adversarial.trace,
            record=found.record,
        )

    def _keys(self, key: jax.Array | None, index: jax.Array | None, batch: int) -> jax.Array | None:
        if not self.random:
            return None
        if key is None:
            raise ValueError("key: got None, expected a PRNG key such as jax.random.key(0) for a random start")
        index = jnp.arange(batch) if index is None else jnp.asarray(index)
        if index.shape != (batch,):
            raise ValueError(f"index: got shape {index.shape}, expected ({batch},)")
        return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def as_forward(fun: Callable[[jax.Array], Output | jax.Array]) -> Callable[[jax.Array], Output]:
    """Lets bare logits pass as an `Output` with an empty trace."""
    if not callable(fun):
        raise TypeError(f"forward: got {type(fun).__name__}, expected a callable images -> Output")

    def forward(x: jax.Array, **options: Any) -> Output:
        result = fun(x, **options)
        if isinstance(result, tuple):
            raise TypeError(
                f"forward: returned a tuple of {len(result)}, expected an Output or logits; evaluate with train=False "
                "and no mutable collections"
            )
        return result if hasattr(result, "logits") else Output(result)

    return forward


def is_adversarial(logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """[batch] bool: prediction differs from the label (equals the target) and all logits are finite.

    A NaN among the logits never counts as a success.
    """
    prediction = jnp.argmax(logits, axis=-1)
    hit = prediction != labels if targets is None else prediction == targets
    return hit & jnp.all(jnp.isfinite(logits), axis=-1)


def _pixel_mask(mask: jax.Array | None, images: jax.Array) -> jax.Array | None:
    if mask is None:
        return None
    if _validate.is_concrete(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
        raise ValueError("mask: got values other than 0 and 1")
    mask = jnp.asarray(mask)
    if mask.ndim == 2:
        mask = mask[None, :, :, None]
    if mask.ndim != 4 or any(m not in (1, n) for m, n in zip(mask.shape, images.shape)):
        raise ValueError(f"mask: got shape {mask.shape}, expected [height, width] or broadcastable to {images.shape}")
    return jnp.broadcast_to(mask, images.shape).astype(images.dtype)
