"""Early Attack on a network with early exits: the last exit keeps its answer, the early ones lose their confidence.

The network is trained first (a minute on two cores with the default epochs). python examples/early_exits.py [EPOCHS]
"""

import sys
from functools import partial

import jax

import dyn_jax
from dyn_jax import attacks, metrics, occupancy
from dyn_jax.datasets import digits
from dyn_jax.training import sdn

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
net = dyn_jax.networks.create("sdn-mobilenet-digits")
variables = sdn.train_digits("sdn-mobilenet-digits", seed=0, epochs=epochs)
forward = partial(net.apply, variables, occupancy=occupancy.hard())
images, labels = digits("test").images[:20], digits("test").labels[:20]
attack = attacks.early_attack(alpha=1.0, steps=10 * epochs, learning_rate=0.05)
result = jax.jit(lambda images, labels, key: attack(forward, images, labels, key=key, start=images))(
    images, labels, jax.random.key(0)
)
clean, after = result.trace_clean, result.trace_adversarial
print("leaves at exit", metrics.exits.exit_index(clean).mean(), "->", metrics.exits.exit_index(after).mean())
print("saved share of the work", metrics.exits.saved_macs(clean).mean(), "->", metrics.exits.saved_macs(after).mean())
