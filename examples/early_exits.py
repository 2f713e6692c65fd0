"""Early Attack: the last exit keeps its answer while the early exits lose their confidence.

python examples/early_exits.py [WEIGHTS]    (made by `dyn-jax train sdn-vgg16-digits --output WEIGHTS`)

Without weights a narrow network with random ones and a low threshold shows the mechanics within seconds.
"""

import sys
from functools import partial

import jax

import dyn_jax
from dyn_jax import attacks, metrics, occupancy
from dyn_jax.datasets import digits
from dyn_jax.networks.checkpoint import load_variables

images, labels = digits("test").images[:8], digits("test").labels[:8]
if len(sys.argv) > 1:
    net, steps = dyn_jax.networks.create("sdn-vgg16-digits"), 200
    variables = load_variables(sys.argv[1])
else:
    fields = {"widths": (8,) * 13, "dense_widths": (16, 16), "linear_init": "torch", "threshold": 0.13}
    net, steps = dyn_jax.networks.create("sdn-vgg16-digits", **fields), 20
    variables = net.init(jax.random.key(0), images[:1])
forward = partial(net.apply, variables, occupancy=occupancy.hard())
attack = attacks.early_attack(alpha=1.0, steps=steps, learning_rate=0.05)
run = jax.jit(lambda images, labels, key: attack(forward, images, labels, key=key, start=images))
result = run(images, labels, jax.random.key(0))
for name, trace in (("clean", result.trace_clean), ("attacked", result.trace_adversarial)):
    print(
        f"{name}: leaves at exit {metrics.exits.exit_index(trace)}, saves {metrics.exits.saved_macs(trace).mean():.0%}"
    )
