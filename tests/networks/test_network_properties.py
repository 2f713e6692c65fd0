"""The shared properties over every member of every family."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ADAPTIVE_NETWORKS, ALL_NETWORKS, BATCH, CLASSES, image_size, some_images, variables_of

from dyn_jax import attacks, macs, metrics, occupancy
from dyn_jax.testing import check_attack, check_network


@pytest.mark.parametrize("name", ALL_NETWORKS)
def test_contract(name):
    net = ALL_NETWORKS[name]
    check_network(net, variables_of(name), some_images(image_size(net)))
