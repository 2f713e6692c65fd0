"""What a LiDAR could see: mean IoU where returns come late, are absorbed, or are spoofed; each beside its control.

    python -m experiments.lidar_returns

Judged are the points of the scan that are still there: neither an absorbed nor a spoofed point counts. The controls are
random ranges, random points and spoofed points that stay where they were put.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics
from dyn_jax.attacks.base import Attack
from dyn_jax.occupancy import voxel
from experiments import _record, _scans

GRADIENTS = {"FGM": voxel.fgm(), "LGM": voxel.lgm()}
LATE = {0.5: 0.1}
"""Metres along the beam -> step size."""
DROPPED = (200, 800)
SPOOFED = (200,)
SPOOF_RANGE, SPOOF_STEP = 5.0, 0.25
ROUNDS = 10


def measured(made: _scans.Setup, attack: Attack, occupancy: voxel.VoxelOccupancy | None, spoofs: int = 0) -> dict:
    """Mean IoU before and after on all scans; with `spoofs`, of the scan without them before."""
    large = made.large if occupancy is not None and occupancy.extends else made.small

    @jax.jit
    def run(variables: dict, cloud: object, labels: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        forward = partial(made.net.apply, variables, occupancy=occupancy, capacity=large)
        victim = partial(made.net.apply, variables, capacity=made.small)
        before = victim(cloud).logits
        mask, wanted, more = None, labels, cloud
        if spoofs:
            added = attacks.spoofed(cloud, spoofs, key)
            more, wanted, mask = added.cloud, added.labels(labels, _scans.IGNORE), added.added
        result = attack(forward, more, wanted, victim=victim, key=key, mask=mask, ignore=_scans.IGNORE)
        said = jnp.argmax(result.logits_adversarial, axis=1)[: len(labels)]
        counted = result.counted[: len(labels)]
        classes = before.shape[1]
        after = metrics.confusion(said, jnp.where(counted, labels, _scans.IGNORE), classes)
        return metrics.confusion(jnp.argmax(before, axis=1), labels, classes), after, jnp.any(result.overflow)

    pairs = zip(made.clouds, made.labels)
    found = [run(made.variables, *pair, jax.random.key(number)) for number, pair in enumerate(pairs)]
    before, after, overflow = (np.sum(column, axis=0) for column in zip(*found))
    each = [_scans.percent(matrix) for _, matrix, _ in found]
    row = {"before %": _scans.percent(before), "after %": _scans.percent(after), "after, each street %": each}
    return row | {"overflow": bool(overflow)}


def main() -> None:
    arguments = _scans.parser(__doc__, steps=10).parse_args()
    made = _scans.setup(arguments, max(SPOOF_STEP, *LATE.values()))
    options, steps = {"objective": "ce", "attack_all": True}, arguments.steps
    rows = []

    def add(kind: str, budget: float, how: str, attack: Attack, occupancy: object = None, spoofs: int = 0) -> None:
        numbers = measured(made, attack, occupancy, spoofs)
        rows.append({"attack": kind, "budget": budget, "how": how, **numbers})
        print(rows[-1], flush=True)

    for eps, step in LATE.items():
        random = attacks.pgd(eps, 0.0, 1, norm="ray", **options)
        add("late returns", eps, "random", random)
        for name, occupancy in GRADIENTS.items():
            add("late returns", eps, name, attacks.bim(eps, step, steps, norm="ray", **options), occupancy)
    for points in DROPPED:
        drop = partial(attacks.point_drop, points, min(ROUNDS, points))
        add("absorbed", points, "random", drop(saliency="random"))
        for saliency in ("shift", "gradient"):
            for name, occupancy in GRADIENTS.items():
                add("absorbed", points, f"{saliency}, {name}", drop(saliency=saliency), occupancy)
    for points in SPOOFED:
        move = partial(attacks.bim, SPOOF_RANGE, steps=steps, norm="ray", **options)
        add("spoofed", points, "as placed", move(step_size=0.0), None, points)
        for name, occupancy in GRADIENTS.items():
            add("spoofed", points, name, move(step_size=SPOOF_STEP), occupancy, points)
    print(_record.table(rows, list(rows[0])))
    facts = made.facts | {"rounds": ROUNDS, "metres of a spoofed point": SPOOF_RANGE, "step of one": SPOOF_STEP}
    seeds = list(range(arguments.streets))
    print(_record.save("lidar_returns", rows, folder=arguments.results, arguments=arguments, seeds=seeds, **facts))


if __name__ == "__main__":
    main()
