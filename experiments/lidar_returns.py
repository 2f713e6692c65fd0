"""What a LiDAR could see: mean IoU where returns come late, are absorbed, or are spoofed; each beside its control.

    python -m experiments.lidar_returns

Judged are the points of the scan that are still there: neither an absorbed nor a spoofed point counts. The controls are
random ranges, random points and spoofed points that stay where they were put.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics
from dyn_jax.attacks.base import Attack
from dyn_jax.occupancy import voxel
from experiments import _rooms, _run, _scans

GRADIENTS = {"FGM": voxel.fgm(), "LGM": voxel.lgm()}
LATE = {0.5: 0.1}  # metres along the beam -> step size
DROPPED = (200, 800)
SPOOFED = (200,)
SPOOF_RANGE, SPOOF_STEP = 5.0, 0.25
ROUNDS = 10


def measured(made: _rooms.Setup, attack: Attack, occupancy: voxel.VoxelOccupancy | None, spoofs: int = 0) -> dict:
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


def searches(steps: int) -> Iterator[tuple]:
    """(kind, budget, how, attack, occupancy[, spoofed points]) of every row."""
    options = {"objective": "ce", "attack_all": True}
    for eps, step in LATE.items():
        random = attacks.pgd(eps, 0.0, 1, norm="ray", **options)
        yield "late returns", eps, "random", random, None
        for name, occupancy in GRADIENTS.items():
            yield "late returns", eps, name, attacks.bim(eps, step, steps, norm="ray", **options), occupancy
    for points in DROPPED:
        drop = partial(attacks.point_drop, points, min(ROUNDS, points))
        yield "absorbed", points, "random", drop(saliency="random"), None
        for saliency in ("shift", "gradient"):
            for name, occupancy in GRADIENTS.items():
                yield "absorbed", points, f"{saliency}, {name}", drop(saliency=saliency), occupancy
    for points in SPOOFED:
        move = partial(attacks.bim, SPOOF_RANGE, steps=steps, norm="ray", **options)
        yield "spoofed", points, "as placed", move(step_size=0.0), None, points
        for name, occupancy in GRADIENTS.items():
            yield "spoofed", points, name, move(step_size=SPOOF_STEP), occupancy, points


def main() -> None:
    how = _scans.parser(__doc__, steps=10).parse_args()
    made = _scans.setup(how, max(SPOOF_STEP, *LATE.values()))
    rows = _run.shown(
        {"attack": kind, "budget": budget, "how": name, **measured(made.test, *searched)}
        for kind, budget, name, *searched in searches(how.steps)
    )
    facts = made.facts | {"rounds": ROUNDS, "metres of a spoofed point": SPOOF_RANGE, "step of one": SPOOF_STEP}
    _run.finish("lidar_returns", rows, how, arguments=how, seeds=list(range(how.streets)), **facts)


if __name__ == "__main__":
    main()
