"""Cylinder3D, full size, on a scan of KITTI: forward, the attack's gradient, all gradients; beside spconv; by points.

    python -m benchmarks.cylinder3d --scan 000008.bin [--large 000000.bin] [--output FILE]

CPU seconds (user) are the measure, everything included: cells, levels, kernel maps. ``--large``: a scan of which 5,000
points and more are taken, for the growth. Multiply-adds are those of the trace (pairs that exist, no padding), twice a
forward pass for the gradient by coordinates and thrice with that by the weights; beside them stands what a product of
dense matrices reaches in the same run. Without spconv (`pip install spconv`) our side alone is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _spconv_cylinder3d, _turns
from benchmarks.sparse3d import random_variables, timed
from dyn_jax import metrics, networks, sparse3d
from dyn_jax.datasets import read_scan
from dyn_jax.types import PointCloud
from experiments import _record

NETWORK = "cylinder3d-semantickitti"
PASSES = {"forward": 1, "forward + gradient by coordinates": 2, "forward + all gradients": 3}
WANTED = {"forward + all gradients": 3.0}
"""User seconds; spconv 2.3.8 was once measured at 3.3 on this kind of machine."""
GROWTH = (5_000, 20_000, 60_000, 120_000)


def cloud_of(path: str, points: int | None = None) -> PointCloud:
    """The scan, or that many of its points, spread over it."""
    scan = read_scan(path)
    rows = np.arange(len(scan.xyz)) if points is None else np.linspace(0, len(scan.xyz) - 1, points).astype(int)
    return sparse3d.point_cloud(scan.xyz[rows], scan.intensity[rows, None])


def compiled(cloud: PointCloud, what: str) -> tuple[Callable[[], object], dict]:
    """(a run of it on the cloud, what its compilation took and how much it computes)."""
    net = networks.create(NETWORK)
    variables = random_variables(net)
    capacity = sparse3d.capacity_for(cloud, net.voxel_size, net.levels)

    def loss(xyz: jax.Array, variables: dict, cloud: PointCloud) -> tuple[jax.Array, jax.Array]:
        output = net.apply(variables, cloud.replace(xyz=xyz), capacity=capacity)
        return jnp.sum(jax.nn.log_softmax(output.logits)[:, 0]), metrics.executed_macs(output.trace)

    gradients = {1: lambda f: f, 2: lambda f: jax.grad(f, has_aux=True), 3: lambda f: jax.grad(f, (0, 1), has_aux=True)}
    function = gradients[PASSES[what]](loss)
    began, user = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    made = jax.jit(lambda variables, cloud: function(cloud.xyz, variables, cloud)).lower(variables, cloud).compile()
    row = {
        "what": what,
        "library": "dyn_jax",
        "points": len(cloud.xyz),
        "voxels": capacity.levels[0],
        "GFLOP": 2e-9 * PASSES[what] * float(made(variables, cloud)[1][0]),
        "compile s": time.perf_counter() - began,
        "compile user s": resource.getrusage(resource.RUSAGE_SELF).ru_utime - user,
        "temporary MB": made.memory_analysis().temp_size_in_bytes / 2**20,
    }
    return lambda: jax.block_until_ready(made(variables, cloud)), row


def dense(repeats: int) -> dict:
    """A product of dense matrices of the network's middle widths."""
    a, b = jnp.ones((2048, 512)), jnp.ones((512, 512))
    product = jax.jit(lambda a, b: a @ b)
    row = {"what": "dense product 2048 x 512 x 512", "library": "dyn_jax", "GFLOP": 2e-9 * 2048 * 512 * 512}
    return row | timed(lambda: jax.block_until_ready(product(a, b)), 20 * repeats)


def beside_spconv(path: str, repeats: int) -> list[dict]:
    """Ours, then spconv's, one after the other in every round."""
    cloud = cloud_of(path)
    runs, rows = {}, []
    for what in PASSES:
        runs[what], row = compiled(cloud, what)
        rows.append(row)
    net = networks.create(NETWORK)
    if isinstance(net.voxel_size, sparse3d.Cylinder):  # a toy has none
        points = sparse3d.partition(cloud, net.voxel_size)
        peer = _spconv_cylinder3d.forward_and_backward(np.array(points.features), np.array(points.cells), 20)
        if peer is not None:
            runs["peer"] = peer
            rows.append({"what": "forward + all gradients", "library": "spconv, 1 thread", "GFLOP": rows[-1]["GFLOP"]})
    samples = _turns.in_turns(runs, repeats)
    for row, taken in zip(rows, samples.values()):
        users = sorted(sample.user for sample in taken)
        row |= {"user s": float(np.median(users)), "lowest user s": users[0]}
        row |= {"wall s": float(np.median(_turns.walls(taken)))}
    return rows


def growth(path: str, repeats: int) -> list[dict]:
    """The attack's gradient on 5,000 points and more of one scan."""
    rows = []
    for points in GROWTH:
        run, row = compiled(cloud_of(path, points), "forward + gradient by coordinates")
        rows.append(row | {"what": "growth: forward + gradient by coordinates"} | timed(run, repeats))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", required=True, help="a .bin file of KITTI")
    parser.add_argument("--large", help="another, of which more and more points are taken (minutes)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default=None)
    arguments = parser.parse_args()
    rows = [*beside_spconv(arguments.scan, arguments.repeats), dense(arguments.repeats)]
    if arguments.large:
        rows += growth(arguments.large, arguments.repeats)
    for row in rows:
        row |= {
            "GFLOP per user s": row["GFLOP"] / max(row["user s"], 1e-9),
            "wanted user s": WANTED.get(row["what"]) if row["library"] == "dyn_jax" else None,
        }
        row |= {"peak process MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}
        print(json.dumps(row), flush=True)
    if arguments.output:
        facts = {"network": NETWORK, "exponent of the growth": exponent(rows)}
        _record.write(arguments.output, rows, arguments=arguments, seed=0, packages=("torch", "spconv"), **facts)


def exponent(rows: list[dict]) -> float | None:
    """Of the least user seconds as a power of the work, which grows with voxels and neighbours; 1: linear."""
    found = [(row["GFLOP"], row["lowest user s"]) for row in rows if row["what"].startswith("growth")]
    if len(found) < 2:
        return None
    work, seconds = np.log(np.maximum(np.array(found), 1e-9)).T
    return round(float(np.polyfit(work, seconds, 1)[0]), 3)


if __name__ == "__main__":
    main()
