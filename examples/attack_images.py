"""FGM against LGM: the same jitted attack, through hard and through soft gates, judged on the deployed network.

python examples/attack_images.py [IMAGES]
"""

import sys
from functools import partial

import jax

import dyn_jax
from dyn_jax import attacks, metrics, occupancy
from dyn_jax.datasets import digits

count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
net, variables = dyn_jax.networks.pretrained("dynconv-digits")
images, labels = digits("test").images[:count], digits("test").labels[:count]
victim = partial(net.apply, variables, occupancy=occupancy.hard())
attack = attacks.bim(eps="8/255", step_size="2/255", steps=10)


@jax.jit
def run(gate):
    return attack(partial(net.apply, variables, occupancy=gate), images, labels, victim=victim)


results = {"FGM": run(occupancy.hard()), "LGM": run(occupancy.sigmoid(lam=3.0))}
for name, result in results.items():
    change = metrics.architecture_change(result.trace_clean, result.trace_adversarial)
    macs = metrics.executed_macs(result.trace_adversarial).mean()
    print(f"{name}: accuracy {metrics.robust_accuracy(result):.2f}, units changed {change:.3f}, work {macs:.3g}")
