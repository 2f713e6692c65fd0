"""LGM table IV outdoors: mean IoU by eps, FGM against LGM, Cylinder3D on simulated streets.

    python -m experiments.lgm_table4_streets

The claimed numbers are of the published Cylinder3D on SemanticKITTI, other data and a network hundreds of times larger:
compare the order, not the values (``--semantickitti FOLDER --weights FILE`` measures that one). Step sizes are those of
the demo for every eps and gradient, slopes the defaults of `occupancy.voxel.lgm`: nothing is chosen on test streets.
"""

from __future__ import annotations

import numpy as np

from dyn_jax.cli import demo_lidar, demo_points
from experiments import _record, _scans

STEP = {0.005: 0.0025, 0.01: 0.005, **demo_lidar.STEP}
BEFORE = 66.91
CLAIMED = {0.005: (34.43, 33.63), 0.01: (29.77, 29.13), 0.02: (16.01, 15.17), 0.05: (9.17, 8.50)}
"""eps -> mean IoU under FGM and under LGM on SemanticKITTI; before the attack `BEFORE`."""


def main() -> None:
    arguments = _scans.parser(__doc__, 4, 30).parse_args()
    made = _scans.setup(arguments, max(STEP.values()))
    function = demo_points.attack_function(
        made.net, made.small, made.large, steps=arguments.steps, ignore=_scans.IGNORE
    )
    rows = []
    given = function, made.variables, made.clouds, made.labels, STEP, demo_points.GRADIENTS
    for row, results in demo_points.compared(*given):
        each = [np.argmax(result.logits_adversarial, axis=1) for result in results]
        right = [float(np.mean((said == y)[y != _scans.IGNORE])) for said, y in zip(each, made.labels)]
        claimed = CLAIMED.get(row.eps, (None, None))[list(demo_points.GRADIENTS).index(row.gradient)]
        rows.append(
            {"gradient": row.gradient, "eps (m)": row.eps, "step (m)": STEP[row.eps]}
            | {"before %": _scans.percent(row.clean)}
            | {"after %": _scans.percent(row.after), "claimed % (SemanticKITTI)": claimed}
            | {
                "points right %": round(100 * float(np.mean(right)), 2),
                "sd over streets": round(100 * float(np.std(right)), 2),
            }
            | {"GFLOPs": round(row.gflops, 3), "overflow": row.overflow}
        )
        print(rows[-1], flush=True)
    facts = made.facts | {"claimed before %": BEFORE}
    print(_record.save("lgm_table4_streets", rows, folder=arguments.results, arguments=arguments, **facts))


if __name__ == "__main__":
    main()
