"""GradAuto's table 2: what the rectified direction (RD) and magnitude (RM) bring, on the embedded SkipNet+HRL.

    python -m experiments.gradauto_table2 [--images 40] [--network skipnet-rl-digits]
    python -m experiments.gradauto_table2 --data FOLDER --network skipnet-32-cifar10

The baseline is eq. 7 as it is. RD acts in the second half of the steps ("at the later stage") or from the start. The
last rows are GradMDM, GradAuto's successor, without and with the nodes that even out gradients before the gates.
"""

from __future__ import annotations

from dyn_jax import attacks
from dyn_jax.attacks import Rectify
from experiments import _energy, _run

CLAIMED = {"baseline": 46.9, "RD": 52.3, "RM": 86.9, "RM + RD": 88.9}
COLUMNS = ("method", "claimed %", "recovery %", "standard error", "PSNR dB", "accuracy kept %",
           "switched off per image", "projected %", "zero gradient %")  # fmt: skip


def methods(budget: dict) -> dict[str, attacks.Attack]:
    """The four of the table, both with RD from the start, and the successor."""
    return {
        "baseline": attacks.grad_auto(rectify=Rectify(magnitude=False, direction=False), **budget),
        "RD": attacks.grad_auto(rectify=Rectify(magnitude=False), **budget),
        "RM": attacks.grad_auto(rectify=Rectify(direction=False), **budget),
        "RM + RD": attacks.grad_auto(**budget),
        "RM + RD from the start": attacks.grad_auto(rectify=Rectify(begin=0), **budget),
        "GradMDM's losses": attacks.grad_mdm(even=False, **budget),
        "GradMDM with its nodes": attacks.grad_mdm(**budget),
    }


def main() -> None:
    how = _energy.parser(__doc__, 40, network="skipnet-rl-digits").parse_args()
    ((_, victim),) = _energy.victims(how, how.network)
    budget = _energy.budget(how)
    rows = _run.shown(
        {"method": method, "claimed %": CLAIMED.get(method), **victim.row(attack)}
        for method, attack in methods(budget).items()
    )
    _energy.finish("gradauto_table2", rows, COLUMNS, how, network=how.network, **budget)


if __name__ == "__main__":
    main()
