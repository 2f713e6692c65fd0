"""Name tables: torch layer name -> Flax path, one family a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import flax.linen as nn
import numpy as np

from dyn_jax import _validate
from dyn_jax.networks.cylinder3d import Cylinder3D
from weights_convert.tables import cylinder3d, dynconv, manidp, minkowski, moe, rdi, resnet, sact, sdn, skipnet, vit

Rename = Callable[[str], tuple[str, ...] | None]

_TABLES = {
    "ResNet": resnet.RULES,
    "SparseResNet": resnet.RULES,
    "SkipNet": skipnet.RULES,
    "DynConv": dynconv.RULES,
    "VggTrunk": sdn.VGG_RULES,
    "ResNetTrunk": sdn.RESNET_RULES,
    "MobileNetTrunk": sdn.MOBILENET_RULES,
    "RDITrunk": rdi.RULES,
    "SACT": sact.RULES,
    "ManiDP": manidp.RULES,
    "AdaViT": vit.RULES,
    "AViT": vit.RULES,
    "EViT": vit.RULES,
    "MoEResNet": moe.RULES,
    "Cylinder3D": cylinder3d.RULES,
    "MinkUNet": minkowski.UNET_RULES,
    "MinkowskiFCNN": minkowski.FCNN_RULES,
    "VMoE": ((r"(.*)", r"\1"),),
}
_FORMATS = {"MinkUNet": "minkowski", "MinkowskiFCNN": "minkowski", "VMoE": "flax", "SACT": "tensorflow"}
_HYBRID = ("MinkUNet",)


def table_for(module: nn.Module) -> Rename:
    """The renaming function of the module's family; ValueError where it has none."""
    family = type(getattr(module, "trunk", module)).__name__
    if family not in _TABLES:
        raise ValueError(f"network: got a {family}, expected one of {', '.join(sorted(_TABLES))}")
    rules = [(re.compile(pattern), replacement) for pattern, replacement in _TABLES[family]]

    def rename(layer: str) -> tuple[str, ...] | None:
        for pattern, replacement in rules:
            if match := pattern.fullmatch(layer):
                return tuple(match.expand(replacement).split("/"))
        return None

    return rename


def format_of(module: nn.Module) -> str:
    """How the module's checkpoints name and lay out their tensors.

    ``torch``; ``minkowski``, as MinkowskiEngine; ``tensorflow``: names with slashes, kernels HWIO; ``flax``: parameters
    already, ``layer/leaf`` under the names used here.
    """
    return _FORMATS.get(type(module).__name__, "torch")


def reorder(module: nn.Module, arrays: Mapping[str, np.ndarray], kernel_order: str) -> Mapping[str, np.ndarray]:
    """State dict with its kernels in cube order, from `kernel_order`, and spconv's as slices: see `convert`.

    ValueError for an unknown order, and for ``hybrid`` where the family has no kernels in it.
    """
    _validate.choice("kernel_order", kernel_order, ("cube", "hybrid"))
    family = type(module).__name__
    if kernel_order == "cube":
        if isinstance(module, Cylinder3D):
            return cylinder3d.in_slices(arrays, module.neighbourhoods == "shared")
        return arrays
    if family not in _HYBRID:
        raise ValueError(
            f"kernel_order: got {kernel_order!r} for a {family}, expected 'cube': only {', '.join(_HYBRID)} "
            "was trained with MinkowskiEngine 0.4's hybrid kernels"
        )
    return minkowski.in_cube_order(arrays)
