"""FGM against LGM, attacks on the accuracy, where the papers did not look: SACT and ManiDP (embedded digits networks).

    python -m experiments.energy_accuracy_attacks [--images 100]

Accuracy after BIM under the hard occupancy (FGM), soft ones and straight-through ones (LGM), judged on the deployed
network; the clean accuracy of the soft network says whether it still is the same network.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dyn_jax.cli import demo
from experiments import _energy, _run
from experiments._paired import gradients

NETWORKS = ("sact-digits", "manidp-digits")
EPS = ("8/255", "16/255")
LAMBDAS = (1.0, 3.0, 10.0, 30.0)
GRADIENTS = gradients(LAMBDAS, LAMBDAS)


def rows_of(name: str, victim: _energy.Victim) -> Iterator[dict]:
    for row, result in demo.compare(name, *victim, GRADIENTS, eps=EPS):
        yield {
            "network": _energy.LABELS[name],
            "attack": f"{row.attack} {row.eps}",
            "gradient": row.gradient,
            "clean %": 100 * row.clean_accuracy,
            "after %": 100 * row.accuracy,
            "standard error": _energy.standard_error(~np.asarray(result.success)),
            "architecture change %": 100 * row.architecture_change,
        }


def main() -> None:
    how = _energy.parser(__doc__, 100, networks=NETWORKS).parse_args()
    rows = _run.shown(row for found in _energy.victims(how, *how.networks) for row in rows_of(*found))
    facts = {"eps": list(EPS), "lambdas": list(LAMBDAS), "bim_steps": demo.STEPS}
    _energy.finish("energy_accuracy_attacks", rows, list(rows[0]), how, **facts)


if __name__ == "__main__":
    main()
