"""Why a recovery stays below 100 %: every unit is attacked alone, with nothing else in the loss.

    python -m experiments.gradauto_reach [--images 8]

The scores are attacked, not their sigmoids, so that no gate is out of reach for its saturation. A unit that even then
is not on had no reachable input within the steps. The "ceiling" is what would come back with every unit at its own
best: units hinder each other, so it may be too high; an attack on all passes through other images, so it may be too
low. All units of a network are attacked in one vmap.

"Flat" are the elements that are off where the gating value hardly moves: a gate's sigmoid with a slope below 0.01, a
halting sigmoid likewise (SACT: a unit is off because the h before reach 0.99, so the last of them is often close to
1), a saliency of exactly 0 (ManiDP: below its ReLU, no gradient at all).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics
from dyn_jax.gates.halting import EPSILON
from dyn_jax.types import Trace
from experiments import _energy, _record

FLAT = 0.01
NETWORKS = ("skipnet-digits", "skipnet-rl-digits", "sact-digits", "manidp-digits", "dynconv-digits")


def flat_share(trace: Trace) -> float:
    """Share of the elements that are off whose gating value is flat, see the module."""
    flat, off = 0, 0
    before: dict[str, np.ndarray] = {}
    for unit in trace.units:
        score, is_off = np.asarray(unit.score), np.asarray(unit.occupancy) < 0.5
        if unit.logit:
            on = 1 / (1 + np.exp(-score))
            is_flat = on * (1 - on) < FLAT
        elif unit.value is not None:
            is_flat = np.asarray(unit.value) == 0
        else:
            block = unit.name.split("_")[0]
            h = np.clip(before.get(block, 1 - EPSILON) - score, 0, 1)
            before[block] = score
            is_flat = h * (1 - h) < FLAT
        flat, off = flat + int((is_flat & is_off).sum()), off + int(is_off.sum())
    return flat / off


def main() -> None:
    arguments = _energy.parser(__doc__, images=8).parse_args()
    images, labels = _energy.data(arguments.images)
    rows = []
    for name in NETWORKS:
        net, variables = _energy.load(name)
        units = len(jax.eval_shape(net.apply, variables, images).trace.units)

        @jax.jit
        def alone(variables, x, y, chosen, net=net):
            forward = partial(net.apply, variables, occupancy=_energy.OCCUPANCIES[_energy.HARD])

            def one(weights):
                attack = attacks.grad_auto(
                    steps=arguments.steps,
                    learning_rate=_energy.RATE,
                    weights=weights,
                    tau=None,
                    direction=False,
                    keep="least_loss",
                )
                result = attack(forward, x, y)
                return result.trace_clean.units, result.trace_adversarial.units

            return jax.vmap(one)(chosen)

        (clean, after), seconds = _energy.timed(alone, variables, images, labels, jnp.eye(units))
        costs = [metrics.dense_unit_macs(u) for u in jax.eval_shape(net.apply, variables, images).trace.units]
        share = lambda unit, number: np.mean(np.asarray(unit.occupancy)[number] >= 0.5)
        before = [float(share(unit, n)) for n, unit in enumerate(clean)]
        best = [float(max(share(unit, n), b)) for (n, unit), b in zip(enumerate(after), before)]
        saved = sum(c * (1 - b) for c, b in zip(costs, before))
        ceiling = sum(c * (top - b) for c, b, top in zip(costs, before, best)) / saved
        rows.append(
            {
                "network": _energy.LABELS[name],
                "units": units,
                "ceiling %": 100 * ceiling,
                "flat %": 100 * flat_share(jax.jit(net.apply)(variables, images).trace),
                "on before": [round(b, 3) for b in before],
                "on when attacked alone": [round(b, 3) for b in best],
                "seconds": seconds,
            }
        )
        print(rows[-1], flush=True)
    print(_record.table(rows, list(rows[0])[:4]))
    _energy.save("gradauto_reach", rows, arguments)


if __name__ == "__main__":
    main()
