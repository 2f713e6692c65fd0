"""GradAuto (Pan et al., ECCV 2022): switches units on, by gradients of bounded length that switch none off again."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax

from dyn_jax import _validate, objectives
from dyn_jax.attacks import rectify
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.energy import PAPER, Form, Gradients, combined, gate_attack
from dyn_jax.attacks.threat import Number


@dataclasses.dataclass(frozen=True)
class Rectify:
    """Which of GradAuto's two corrections are made.

    Attributes:
      magnitude: eq. 17. False: the plain complexity loss of eq. 7, K unused.
      direction: eq. 25. With both False this is eq. 7 itself, the baseline of the paper's table 2.
      begin: first step with eq. 25; None: the second half of the steps (the paper: "at the later stage").
    """

    magnitude: bool = True
    direction: bool = True
    begin: int | None = None

    def first(self, steps: int) -> int | None:
        """The first of `steps` steps that needs the finished gradient; None: none does."""
        if not self.direction:
            return None
        return steps // 2 if self.begin is None else _validate.positive_int("begin", self.begin, 0)


def _rectified(gradients: Gradients, lipschitz: jax.typing.ArrayLike, how: Rectify) -> rectify.Rectified:
    scaled = rectify.magnitude(gradients.complexity, lipschitz) if how.magnitude else gradients.complexity
    return rectify.direction(scaled, gradients.finished) if how.direction else rectify.untouched(scaled)


def grad_auto(
    lipschitz: jax.typing.ArrayLike = 1.0,
    *,
    steps: int = 300,
    learning_rate: jax.typing.ArrayLike = 0.01,
    eps: Number | None = None,
    rectify: Rectify = Rectify(),
    tau: jax.typing.ArrayLike | None = 0.5,
    weights: objectives.Weights = "macs",
    form: Form = PAPER,
) -> Attack:
    """Adam on delta, minimising ``||x' - x|| + n L_C(x')`` with L_C rectified; n is the number of values of an example.

    Per example, with g_C and g_F the gradients of the complexity and the finished loss: ``K g_C / ||g_C||`` (eq. 17),
    later without its component against g_F (eq. 25), times n, plus the distortion's gradient. ``result.record`` is an
    `EnergySteps`: losses, gradient norms, the angle, gating values and flags of every step;
    ``dyn_jax.metrics.recovery(result.trace_clean, result.trace_adversarial)`` is the measure (voxels have no dense
    cost: `metrics.increase`). ``result.success`` says, as for every attack, whether the victim errs, which is not what
    this attack is after. On point clouds delta is the move of the points; give a learning rate in metres (0.005) and
    `eps`.

    Args:
      lipschitz: K, positive: slope of the complexity loss against the distortion. May be traced, a sweep is a ``vmap``.
      steps, learning_rate: of Adam (300 and 0.01 are the released code's; the paper names no optimiser).
      eps: radius of an Linf ball around the images, or half-width of a cube around every point; None: only the box.
      rectify: see `Rectify`.
      tau: threshold of gates whose value is a probability, in (0, 1); other units bring their own. None: the scores
        instead of the probabilities, whose derivative vanishes at saturated gates (not in the paper).
      weights: ``macs`` (lambda_l of eq. 6 and 8), ``equal`` or numbers [unit].
      form: change of variable, distortion, iterate returned, see `Form`. ``PAPER.replace(distance=domains.squares)``
        pulls back the more the further the image is: the gradient of eq. 7's norm never exceeds 1 and hardly counts
        beside n K.

    Raises:
      ValueError, TypeError: a number out of range, an unknown name; when called, a network without adaptive units,
        targets or a start.

    Source: GradAuto section 4; the authors' code is `dyn_jax.attacks.released.grad_auto`.
    """
    turn = partial(_rectified, lipschitz=_validate.positive("lipschitz", lipschitz), how=rectify)
    fields = {"form": form, "steps": steps, "learning_rate": learning_rate, "finished_from": rectify.first(steps)}
    return gate_attack(combined(turn), eps, tau, weights, **fields)
