"""The cross table's networks of points: what moves, under FGM and LGM, and what the attacks on the energy bring."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks
from dyn_jax.cli import demo_lidar, demo_points
from dyn_jax.datasets import objects, rooms, streets
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d import RELEASE, point_cloud
from dyn_jax.training.points import OBJECT_POINTS, ROOM_POINTS
from dyn_jax.types import PointCloud
from experiments import _rooms

STEPS, OBJECTS = 10, 8
EPS: dict[str, tuple[float, float]] = {  # network -> eps and step size, metres
    "minkunet-rooms": (0.01, 0.005),
    "minkfcnn-objects": (0.05, 0.01),
    "cylinder3d-streets": (0.05, 0.01),
}
NETWORKS = tuple(EPS)
ENERGY = {  # ILFO with the weights and the choice of the iterate that GradAuto has
    "GradAuto": lambda eps, step, steps: attacks.grad_auto(eps=eps, steps=steps, learning_rate=step),
    "ILFO": lambda eps, step, steps: attacks.ilfo(
        eps=eps, steps=steps, learning_rate=step, weights="macs", form=attacks.Form()
    ),
}


def clouds_of(name: str) -> tuple[list[PointCloud], list[np.ndarray]]:
    """One room, one street, or some objects; labels of the points or of the clouds."""
    if name == "minkunet-rooms":
        scenes = rooms("test", 1, points=ROOM_POINTS)
        return demo_points.clouds_of(scenes), [np.asarray(scene.labels) for scene in scenes]
    if name == "cylinder3d-streets":
        return demo_lidar.of_one_size(streets("test", 1))
    data = objects("test", points=OBJECT_POINTS)
    made = [point_cloud(xyz, np.zeros((len(xyz), 0), np.float32)) for xyz in data.xyz[:OBJECTS]]
    return made, [data.labels[i : i + 1] for i in range(OBJECTS)]


def rows_of(name: str) -> Iterator[dict[str, Any]]:
    """Rows of one network: random moves, Point-BIM under FGM and LGM, GradAuto, ILFO."""
    net, variables = networks.pretrained(name)
    (eps, step), (clouds, labels) = EPS[name], clouds_of(name)
    made = _rooms.Setup(net, variables, clouds, labels, *demo_points.capacities(net, clouds, 2 * step))
    run = jax.jit(partial(net.apply, variables, capacity=made.small))
    before = [run(cloud) for cloud in clouds]
    sizes, bim = (jnp.float32(eps), jnp.float32(step)), made.attack(STEPS)
    form = {"form": RELEASE} if name == "minkunet-rooms" else {}
    by = lambda search, occupancy: lambda cloud, y: search(variables, cloud, y, *sizes, occupancy).adversarial
    noise = lambda xyz: jax.random.uniform(jax.random.key(0), xyz.shape, minval=-eps, maxval=eps)
    moved = {("random moves", ""): lambda cloud, y: cloud.xyz + noise(cloud.xyz)}
    moved |= {("Point-BIM-10", gradient): by(bim, occupancy) for gradient, occupancy in demo_points.GRADIENTS.items()}
    for attack, factory in ENERGY.items():
        moved[attack, "LGM"] = by(made.attack(STEPS, factory=factory, **form), voxel.lgm())
    for (attack, gradient), move in moved.items():
        head = {"network": name, "attack": attack, "gradient": gradient}
        try:
            after = [run(cloud.replace(xyz=move(cloud, y))) for cloud, y in zip(clouds, labels)]
            _rooms.trusted(
                [bool(out.trace.overflow) for out in after if out.trace.overflow is not None], f"{name}, {attack}"
            )
            yield head | _numbers(before, after, labels)
        except (ValueError, TypeError, RuntimeError) as error:
            yield head | {"refused": str(error)}


def _numbers(before: list, after: list, labels: list[np.ndarray]) -> dict[str, float]:
    """Points (or objects) answered rightly, and the multiply-adds, which have no dense cost to recover."""
    right = lambda outs: [np.mean(np.argmax(out.logits, 1) == y) for out, y in zip(outs, labels)]
    rise = [float(metrics.increase(old.trace, new.trace).mean()) for old, new in zip(before, after)]
    names = ("accuracy before %", "accuracy after %", "increase of multiply-adds %")
    return {name: round(100 * float(np.mean(v)), 2) for name, v in zip(names, (right(before), right(after), rise))}
