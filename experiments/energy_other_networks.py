"""Energy attacks where nobody tried them: ILFO and GradAuto on DynConv, early exits, and MinkUNet.

    python -m experiments.energy_other_networks --weights FOLDER [--images 32] [--rooms 2]

The folder holds the early-exit networks (trained there first if they are missing). On MinkUNet points move inside a
cube of half-width eps; voxels have no dense cost, so the increase of the multiply-adds is given instead of a recovery.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics
from dyn_jax.occupancy import voxel
from dyn_jax.training.points import ROOM_POINTS
from experiments import _energy, _record, _rooms, _run, gradauto_table1

NETWORKS = ("dynconv-digits", "sdn-resnet56-digits", "sdn-vgg16-digits")
POINT_EPS, POINT_STEPS, POINT_RATE = (0.01, 0.05), 20, 0.005
BUDGET = {"steps": POINT_STEPS, "learning_rate": POINT_RATE}
METHODS = {  # ILFO with the weights and the choice of the iterate that GradAuto has
    "random moves": attacks.point_noise,
    "ILFO": lambda eps: attacks.ilfo(eps=eps, weights="macs", form=attacks.Form(), **BUDGET),
    "GradAuto": lambda eps: attacks.grad_auto(eps=eps, **BUDGET),
}


def points(how: argparse.Namespace) -> Iterator[dict]:
    """Rows of MinkUNet: points that move at random, ILFO, GradAuto."""
    setup = _rooms.setup(how, step=2 * POINT_RATE)
    release = _rooms.PROTOCOLS["release"]["form"]

    @partial(jax.jit, static_argnames="method")
    def run(method, variables, cloud, labels, eps):
        small = partial(setup.net.apply, variables, capacity=setup.small)
        leaded = partial(setup.net.apply, variables, occupancy=voxel.lgm(), capacity=setup.large, form=release)
        result = METHODS[method](eps)(leaded, cloud, labels, victim=small, key=jax.random.key(0))
        scores = [_rooms.confusion(z, labels) for z in (result.logits_clean, result.logits_adversarial)]
        return result.overflow, metrics.increase(result.trace_clean, result.trace_adversarial), *scores

    for eps, method in itertools.product(POINT_EPS, METHODS):
        results = [run(method, setup.variables, c, y, jnp.float32(eps)) for c, y in zip(setup.clouds, setup.labels)]
        overflow, rise, *scores = (np.stack(column) for column in zip(*results))
        _rooms.trusted(overflow, f"{method}, eps {eps}")
        before, after = (100 * np.mean([metrics.mean_iou(room) for room in rooms]) for rooms in scores)
        yield {
            "network": "MinkUNet (rooms)",
            "attack": method,
            "eps (m)": eps,
            "increase of multiply-adds %": 100 * float(rise.mean()),
            "sd over rooms": 100 * _rooms.deviation(rise.ravel()),
            "mean IoU before %": float(before),
            "after %": float(after),
        }


def main() -> None:
    parser = _energy.parser(__doc__, 32, networks=NETWORKS, rooms=2, points=ROOM_POINTS)
    how = parser.parse_args()
    rows = _run.shown(gradauto_table1.rows_of(how, tuple(_energy.OCCUPANCIES), {}))
    rooms = _run.shown(points(how))
    print(_record.table(rooms, list(rooms[0])))
    facts = {"data": "handwritten digits, test; procedural rooms, test", "rooms": rooms, **_energy.budget(how)}
    facts |= {"number of rooms": how.rooms, "point_eps (m)": list(POINT_EPS)}
    facts |= {"point_steps": POINT_STEPS, "point_learning_rate (m)": POINT_RATE}
    columns = [c for c in gradauto_table1.COLUMNS if c != "claimed %"]
    _energy.finish("energy_other_networks", rows, columns, how, **facts)


if __name__ == "__main__":
    main()
