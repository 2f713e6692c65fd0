"""FGM against LGM, attacks on the accuracy, where the papers did not look: SACT and ManiDP (embedded digits networks).

    python -m experiments.energy_accuracy_attacks [--images 100]

Accuracy after BIM under the hard occupancy (FGM), soft ones and straight-through ones (LGM), judged on the deployed
network; the clean accuracy of the soft network says whether it still is the same network.
"""

from __future__ import annotations

import numpy as np

from dyn_jax import occupancy
from dyn_jax.cli import demo
from experiments import _energy

NETWORKS = ("sact-digits", "manidp-digits")
EPS = ("8/255", "16/255")
LAMBDAS = (1.0, 3.0, 10.0, 30.0)
GRADIENTS = {"FGM": occupancy.hard()}
GRADIENTS |= {f"LGM soft {lam:g}": occupancy.sigmoid(lam) for lam in LAMBDAS}
GRADIENTS |= {f"LGM straight-through {lam:g}": occupancy.straight_through(lam) for lam in LAMBDAS}
COLUMNS = ("network", "attack", "gradient", "clean %", "after %", "standard error", "architecture change %")


def main() -> None:
    arguments = _energy.parser(__doc__, 100, NETWORKS).parse_args()
    images, labels = _energy.data(arguments.images, arguments.data)
    rows = []
    for name in arguments.networks:
        net, variables = _energy.load(name, arguments.weights)
        for row, result in demo.compare(name, net, variables, images, labels, GRADIENTS, eps=EPS):
            right = ~np.asarray(result.success)
            rows.append(
                {
                    "network": _energy.LABELS[name],
                    "attack": f"{row.attack} {row.eps}",
                    "gradient": row.gradient,
                    "clean %": 100 * row.clean_accuracy,
                    "after %": 100 * row.accuracy,
                    "standard error": 100 * float(right.std(ddof=1) / np.sqrt(len(right))),
                    "architecture change %": 100 * row.architecture_change,
                }
            )
            _energy.progress(rows, COLUMNS)
    facts = {"eps": list(EPS), "lambdas": list(LAMBDAS), "bim_steps": demo.STEPS}
    _energy.save("energy_accuracy_attacks", rows, COLUMNS, arguments, **facts)


if __name__ == "__main__":
    main()
