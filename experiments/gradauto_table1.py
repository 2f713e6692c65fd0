"""GradAuto's table 1: recovery of the saved multiply-adds by ILFO and GradAuto, on the four embedded networks.

    python -m experiments.gradauto_table1 [--images 32]
    python -m experiments.gradauto_table1 --data FOLDER --gradients hard

Claimed numbers are of networks on CIFAR-10 and ImageNet; measured are small networks on handwritten digits, or with the
folder of CIFAR-10 as JPEG the networks of the paper's kind there. Every attack has the same budget (300 steps of Adam
at 0.01). The gradient goes through the hard gates, as in the release, or through straight-through ones (the release's
SkipNet SP). GradMDM here are its losses without its nodes.
"""

from __future__ import annotations

import argparse

from dyn_jax import attacks
from experiments import _energy

CLAIMED = {  # (CIFAR-10, ImageNet)
    ("skipnet-digits", "ILFO"): "84.3 / 81.4",
    ("skipnet-digits", "GradAuto"): "100 / 100",
    ("skipnet-rl-digits", "ILFO"): "- / 46.9",
    ("skipnet-rl-digits", "GradAuto"): "- / 88.9",
    ("sact-digits", "ILFO"): "72.5 / 91.1",
    ("sact-digits", "GradAuto"): "100 / 100",
    ("manidp-digits", "ILFO"): "80.3 / 85.6",
    ("manidp-digits", "GradAuto"): "100 / 100",
}
CIFAR = ("skipnet-32-cifar10", "sact-32-cifar10", "manidp-32-cifar10")
ON_CIFAR = {
    (name, attack): CLAIMED[f"{name.split('-')[0]}-digits", attack].split(" / ")[0]
    for name in CIFAR
    for attack in ("ILFO", "GradAuto")
}
NETWORKS = ("skipnet-digits", "skipnet-rl-digits", "sact-digits", "manidp-digits")
COLUMNS = (
    *("network", "gradient", "attack", "claimed %", "saved before %", "recovery %", "standard error"),
    *("recovery, ratio %", "fully recovered %", "PSNR dB", "accuracy kept %", "switched off per image"),
)


def rows_of(arguments: argparse.Namespace, claimed: dict) -> list[dict]:
    """One row for every network, occupancy of the gradient and attack."""
    images, labels = _energy.data(arguments.images, arguments.data)
    budget = _energy.budget(arguments)
    methods = {
        "ILFO": attacks.ilfo(**budget),
        "GradAuto": attacks.grad_auto(**budget),
        "GradMDM": attacks.grad_mdm(even=False, **budget),
    }
    rows = []
    for name in arguments.networks:
        net, variables = _energy.load(name, arguments.weights)
        for gradient in getattr(arguments, "gradients", None) or _energy.OCCUPANCIES:
            how = _energy.OCCUPANCIES[gradient]
            for method, attack in methods.items():
                result, seconds = _energy.timed(_energy.runner(net, attack, how), variables, images, labels)
                rows.append(
                    {
                        "network": _energy.LABELS[name],
                        "gradient": gradient,
                        "attack": method,
                        "claimed %": claimed.get((name, method), ""),
                        **_energy.numbers(result, images, labels),
                        "seconds": seconds,
                    }
                )
                _energy.progress(rows, COLUMNS)
    return rows


def main() -> None:
    parser = _energy.parser(__doc__, 32, None)
    parser.add_argument("--gradients", nargs="+", default=None, choices=tuple(_energy.OCCUPANCIES))
    arguments = parser.parse_args()
    small = arguments.data is None
    arguments.networks = arguments.networks or (NETWORKS if small else CIFAR)
    rows = rows_of(arguments, CLAIMED if small else ON_CIFAR)
    _energy.save("gradauto_table1", rows, COLUMNS, arguments, **_energy.budget(arguments))


if __name__ == "__main__":
    main()
