"""chex and the property checks of dyn_jax on a network and an attack of one's own.

python -m pytest examples/chex_property_test.py
"""

from functools import partial

import chex
import jax
import numpy as np

import dyn_jax
from dyn_jax import attacks, occupancy, testing

net, variables = dyn_jax.networks.pretrained("skipnet-digits")
forward = partial(net.apply, variables, occupancy=occupancy.hard())
images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)


def test_network():
    testing.check_network(net, variables, images)


def test_attack_is_traced_once():
    attack = attacks.bim("8/255", "2/255", steps=2)
    run = jax.jit(chex.assert_max_traces(lambda x, y: attack(forward, x, y).adversarial, n=1))
    for seed in range(2):
        adversarial = run(images, np.full(2, seed))
        chex.assert_equal_shape([adversarial, images])
        assert np.abs(adversarial - images).max() <= 8 / 255 + 1e-6
