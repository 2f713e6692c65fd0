"""GradAuto (Pan et al., ECCV 2022): switches units on, by gradients of bounded length that switch none off again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate, objectives
from dyn_jax.attacks import rectify, tanh_space
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.energy import KEEP, Combine, EnergySearch, Gradients, gate_losses
from dyn_jax.attacks.threat import Box

PROTOCOLS = ("paper", "release")


def combined(
    lipschitz: jax.typing.ArrayLike, magnitude: bool = True, direction: bool = True, released: bool = False
) -> Combine:
    """``n * rectified(g_C) + g_D`` with n the number of values of an example: the gradient of eq. 7.

    Args:
      lipschitz: K.
      magnitude, direction: eq. 17 and eq. 25.
      released: projection first, then the length (only where both are on).
    """

    def combine(gradients: Gradients, number: jax.Array) -> rectify.Rectified:
        complexity = gradients.complexity
        if released and magnitude and direction:
            turned = rectify.released(complexity, gradients.finished, lipschitz)
        else:
            scaled = rectify.magnitude(complexity, lipschitz) if magnitude else complexity
            none = jnp.zeros(complexity.shape[0], bool)
            turned = rectify.direction(scaled, gradients.finished) if direction else rectify.Rectified(scaled, none)
        return rectify.Rectified(complexity[0].size * turned.gradient + gradients.distortion, turned.projected)

    return combine


def grad_auto(
    lipschitz: jax.typing.ArrayLike = 1.0,
    *,
    steps: int = 300,
    learning_rate: jax.typing.ArrayLike = 0.01,
    magnitude: bool = True,
    direction: bool = True,
    direction_from: int | None = None,
    tau: jax.typing.ArrayLike | None = 0.5,
    weights: objectives.Weights | None = None,
    keep_logits: jax.typing.ArrayLike = 0.0,
    distance: str = "norm",
    change: str | None = None,
    keep: str | None = None,
    protocol: str = "paper",
    normalization: tanh_space.MeanStd | None = tanh_space.IMAGENET_MEAN_STD,
) -> Attack:
    """Adam on delta, minimising ``||x' - x|| + n L_C(x')`` with L_C rectified; n is the number of values of an image.

    Per example, with g_C and g_F the gradients of the complexity and the finished loss: ``K g_C / ||g_C||`` (eq. 17),
    from step `direction_from` on without its component against g_F (eq. 25), times n, plus the distortion's gradient.
    ``result.record`` is an `EnergySteps`: losses, gradient norms, the angle, gating values and flags of every step;
    ``dyn_jax.metrics.recovery(result.trace_clean, result.trace_adversarial)`` is the measure. ``result.success`` says,
    as for every attack, whether the victim errs, which is not what this attack is after.

    Args:
      lipschitz: K, positive: slope of the complexity loss against the distortion. May be traced, a sweep is a ``vmap``.
      steps, learning_rate: of Adam (300 and 0.01 are the released code's; the paper names no optimiser).
      magnitude: eq. 17. False: the plain complexity loss of eq. 7, K unused.
      direction: eq. 25. With both False this is eq. 7 itself, the baseline of the paper's table 2.
      direction_from: first step with eq. 25. The paper: "at the later stage"; None: the second half of the steps,
        from the start with ``protocol="release"``.
      tau: threshold of gates whose value is a probability, in (0, 1); other units bring their own. None: the scores
        instead of the probabilities, whose derivative vanishes at saturated gates (not in the paper).
      weights: ``macs`` (lambda_l of eq. 6 and 8), ``equal`` (the release) or numbers [unit]; None: by the protocol.
      keep_logits: weight of the squared change of the logits in the distortion; the release's option uses 1e5.
      distance: ``norm``: ||x' - x|| as in eq. 7, whose gradient never exceeds 1 and hardly counts beside n K;
        ``squares``: its square, which pulls back the more the further the image is. (``change="release"`` has the
        release's own, squares of normalised images.)
      change: ``exact`` (eq. 3, started exactly at the clean image), ``printed`` (eq. 3 as printed, which starts at a
        grey image) or ``release``; None: ``exact``, or ``release`` with that protocol.
      keep: ``most`` (the iterate that executes most on the victim, the closest among equals), ``least_loss`` or
        ``last``; None: ``most``, or ``last`` with ``protocol="release"``. The paper names no rule.
      protocol: ``release``: distortion as a sum of squares of normalised images, projection before normalisation,
        equal weights, from step 0, and the returned image is the one before the last update.
      normalization: (mean, std) of ``change="release"``; None where the images are given normalised.

    Raises:
      ValueError, TypeError: a number out of range, an unknown name; when called, a network without adaptive units,
        targets or a start.

    Source: GradAuto section 4; protocol="release" the authors' code for SkipNet.
    """
    lipschitz = _validate.number("lipschitz", lipschitz)
    if _validate.is_concrete(lipschitz) and not np.all(np.asarray(lipschitz) > 0):
        raise ValueError(f"lipschitz: got {lipschitz}, expected a positive Lipschitz lipschitz K")
    _validate.positive_int("steps", steps)
    check_rate(learning_rate)
    objectives.check_tau(tau)
    keep_logits = _validate.number("keep_logits", keep_logits, minimum=0)
    released = _validate.choice("protocol", protocol, PROTOCOLS) == "release"
    weights = objectives.check_weights(("equal" if released else "macs") if weights is None else weights)
    keep = _validate.choice("keep", keep or ("last" if released else "most"), KEEP)
    changed = tanh_space.change_of(change or ("release" if released else "exact"), normalization)
    _validate.choice("distance", distance, ("norm", "squares"))
    away = tanh_space.squares if distance == "squares" and changed.name != "release" else changed.distance
    if direction_from is None:
        direction_from = 0 if released else steps // 2
    _validate.positive_int("direction_from", direction_from, 0)

    search = EnergySearch(
        combined(lipschitz, magnitude, direction, released),
        gate_losses(tau, weights),
        changed,
        away,
        steps,
        learning_rate,
        finished_from=direction_from if direction else None,
        drift=keep_logits,
        keep=keep,
        update_last=not released,
        tau=tau,
    )
    objective = objectives.energy(tau=tau, weights=weights)
    return Attack(search, Box(changed.bounds), objective, attack_all=True)


def check_rate(learning_rate: jax.typing.ArrayLike) -> None:
    """Raises ValueError unless the learning rate is positive."""
    rate = _validate.number("learning_rate", learning_rate)
    if _validate.is_concrete(rate) and not np.all(np.asarray(rate) > 0):
        raise ValueError(f"learning_rate: got {rate}, expected a positive number")
