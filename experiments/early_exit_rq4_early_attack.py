"""RQ4: how often does Early Attack change every early exit and not the last one; with which alpha; does it transfer?

``python -m experiments.early_exit_rq4_early_attack``: success by alpha, against FGSM and PGD on all exits but the last;
transfer to the other architectures, T1 (last exit kept) and T2 (all early exits changed). Source: 2308.08709, section
6, tables 1 and 2 (CIFAR; here: handwritten digits).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, exits
from dyn_jax.types import Output
from experiments import _early_exit as common
from experiments._record import save, table

ALPHAS = (0.001, 0.01, 0.1, 1.0, 20.0, 40.0)
STEPS, EXAMPLES, RATE = 200, 40, 0.05
CLAIMS = {
    "table 1": "more than 80 % success, but for two pairs (CIFAR-10 VGG-16 and MobileNet); PGD and FGSM hardly any",
    "alpha": "1 is the best for 70 % of the pairs",
    "finding 10": "Early Attack hardly transfers: where T1 is high, T2 is low, and the other way round",
}


def early_exits_only(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Cross-entropy summed over all exits but the last: what the baselines ascend."""
    count = output.trace.exits.shape[0]
    return sum(exits.exit_objective(i)(output, labels, targets) for i in range(count - 1))


BASELINES = {
    "FGSM": attacks.fgsm(common.EPS, objective=early_exits_only, attack_all=True),
    "PGD": attacks.pgd(common.EPS, common.EPS / 8, common.PGD_STEPS, objective=early_exits_only, attack_all=True),
}


@jax.jit
def early_attack_on(
    net: Callable, images: jax.Array, labels: jax.Array, key: jax.Array, alpha: jax.Array
) -> attacks.AttackResult:
    """Early Attack from the images themselves, for one alpha."""
    attack = attacks.early_attack(alpha=alpha, steps=STEPS, learning_rate=RATE)
    return attack(net, images, labels, key=key, start=images)


@partial(jax.jit, static_argnames="name")
def baseline_on(name: str, net: Callable, images: jax.Array, labels: jax.Array, key: jax.Array) -> attacks.AttackResult:
    """A baseline of that name."""
    return BASELINES[name](net, images, labels, key=key)


def measure(how: common.Setting) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of success (by alpha, and the baselines) and of transfer."""
    images, labels = (part[:EXAMPLES] for part in common.attacked_data(how))
    success: dict[tuple, list] = {}
    moved: dict[tuple, list] = {}
    distances: dict[tuple, list] = {}
    for seed in how.seeds:
        made: dict[str, jax.Array] = {}
        for variant in common.VARIANTS:
            net = common.network(how, "sdn", variant, seed)

            began = time.perf_counter()
            for alpha in ALPHAS:
                result = early_attack_on(net, images, labels, common.key_of(seed), jnp.float32(alpha))
                hit = np.asarray(exits.early_success(result.trace_clean, result.trace_adversarial))
                success.setdefault((variant, f"Early Attack, alpha {alpha:g}"), []).append(hit.mean())
                distances.setdefault((variant, f"Early Attack, alpha {alpha:g}"), []).append(
                    np.asarray(result.distance).mean()
                )
                if alpha == 1.0:
                    made[variant] = result.adversarial
            for name in BASELINES:
                result = baseline_on(name, net, images, labels, common.key_of(seed))
                hit = np.asarray(exits.early_success(result.trace_clean, result.trace_adversarial))
                success.setdefault((variant, name), []).append(hit.mean())
                distances.setdefault((variant, name), []).append(
                    np.asarray(jnp.sqrt(jnp.sum((result.adversarial - images) ** 2, (1, 2, 3)))).mean()
                )
            print(f"seed {seed}, {variant}: {time.perf_counter() - began:.0f} s", flush=True)
        for source in common.VARIANTS:
            for target in common.VARIANTS:
                if source == target:
                    continue
                net = common.network(how, "sdn", target, seed)
                parts = exits.early_parts(common.answers(net, images).trace, common.answers(net, made[source]).trace)
                moved.setdefault((source, target), []).append([float(p.mean()) for p in parts])
    rows = [
        {
            "network": f"sdn-{variant}",
            "attack": name,
            "success": common.spread(values),
            "L2 distance": common.spread(distances[variant, name]),
        }
        for (variant, name), values in success.items()
    ]
    transfers = [
        {
            "from": f"sdn-{source}",
            "to": f"sdn-{target}",
            "T1, last exit kept": common.spread([v[0] for v in values]),
            "T2, early exits changed": common.spread([v[1] for v in values]),
        }
        for (source, target), values in moved.items()
    ]
    return rows, transfers


def main() -> None:
    how = common.setting(__doc__)
    rows, transfers = measure(how)
    facts = {"data": f"{EXAMPLES} handwritten digits", "steps": STEPS, "learning_rate": RATE, "start": "the image"}
    facts |= {"seeds": how.seeds, "epochs": how.epochs}
    save("early_exit_rq4", rows, folder=how.results, claimed=CLAIMS, transfer=transfers, **facts)
    print(common.flat_table(rows, table))
    print(common.flat_table(transfers, table))


if __name__ == "__main__":
    main()
