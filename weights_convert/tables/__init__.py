"""Name tables: torch layer name -> Flax path, one family a file."""

from __future__ import annotations

import re
from collections.abc import Callable

import flax.linen as nn

from weights_convert.tables import dynconv, resnet, sdn, skipnet

Rename = Callable[[str], tuple[str, ...] | None]

_TABLES = {
    "ResNet": resnet.RULES,
    "SkipNet": skipnet.RULES,
    "DynConv": dynconv.RULES,
    "SDNVgg": sdn.VGG_RULES,
    "SDNResNet": sdn.RESNET_RULES,
    "SDNMobileNet": sdn.MOBILENET_RULES,
}


def table_for(module: nn.Module) -> Rename:
    """The renaming function of the module's family.

    Raises:
      ValueError: the family has no table.
    """
    family = type(module).__name__
    if family not in _TABLES:
        raise ValueError(f"network: got a {family}, expected one of {', '.join(sorted(_TABLES))}")
    rules = [(re.compile(pattern), replacement) for pattern, replacement in _TABLES[family]]

    def rename(layer: str) -> tuple[str, ...] | None:
        for pattern, replacement in rules:
            if match := pattern.fullmatch(layer):
                return tuple(match.expand(replacement).split("/"))
        return None

    return rename
