"""RQ2: do adversarial examples made on static networks make dynamic ones leave later?

``python -m experiments.early_exit_rq2_efficiency``: change of the exit at which the dynamic network stops. White box:
the static twin is attacked; black box: a static surrogate of another architecture. Source: 2308.08709, section 4,
figures 3 and 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dyn_jax.metrics import exits
from experiments import _early_exit as common

CLAIMS = {
    "finding 3": "adversarial examples aimed at accuracy do not cost the dynamic network much more",
    "CIFAR-100": "more than 40 % of the examples raise the exit number by more than one",
    "section 4": "FGSM makes more examples that early exits are unsure about than PGD does",
}


def numbers(runs: list[common.Seen]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A row, and how much later the dynamic network left."""
    chosen = [common.generated(run.result) for run in runs]
    changes = [np.asarray(exits.exit_change(run.clean, run.adversarial))[c] for run, c in zip(runs, chosen)]
    saved = [np.asarray(exits.saved_macs(run.adversarial))[c] for run, c in zip(runs, chosen)]
    return {
        "exit change": common.spread(c.mean() for c in changes if len(c)),
        "raised by more than one": common.spread((c > 1).mean() for c in changes if len(c)),
        "leaves earlier": common.spread((c < 0).mean() for c in changes if len(c)),
        "saved work, clean": common.spread(exits.saved_macs(run.clean).mean() for run in runs),
        "saved work, adversarial": common.spread(s.mean() if len(s) else np.nan for s in saved),
    }, changes


def main() -> None:
    how = common.setting(__doc__)
    white = lambda target, variant, seed: common.network(how, "cnn", variant, seed)
    found = common.on_dynamic_targets(how, white, numbers, range(-6, 7))
    common.report("early_exit_rq2", how, *found, "change of the exit", claimed=CLAIMS)


if __name__ == "__main__":
    main()
