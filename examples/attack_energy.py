"""An attack on the energy: GradAuto keeps the tokens of an A-ViT from halting. No labels are needed.

python examples/attack_energy.py [IMAGES] [STEPS]
"""

import sys
from functools import partial

import jax

import dyn_jax
from dyn_jax import attacks, metrics, occupancy
from dyn_jax.datasets import digits

count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 100
net, variables = dyn_jax.networks.pretrained("avit-digits")
forward = partial(net.apply, variables, occupancy=occupancy.hard())
images = digits("test").images[:count]
attack = attacks.grad_auto(steps=steps)
result = jax.jit(lambda images: attack(forward, images))(images)
print("recovered share of the saved multiply-adds", metrics.recovery(result.trace_clean, result.trace_adversarial))
print("lowest PSNR in dB", metrics.psnr(result.adversarial, images).min())
