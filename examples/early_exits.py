"""A slowdown inside a ball, and Early Attack: the last exit keeps its answer, the early exits lose their confidence.

python examples/early_exits.py [WEIGHTS]    (made by `dyn-jax train sdn-vgg16-digits --output WEIGHTS`)

Without weights a narrow network with random ones and a low threshold shows the slowdown only.
"""

import sys
from functools import partial

import jax

import dyn_jax
from dyn_jax import attacks, metrics, objectives, occupancy
from dyn_jax.datasets import digits
from dyn_jax.networks.checkpoint import load_variables

images, labels = digits("test").images[:8], digits("test").labels[:8]
chosen = {"slowdown": attacks.bim("16/255", "4/255", steps=10, objective=objectives.energy(), attack_all=True)}
if len(sys.argv) > 1:
    net = dyn_jax.networks.create("sdn-vgg16-digits")
    variables = load_variables(sys.argv[1])
    chosen["Early Attack"] = attacks.early_attack(alpha=1.0, steps=200, learning_rate=0.05)
else:
    fields = {"widths": (8,) * 13, "dense_widths": (16, 16), "linear_init": "torch", "threshold": 0.15}
    net = dyn_jax.networks.create("sdn-vgg16-digits", **fields)
    variables = net.init(jax.random.key(0), images[:1])
forward = partial(net.apply, variables, occupancy=occupancy.hard())
for name, attack in chosen.items():
    run = jax.jit(lambda x, y, key, attack=attack: attack(forward, x, y, key=key, start=x))
    result = run(images, labels, jax.random.key(0))
    before, after = (metrics.exits.exit_index(trace) for trace in (result.trace_clean, result.trace_adversarial))
    print(f"{name}: leaves at exit {before} -> {after}, saves {metrics.exits.saved_macs(result.trace_adversarial)}")
