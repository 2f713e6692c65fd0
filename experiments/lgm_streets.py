"""LGM tables V, VI, VII and X outdoors: occupancy functions, voxels and work, the slope, classes; and figure 8.

    python -m experiments.lgm_streets

On simulated streets with the small Cylinder3D that ships, or on SemanticKITTI (``--semantickitti FOLDER --weights
FILE``). The paper has tables V to VII for ScanNet alone; its table X is of SemanticKITTI at eps 0.02. Every row is one
attack with Point-BIM; nothing is chosen on the scans: lambda 10 is the default wherever it is not what varies.
"""

from __future__ import annotations

from collections.abc import Iterator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import plotting
from dyn_jax.cli import demo_lidar
from dyn_jax.datasets import scan_iou
from dyn_jax.occupancy import voxel
from experiments import _run, _scans

STEP = demo_lidar.STEP
LAMBDAS = (5.0, 10.0, 20.0, 40.0)


@flax.struct.dataclass
class Chosen:
    """A sigmoid, BI or RBF, by data: the network compiles once for all of them."""

    kind: jax.typing.ArrayLike
    lam: jax.typing.ArrayLike = 10.0

    def __call__(self, distance: jax.Array, inside: jax.Array) -> jax.Array:
        every = [relation(distance, inside) for relation in (voxel.Sigmoid(self.lam), voxel.bilinear(), voxel.rbf())]
        return jnp.select([self.kind == 0, self.kind == 1], every[:2], every[2])


CLAIMED_CLASSES = {  # table X, eps 0.02, as far as it can be read
    "before": {
        "car": 97.12, "person": 76.48, "road": 94.58, "sidewalk": 81.19, "building": 90.48, "fence": 58.71,
        "vegetation": 86.64, "trunk": 70.82, "terrain": 70.48, "pole": 64.23,
    },
    "FGM": {"road": 6.70, "sidewalk": 5.22, "building": 41.44, "vegetation": 46.15},
    "LGM": {"road": 6.70, "sidewalk": 5.14, "building": 39.33, "vegetation": 44.98},
}  # fmt: skip


def main() -> None:
    how = _scans.parser(__doc__).parse_args()
    made = _scans.setup(how, max(STEP.values()))
    run = made.test.attack(how.steps, ignore=_scans.IGNORE)
    occupancies = {"FGM": voxel.fgm()} | {f"lambda {lam:g}": voxel.lgm(Chosen(0, lam)) for lam in LAMBDAS}
    occupancies |= {"BI": voxel.lgm(Chosen(1)), "RBF": voxel.lgm(Chosen(2))}
    classes, drawn = [], []

    def rows_of(name: str, occupancy: voxel.VoxelOccupancy) -> Iterator[dict]:
        for row, results in made.test.compared(run, STEP, {name: occupancy}):
            iou = {"before %": _scans.percent(row.clean), "after %": _scans.percent(row.after)}
            work = {"voxels": round(row.voxels), "GFLOPs": round(row.gflops, 3), "overflow": row.overflow}
            yield {"occupancy": name, "eps (m)": row.eps, "step (m)": STEP[row.eps]} | iou | work
            if name in ("FGM", "lambda 10"):
                by_class = {"before %": _scans.by_class(row.clean), "after %": _scans.by_class(row.after)}
                classes.append({"gradient": "FGM" if name == "FGM" else "LGM", "eps (m)": row.eps} | by_class)
            if name == "lambda 10" and row.eps == max(STEP):
                drawn.append(results[0])

    rows = _run.shown(row for each in occupancies.items() for row in rows_of(*each))
    for eps in STEP:
        rows.append({**rows[0], "occupancy": "random moves", "eps (m)": eps, "step (m)": None, "voxels": None})
        after = _scans.percent(made.test.scattered(eps, _scans.IGNORE).sum(0))
        rows[-1] |= {"GFLOPs": None, "after %": after, "overflow": False}
    claimed = {name: [values.get(one) for one in made.classes[1:]] for name, values in CLAIMED_CLASSES.items()}
    facts = made.facts | {"classes": list(made.classes[1:]), "claimed by class % (SemanticKITTI, eps 0.02)": claimed}
    facts |= {"seeds": list(range(how.streets)), "by_class": classes}
    file = _run.finish("lgm_streets", rows, how, arguments=how, **facts)
    first = np.asarray(made.test.clouds[0].xyz), made.test.labels[0], made.classes
    plotting.scan_figure(drawn[0], *first, str(file.with_suffix(".png")), iou=scan_iou)


if __name__ == "__main__":
    main()
