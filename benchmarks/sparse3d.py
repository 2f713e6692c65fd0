"""Sparse 3D convolution on a real scene: MinkUNet, and growth with the voxels.

    python -m benchmarks.sparse3d --scannet scene0000_00.bin [--growth] [--output FILE]

CPU seconds (user) are the measure, since the reference numbers were taken on busy machines; wall seconds stand beside
them. Every figure includes the kernel maps. ``--scannet``: float32 rows x y z r g b.
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

from benchmarks import _turns
from dyn_jax import networks, sparse3d
from experiments import _record

CLAIMED = {
    "MinkUNet34C forward": {"MinkowskiEngine 0.5.4": 2.8},
    "MinkUNet34C forward + input gradient": {"MinkowskiEngine 0.5.4": 7.2, "target": 2.5},
    "MinkUNet18A forward": {"MinkowskiEngine 0.5.4": 2.3},
    "MinkUNet18A forward + input gradient": {"MinkowskiEngine 0.5.4": 5.7},
}
"""User seconds of the peer, measured once on this kind of machine (2 threads; its backward pass always computes the
weight gradients)."""


def timed(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median wall and user seconds of `run` after one call to warm up."""
    samples = _turns.in_turns({"": run}, repeats)[""]
    user = [sample.user for sample in samples]
    wall = statistics.median(_turns.walls(samples))
    return {"wall s": wall, "user s": statistics.median(user), "lowest user s": min(user), "highest user s": max(user)}


def random_variables(net: object) -> dict:
    """Weights from the shapes; their values do not matter to the time."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), net.example_input())
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.03 * np.abs(rng.standard_normal(s.shape)), jnp.float32), shapes)


def minkunet(form: str, tensor: sparse3d.SparseTensor, repeats: int) -> list[dict]:
    """Forward, and forward with input gradient, of one network on one scene."""
    net = networks.create(f"minkunet-{form}-scannet")
    variables = random_variables(net)
    capacity = sparse3d.capacity_for(tensor, None, net.levels)

    def scores(variables: dict, features: jax.Array, tensor: sparse3d.SparseTensor) -> jax.Array:
        return net.apply(variables, tensor.replace(features=features), capacity=capacity).logits

    gradient = jax.grad(lambda f, v, t: jnp.sum(jax.nn.log_softmax(scores(v, f, t))[:, 0]))
    rows = []
    for name, function in (
        ("forward", lambda v, t: scores(v, t.features, t)),
        ("forward + input gradient", lambda v, t: gradient(t.features, v, t)),
    ):
        began = time.perf_counter()
        compiled = jax.jit(function).lower(variables, tensor).compile()
        compiling = time.perf_counter() - began
        row = {"what": f"MinkUNet{form.upper()} {name}", "voxels": int(tensor.valid.sum()), "compile s": compiling}
        row |= timed(lambda c=compiled: jax.block_until_ready(c(variables, tensor)), repeats)
        row["temporary MB"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        row["peak process MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        rows.append(row)
    return rows


FORMS = ("34c", "18a")
GROWTH = (5_000, 10_000, 20_000, 50_000, 100_000)


def growth(scene: np.ndarray, repeats: int) -> list[dict]:
    """MinkUNet14A forward with input gradient on 5,000 to 100,000 voxels: parts of the scene, or copies in a row."""
    whole = np.unique(np.floor(scene[:, :3] / 0.05).astype(np.int64), axis=0)
    rows = []
    for wanted in GROWTH:
        copies = -(-wanted // len(whole))
        tiled = [whole + np.array([400 * i, 0, 0]) for i in range(copies)]
        voxels = np.concatenate(tiled)
        voxels = voxels[np.lexsort(voxels.T[::-1])][:wanted]
        coordinates = np.concatenate([np.zeros((wanted, 1), np.int64), voxels], axis=1)
        features = np.random.default_rng(0).uniform(-0.5, 0.5, (wanted, 3)).astype(np.float32)
        row = minkunet("14a", sparse3d.from_numpy(coordinates, features), repeats)[1]
        row["microseconds per voxel"] = 1e6 * row["user s"] / wanted
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scannet", required=True, help="scene, float32 rows x y z r g b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", action="store_true", help="5,000 to 100,000 voxels too (minutes)")
    parser.add_argument("--output", default=None)
    arguments = parser.parse_args()
    rows: list[dict] = []
    scene = np.fromfile(arguments.scannet, np.float32).reshape(-1, 6)
    cells = np.floor(scene[:, :3] / np.float32(0.05)).astype(np.int32)
    coordinates = np.concatenate([np.zeros((len(cells), 1), np.int32), cells], axis=1)
    tensor = sparse3d.from_numpy(coordinates, scene[:, 3:] / np.float32(255) - np.float32(0.5))
    for form in FORMS:
        rows += minkunet(form, tensor, arguments.repeats)
    if arguments.growth:
        rows += growth(scene, arguments.repeats)
    for row in rows:
        row |= {"claimed user s": CLAIMED.get(row["what"])}
        print(json.dumps(row))
    if arguments.output:
        _record.write(arguments.output, rows, arguments=arguments, seed=0)


if __name__ == "__main__":
    main()
