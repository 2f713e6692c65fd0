"""LGM table VI on a real ScanNet scene: sparse voxels and GFLOPs of one gradient by eps, FGM against LGM.

    python -m experiments.lgm_table6_scannet --scene scene0000_00.bin

The scene file holds float32 rows x y z r g b and has no labels, and no published weights were at hand: only the counts
are measured, of MinkUNet34C at 2 cm on the clean scene. They depend on coordinates, step and eps alone. The claimed
columns are means over the validation set and over the steps of an attack.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import metrics, networks, sparse3d
from dyn_jax.sparse3d.allocate import near_coordinates
from dyn_jax.types import PointCloud, Reach
from experiments import _run

NETWORK = "minkunet-34c-scannet"
STEPS = {0.005: 0.0025, 0.01: 0.01, 0.02: 0.01, 0.05: 0.01}  # eps -> the release's step sizes under LGM, metres
CLAIMED = {  # eps: (thousand voxels, GFLOPs) under FGM and LGM
    0.005: ((109.7643, 206.0266), (117.0876, 343.9244)),
    0.01: ((110.0546, 217.1055), (354.8085, 782.1737)),
    0.02: ((113.4829, 235.6582), (406.7601, 910.6529)),
    0.05: ((119.0037, 273.0027), (475.4461, 1075.9983)),
}


def gflops(coordinates: np.ndarray, net: nn.Module) -> float:
    """Twice the multiply-adds of the network on these voxels, in billions; its weights have no part in that."""
    tensor = sparse3d.from_numpy(coordinates, np.zeros((len(coordinates), 3), np.float32))
    capacity = sparse3d.capacity_for(tensor, None, net.levels)
    shapes = jax.eval_shape(net.init, jax.random.key(0), net.example_input())

    @jax.jit
    def work(tensor: sparse3d.SparseTensor) -> jax.Array:
        weights = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return metrics.executed_macs(net.apply(weights, tensor, capacity=capacity).trace)

    return 2e-9 * float(work(tensor)[0])


def rows_of(net: nn.Module, cloud: PointCloud) -> Iterator[dict]:
    known: dict[int, float] = {}
    for (eps, step), (number, name) in itertools.product(STEPS.items(), enumerate(("FGM", "LGM"))):
        reach = Reach(step) if name == "LGM" else None
        coordinates = np.unique(near_coordinates(cloud, net.voxel_size, reach), axis=0)
        if len(coordinates) not in known:
            known[len(coordinates)] = gflops(coordinates, net)
        row = {"eps (m)": eps, "gradient": name, "step (m)": step if reach else None}
        row |= {"thousand voxels": len(coordinates) / 1000, "GFLOPs": known[len(coordinates)]}
        yield row | dict(zip(("claimed thousand voxels", "claimed GFLOPs"), CLAIMED[eps][number]))


def main() -> None:
    parser = _run.parser(__doc__)
    parser.add_argument("--scene", required=True)
    how = parser.parse_args()
    scene, net = np.fromfile(how.scene, np.float32).reshape(-1, 6), networks.create(NETWORK)
    cloud = sparse3d.point_cloud(scene[:, :3], scene[:, 3:] / np.float32(255) - np.float32(0.5))
    facts = {"data": f"one real ScanNet scene, {len(scene)} points, clean", "network": NETWORK}
    facts |= {"voxel size (m)": net.voxel_size, "step (m)": list(STEPS.values())}
    _run.finish("lgm_table6_scannet", _run.shown(rows_of(net, cloud)), how, **facts)


if __name__ == "__main__":
    main()
