"""Networks of experts under attack: the cost is constant, so what can change is which experts run.

    python -m experiments.experts_routes [--images 200] [--steps 20]

Attacks on the answer through fixed routes (FGM) and through leaded ones (LGM), on the routes and on the load (all
tokens to expert 0), and random signs of the same size, on the shipped networks of experts and test digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, objectives, occupancy
from dyn_jax.datasets import digits
from dyn_jax.types import Output
from experiments import _run

EPS = 8 / 255
GRADIENTS = {
    "FGM": occupancy.hard(),
    "LGM, soft 1": occupancy.sigmoid(1.0),
    "LGM, straight-through 1": occupancy.straight_through(1.0),
    "LGM, straight-through 10": occupancy.straight_through(10.0),
}
OBJECTIVES = {"routes": objectives.other_experts(), "load": objectives.expert_load(0)}


def row(before: Output, after: Output, labels: np.ndarray) -> dict[str, float]:
    """Numbers of one batch; of several units the mean."""
    mean = lambda values: float(np.mean(np.asarray(values)))
    both, dense = partial(_run.both, before, after), metrics.dense_macs(before.trace)
    return (
        both("accuracy {} %", lambda out: 100 * float(metrics.accuracy(out.logits, jnp.asarray(labels))))
        | {"intersection over union": mean(metrics.expert_iou(before.trace, after.trace))}
        | both("imbalance {}", lambda out: mean(metrics.load_imbalance(out.trace)))
        | both("share of expert 0 {} %", lambda out: 100 * mean([x[0] for x in metrics.expert_load(out.trace)]))
        | both("work {} %", lambda out: 100 * (mean(metrics.executed_macs(out.trace)) / dense))
    )


def rows_of(name: str, images: np.ndarray, labels: np.ndarray, steps: int) -> Iterator[dict]:
    net, variables = networks.pretrained(name)
    victim, x, y = partial(net.apply, variables), jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    run = jax.jit(victim)
    before, moved = run(x), {("noise", ""): _run.signs(x, EPS)}
    chosen = {("answer", gradient): ("ce", gate) for gradient, gate in GRADIENTS.items()}
    chosen |= {(kind, ""): (objective, occupancy.hard()) for kind, objective in OBJECTIVES.items()}
    for key, (objective, gate) in chosen.items():
        attack = attacks.bim(EPS, EPS / 4, steps, objective=objective, attack_all=True)
        forward = partial(net.apply, variables, occupancy=gate)
        moved[key] = jax.jit(lambda x, a=attack, f=forward: a(f, x, y, victim=victim).adversarial)(x)
    for (kind, gradient), after in moved.items():
        yield {"network": name, "attack": kind, "gradient": gradient, **row(before, run(after), labels)}


def main() -> None:
    how = _run.parser(__doc__, networks=["moe-digits", "vmoe-digits"], images=200, steps=20).parse_args()
    test = _run.first(digits("test"), how.images)
    rows = _run.shown(row for name in how.networks for row in rows_of(name, *test, how.steps))
    _run.finish("experts_routes", rows, how, arguments=how, seed=0, data="test digits", eps=EPS)


if __name__ == "__main__":
    main()
