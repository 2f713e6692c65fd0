"""Energy attacks where nobody tried them: ILFO and GradAuto on DynConv, early exits, and MinkUNet.

    python -m experiments.energy_other_networks --weights FOLDER [--images 32] [--rooms 2]

The folder holds the early-exit networks (trained there first if they are missing). On MinkUNet points move inside a
cube of half-width eps; voxels have no dense cost, so the increase of the multiply-adds is given instead of a recovery.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import numpy as np

from dyn_jax import attacks, metrics
from dyn_jax.occupancy import voxel
from experiments import _energy, _record, _rooms, gradauto_table1

NETWORKS = ("dynconv-digits", "sdn-resnet56-digits", "sdn-vgg16-digits")
POINT_EPS, POINT_STEPS, POINT_RATE = (0.01, 0.05), 20, 0.005


def points(arguments: argparse.Namespace) -> list[dict]:
    """Rows of MinkUNet: points that move at random, Point-BIM on the complexity loss, ILFO, GradAuto."""
    how = argparse.Namespace(rooms=arguments.rooms, weights=None)
    setup = _rooms.setup(how, step=2 * POINT_RATE)
    rows = []
    for eps in POINT_EPS:
        budget = {"steps": POINT_STEPS, "learning_rate": POINT_RATE}
        methods = {
            "random moves": attacks.point_noise(eps),
            "ILFO": attacks.point_ilfo(eps, **budget),
            "GradAuto": attacks.point_grad_auto(eps, **budget),
        }
        for method, attack in methods.items():

            @jax.jit
            def run(variables, cloud, labels, attack=attack):
                small = partial(setup.net.apply, variables, capacity=setup.small)
                leaded = partial(
                    setup.net.apply, variables, occupancy=voxel.lgm(), capacity=setup.large, protocol="release"
                )
                return attack(leaded, cloud, labels, victim=small, key=jax.random.key(0))

            results = [run(setup.variables, c, y) for c, y in zip(setup.clouds, setup.labels)]
            if any(bool(r.overflow) for r in results):
                raise RuntimeError(f"{method}, eps {eps}: voxels did not fit, the numbers cannot be trusted")
            rise = [100 * float(metrics.increase(r.trace_clean, r.trace_adversarial).mean()) for r in results]
            rows.append(
                {
                    "network": "MinkUNet (rooms)",
                    "attack": method,
                    "eps (m)": eps,
                    "increase of multiply-adds %": float(np.mean(rise)),
                    "sd over rooms": float(np.std(rise, ddof=1)) if len(rise) > 1 else 0.0,
                    "mean IoU before %": 100 * float(np.mean([r.mean_iou_clean for r in results])),
                    "after %": 100 * float(np.mean([r.mean_iou for r in results])),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = _energy.parser(__doc__, images=32)
    parser.add_argument("--rooms", type=int, default=2)
    arguments = parser.parse_args()
    rows = gradauto_table1.rows_of(NETWORKS, arguments, {})
    rooms = points(arguments)
    columns = [c for c in gradauto_table1.COLUMNS if c != "claimed %"]
    print(_record.table(rows, columns))
    print(_record.table(rooms, list(rooms[0])))
    _energy.save("energy_other_networks", rows, arguments, rooms=rooms, point_steps=POINT_STEPS)


if __name__ == "__main__":
    main()
