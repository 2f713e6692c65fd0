"""Names -> networks. ``<family>-<variant>-<dataset>``, lower case."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn

from dyn_jax import _validate
from dyn_jax.networks import (
    adavit,
    avit,
    cylinder3d,
    dynconv,
    evit,
    manidp,
    minkfcnn,
    minkunet,
    moe,
    rdi,
    resnet,
    sact,
    sdn_mobilenet,
    sdn_resnet,
    sdn_vgg,
    skipnet,
    sparse,
    vmoe,
)
from dyn_jax.nn import IMAGENET_MEAN_STD

# ``cnn-*`` are the static twins of ``sdn-*``: the same trunk without internal classifiers.
_SDN_VARIANTS = {"vgg16": sdn_vgg.vgg16, "resnet56": sdn_resnet.resnet56, "mobilenet": sdn_mobilenet.mobilenet}
_REGISTRY: dict[str, Callable[[], nn.Module]] = {
    **{f"resnet-{d}-cifar10": partial(resnet.cifar, d) for d in (20, 32, 44, 56, 110, 1202)},
    **{f"resnet-{d}-imagenet": partial(resnet.imagenet, d) for d in (18, 34, 50, 101, 152)},
    **{
        f"skipnet-{policy}-{gate}-{d}-cifar10": partial(skipnet.cifar, d, policy, gate)
        for policy in ("sp", "rl")
        for gate in ("rnn", "ff")
        for d in (38, 74, 110, 152)
    },
    **{
        f"skipnet-{policy}-rnn-{d}-imagenet": partial(skipnet.imagenet, d, policy)
        for policy in ("sp", "rl")
        for d in (18, 34, 50, 101, 152)
    },
    **{f"dynconv-{d}-cifar10": partial(dynconv.cifar, d) for d in (8, 14, 20, 26, 32)},
    **{f"dynconv-{d}-imagenet": partial(dynconv.imagenet, d) for d in (18, 34, 50, 101, 152)},
    **{
        f"{family}-{variant}-{dataset}": partial(build, dataset, **fields)
        for family, fields in (("sdn", {}), ("cnn", {"exit_after": ()}))
        for variant, build in _SDN_VARIANTS.items()
        for dataset in ("cifar10", "cifar100", "tinyimagenet", "digits")
    },
    **{f"rdi-resnet{d}-cifar10": partial(rdi.cifar, d) for d in (38, 74, 110, 152)},
    **{f"manidp-{d}-cifar10": partial(manidp.cifar, d) for d in (20, 32, 44, 56, 110)},
    **{f"manidp-{d}-imagenet": partial(manidp.imagenet, d) for d in (18, 34)},
    **{f"{mode}-{d}-cifar10": partial(sact.cifar, d, mode=mode) for mode in ("sact", "act") for d in (32, 56, 110)},
    **{f"{mode}-{d}-imagenet": partial(sact.imagenet, d, mode=mode) for mode in ("sact", "act") for d in (50, 101)},
    **{
        f"{family.__name__.rpartition('.')[2]}-{size}-{data}": partial(getattr(family, build), size)
        for family in (avit, adavit)
        for size in avit.SIZES
        for data, build in (("imagenet", "imagenet"), ("cifar10", "cifar"))
    },
    **{
        f"{name}-{size}-{data}": partial(build, size, fuse=fuse)
        for name, fuse in (("evit", False), ("evit-fused", True))
        for size in avit.SIZES
        for data, build in (("imagenet", evit.imagenet), ("cifar10", evit.cifar))
    },
    **{f"minkunet-{form}-scannet": partial(minkunet.scannet, form) for form in ("14a", "18a", "34c")},
    **{f"moe-resnet{d}-cifar10": partial(moe.cifar, d) for d in moe.DEPTHS},
    **{f"vmoe-{form}-imagenet": partial(vmoe.imagenet, form) for form in vmoe.FORMS},
    "moe-digits": moe.digits,
    "vmoe-digits": vmoe.digits,
    **{f"sparse-resnet-{d}-cifar10": partial(sparse.cifar, d) for d in (20, 32, 44, 56, 110)},
    "minkunet-34-s3dis": minkunet.s3dis,
    "minkunet-rooms": minkunet.rooms,
    "minkfcnn-modelnet40": minkfcnn.modelnet40,
    "minkfcnn-objects": minkfcnn.objects,
    "cylinder3d-semantickitti": cylinder3d.semantickitti,
    "cylinder3d-nuscenes": cylinder3d.nuscenes,
    "cylinder3d-streets": cylinder3d.streets,
    "skipnet-32-cifar10": partial(skipnet.cifar, 32, normalization=IMAGENET_MEAN_STD),
    "skipnet-digits": skipnet.digits,
    "skipnet-rl-digits": partial(skipnet.digits, policy="rl"),
    "dynconv-digits": dynconv.digits,
    "sact-digits": sact.digits,
    "manidp-digits": manidp.digits,
    "avit-digits": avit.digits,
}


def names() -> list[str]:
    """Every name that `create` knows, sorted."""
    return sorted(_REGISTRY)


def create(name: str, *, normalize: bool | tuple = True, **fields: Any) -> nn.Module:
    """Builds a network: a frozen Linen module, without parameters.

    Args:
      name: e.g. ``"skipnet-rl-rnn-38-cifar10"``; `names` lists all.
      normalize: True normalises inputs inside the network with the statistics it was trained with, False leaves that
        out (the images come normalised), a (mean, std) pair of 3-tuples replaces them.
      **fields: fields of the module to change, e.g. ``num_classes=100``, ``depths=(1, 1, 1)``, ``widths=(4, 8, 16)``.

    Returns:
      A module; ``module.init(key, images)`` makes its variables, ``module.apply(variables, images, occupancy=...)``
      returns an `Output`.

    Raises:
      ValueError: unknown name (the nearest ones are listed); no class; a deviation that is not positive.
      TypeError: unknown field, or a `normalize` that is neither a bool nor a (mean, std) pair.

    A released loader may normalise differently: LGM's uses CIFAR-10's own statistics for the static ResNets too,
    ``normalize=dyn_jax.nn.CIFAR10_MEAN_STD``.
    """
    _validate.choice("network", name, names())
    module = _REGISTRY[name]()
    parts = (module, getattr(module, "trunk", module))
    known = {field.name for part in parts for field in dataclasses.fields(part)} - {"parent", "name"}
    if unknown := sorted(set(fields) - known):
        raise TypeError(f"create({name!r}): got {', '.join(unknown)}, expected fields among {', '.join(sorted(known))}")
    if normalize is not True:
        if "normalization" not in known:
            raise TypeError(f"create({name!r}): got normalize={normalize!r}, expected none: features come as they are")
        fields["normalization"] = _mean_std(normalize)
    if (statistics := fields.get("normalization")) is not None:
        for deviation in statistics[1]:
            _validate.positive("normalize", deviation)
    if "num_classes" in fields:
        _validate.positive_int("num_classes", fields["num_classes"])
    return module.clone(**fields)


def _mean_std(normalize: Any) -> tuple | None:
    if normalize is False:
        return None
    try:
        mean, std = (tuple(float(value) for value in part) for part in normalize)
    except (TypeError, ValueError):
        mean = std = ()
    if len(mean) != 3 or len(std) != 3:
        raise TypeError(f"normalize: got {normalize!r}, expected True, False or (mean, std) of three numbers each")
    return mean, std
