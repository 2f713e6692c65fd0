"""MinkowskiEngine's MinkUNet (also STS's Res16UNet) and MinkowskiFCNN."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from dyn_jax.sparse3d.kernel import cube_from_hybrid

UNET_RULES = (
    (r"(conv\w+|final)", r"\1"),
    (r"(bn\w+)\.bn", r"\1"),
    (r"(block\d)\.(\d+)\.(conv[12])", r"\1_\2/\3"),
    (r"(block\d)\.(\d+)\.(norm[12])\.bn", r"\1_\2/\3"),
    (r"(block\d)\.(\d+)\.downsample\.0", r"\1_\2/downsample_0"),
    (r"(block\d)\.(\d+)\.downsample\.1\.bn", r"\1_\2/downsample_1"),
)

FCNN_RULES = (
    (r"mlp1\.0\.linear", "mlp1_0"),
    (r"(mlp1|conv[1-4])\.1\.bn", r"\1_1"),
    (r"(conv[1-4])\.0", r"\1_0"),
    (r"conv5\.(\d)\.0", r"conv5_\1_0"),
    (r"conv5\.(\d)\.1\.bn", r"conv5_\1_1"),
    (r"final\.([02])\.0\.linear", r"final_\1_0"),
    (r"final\.([02])\.1\.bn", r"final_\1_1"),
    (r"final\.3\.linear", "final_3"),
)

_BLOCK_KERNEL = re.compile(r"block\d\.\d+\.conv[12]\.kernel")


def in_cube_order(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """State dict with MinkUNet's block kernels brought from MinkowskiEngine 0.4's hybrid order into cube order.

    Stem, strided and transposed kernels, and pointwise ones, are in cube order in both.

    Source: read from the code of MinkowskiEngine 0.4.3 and STS, in which the published checkpoints were trained.
    """
    order = cube_from_hybrid()

    def arranged(key: str, array: np.ndarray) -> np.ndarray:
        return array[order] if _BLOCK_KERNEL.fullmatch(key) and array.shape[:1] == order.shape else array

    return {key: arranged(key, array) for key, array in arrays.items()}
