"""SlowFormer on an A-ViT: one patch, made on training images, keeps the tokens of other images from halting.

python examples/attack_tokens.py [IMAGES] [STEPS]
"""

import sys
from functools import partial

import jax

import dyn_jax
from dyn_jax import attacks, metrics
from dyn_jax.datasets import digits

count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 200
net, variables = dyn_jax.networks.pretrained("avit-digits")
forward = jax.jit(partial(net.apply, variables))
train, test = digits("train").images[:count], digits("test").images[:count]
attack = attacks.slowformer((8, 8), steps, mean_std=net.normalization)
result = jax.jit(partial(attack, forward))(train, key=jax.random.key(0))
patched = attacks.paste_at(test, result.adversarial[0, :8, :8])
before, after = forward(test).trace, forward(patched).trace
print("recovered share of the saved multiply-adds, unseen images", metrics.recovery(before, after))
