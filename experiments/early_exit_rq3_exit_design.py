"""RQ3: at which exit does the label begin to change?

``python -m experiments.early_exit_rq3_exit_design``: among examples that change the last exit's label, the first exit
whose label differs from what it said about the clean image. White box: the dynamic network's own last exit is
attacked; black box: a static surrogate of another architecture. Source: 2308.08709, section 5, figures 5, 6, 8 and 9
(CIFAR; here: handwritten digits).
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from dyn_jax import exits
from dyn_jax.types import Output
from experiments import _early_exit as common
from experiments._record import RESULTS, save, table

CLAIMS = {
    "white box": "more than 77 % of the examples change the label at the first exit already",
    "black box, CIFAR-10 VGG-16": "more than 45 % of the examples do not change the first exit's label",
    "finding 6": "a first exit in earlier layers is more robust (VGG-16 has the earliest, black box)",
    "finding 7": "black-box examples change early exits less often than white-box ones",
}


def last_exit(target: Partial) -> Partial:
    """The same network, answering with its last exit."""
    return Partial(_last, target)


def _last(target: Partial, x: jax.Array) -> Output:
    return exits.at_exit(target, -1)(x)


def measure(how: common.Setting) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, and the densities of the first changed exit by architecture and attack."""
    images, labels = common.attacked_data(how)
    surrogate_of = {target: source for source, target in common.PAIRS}
    rows, panels = [], {}
    for box in ("white", "black"):
        for variant in common.VARIANTS:
            first: dict[str, list] = {name: [] for name in common.ATTACKS}
            for seed in how.seeds:
                target = common.network(how, "sdn", variant, seed)
                if box == "white":
                    source = last_exit(target)
                else:
                    source = common.surrogate(how, "cnn", surrogate_of[variant], variant, seed)
                clean = common.answers(target, images).trace
                for name in common.ATTACKS:
                    result = common.attack_on(name, source, images, labels, common.key_of(seed))
                    adversarial = common.answers(target, result.adversarial).trace
                    moved = np.asarray(exits.predictions(clean)[-1] != exits.predictions(adversarial)[-1])
                    first[name].append(np.asarray(exits.first_changed_exit(clean, adversarial))[moved])
            for name in common.ATTACKS:
                rows.append(
                    {
                        "box": box,
                        "network": f"sdn-{variant}",
                        "attack": name,
                        "examples": int(sum(len(f) for f in first[name])),
                        "first exit changed": common.spread([(f == 0).mean() for f in first[name] if len(f)]),
                        "mean first changed exit": common.spread([f.mean() for f in first[name] if len(f)]),
                    }
                )
            panels[f"{variant}, {box} box"] = {n: common.density(f, range(7)) for n, f in first.items()}
            print(f"{box} box, {variant} done", flush=True)
    return rows, panels


def main() -> None:
    how = common.setting(__doc__)
    rows, panels = measure(how)
    folder = pathlib.Path(how.results or RESULTS)
    picture = common.plot_densities(panels, folder / "early_exit_rq3.png", "first exit whose label changes")
    facts = {"data": "handwritten digits", "eps": common.EPS, "seeds": how.seeds, **how.facts()}
    save("early_exit_rq3", rows, folder=how.results, claimed=CLAIMS, densities=panels, **facts)
    print(common.flat_table(rows, table))
    print(picture)


if __name__ == "__main__":
    main()
