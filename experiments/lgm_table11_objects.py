"""LGM table XI on the embedded objects: accuracy by eps for four attacks, FGM against LGM.

    python -m experiments.lgm_table11_objects

The claimed numbers are of MinkowskiNet on ModelNet40 at voxels of 5 cm; here the network is a small MinkowskiFCNN at
voxels of 10 cm. Objects are attacked one by one, all of a batch in one vmap. LGM's repository has no code for this
table: PointPert and KNNPert follow their own papers, with the iterates clipped to the cube.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks
from dyn_jax.attacks.batched import in_batches
from dyn_jax.datasets import objects
from dyn_jax.occupancy import voxel
from dyn_jax.training.points import OBJECT_POINTS
from dyn_jax.types import PointCloud
from experiments import _rooms, _run
from experiments._rooms import trusted

NETWORK = "minkfcnn-objects"
EPS, CONSTANT, FGM_SLOPE = (0.02, 0.05, 0.1, 0.2), 10.0, 20.0
CLAIMED = {  # on ModelNet40; before the attack 92.38
    ("random moves", ""): (85.73, 79.09, 41.73, 6.48),
    ("Point-BIM", "FGM"): (83.10, 64.06, 25.85, 3.81),
    ("Point-BIM", "LGM"): (82.46, 55.15, 19.12, 3.12),
    ("PointPert", "FGM"): (84.40, 72.57, 35.90, 5.51),
    ("PointPert", "LGM"): (82.65, 55.92, 21.47, 2.79),
    ("KNNPert", "FGM"): (82.62, 59.32, 19.81, 4.90),
    ("KNNPert", "LGM"): (82.05, 48.50, 8.95, 2.96),
}


ATTACKS: dict[str, Callable[[int, jax.Array], attacks.Attack]] = {
    "random moves": lambda steps, eps: attacks.point_noise(eps),
    "Point-BIM": lambda steps, eps: attacks.point_bim(eps, eps / 5, steps),
    "PointPert": lambda steps, eps: attacks.point_pert(eps, steps, learning_rate=eps / 5, constant=CONSTANT),
    "KNNPert": lambda steps, eps: attacks.knn_pert(eps, steps, learning_rate=eps / 5, constant=CONSTANT),
}
"""Name -> (steps, eps) -> attack. A step is a fifth of eps, the reach a step."""


def attacked(
    found: tuple[_rooms.Setup, PointCloud],
    make: Callable[[jax.Array], attacks.Attack],
    occupancy: voxel.VoxelOccupancy,
    seen: Callable[[attacks.AttackResult], Any],
    eps: Sequence[float],
    batch: int,
) -> Iterator[Any]:
    """What is `seen` of the attack on each object, [object, ...], for every eps; one compiled program."""
    (made, clouds), capacity = found, found[0].large if occupancy.extends else found[0].small

    @jax.jit
    def run(variables: dict, clouds: PointCloud, labels: jax.Array, eps: jax.Array, rows: jax.Array) -> Any:
        forward = partial(made.net.apply, variables, occupancy=occupancy, capacity=capacity)
        victim = partial(made.net.apply, variables, capacity=made.small)

        def one(cloud: PointCloud, label: jax.Array, row: jax.Array) -> Any:
            key = jax.random.fold_in(jax.random.key(0), row)
            return seen(make(eps)(forward, cloud, label[None], key=key, victim=victim))

        return jax.vmap(one)(clouds, labels, rows)

    labels = np.asarray(made.labels)
    part = lambda rows: (jax.tree.map(lambda leaf: leaf[rows], clouds), labels[rows])
    for each in map(jnp.float32, eps):
        yield in_batches(lambda rows, each=each: run(made.variables, *part(rows), each, rows), len(labels), batch)


def judged(result: attacks.AttackResult) -> tuple[jax.Array, ...]:
    """Whether an object was answered wrongly before, and is after the attack; whether it did not fit."""
    return result.clean_success[0], (result.success | result.invalid)[0], result.overflow[0]


def rows_of(found: tuple[_rooms.Setup, PointCloud], how: Any) -> Iterator[dict]:
    lgm, fgm = voxel.lgm(voxel.sigmoid(how.lam)), voxel.fgm(voxel.sigmoid(FGM_SLOPE))
    for (name, gradient), claimed in CLAIMED.items():
        make, occupancy = partial(ATTACKS[name], how.steps), lgm if gradient == "LGM" else fgm
        each = attacked(found, make, occupancy, judged, EPS, how.batch)
        for eps, claim, (before, after, overflow) in zip(EPS, claimed, each):
            trusted(overflow, f"{name} {gradient}, eps {eps}")
            accuracy = 1 - float(after.mean())
            error = 100 * float(np.sqrt(accuracy * (1 - accuracy) / len(after)))
            row = {"attack": name, "gradient": gradient, "eps (m)": eps, "before %": 100 * (1 - float(before.mean()))}
            yield row | {"after %": 100 * accuracy, "standard error": error, "claimed % (ModelNet40)": claim}


def main() -> None:
    parser = _run.parser(__doc__, steps=15)
    parser.add_argument("--objects", type=int, default=100, help="test objects, at most 200")
    parser.add_argument("--batch", type=int, default=20, help="objects in one vmap")
    parser.add_argument("--lam", type=float, default=10.0, help="slope of LGM's sigmoid (FGM's: 20)")
    parser.add_argument("--weights", metavar="FILE", help="msgpack; default: those of the package")
    how = parser.parse_args()
    data = objects("test", how.objects, points=OBJECT_POINTS)
    rows = _run.shown(rows_of(_rooms.of_objects(NETWORK, data, max(EPS) / 5, how.weights), how))
    facts = {"data": f"{len(data.labels)} procedural test objects", "network": NETWORK, "steps": how.steps}
    facts |= {"lambda": how.lam, "slope of FGM's sigmoid": FGM_SLOPE, "constant": CONSTANT}
    facts |= {"objects": len(data.labels), "batch": how.batch, "eps (m)": list(EPS), "seed": 0}
    _run.finish("lgm_table11_objects", rows, how, **facts)


if __name__ == "__main__":
    main()
