"""Why a recovery stays below 100 %: every unit is attacked alone, with nothing else in the loss.

    python -m experiments.gradauto_reach [--images 8]

The scores are attacked, not their sigmoids, so that no gate is out of reach for its saturation. A unit that even then
is not on had no reachable input within the steps. The "ceiling" is what would come back with every unit at its own
best: units hinder each other, so it may be too high; an attack on all passes through other images, so it may be too
low. All units of a network are attacked in one vmap.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics
from experiments import _energy, _record

NETWORKS = ("skipnet-digits", "skipnet-rl-digits", "sact-digits", "manidp-digits", "dynconv-digits")


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
        stuck = [n for n, top in enumerate(best) if top < 0.05]
        rows.append(
            {
                "network": _energy.LABELS[name],
                "units": units,
                "ceiling %": 100 * ceiling,
                "units off in 95 % of all elements even when attacked alone": len(stuck),
                "on before": [round(b, 3) for b in before],
                "on when attacked alone": [round(b, 3) for b in best],
                "seconds": seconds,
            }
        )
        print(rows[-1], flush=True)
    print(_record.table(rows, list(rows[0])[:4]))
    _record.save(
        "gradauto_reach",
        rows,
        folder=arguments.results,
        data="handwritten digits, test",
        images=arguments.images,
        steps=arguments.steps,
        seed=0,
    )


if __name__ == "__main__":
    main()
