"""An attack on the routes: same cost, other experts. Then one on the load: every token to expert 0.

python examples/route_experts.py [IMAGES] [STEPS]
"""

import sys
from functools import partial

import jax

import dyn_jax
from dyn_jax import attacks, metrics, objectives
from dyn_jax.datasets import digits

count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
net, variables = dyn_jax.networks.pretrained("vmoe-digits")
forward = partial(net.apply, variables)
images = digits("test").images[:count]
for name, objective in {"routes": objectives.other_experts(), "load": objectives.expert_load(0)}.items():
    attack = attacks.bim("16/255", "2/255", steps, objective=objective, attack_all=True)
    result = jax.jit(lambda x, attack=attack: attack(forward, x))(images)
    before, after = result.trace_clean, result.trace_adversarial
    print(name, "intersection over union of the experts", metrics.expert_iou(before, after))
    print(name, "share of expert 0", [float(load[0]) for load in metrics.expert_load(after)])
    print(name, "multiply-adds", metrics.executed_macs(before).mean(), "->", metrics.executed_macs(after).mean())
