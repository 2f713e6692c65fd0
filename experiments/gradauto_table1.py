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
import itertools
from collections.abc import Iterator, Sequence

from dyn_jax import attacks
from experiments import _energy, _run

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


def rows_of(how: argparse.Namespace, gradients: Sequence[str], claimed: dict) -> Iterator[dict]:
    """One row for every network, occupancy of the gradient and attack."""
    budget = _energy.budget(how)
    methods = {
        "ILFO": attacks.ilfo(**budget),
        "GradAuto": attacks.grad_auto(**budget),
        "GradMDM": attacks.grad_mdm(even=False, **budget),
    }
    for name, victim in _energy.victims(how, *how.networks):
        for gradient, (method, attack) in itertools.product(gradients, methods.items()):
            head = {"network": _energy.LABELS[name], "gradient": gradient, "attack": method}
            yield head | {"claimed %": claimed.get((name, method), ""), **victim.row(attack, gradient)}


def main() -> None:
    parser = _energy.parser(__doc__, 32, networks=None)
    parser.add_argument("--gradients", nargs="+", choices=tuple(_energy.OCCUPANCIES))
    how = parser.parse_args()
    small = how.data is None
    how.networks = how.networks or (NETWORKS if small else CIFAR)
    rows = rows_of(how, how.gradients or tuple(_energy.OCCUPANCIES), CLAIMED if small else ON_CIFAR)
    _energy.finish("gradauto_table1", _run.shown(rows), COLUMNS, how, **_energy.budget(how))


if __name__ == "__main__":
    main()
