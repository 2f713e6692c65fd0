"""Cuts the authors' arrays to those that tests compare, as far as they fit: ``python tests/golden/cut.py FOLDER``.

FOLDER holds the whole files. In the order of `KEPT`, each is written beside this script with the keys that match, dtype
and values unchanged, while all of them stay below `BUDGET`; what does not fit, tests read from the whole files.
"""

from __future__ import annotations

import pathlib
import re
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
BUDGET = 15_000_000
_FORWARD = r"sd/.*|xn|y|(grad|logits|gates|gate_logit2?)_\w+"
_TRACE = (
    r"x|y|attacked_idx|pixel_mask5|eps|lr|pgd_rand|(adv|arch|logits)_\w+_bim(_mask5)?_k\d"
    r"|(adv|arch|logits)_(fgm|gg10)_((mom|cw_adam_mask5|pgd)_k5|auto(_mask5)?_k20)"
)
_EXITS = r"sd/.*|x01|labels|logits|confidence|loss/.*|grad/.*|norm_(mean|std)|dec.*"
KEPT = {
    "mink_hybrid_order": ".*",
    "mink_layers": ".*",
    "trace_dynconv_resnet8": _TRACE,
    "dynconv_cifar_resnet8": rf"{_FORWARD}|mask.*|macs_per_image|train/.*|sp_.*",
    "trace_skipnet_rl_38": _TRACE,
    "skipnet_cifar_rl_38": rf"{_FORWARD}|train_hrl/.*",
    "attack_gradauto_K1": r"x|W[go]|bg|K|lr|acc_maintain|tanh_rescale_of_x|\w+_at0|modifier_after|var|masks",
    "mink_MinkUNet14A": r"coords|feats|labels|(logits|grad_feats|loss)64|sd_.*",
    "mink_e2e_MinkUNet14A": (
        r"points|p0|rgb|labels|step|budget|voxel_size|hard/(point_pred|voxels)"
        r"|.*/(point_logits|loss|grad_points|next_points|voxels)"
    ),
    "manidp_resnet20_cifar10": (
        r"sd/.*|x|labels|norm_(mean|std)|logits|on_fraction|(f64/)?grad/.*|f64/logits|loss/.*|(gate|reg)/.*"
        r"|gate_names|(mask|mask_before|avg_fea|gate_on)/.*"
    ),
    "resnet56_sdn_cifar10": _EXITS,
    "attack_early_resnet56_a1": r"out_label|alpha|c|w0|w_after|losses|grad|adv_returned|long/(losses|preds|success)",
    "skipnet_cifar_sp_38": rf"{_FORWARD}|train/.*",
    "mink_MinkowskiFCNN_small": r"sd/.*|feats|field_coords|labels|(logits|loss)64",
    "dynconv_imagenet_basic_1111_w025": rf"{_FORWARD}|mask.*|macs_per_image",
    "skipnet_cifar_ffsp_38": _FORWARD,
    "vgg16_sdn_cifar10_quarter": _EXITS,
    "mink_lgm_voxels": ".*",
}


def cut(source: pathlib.Path, target: pathlib.Path, pattern: str) -> int:
    """Writes `target` and returns its size in bytes."""
    with np.load(source, allow_pickle=False) as arrays:
        kept = {key: arrays[key] for key in arrays.files if re.fullmatch(pattern, key)}
    np.savez_compressed(target, **kept)
    return target.stat().st_size


def main(folder: str) -> None:
    total = 0
    for name, pattern in KEPT.items():
        target = HERE / f"{name}.npz"
        size = cut(pathlib.Path(folder) / target.name, target, pattern)
        fits = total + size <= BUDGET
        total += size * fits
        if not fits:
            target.unlink()
        print(f"{name}: {size:,} bytes{'' if fits else ', does not fit: left out'}")
    print(f"{total:,} bytes in all")


if __name__ == "__main__":
    main(*sys.argv[1:])
