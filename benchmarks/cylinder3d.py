"""Cylinder3D of full size on a LiDAR scan: forward, backward, beside spconv in turns; growth with the points.

    python -m benchmarks.cylinder3d --scan 000008.bin [--growth scan.bin] [--output FILE]

Scans are float32 rows x y z intensity; the growth is measured on random parts of one. CPU seconds (user) are the
measure, every figure includes the partition's kernel maps. Without spconv (`pip install spconv`; one thread, see
`benchmarks.sparse3d`) our side alone is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _spconv_cylinder3d, _turns
from benchmarks.sparse3d import random_variables
from dyn_jax import networks, sparse3d
from dyn_jax.datasets import read_scan
from dyn_jax.types import PointCloud
from experiments import _record

NETWORK, CLASSES = "cylinder3d-semantickitti", 20
CLAIMED = {"forward + backward": {"spconv 2.3.8, 1 thread": 3.3, "target": 3.0}}
PARTS = (5_000, 10_000, 20_000, 40_000, 80_000, 120_000)


def of_file(path: str) -> PointCloud:
    scan = read_scan(path)
    return sparse3d.point_cloud(scan.xyz, scan.intensity[:, None])


def compiled(cloud: PointCloud, backward: bool) -> tuple[Callable[[], object], dict[str, float]]:
    """A run of the network on the cloud, and what its compilation cost."""
    net = networks.create(NETWORK)
    variables, capacity = random_variables(net), sparse3d.capacity_for(cloud, net.voxel_size, net.levels)

    def loss(params: dict, xyz: jax.Array, cloud: PointCloud) -> jax.Array:
        output = net.apply({**variables, "params": params}, cloud.replace(xyz=xyz), capacity=capacity)
        return jnp.sum(jax.nn.log_softmax(output.logits)[:, 0])

    function = jax.grad(loss, argnums=(0, 1)) if backward else loss
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    arguments = (variables["params"], cloud.xyz, cloud)
    began = time.perf_counter()
    made = jax.jit(function).lower(*arguments).compile()
    cost = {"compile s": time.perf_counter() - began}
    cost |= {"compile user s": resource.getrusage(resource.RUSAGE_SELF).ru_utime - before}
    cost |= {"temporary MB": getattr(made.memory_analysis(), "temp_size_in_bytes", 0) / 2**20}
    return lambda: jax.block_until_ready(made(*arguments)), cost


def measures(samples: list[_turns.Seconds]) -> dict[str, float]:
    user = [sample.user for sample in samples]
    wall = statistics.median(_turns.walls(samples))
    return {"wall s": wall, "user s": statistics.median(user), "lowest user s": min(user)}


def rows_of(cloud: PointCloud, repeats: int) -> list[dict]:
    """Ours forward and with every gradient, spconv's with every gradient, in turns."""
    ours, rows = {}, []
    for name in ("forward", "forward + backward"):
        ours[name], cost = compiled(cloud, backward=name != "forward")
        rows.append({"what": name, "library": "dyn_jax"} | cost)
    cells = sparse3d.partition(cloud, sparse3d.Cylinder())
    peer = _spconv_cylinder3d.forward_and_backward(np.array(cells.features), np.array(cells.cells), CLASSES)
    if peer is not None:
        ours["spconv"] = peer
        rows.append({"what": "forward + backward", "library": "spconv"})
    found = _turns.in_turns(ours, repeats)
    points = int(cloud.valid.sum())
    return [row | {"points": points} | measures(found[name]) for row, name in zip(rows, ours)]


def growth(cloud: PointCloud, repeats: int) -> list[dict]:
    """Forward and backward on random parts, and how user seconds rise with the points (least squares)."""
    rows, order = [], np.random.default_rng(0).permutation(len(cloud.xyz))
    for count in (part for part in PARTS if part <= len(order)):
        part = sparse3d.point_cloud(np.asarray(cloud.xyz)[order[:count]], np.asarray(cloud.features)[order[:count]])
        run, cost = compiled(part, backward=True)
        run_seconds = measures(_turns.in_turns({"": run}, repeats)[""])
        rows.append({"what": "growth", "library": "dyn_jax", "points": count} | cost | run_seconds)
    if len(rows) > 2:
        x, y = np.asarray([row["points"] for row in rows]), np.asarray([row["user s"] for row in rows])
        slope, start = np.polyfit(x, y, 1)
        left = 1 - np.sum((y - slope * x - start) ** 2) / np.sum((y - y.mean()) ** 2)
        rows.append({"what": "growth, fit", "user s per 10,000 points": 1e4 * slope, "user s at 0": start, "R2": left})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", required=True, help="the scan that is compared")
    parser.add_argument("--growth", default=None, help="the scan whose parts are measured")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", default=None, help="JSON file for the numbers")
    arguments = parser.parse_args()
    rows = rows_of(of_file(arguments.scan), arguments.repeats)
    if arguments.growth:
        rows += growth(of_file(arguments.growth), arguments.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    for row in rows:
        row |= {"claimed user s": CLAIMED.get(row["what"]), "peak process MB": peak}
        print(json.dumps(row))
    if arguments.output:
        _record.write(arguments.output, rows, arguments=arguments, seed=0, packages=("torch", "spconv"))


if __name__ == "__main__":
    main()
