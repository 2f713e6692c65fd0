"""Every member of every family, small: what the shared properties run over."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, objectives, occupancy
from dyn_jax.gates import ChannelGate, FeedForwardGate, GlobalHalting, RecurrentGate, SpatialGate, SpatialHalting
from dyn_jax.networks import moe, rdi, sact
from dyn_jax.networks.adavit import AdaViT
from dyn_jax.networks.avit import AViT
from dyn_jax.networks.cylinder3d import Cylinder3D
from dyn_jax.networks.dynconv import DynConv
from dyn_jax.networks.evit import EViT
from dyn_jax.networks.manidp import ManiDP
from dyn_jax.networks.minkfcnn import MinkowskiFCNN
from dyn_jax.networks.minkunet import MinkUNet
from dyn_jax.networks.rdi import RDITrunk
from dyn_jax.networks.resnet import ResNet
from dyn_jax.networks.sact import SACT
from dyn_jax.networks.sdn import SDN
from dyn_jax.networks.sdn_mobilenet import MobileNetTrunk
from dyn_jax.networks.sdn_resnet import ResNetTrunk
from dyn_jax.networks.sdn_vgg import VggTrunk
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.networks.sparse import SparseResNet
from dyn_jax.networks.vmoe import VMoE
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d import Cylinder
from dyn_jax.types import Output, PointCloud, Trace, UnitTrace

BATCH, CLASSES = 3, 5

ALL_OCCUPANCIES = {
    "hard": occupancy.hard(),
    "sigmoid": occupancy.sigmoid(10.0),
    "straight_through": occupancy.straight_through(10.0),
    "bernoulli": occupancy.bernoulli(),
    "gumbel_sigmoid": occupancy.gumbel_sigmoid(2.0),
    "gumbel_sigmoid without noise": occupancy.gumbel_sigmoid(2.0, noise=False),
}

ALL_RELATIONS = {
    "hard": voxel.hard(),
    "sigmoid": voxel.sigmoid(10.0),
    "bilinear": voxel.bilinear(),
    "rbf": voxel.rbf(),
    "straight_through": voxel.straight_through(),
}

_MAP = (8, 8, 4)
ALL_GATES: dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = {
    "feed forward 1": (FeedForwardGate(1), _MAP, ()),
    "feed forward 2": (FeedForwardGate(2), _MAP, ()),
    "recurrent": (RecurrentGate(6), (6,), ()),
    "spatial": (SpatialGate(), _MAP, (8, 8)),
    "spatial, strided": (SpatialGate(2), _MAP, (4, 4)),
    "channel": (ChannelGate(6, 3), _MAP, (6,)),
    "halting of images": (GlobalHalting(), _MAP, ()),
    "halting of positions": (SpatialHalting(), _MAP, (8, 8)),
}
"""Gate, shape of an example's features, shape of its scores."""


def gate_scores(gate: nn.Module, variables, x: jax.Array) -> jax.Array:
    """What a network makes of a gate: the scores [batch, *elements] (of the halting ones, what they add up)."""
    if isinstance(gate, RecurrentGate):
        return gate.apply(variables, (0.1 * x, 0.2 * x), x)[1]
    result = gate.apply(variables, x)
    return getattr(result, "score", result)


_SMALL = {"depths": (1, 2), "widths": (4, 8), "num_classes": CLASSES}
_SKIPNET = {**_SMALL, "image_size": 16}
_IMAGENET = {**_SMALL, "stem": "imagenet", "image_size": 32}
_IMAGENET_PLAIN = {**_SMALL, "stem": "imagenet"}

ALL_NETWORKS: dict[str, nn.Module] = {
    "resnet A": ResNet(shortcut="A", **_SMALL),
    "resnet B": ResNet(shortcut="B", **_SMALL),
    "resnet bottleneck": ResNet(block="bottleneck", shortcut="B", **_SMALL),
    "resnet imagenet": ResNet(shortcut="B", **_IMAGENET_PLAIN),
    "sparse A": SparseResNet(**_SMALL),
    "sparse B": SparseResNet(shortcut="B", **_SMALL),
    "skipnet rnn rl": SkipNet(**_SKIPNET),
    "skipnet rnn sp": SkipNet(policy="sp", **_SKIPNET),
    "skipnet ff1": SkipNet(gate="ff1", policy="sp", **_SKIPNET),
    "skipnet ff2": SkipNet(gate="ff2", **_SKIPNET),
    "skipnet imagenet bottleneck": SkipNet(block="bottleneck", **_IMAGENET),
    "dynconv": DynConv(**_SMALL),
    "dynconv bottleneck": DynConv(block="bottleneck", **_SMALL),
    "dynconv imagenet bottleneck": DynConv(block="bottleneck", **_IMAGENET_PLAIN),
}
ALL_NETWORKS |= {
    "manidp": ManiDP(**_SMALL),
    "manidp imagenet": ManiDP(shortcut_norm=True, **_IMAGENET_PLAIN),
    "sact": SACT(depths=(2, 1), widths=(4, 8), num_classes=CLASSES),
    "act": SACT(mode="act", depths=(2, 1), widths=(4, 8), num_classes=CLASSES),
    "sact imagenet": sact.imagenet(50, depths=(2, 1), widths=(2, 4), num_classes=CLASSES),
    "sdn vgg": SDN(VggTrunk((4,) * 13, (6, 5)), (1, 3, 5, 6, 8, 9), 0.3, linear_init="small", num_classes=CLASSES),
    "sdn resnet": SDN(ResNetTrunk((2, 2), (4, 8)), (0, 2), 0.4, image_size=16, num_classes=CLASSES),
    "rdi": SDN(RDITrunk((2, 2, 2), (4, 8, 8)), (0, 3), 1.5, rdi.NATS, "last", num_classes=CLASSES, image_size=16),
    "moe": moe.digits(depths=(1, 1), widths=(4, 8), stem_width=4, router=((1,), (4,)), num_classes=CLASSES),
    "vmoe": VMoE(width=12, depth=2, mlp_width=16, moe_layers=(1,), num_classes=CLASSES, image_size=16),
    "sdn mobilenet": SDN(MobileNetTrunk(4, (4, 8, 8), (1, 2, 1)), (0, 1), 0.4, image_size=16, num_classes=CLASSES),
}
_TOKENS = {"image_size": 16, "patch": 4, "width": 8, "heads": 2, "num_classes": CLASSES}
ALL_NETWORKS |= {
    "avit": AViT(depth=3, gate_scale=3.0, gate_center=2.0, **_TOKENS),
    "evit": EViT(keep=(0.5, 1, 0.5), **_TOKENS),
    "evit fused": EViT(keep=(0.5, 0.7), fuse=True, **_TOKENS),
}
ALL_NETWORKS["adavit"] = AdaViT(depth=2, **_TOKENS)


CLOUD_NETWORKS: dict[str, nn.Module] = {
    "minkunet": MinkUNet((4,) * 8, (1,) * 8, num_classes=CLASSES, stem_features=4, stem_size=3, voxel_size=0.2),
    "minkfcnn": MinkowskiFCNN((4,) * 5, 8, 8, num_classes=CLASSES, voxel_size=0.2),
    "cylinder3d": Cylinder3D(Cylinder(grid=(200, 24, 24)), 2, (8, 4), 4, CLASSES),
}


def image_size(net: nn.Module) -> int:
    """Height and width that fit `net`."""
    return getattr(net, "image_size", None) or (32 if net.stem == "imagenet" else 16)


def some_images(size: int, batch: int = BATCH, seed: int = 0) -> jax.Array:
    """Random images [batch, size, size, 3] in [0, 1]."""
    return jax.device_put(np.random.default_rng(seed).uniform(size=(batch, size, size, 3)).astype(np.float32))


def variables_for(net: nn.Module, size: int, seed: int = 1):
    """Random variables from the shapes alone (compiling ``net.init`` takes many times longer than using it)."""
    return drawn(jax.eval_shape(net.init, jax.random.key(0), some_images(size)), seed)


def drawn(shapes, seed: int = 1):
    """Random numbers of these shapes: scales near 1, variances positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind, noise = path[-1].key, rng.normal(size=leaf.shape)
        if kind in ("scale", "var"):
            values = 1 + 0.1 * np.abs(noise)
        elif kind == "thre":
            values = 0.1 * np.abs(noise)
        elif kind == "alpha":
            values = rng.random(leaf.shape)
        elif kind in ("bias", "mean") or kind.startswith("bias_"):
            values = 0.1 * noise
        else:
            values = noise * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return jax.device_put(values.astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def variables_of(name: str):
    """Variables of ``ALL_NETWORKS[name]``: no normalisation is the identity, no bias is zero."""
    net = ALL_NETWORKS[name]
    return variables_for(net, image_size(net))


@dataclasses.dataclass(frozen=True)
class AttackCase:
    """How to make an attack from eps, and what it promises.

    Attributes:
      make: eps -> `Attack`; attacks that minimise a distance ignore it.
      eps: a radius at which it does something on `tiny_forward`.
      targeted: it takes targets.
      coupled: documented to depend on the other examples of the batch.
      bounded: eps 0 leaves the clean value unchanged.
      clouds: it attacks point clouds too.
    """

    make: Callable
    eps: float = 0.1
    targeted: bool = True
    coupled: bool = False
    bounded: bool = True
    clouds: bool = True


def _release(factory: Callable, steps: int = 3) -> Callable:
    return lambda eps: factory(eps, 0.03, steps)


ALL_ATTACKS = {
    "fgsm": AttackCase(attacks.fgsm),
    "fgsm l2": AttackCase(lambda eps: attacks.fgsm(eps, norm="l2"), eps=1.0),
    "bim": AttackCase(lambda eps: attacks.bim(eps, 0.03, 3)),
    "bim l2 margin": AttackCase(lambda eps: attacks.bim(eps, 0.3, 3, norm="l2", objective="margin"), eps=1.0),
    "bim all": AttackCase(lambda eps: attacks.bim(eps, 0.03, 3, attack_all=True)),
    "bim release": AttackCase(_release(attacks.lgm.bim)),
    "pgd": AttackCase(lambda eps: attacks.pgd(eps, 0.03, 3)),
    "pgd restarts": AttackCase(lambda eps: attacks.pgd(eps, 0.03, 2, restarts=3, objective="dlr")),
    "pgd l2": AttackCase(lambda eps: attacks.pgd(eps, 0.3, 3, norm="l2"), eps=1.0),
    "pgd release": AttackCase(_release(attacks.lgm.pgd)),
    "mi_fgsm": AttackCase(lambda eps: attacks.mi_fgsm(eps, 0.03, 3)),
    "mi_fgsm l2": AttackCase(lambda eps: attacks.mi_fgsm(eps, 0.3, 3, norm="l2"), eps=1.0),
    "mi_fgsm release": AttackCase(_release(attacks.lgm.mi_fgsm), coupled=True),
    "apgd ce": AttackCase(lambda eps: attacks.apgd(eps, 6)),
    "apgd dlr": AttackCase(lambda eps: attacks.apgd(eps, 6, objective="dlr", restarts=2)),
    "apgd l2": AttackCase(lambda eps: attacks.apgd(eps, 6, norm="l2"), eps=1.0),
    "apgd_t": AttackCase(lambda eps: attacks.apgd_t(eps, 4, target_classes=2), targeted=False),
    "apgd_t l2": AttackCase(lambda eps: attacks.apgd_t(eps, 4, target_classes=2, norm="l2"), eps=1.0, targeted=False),
    "apgd l1": AttackCase(
        lambda eps: attacks.apgd(eps, 10, norm="l1", course=attacks.Course((3.0, 2.0, 1.0))), eps=4.0, clouds=False
    ),
    "carlini_wagner": AttackCase(
        lambda eps: attacks.carlini_wagner(steps=8, search_steps=2, initial_constant=10.0, learning_rate=0.05),
        bounded=False,
    ),
    "early_attack": AttackCase(
        lambda eps: attacks.early_attack(alpha=0.1, steps=80, learning_rate=0.1),
        targeted=False,
        bounded=False,
        clouds=False,
    ),
    **{
        f"deepsloth {norm}": AttackCase(
            lambda eps, norm=norm, rest=rest: attacks.deepsloth(norm, eps=eps, steps=12, **rest),
            eps=eps,
            targeted=False,
            clouds=False,
        )
        for norm, eps, rest in (
            ("linf", 0.1, {"step_size": 0.03}),
            ("l2", 1.0, {"batch": 1}),
            ("l1", 4.0, {"sparsity": 0.8}),
        )
    },
    "grad_auto": AttackCase(lambda eps: attacks.grad_auto(steps=8, learning_rate=0.2), targeted=False, bounded=False),
    "ilfo": AttackCase(lambda eps: attacks.ilfo(steps=8, learning_rate=0.2), targeted=False, bounded=False),
    "grad_mdm": AttackCase(
        lambda eps: attacks.grad_mdm(steps=12, learning_rate=0.2, even=False), targeted=False, bounded=False
    ),
    "bim energy": AttackCase(
        lambda eps: attacks.bim(eps, 0.03, 3, objective=objectives.energy(), attack_all=True), targeted=False
    ),
    "slowformer": AttackCase(
        lambda eps: attacks.slowformer((2, 2), 4),
        targeted=False,
        coupled=True,
        bounded=False,
        clouds=False,
    ),
    "lgm_carlini_wagner": AttackCase(lambda eps: attacks.lgm_carlini_wagner(eps, 0.03, 3)),
    "lgm_carlini_wagner release": AttackCase(_release(attacks.lgm.carlini_wagner)),
    "lgm_auto_step": AttackCase(lambda eps: attacks.lgm_auto_step(eps, 0.03, 5), coupled=True),
    "lgm_auto_step release": AttackCase(_release(attacks.lgm.auto_step), coupled=True),
    "grad_auto eps": AttackCase(lambda eps: attacks.grad_auto(eps=eps, steps=6, learning_rate=0.05), targeted=False),
    "fab": AttackCase(lambda eps: attacks.fab(eps, 4, restarts=2), targeted=False),
    "fab_t": AttackCase(lambda eps: attacks.fab_t(eps, 6, target_classes=2), targeted=False),
    "fab_t l2": AttackCase(
        lambda eps: attacks.fab_t(eps, 6, target_classes=2, norm="l2"), eps=1.0, targeted=False, clouds=False
    ),
    "fab_t l1": AttackCase(
        lambda eps: attacks.fab_t(eps, 6, target_classes=2, norm="l1"), eps=6.0, targeted=False, clouds=False
    ),
    "fmn": AttackCase(lambda eps: attacks.fmn(10, step_size=(0.3, 0.01)), bounded=False),
    "fmn l2": AttackCase(lambda eps: attacks.fmn(10, step_size=(0.3, 0.01), norm="l2"), bounded=False),
    "ddn": AttackCase(lambda eps: attacks.ddn(10), bounded=False),
    "square": AttackCase(lambda eps: attacks.square(eps, 20), clouds=False),
    "square l2": AttackCase(lambda eps: attacks.square(eps, 20, norm="l2"), eps=1.0, clouds=False),
    "square l1": AttackCase(lambda eps: attacks.square(eps, 20, norm="l1"), eps=4.0, clouds=False),
    "rays": AttackCase(lambda eps: attacks.rays(eps, 60), eps=0.3),
    "spsa": AttackCase(lambda eps: attacks.spsa(eps, 6, samples=4, learning_rate=0.03)),
    "universal": AttackCase(lambda eps: attacks.universal(eps, 0.03, 3), coupled=True, clouds=False),
    "class_universal": AttackCase(
        lambda eps: attacks.class_universal(eps, 0.3, 3, norm="l2"), eps=1.0, coupled=True, clouds=False
    ),
    "patch": AttackCase(lambda eps: attacks.patch((2, 3), 0.2, 4), coupled=True, bounded=False, clouds=False),
}
POINT_ATTACKS = {
    "point_bim": AttackCase(lambda eps: attacks.point_bim(eps, 0.03, 3)),
    "point_bim release": AttackCase(_release(attacks.lgm.point_bim)),
    "point_noise": AttackCase(attacks.point_noise),
    "point_pert": AttackCase(lambda eps: attacks.point_pert(eps, 6, learning_rate=0.03, search_steps=2)),
    "knn_pert": AttackCase(lambda eps: attacks.knn_pert(eps, 6, learning_rate=0.03)),
    "point_drop": AttackCase(lambda eps: attacks.point_drop(4, 2, attack_all=False), bounded=False),
}
"""What only point clouds have."""


SOFT = occupancy.sigmoid(5.0)


def tiny_forward(x: jax.Array, how: Callable = SOFT) -> Output:
    """A smooth network of one gated unit and two exits on images [batch, 4, 4, 3]; quick to compile."""
    rng = np.random.default_rng(3)
    shapes = ((48, 6), (6, 1), (6, 6), (6, CLASSES), (6, CLASSES))
    into, gate, unit, out, early = (jnp.asarray(rng.normal(size=s), x.dtype) for s in shapes)
    hidden = jnp.tanh((x.reshape(-1, 48) - 0.5) @ into)
    first = hidden @ early
    score = (hidden @ gate)[:, 0]
    o = how(score)
    hidden = o[:, None] * jnp.tanh(hidden @ unit) + (1 - o[:, None]) * hidden
    logits = 2 * hidden @ out
    units = (UnitTrace(score, o, 36, name="unit", extras={"probability": jax.nn.sigmoid(score)}),)
    return Output(logits, Trace(units, 48 * 6 + 6 + 6 * CLASSES, exits=jnp.stack([first, logits], axis=1)))


tiny_victim = functools.partial(tiny_forward, how=occupancy.hard())


@functools.cache
def tiny_problem(batch: int = 4):
    """(images, labels, targets) for `tiny_forward`: the last image is misclassified to begin with."""
    images = some_images(4, batch, seed=4)
    predicted = jnp.argmax(tiny_victim(images).logits, axis=1)
    labels = predicted.at[-1].add(1) % CLASSES
    return images, labels, (labels + 2) % CLASSES


POINTS = 10


def tiny_cloud_forward(cloud: PointCloud, how: Callable = SOFT) -> Output:
    """A smooth classifier of clouds with one gated unit per cloud, on the mean and the spread of its points."""
    rng = np.random.default_rng(5)
    into, gate, unit, out = (jnp.asarray(rng.normal(size=s), cloud.xyz.dtype) for s in ((6, 6), (6, 1), (6, 6), (6, 5)))
    batch = jnp.zeros(len(cloud.valid), int) if cloud.batch is None else cloud.batch
    own = (batch[None] == jnp.arange(cloud.clouds)[:, None]) & cloud.valid[None]
    weight = own.astype(cloud.xyz.dtype) / jnp.sum(own, axis=1, keepdims=True)
    features = jnp.concatenate([weight @ cloud.xyz, weight @ jnp.sin(3 * cloud.xyz)], axis=1)
    hidden = jnp.tanh(2 * features @ into)
    score = (hidden @ gate)[:, 0]
    o = how(score)
    hidden = o[:, None] * jnp.tanh(hidden @ unit) + (1 - o[:, None]) * hidden
    units = (UnitTrace(score, o, 36, name="unit", extras={"probability": jax.nn.sigmoid(score)}),)
    return Output(2 * hidden @ out, Trace(units, 36))


tiny_cloud_victim = functools.partial(tiny_cloud_forward, how=occupancy.hard())


@functools.cache
def tiny_clouds(clouds: int = 4):
    """(clouds, labels, targets) for `tiny_cloud_forward`: the last cloud is misclassified to begin with."""
    xyz = jnp.asarray(np.random.default_rng(6).uniform(size=(clouds * POINTS, 3)), jnp.float32)
    valid = jnp.arange(clouds * POINTS) % POINTS < POINTS - 1
    batch = jnp.arange(clouds * POINTS, dtype=jnp.int32) // POINTS
    cloud = PointCloud(xyz, jnp.zeros((clouds * POINTS, 1)), valid, batch, clouds)
    predicted = jnp.argmax(tiny_cloud_victim(cloud).logits, axis=1)
    labels = predicted.at[-1].add(1) % CLASSES
    return cloud, labels, (labels + 2) % CLASSES


def domain_problem(domain: str, examples: int = 4):
    """(forward, victim, inputs, labels, targets) of a domain's tiny network."""
    if domain == "pixels":
        return (tiny_forward, tiny_victim, *tiny_problem(examples))
    return (tiny_cloud_forward, tiny_cloud_victim, *tiny_clouds(examples))


GRID = [(name, "pixels") for name in ALL_ATTACKS]
GRID += [(name, "coordinates") for name, case in {**ALL_ATTACKS, **POINT_ATTACKS}.items() if case.clouds]
"""Every attack on every domain that it attacks."""


def attack_case(name: str) -> AttackCase:
    return ALL_ATTACKS.get(name) or POINT_ATTACKS[name]
