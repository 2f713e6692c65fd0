"""RQ4: how often does Early Attack change every early exit and not the last one; with which alpha; does it transfer?

``python -m experiments.early_exit_rq4_early_attack``: success by alpha, against FGSM and PGD on all exits but the last;
transfer to the other architectures, T1 (last exit kept) and T2 (all early exits changed). Source: 2308.08709, section
6, tables 1 and 2.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, objectives
from dyn_jax.metrics import exits
from dyn_jax.types import Output
from experiments import _early_exit as common
from experiments import _run
from experiments._record import table

ALPHAS = (0.001, 0.01, 0.1, 1.0, 20.0, 40.0)
STEPS, RATE = 200, 0.05
EXAMPLES = {"digits": 40, "cifar10": 100}
CLAIMS = {
    "table 1": "more than 80 % success, but for two pairs (CIFAR-10 VGG-16 and MobileNet); PGD and FGSM hardly any",
    "alpha": "1 is the best for 70 % of the pairs",
    "finding 10": "Early Attack hardly transfers: where T1 is high, T2 is low, and the other way round",
}


def early_exits_only(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Cross-entropy summed over all exits but the last: what the baselines ascend."""
    count = output.trace.exits.shape[1]
    return sum(objectives.exit_objective(i)(output, labels, targets) for i in range(count - 1))


BASELINES: dict[str, Callable[[float], attacks.Attack]] = {
    "FGSM": lambda eps: attacks.fgsm(eps, objective=early_exits_only, attack_all=True),
    "PGD": lambda eps: attacks.pgd(eps, eps / 8, common.PGD_STEPS, objective=early_exits_only, attack_all=True),
}


@jax.jit
def early_attack_on(net: Callable, images: jax.Array, labels: jax.Array, seed: int, alpha: jax.Array) -> Any:
    """Early Attack from the images themselves, for one alpha."""
    attack = attacks.early_attack(alpha=alpha, steps=STEPS, learning_rate=RATE)
    return attack(net, images, labels, key=common.key_of(seed), start=images)


def measure(how: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of success (by alpha, and the baselines) and of transfer."""
    images, labels = (part[: EXAMPLES[how.domain.label]] for part in common.attacked_data(how))
    baselines = {name: make(how.domain.eps) for name, make in BASELINES.items()}
    success, distances, moved = (collections.defaultdict(list) for _ in range(3))
    for seed in how.seeds:
        made: dict[str, jax.Array] = {}
        for variant in common.VARIANTS:
            began, arguments = time.perf_counter(), (images, labels, seed)
            net = common.network(how, "sdn", variant, seed)
            results = {f"Early Attack, alpha {a:g}": early_attack_on(net, *arguments, jnp.float32(a)) for a in ALPHAS}
            made[variant] = results["Early Attack, alpha 1"].adversarial
            results |= {name: common.attack_on(attack, net, *arguments) for name, attack in baselines.items()}
            for name, result in results.items():
                hit = exits.early_success(result.trace_clean, result.trace_adversarial)
                success[variant, name].append(hit.mean())
                away = np.asarray(result.adversarial - images).reshape(len(images), -1)
                distances[variant, name].append(np.linalg.norm(away, axis=1).mean())
            print(f"seed {seed}, {variant}: {time.perf_counter() - began:.0f} s", flush=True)
        for source, target in itertools.permutations(common.VARIANTS, 2):
            net = common.network(how, "sdn", target, seed)
            parts = exits.early_parts(common.answers(net, images).trace, common.answers(net, made[source]).trace)
            moved[source, target].append([p.mean() for p in parts])
    rows, transfers = [], []
    for (variant, name), values in success.items():
        numbers = {"success": common.spread(values), "L2 distance": common.spread(distances[variant, name])}
        rows.append({"network": f"sdn-{variant}", "attack": name} | numbers)
    for (source, target), values in moved.items():
        kept, changed = map(common.spread, zip(*values))
        numbers = {"T1, last exit kept": kept, "T2, early exits changed": changed}
        transfers.append({"from": f"sdn-{source}", "to": f"sdn-{target}"} | numbers)
    return rows, transfers


def main() -> None:
    how = common.setting(__doc__)
    rows, transfers = measure(how)
    label = how.domain.label
    facts = {"data": f"{EXAMPLES[label]} of {how.domain.title}", "steps": STEPS, "learning_rate": RATE}
    facts |= {"start": "the image", "alphas": list(ALPHAS), "baselines' eps": how.domain.eps}
    facts |= {"baselines' steps": common.PGD_STEPS, "seeds": how.seeds, "epochs": how.epochs}
    print(table(transfers, list(transfers[0])))
    _run.finish(f"early_exit_rq4{how.domain.suffix}", rows, how, **facts, claimed=CLAIMS, transfer=transfers)


if __name__ == "__main__":
    main()
