"""What checks can find: a code with one meaning and one remedy, and a finding of it on a network."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import numpy as np

ERROR, WARNING = "error", "warning"


class Code(NamedTuple):
    """What a finding means, and what to do: the same for every network."""

    severity: str
    meaning: str
    remedy: str


_error, _warning = partial(Code, ERROR), partial(Code, WARNING)
CODES: dict[str, Code] = {
    "no_gradient": _error(
        "no gradient path leads from the images to the logits, or the network cannot be differentiated",
        "attack a differentiable surrogate of the part that cuts the gradient off, or use decision-based attacks",
    ),
    "zero_gradient": _error(
        "the gradient of the margin by the image is exactly zero",
        "replace the part without derivative in the attacked network by a surrogate (BPDA), or attack with Square",
    ),
    "reversed_gradient": _error(
        "a small step along the gradient changes the margin the other way",
        "the network's own derivative (custom_vjp) is wrong: attack without it, and with Square",
    ),
    "hard_gates": _warning(
        "gates decide by a step without derivative: gradients are blind to what flips them",
        "zero gradients: hard gates; attack the straight-through network, and the soft one (LGM)",
    ),
    "hard_operation": _warning(
        "rounding, a sign, a choice or a comparison on the way to the logits has no derivative",
        "give the operation a straight-through derivative in the attacked network (BPDA)",
    ),
    "frozen_randomness": _error(
        "random numbers under a constant key, or noise kept as a constant: attack and verdict see the same draw",
        "give the key as an argument, average gradients over fresh keys, and judge under other keys",
    ),
    "seeded_by_input": _error(
        "random numbers whose key is computed from the image: a hidden function without useful derivative",
        "give the key as an argument and average over fresh keys",
    ),
    "randomised": _error(
        "two passes over the same images differ",
        "give the key as an argument and average gradients over fresh keys (AutoAttack's version rand)",
    ),
    "gradient_in_forward": _error(
        "the network differentiates inside its own forward pass: it optimises while it answers",
        "standard attacks may not see through it: attack adaptively, with a longer or an unrolled inner loop",
    ),
    "probabilities": _warning(
        "the outputs are probabilities: the softmax flattens the gradients of every loss",
        "return the logits before the softmax",
    ),
    "saturated_loss": _warning(
        "the cross-entropy's gradient is exactly zero in single precision though the margin's is not",
        "divide the logits by a constant, or use the margin or the DLR loss",
    ),
    "nonfinite_logits": _error(
        "NaN or infinite logits: neither robust nor broken",
        "find the operation that overflows (jax.debug_nans); such images count as invalid",
    ),
    "nonfinite_gradient": _warning(
        "the gradient is NaN or infinite where the logits are finite: attacks take it as zero there",
        "guard square roots, norms and divisions at 0 with a double where",
    ),
    "few_classes": _warning(
        "fewer than four classes: DLR needs three, targeted DLR four",
        "use the cross-entropy or the margin; one output z of a binary network becomes two by [0, z]",
    ),
    "unconstrained_failure": _warning(
        "images survive steps along the gradient without any bound on the perturbation",
        "gradients do not lead to adversarial examples here: look at the other findings, then attack with Square",
    ),
    "silent_success": _warning(
        "an iterate fooled the network, but what the attack returned does not",
        "return the best iterate, not the last one",
    ),
    "incomplete_optimization": _warning(
        "the loss was still rising at the end of an attack that failed",
        "more steps, or a larger step size",
    ),
    "unstable_predictions": _warning(
        "the loss of images whose attack failed jumps between close points",
        "smooth the loss: average gradients over random points, or attack a surrogate",
    ),
    "transfer_failure": _warning(
        "the attack fooled the network that was differentiated, but not the one that is judged",
        "bring the surrogate closer (a steeper occupancy, straight-through), or judge every iterate",
    ),
    "black_box_better": _error(
        "an attack without gradients broke images that no gradient attack broke",
        "gradients are masked: look at the other findings; report the worst case over all attacks",
    ),
    "not_confirmed": _error(
        "an image that an attack broke is not wrong when it is judged again among other images",
        "let an answer depend on its own image alone: no batch statistics (train=False), no draws without a key",
    ),
}
"""Code -> severity, meaning, remedy: all that there is to find."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
      code: a key of `CODES`.
      severity: ``error``: the robust accuracy says nothing; ``warning``: it may be too high.
      share: of the images that show it, in [0, 1]; None where it is a matter of the program.
      message: what was seen.
      remedy: what to do.
      examples: indices of images that show it.
    """

    code: str
    severity: str
    share: float | None
    message: str
    remedy: str
    examples: np.ndarray


class Reading(NamedTuple):
    """Findings, and beside them the raw values [example] that they were read from, by code."""

    findings: tuple[Finding, ...]
    raw: dict[str, np.ndarray]


def finding(code: str, message: str, where: Any = None) -> Finding:
    """A `Finding` with the severity and the remedy of its code; `where`: [example] bool."""
    severity, _, remedy = CODES[code]
    if where is None:
        return Finding(code, severity, None, message, remedy, np.zeros(0, int))
    where = np.asarray(where, bool)
    return Finding(code, severity, float(where.mean()), message, remedy, np.flatnonzero(where))


def seen(code: str, message: str, where: Any) -> list[Finding]:
    """The `finding` of the images that show it, none where no image does."""
    return [finding(code, message, where)] if where.any() else []
