"""What attacks have left behind, read for signs that they failed for another reason than a robust network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dyn_jax import _validate
from dyn_jax.evaluation import indicators
from dyn_jax.evaluation.findings import Reading, finding, seen

BLACK_BOX_SHARE = 0.002  # AutoAttack
SETTLED, STABLE = 0.05, 0.1  # Pintor et al., incomplete optimisation and unstable predictions


def from_attack(
    success: jax.typing.ArrayLike,
    losses: jax.typing.ArrayLike | None = None,
    *,
    path_success: jax.typing.ArrayLike | None = None,
    surrogate_success: jax.typing.ArrayLike | None = None,
    unstable: jax.typing.ArrayLike | None = None,
) -> Reading:
    """Reads what one attack left behind, each indicator only on images that the attack FAILED on.

    Args:
      success: [example] bool, the verdict on what the attack returned (`AttackResult.success`).
      losses: [example, step], ascended (`AttackResult.steps.loss`).
      path_success: [example, step] bool, the verdict on every iterate.
      surrogate_success: [example] bool, the attacked network errs on what was returned.
      unstable: [example], of `indicators.unstable_predictions`.

    Returns:
      `Reading`: the findings, and the raw values of all images.

    Raises:
      ValueError, TypeError: flags that are no bools, shapes that do not fit.
    """
    success = np.asarray(_validate.rows("success", success, np.shape(success)[0]))
    raw: dict[str, np.ndarray] = {}
    bad: dict[str, np.ndarray] = {}
    if path_success is not None:
        raw["silent_success"] = bad["silent_success"] = indicators.silent_success(success, path_success)
    if losses is not None:
        raw["incomplete_optimization"] = indicators.incomplete_optimization(losses)
        bad["incomplete_optimization"] = raw["incomplete_optimization"] > SETTLED
        bad["nonfinite_logits"] = np.any(~np.isfinite(np.asarray(losses)), axis=1)  # such a path compares with nothing
    if unstable is not None:
        raw["unstable_predictions"] = np.asarray(unstable, float)
        bad["unstable_predictions"] = raw["unstable_predictions"] > STABLE
    if surrogate_success is not None:
        raw["transfer_failure"] = indicators.transfer_failure(success, surrogate_success)
        bad["transfer_failure"] = raw["transfer_failure"]
    found = []
    for code, flags in bad.items():
        if flags.shape != success.shape:
            raise ValueError(f"{code}: got {len(flags)} examples, expected {len(success)}")
        shown = flags & ~success
        found += seen(code, f"on {shown.sum()} of the {np.sum(~success)} images that the attack failed on", shown)
    return Reading(tuple(found), raw)


def from_ensemble(success: Mapping[str, Any], black_box: tuple[str, ...] = ("square",)) -> Reading:
    """Whether attacks without gradients broke images that no gradient attack broke (more than 0.2 % of all).

    Args:
      success: attack -> [example] bool; in a cascade, of the images that the attack broke first.
      black_box: names of the attacks without gradients.

    Raises:
      ValueError, TypeError: flags that are no bools, shapes that do not fit.
    """
    names = list(success)
    if not names:
        return Reading((), {})
    length = np.shape(success[names[0]])[0]
    rows = {name: np.asarray(_validate.rows(name, success[name], length)) for name in names}
    nothing = np.zeros(length, bool)
    by_gradient = np.logical_or.reduce([nothing, *(rows[n] for n in names if n not in black_box)])
    only = np.logical_or.reduce([nothing, *(rows[n] for n in names if n in black_box)]) & ~by_gradient
    raw = {"black_box_better": only}
    if len(set(names) - set(black_box)) == 0 or only.mean() <= BLACK_BOX_SHARE:
        return Reading((), raw)
    text = f"{only.sum()} of {length} images were broken without gradients only"
    return Reading((finding("black_box_better", text, only),), raw)
