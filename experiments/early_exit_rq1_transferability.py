"""RQ1: do attacks transfer better from dynamic to static networks (D2S) than back (S2D), and cost less to make?

``python -m experiments.early_exit_rq1_transferability``: every architecture attacks another one through a surrogate
trained on the target's answers. Source: 2308.08709, section 3, figures 2, 7 and 12.

A less accurate target is fooled more often by anything. So beside the paper's rate stands the rate among the images
that both targets of a pair, the static and the early-exit one, answer rightly before the attack.
"""

from __future__ import annotations

import argparse
import collections
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.metrics import exits
from experiments import _early_exit as common
from experiments._record import table

WORK = "work share of a surrogate pass"
CLAIMS = {
    "finding 1": "D2S transferability is higher than S2D transferability (on average over all pairs)",
    "finding 2": "dynamic surrogates make adversarial examples faster than static ones",
    "figure 7": "PGD: more than 70 % of the examples are made at exits 0 to 2; FGSM: at later ones for some pairs",
}


def measure(how: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the table and the densities of the exits at which examples were made."""
    images, labels = common.attacked_data(how)
    rows, panels = [], {}
    for surrogate_variant, target_variant in common.PAIRS:
        for direction, family, target_family in (("S2D", "cnn", "sdn"), ("D2S", "sdn", "cnn")):
            found = {name: collections.defaultdict(list) for name in common.ATTACKS}
            made_at: dict[str, list] = {name: [] for name in common.ATTACKS}
            accuracy = []
            for seed in how.seeds:
                surrogate = common.surrogate(how, family, surrogate_variant, target_variant, seed)
                target = common.network(how, target_family, target_variant, seed)
                right = lambda net: np.asarray(jnp.argmax(common.answers(net, images).logits, 1) == labels)
                twin = common.network(how, family, target_variant, seed)
                accuracy.append(right(target).mean())
                both = right(target) & right(twin)
                for name, attack in how.attacks.items():
                    arguments = (attack, surrogate, images, labels, seed)
                    jax.block_until_ready(common.attack_on(*arguments))
                    began = time.perf_counter()
                    result = jax.block_until_ready(common.attack_on(*arguments))
                    seconds = time.perf_counter() - began
                    chosen, trace = common.generated(result), result.trace_adversarial
                    logits = common.answers(target, result.adversarial).logits
                    values = {
                        "transfer rate": exits.transfer_rate(chosen, logits, labels),
                        "both targets right": exits.transfer_rate(chosen & both, logits, labels),
                        "generated": chosen.mean(),
                        "seconds": seconds,
                    }
                    if family == "sdn":
                        made_at[name].append(np.asarray(exits.exit_index(trace))[chosen])
                        values[WORK] = 1 - np.asarray(exits.saved_macs(trace)).mean()
                    for column, value in values.items():
                        found[name][column].append(value)
            for name in common.ATTACKS:
                head = {"direction": direction, "surrogate": f"{family}-{surrogate_variant}"}
                head |= {"target": f"{target_family}-{target_variant}", "attack": name}
                head["target's accuracy"] = common.spread(accuracy)
                found[name].setdefault(WORK, [1.0])
                rows.append(head | {column: common.spread(values) for column, values in found[name].items()})
            if family == "sdn":
                panels[f"{surrogate_variant} surrogate"] = {
                    name: common.density(values, range(7)) for name, values in made_at.items()
                }
            print(f"{direction} {surrogate_variant} -> {target_variant} done", flush=True)
    return rows, panels


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over all pairs, by attack: what the findings compare."""
    lines = []
    for name in common.ATTACKS:
        line: dict[str, Any] = {"attack": name}
        for direction in ("S2D", "D2S"):
            chosen = [row for row in rows if row["attack"] == name and row["direction"] == direction]
            for column, of in ((direction, "transfer rate"), (f"{direction} both right", "both targets right")):
                by_seed = np.array([row[of]["seeds"] for row in chosen])
                over_pairs = common.spread(np.nanmean(by_seed, axis=0))
                line[f"{column} %"], line[f"{column} std"] = (
                    None if over_pairs[part] is None else 100 * over_pairs[part] for part in ("mean", "std")
                )
            line[f"{direction} seconds"] = float(np.mean([row["seconds"]["mean"] for row in chosen]))
        for title, of in (("D2S > S2D", "%"), ("D2S > S2D both right", "both right %")):
            d2s, s2d = line[f"D2S {of}"], line[f"S2D {of}"]
            line[title] = None not in (d2s, s2d) and d2s > s2d
        lines.append(line)
    return lines


def main() -> None:
    how = common.setting(__doc__)
    rows, panels = measure(how)
    lines = summary(rows)
    xlabel = "exit where the example was made"
    common.report("early_exit_rq1", how, rows, panels, xlabel, claimed=CLAIMS, summary=lines)
    columns = ["attack", "S2D %", "S2D std", "D2S %", "D2S std", "S2D both right %", "D2S both right %"]
    columns += ["S2D seconds", "D2S seconds"]
    print(table(lines, columns))


if __name__ == "__main__":
    main()
