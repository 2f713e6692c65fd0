"""Six attacks of images on a point cloud: the runner takes a `PointCloud` where it takes images; eps is in metres.

python examples/attack_points.py [POINTS] [STEPS] [NAME ...]
"""

import sys
from functools import partial

import jax

import dyn_jax
from dyn_jax import attacks, metrics, sparse3d
from dyn_jax.datasets import rooms
from dyn_jax.occupancy import voxel

points = int(sys.argv[1]) if len(sys.argv) > 1 else 12288
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 10
net, variables = dyn_jax.networks.pretrained("minkunet-rooms")
scene = rooms("test", 1, points=points)[0]
cloud = sparse3d.point_cloud(scene.xyz, scene.colours - 0.5)
size = partial(sparse3d.capacity_for, cloud, net.voxel_size, net.levels, slack=2.5)
hard = partial(net.apply, variables, capacity=size())
chosen = {
    "PGD": attacks.pgd(0.05, 0.01, steps),
    "APGD": attacks.apgd(0.05, steps),
    "MI-FGSM": attacks.mi_fgsm(0.05, 0.01, steps),
    "C&W": attacks.carlini_wagner(steps=steps, search_steps=1),
    "GradAuto": attacks.grad_auto(steps=steps, learning_rate=0.005, eps=0.05),
    "ILFO": attacks.ilfo(steps=steps, learning_rate=0.005, eps=0.05),
}
for name in sys.argv[3:] or chosen:
    attack = chosen[name]  # it says how far a point may get in a step, and so which empty voxels need room
    soft = partial(net.apply, variables, occupancy=voxel.lgm(), capacity=size(reach=attack.reach))
    run = jax.jit(
        lambda cloud, labels, key, attack=attack, soft=soft: attack(soft, cloud, labels, victim=hard, key=key)
    )
    result = run(cloud, scene.labels, jax.random.key(0))
    rise = metrics.increase(result.trace_clean, result.trace_adversarial).mean()
    print(f"{name}: accuracy {metrics.robust_accuracy(result):.3f}, work {rise:+.1%}, overflow {result.overflow.any()}")
