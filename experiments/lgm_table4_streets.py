"""LGM table IV outdoors: mean IoU by eps, FGM against LGM, Cylinder3D on simulated streets.

    python -m experiments.lgm_table4_streets

The claimed numbers are of the published Cylinder3D on SemanticKITTI, other data and a network hundreds of times larger:
compare the order, not the values (``--semantickitti FOLDER --weights FILE`` measures that one). Step sizes are the same
for both gradients; LGM's slope is the best of `LAMBDAS` on streets that are held out, at every eps. FGM has none here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from dyn_jax.cli import demo_lidar
from dyn_jax.occupancy import voxel
from experiments import _run, _scans

STEP = {0.005: 0.0025, 0.01: 0.005, **demo_lidar.STEP}
LAMBDAS = (5.0, 10.0, 20.0, 40.0)
OCCUPANCIES: dict[str, dict[float | None, voxel.VoxelOccupancy]] = {
    "FGM": {None: voxel.fgm()},
    "LGM": {lam: voxel.lgm(voxel.sigmoid(lam)) for lam in LAMBDAS},
}
BEFORE = 66.91
CLAIMED = {0.005: (34.43, 33.63), 0.01: (29.77, 29.13), 0.02: (16.01, 15.17), 0.05: (9.17, 8.50)}
"""eps -> mean IoU under FGM and under LGM on SemanticKITTI; before the attack `BEFORE`."""


def rows_of(made: _scans.Setup, steps: int) -> Iterator[dict]:
    run = made.test.attack(steps, ignore=_scans.IGNORE)
    for (eps, step), (name, slopes) in itertools.product(STEP.items(), OCCUPANCIES.items()):
        held = made.held.compared(run, {eps: step}, slopes) if len(slopes) > 1 else ()
        after = {row.gradient: _scans.percent(row.after) for row, _ in held}
        slope = min(after, key=lambda slope: after[slope]) if after else None
        ((row, results),) = made.test.compared(run, {eps: step}, {name: slopes[slope]})
        each = [np.argmax(result.logits_adversarial, axis=1) for result in results]
        right = [float(np.mean((said == y)[y != _scans.IGNORE])) for said, y in zip(each, made.test.labels)]
        claimed = CLAIMED.get(eps, (None, None))[list(OCCUPANCIES).index(name)]
        yield (
            {"gradient": name, "eps (m)": eps, "step (m)": step, "lambda": slope}
            | {"before %": _scans.percent(row.clean), "after %": _scans.percent(row.after)}
            | {"claimed % (SemanticKITTI)": claimed, "points right %": round(100 * float(np.mean(right)), 2)}
            | {"sd over streets": round(100 * float(np.std(right)), 2), "held out by lambda %": list(after.values())}
            | {"GFLOPs": round(row.gflops, 3), "overflow": row.overflow}
        )


def main() -> None:
    how = _scans.parser(__doc__, 4, 30).parse_args()
    made = _scans.setup(how, max(STEP.values()))
    facts = made.facts | {"claimed before %": BEFORE, "lambdas": list(LAMBDAS), "seeds": [0, _scans.HELD_SEED]}
    _run.finish("lgm_table4_streets", _run.shown(rows_of(made, how.steps)), how, arguments=how, **facts)


if __name__ == "__main__":
    main()
