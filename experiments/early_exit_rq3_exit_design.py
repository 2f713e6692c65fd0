"""RQ3: at which exit does the label begin to change?

``python -m experiments.early_exit_rq3_exit_design``: among examples that change the last exit's label, the first exit
whose label differs from what it said about the clean image. White box: the dynamic network's own last exit is
attacked; black box: a static surrogate of another architecture. Source: 2308.08709, section 5, figures 5, 6, 8 and 9.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from dyn_jax import objectives
from dyn_jax.metrics import exits
from dyn_jax.types import Output
from experiments import _early_exit as common

CLAIMS = {
    "white box": "more than 77 % of the examples change the label at the first exit already",
    "black box, CIFAR-10 VGG-16": "more than 45 % of the examples do not change the first exit's label",
    "finding 6": "a first exit in earlier layers is more robust (VGG-16 has the earliest, black box)",
    "finding 7": "black-box examples change early exits less often than white-box ones",
}


def _last(target: Partial, x: jax.Array) -> Output:
    """What the network says with its last exit."""
    return objectives.at_exit(target, -1)(x)


def numbers(runs: list[common.Seen]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A row, and the first changed exit of the examples that change the last one."""
    first = []
    for run in runs:
        before, after = (exits.predictions(trace)[:, -1] for trace in (run.clean, run.adversarial))
        changed = np.asarray(exits.first_changed_exit(run.clean, run.adversarial))
        first.append(changed[np.asarray(before != after)])
    return {
        "examples": sum(len(f) for f in first),
        "first exit changed": common.spread((f == 0).mean() for f in first if len(f)),
        "mean first changed exit": common.spread(f.mean() for f in first if len(f)),
    }, first


def main() -> None:
    how = common.setting(__doc__)
    white = lambda target, variant, seed: Partial(_last, target)
    found = common.on_dynamic_targets(how, white, numbers, range(7))
    common.report("early_exit_rq3", how, *found, "first exit whose label changes", claimed=CLAIMS)


if __name__ == "__main__":
    main()
