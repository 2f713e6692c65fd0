"""The shared properties over every member of every family."""

import pytest
from catalogue import ALL_NETWORKS, image_size, some_images, variables_of

from dyn_jax.testing import check_network


@pytest.mark.parametrize("name", ALL_NETWORKS)
def test_contract(name):
    net = ALL_NETWORKS[name]
    check_network(net, variables_of(name), some_images(image_size(net)))
