"""RQ1: do attacks transfer better from dynamic to static networks (D2S) than back (S2D), and cost less to make?

``python -m experiments.early_exit_rq1_transferability``: every architecture attacks another one through a surrogate
trained on the target's answers. Source: 2308.08709, section 3, figures 2, 7 and 12.

A less accurate target is fooled more often by anything. So beside the paper's rate stands the rate among the images
that both targets of a pair, the static and the early-exit one, answer rightly before the attack.
"""

from __future__ import annotations

import argparse
import collections
import itertools
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
    right = lambda net: np.asarray(jnp.argmax(common.answers(net, images).logits, 1) == labels)
    rows, panels = [], {}
    directions = ("S2D", "cnn", "sdn"), ("D2S", "sdn", "cnn")
    for (source, variant), (direction, family, target_family) in itertools.product(common.PAIRS, directions):
        found = {name: collections.defaultdict(list) for name in common.ATTACKS}
        made_at: dict[str, list] = {name: [] for name in common.ATTACKS}
        accuracy = []
        for seed in how.seeds:
            surrogate = common.surrogate(how, family, source, variant, seed)
            target, twin = (common.network(how, each, variant, seed) for each in (target_family, family))
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
                values = {"transfer rate": exits.transfer_rate(chosen, logits, labels)}
                values["both targets right"] = exits.transfer_rate(chosen & both, logits, labels)
                values |= {"generated": chosen.mean(), "seconds": seconds}
                if family == "sdn":
                    made_at[name].append(np.asarray(exits.exit_index(trace))[chosen])
                    values[WORK] = 1 - np.asarray(exits.saved_macs(trace)).mean()
                for column, value in values.items():
                    found[name][column].append(value)
        for name, columns in found.items():
            head = {"direction": direction, "surrogate": f"{family}-{source}", "target": f"{target_family}-{variant}"}
            columns = {"target's accuracy": accuracy, **columns, WORK: columns[WORK] or [1.0]}
            rows.append(head | {"attack": name} | {key: common.spread(values) for key, values in columns.items()})
        if family == "sdn":
            densities = {name: common.density(values, range(7)) for name, values in made_at.items()}
            panels[f"{source} surrogate"] = densities
        print(f"{direction} {source} -> {variant} done", flush=True)
    return rows, panels


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over all pairs, by attack: what the findings compare."""
    lines = []
    for name in common.ATTACKS:
        line: dict[str, Any] = {"attack": name}
        for direction in ("S2D", "D2S"):
            chosen = [row for row in rows if row["attack"] == name and row["direction"] == direction]
            for column, of in ((direction, "transfer rate"), (f"{direction} both right", "both targets right")):
                over_pairs = common.spread(np.nanmean([row[of]["seeds"] for row in chosen], axis=0))
                for part, title in (("mean", "%"), ("std", "std")):
                    line[f"{column} {title}"] = None if over_pairs[part] is None else 100 * over_pairs[part]
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
    print(table(lines, [key for key in lines[0] if ">" not in key]))


if __name__ == "__main__":
    main()
