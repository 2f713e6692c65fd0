"""Cylinder3D, from spconv 1.2 (the authors') and spconv 2.x (LGM's release)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

RULES = (
    (r"cylinder_3d_generator\.PPmodel\.([0258])", r"generator/bn_\1"),
    (r"cylinder_3d_generator\.PPmodel\.(1|4|7|10)", r"generator/linear_\1"),
    (r"cylinder_3d_generator\.fea_compression\.0", "generator/compression"),
    (r"cylinder_3d_spconv_seg\.(upBlock\d)\.trans_bn", r"\1/bn_trans"),
    (r"cylinder_3d_spconv_seg\.(\w+)\.(\w+)", r"\1/\2"),
    (r"cylinder_3d_spconv_seg\.logits", "logits"),
)

_CUT = re.compile(r"(?:.*\.)?upBlock\d\.conv3\.weight")
_SHARED = 9
"""Sites of the neighbourhood that an UpBlock's convolutions share."""


def in_slices(arrays: Mapping[str, np.ndarray], shared: bool) -> dict[str, np.ndarray]:
    """State dict with its kernels as [slice, in, out], from [x, y, z, in, out] (1.2) or [out, x, y, z, in] (2.x).

    Which of the two is what the larger part of the kernels can only be: the sizes of a kernel are 1 or 3.

    Args:
      arrays: {torch key: array}.
      shared: neighbourhoods are shared, so that of the UpBlocks' conv3 only `unused_slices` leaves are kept.

    Raises:
      ValueError: kernels of both layouts, or of neither.
    """
    kernels = {key: array for key, array in arrays.items() if array.ndim == 5}
    old = [key for key, array in kernels.items() if _is_small(array.shape[:3]) and not _is_small(array.shape[1:4])]
    new = [key for key, array in kernels.items() if _is_small(array.shape[1:4]) and not _is_small(array.shape[:3])]
    strange = [key for key, a in kernels.items() if not (_is_small(a.shape[:3]) or _is_small(a.shape[1:4]))]
    if strange:
        raise ValueError(
            f"{strange[0]}: got shape {kernels[strange[0]].shape}, expected [x, y, z, in, out] (spconv 1.2) or "
            "[out, x, y, z, in] (spconv 2.x) with kernel sizes of 1 or 3"
        )
    if old and new:
        raise ValueError(
            f"state_dict: got {len(old)} kernels in the layout of spconv 1.2 ({old[0]}) and {len(new)} in that of 2.x "
            f"({new[0]}), expected one layout"
        )
    sliced = dict(arrays)
    for key, array in kernels.items():
        kernel = np.moveaxis(array, 0, 4) if new else array
        kernel = kernel.reshape(-1, *kernel.shape[3:])
        sliced[key] = kernel[:_SHARED] if shared and _CUT.fullmatch(key) else kernel
    return sliced


def unused_slices(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """{key: slices} of the kernels in a state dict of spconv 1.2 whose last slices no network with shared
    neighbourhoods reads: conv3 of every UpBlock, 18 of 27. (spconv 2.x's do not hold them.)"""
    return {key: 27 - _SHARED for key, array in arrays.items() if _CUT.fullmatch(key) and array.shape[:3] == (3, 3, 3)}


def _is_small(sizes: tuple[int, ...]) -> bool:
    return all(size in (1, 3) for size in sizes)
