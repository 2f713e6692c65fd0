"""LGM tables V, VI, VII and X outdoors: occupancy functions, voxels and work, the slope, classes; and figure 8.

    python -m experiments.lgm_streets

On simulated streets with the small Cylinder3D that ships, or on SemanticKITTI (``--semantickitti FOLDER --weights
FILE``). The paper has tables V to VII for ScanNet alone; its table X is of SemanticKITTI at eps 0.02. Every row is one
attack with Point-BIM; nothing is chosen on the scans: lambda 10 is the default wherever it is not what varies.
"""

from __future__ import annotations

import pathlib
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, plotting
from dyn_jax.cli import demo_lidar, demo_points
from dyn_jax.datasets import scan_iou
from dyn_jax.occupancy import voxel
from experiments import _record, _scans

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


def noise(made: _scans.Setup, eps: float) -> np.ndarray:
    """Confusion after random moves in the cube."""

    @jax.jit
    def run(cloud: object, labels: jax.Array, key: jax.Array) -> jax.Array:
        forward = partial(made.net.apply, made.variables, capacity=made.small)
        result = attacks.point_noise(eps)(forward, cloud, labels, key=key, ignore=_scans.IGNORE)
        logits = result.logits_adversarial
        return metrics.confusion(jnp.argmax(logits, axis=1), labels, logits.shape[1])

    pairs = zip(made.clouds, made.labels)
    return np.sum([run(*pair, jax.random.key(number)) for number, pair in enumerate(pairs)], axis=0)


def main() -> None:
    arguments = _scans.parser(__doc__).parse_args()
    made = _scans.setup(arguments, max(STEP.values()))
    run = demo_points.attack_function(made.net, made.small, made.large, steps=arguments.steps, ignore=_scans.IGNORE)
    occupancies = {"FGM": voxel.fgm()} | {f"lambda {lam:g}": voxel.lgm(Chosen(0, lam)) for lam in LAMBDAS}
    occupancies |= {"BI": voxel.lgm(Chosen(1)), "RBF": voxel.lgm(Chosen(2))}
    rows, classes = [], []
    folder = pathlib.Path(arguments.results or _record.RESULTS)
    for name, occupancy in occupancies.items():
        for eps, step in STEP.items():
            given = run, made.variables, made.clouds, made.labels, name, occupancy, eps, step
            row, results = demo_points.attack_rooms(*given)
            rows.append(
                {
                    "occupancy": name,
                    "eps (m)": eps,
                    "step (m)": step,
                    "before %": _scans.percent(row.clean),
                    "after %": _scans.percent(row.after),
                    "voxels": round(row.voxels),
                    "GFLOPs": round(row.gflops, 3),
                    "overflow": row.overflow,
                }
            )
            print(rows[-1], flush=True)
            if name in ("FGM", "lambda 10"):
                classes.append({"gradient": "FGM" if name == "FGM" else "LGM", "eps (m)": eps})
                classes[-1] |= {"before %": _scans.by_class(row.clean), "after %": _scans.by_class(row.after)}
            if name == "lambda 10" and eps == max(STEP):
                first = results[0], np.asarray(made.clouds[0].xyz), made.labels[0], made.classes
                plotting.scan_figure(*first, str(folder / "lgm_streets.png"), iou=scan_iou)
    for eps in STEP:
        rows.append({**rows[0], "occupancy": "random moves", "eps (m)": eps, "step (m)": None, "voxels": None})
        rows[-1] |= {"GFLOPs": None, "after %": _scans.percent(noise(made, eps)), "overflow": False}
    print(_record.table(rows, list(rows[0])))
    claimed = {name: [values.get(one) for one in made.classes[1:]] for name, values in CLAIMED_CLASSES.items()}
    facts = made.facts | {"classes": list(made.classes[1:]), "claimed by class % (SemanticKITTI, eps 0.02)": claimed}
    seeds = list(range(arguments.streets))
    print(
        _record.save(
            "lgm_streets", rows, folder=arguments.results, arguments=arguments, seeds=seeds, by_class=classes, **facts
        )
    )


if __name__ == "__main__":
    main()
