"""What attacks rely on in every network of clouds of the catalogue."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import CLOUD_NETWORKS, drawn
from compiled import quick_jit

import dyn_jax
from dyn_jax import metrics
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d import capacity_for
from dyn_jax.sparse3d.passage import Passage
from dyn_jax.types import PointCloud, Reach

POINTS = 40


def two_clouds():
    xyz = jnp.asarray(np.random.default_rng(0).uniform(size=(2 * POINTS, 3)), jnp.float32)
    batch = jnp.arange(2 * POINTS, dtype=jnp.int32) // POINTS
    return PointCloud(xyz, xyz - 0.5, jnp.ones(2 * POINTS, bool), batch, 2)


@pytest.mark.parametrize("name", CLOUD_NETWORKS)
def test_clouds_side_by_side_are_each_alone(name):
    net, cloud, reach = CLOUD_NETWORKS[name], two_clouds(), Reach(0.05)
    channels = net.example_input().features.shape[1]
    cloud = cloud.replace(features=cloud.features[:, :channels])
    variables = drawn(jax.eval_shape(net.init, jax.random.key(0), net.example_input()))
    capacity = capacity_for(cloud, net.voxel_size, net.levels, reach=reach)

    @quick_jit
    def run(cloud):
        return net.apply(variables, cloud, occupancy=voxel.lgm(), reach=reach, capacity=capacity)

    output = run(cloud)
    assert not output.trace.overflow
    executed = metrics.executed_macs(output.trace)
    assert executed.shape == (2,) and all(unit.score.shape[0] == 2 for unit in output.trace.units)
    for number in (0, 1):
        mine = np.asarray(cloud.batch) == number
        alone = cloud.replace(valid=jnp.asarray(mine))
        single = run(alone)
        rows = mine if output.logits.shape[0] == 2 * POINTS else np.arange(2) == number
        np.testing.assert_allclose(single.logits[rows], output.logits[rows], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(metrics.executed_macs(single.trace)[number], executed[number], rtol=1e-5)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", [*CLOUD_NETWORKS, "cylinder3d own"])
def test_the_kernel_maps_that_a_network_names_are_those_its_layers_use(name, soft):
    """Of those between two levels, a soft occupancy uses some that no layer does."""
    net = CLOUD_NETWORKS.get(name) or dyn_jax.networks.create("cylinder3d-streets", neighbourhoods="own")
    cloud, reach = two_clouds(), Reach(0.05)
    cloud = cloud.replace(features=cloud.features[:, : net.example_input().features.shape[1]])
    capacity = capacity_for(cloud, net.voxel_size, net.levels, reach=reach)
    used, named, plain = [], [], Passage.pairs

    def pairs(self, source, target, kernel_size):
        named.append(set(self.maps))
        key = (min(source, target), max(source, target), *np.broadcast_to(kernel_size, 3).tolist())
        used.append((*key[:2], key[2:]))
        return plain(self, source, target, kernel_size)

    how = {"occupancy": voxel.lgm(), "reach": reach} if soft else {}
    variables = jax.eval_shape(net.init, jax.random.key(0), net.example_input())
    with mock.patch.object(Passage, "pairs", pairs):
        jax.eval_shape(lambda v: net.apply(v, cloud, capacity=capacity, **how).logits, variables)
    assert set(used) == named[0]
