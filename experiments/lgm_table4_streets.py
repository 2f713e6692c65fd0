"""LGM table IV outdoors: mean IoU by eps, FGM against LGM, Cylinder3D on simulated streets.

    python -m experiments.lgm_table4_streets

The claimed numbers are of the published Cylinder3D on SemanticKITTI, other data and a network hundreds of times larger:
compare the order, not the values. Step sizes are those of the demo for every eps and gradient, slopes the defaults of
`occupancy.voxel.lgm`: nothing is chosen on test streets.
"""

from __future__ import annotations

import argparse

import numpy as np

from dyn_jax import networks
from dyn_jax.cli import demo_lidar, demo_points
from dyn_jax.datasets import scan_iou, streets
from experiments import _record

NETWORK = "cylinder3d-streets"
STEP = {0.005: 0.0025, 0.01: 0.005, **demo_lidar.STEP}
BEFORE = 66.91
CLAIMED = {0.005: (34.43, 33.63), 0.01: (29.77, 29.13), 0.02: (16.01, 15.17), 0.05: (9.17, 8.50)}
"""eps -> mean IoU under FGM and under LGM on SemanticKITTI; before the attack `BEFORE`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streets", type=int, default=4, help="test streets, at most 16")
    parser.add_argument("--steps", type=int, default=30, help="of Point-BIM (the paper: 30)")
    parser.add_argument("--results", default=None, help="folder for the JSON; default: experiments/results")
    arguments = parser.parse_args()
    net, variables = networks.pretrained(NETWORK)
    clouds, labels = demo_lidar.of_one_size(streets("test", arguments.streets))
    small, large = demo_points.capacities(net, clouds, max(STEP.values()))
    function = demo_points.attack_function(net, small, large, steps=arguments.steps)
    rows = []
    for row, results in demo_points.compared(function, variables, clouds, labels, STEP, demo_points.GRADIENTS):
        each = [np.argmax(result.logits_adversarial, axis=1) for result in results]
        right = [float(np.mean(said == y)) for said, y in zip(each, labels)]
        claimed = CLAIMED.get(row.eps, (None, None))[list(demo_points.GRADIENTS).index(row.gradient)]
        rows.append(
            {"gradient": row.gradient, "eps (m)": row.eps, "step (m)": STEP[row.eps]}
            | {"before %": round(100 * float(scan_iou(row.clean)), 2)}
            | {"after %": round(100 * float(scan_iou(row.after)), 2), "claimed % (SemanticKITTI)": claimed}
            | {
                "points right %": round(100 * float(np.mean(right)), 2),
                "sd over streets": round(100 * float(np.std(right)), 2),
            }
            | {"GFLOPs": round(row.gflops, 3), "overflow": row.overflow}
        )
        print(rows[-1], flush=True)
    facts = {
        "network": NETWORK,
        "data": f"simulated streets, {demo_lidar.SCAN_POINTS} points of each",
        "claimed before %": BEFORE,
    }
    print(_record.save("lgm_table4_streets", rows, folder=arguments.results, arguments=arguments, **facts))


if __name__ == "__main__":
    main()
