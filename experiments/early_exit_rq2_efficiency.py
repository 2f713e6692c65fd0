"""RQ2: do adversarial examples made on static networks make dynamic ones leave later?

``python -m experiments.early_exit_rq2_efficiency``: change of the exit at which the dynamic network stops. White box:
the static twin is attacked; black box: a static surrogate of another architecture. Source: 2308.08709, section 4,
figures 3 and 4 (CIFAR; here: handwritten digits).
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from dyn_jax import exits
from experiments import _early_exit as common
from experiments._record import RESULTS, save, table

CLAIMS = {
    "finding 3": "adversarial examples aimed at accuracy do not cost the dynamic network much more",
    "CIFAR-100": "more than 40 % of the examples raise the exit number by more than one",
    "section 4": "FGSM makes more examples that early exits are unsure about than PGD does",
}


def measure(how: common.Setting) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, and the densities of the change by architecture and attack."""
    images, labels = common.attacked_data(how)
    surrogate_of = {target: source for source, target in common.PAIRS}
    rows, panels = [], {}
    for box in ("white", "black"):
        for variant in common.VARIANTS:
            changes: dict[str, list] = {name: [] for name in common.ATTACKS}
            saved: dict[str, list] = {name: [] for name in common.ATTACKS}
            before = []
            for seed in how.seeds:
                target = common.network(how, "sdn", variant, seed)
                if box == "white":
                    source = common.network(how, "cnn", variant, seed)
                else:
                    source = common.surrogate(how, "cnn", surrogate_of[variant], variant, seed)
                clean = common.answers(target, images).trace
                for name in common.ATTACKS:
                    result = common.attack_on(name, source, images, labels, common.key_of(seed))
                    adversarial = common.answers(target, result.adversarial).trace
                    chosen = common.generated(result)
                    changes[name].append(np.asarray(exits.exit_change(clean, adversarial))[chosen])
                    saved[name].append(np.asarray(exits.saved_macs(adversarial))[chosen].mean())
                before.append(np.asarray(exits.saved_macs(clean)).mean())
            for name in common.ATTACKS:
                rows.append(
                    {
                        "box": box,
                        "network": f"sdn-{variant}",
                        "attack": name,
                        "exit change": common.spread([c.mean() for c in changes[name] if len(c)]),
                        "raised by more than one": common.spread([(c > 1).mean() for c in changes[name] if len(c)]),
                        "leaves earlier": common.spread([(c < 0).mean() for c in changes[name] if len(c)]),
                        "saved work, clean": common.spread(before),
                        "saved work, adversarial": common.spread(saved[name]),
                    }
                )
            panels[f"{variant}, {box} box"] = {n: common.density(c, range(-6, 7)) for n, c in changes.items()}
            print(f"{box} box, {variant} done", flush=True)
    return rows, panels


def main() -> None:
    how = common.setting(__doc__)
    rows, panels = measure(how)
    folder = pathlib.Path(how.results or RESULTS)
    picture = common.plot_densities(panels, folder / "early_exit_rq2.png", "change of the exit")
    facts = {"data": "handwritten digits", "eps": common.EPS, "seeds": how.seeds, **how.facts()}
    save("early_exit_rq2", rows, folder=how.results, claimed=CLAIMS, densities=panels, **facts)
    print(common.flat_table(rows, table))
    print(picture)


if __name__ == "__main__":
    main()
