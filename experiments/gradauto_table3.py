"""GradAuto's table 3: the Lipschitz constant K against recovery and PSNR, all K in one vmap, on SkipNet+HRL.

    python -m experiments.gradauto_table3 [--images 20] [--network skipnet-rl-digits]

Returned is the last iterate, not the one that executes most: only then does K decide how far an image moves.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks
from experiments import _energy, _record

KS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
CLAIMED = ((71.0, 78.13), (85.2, 67.60), (87.0, 57.57), (88.9, 54.54), (88.9, 53.92), (88.9, 53.87))
COLUMNS = ("K", "claimed %", "claimed dB", "recovery %", "standard error", "PSNR dB", "accuracy kept %")


def main() -> None:
    parser = _energy.parser(__doc__, images=20)
    parser.add_argument("--network", default="skipnet-rl-digits")
    arguments = parser.parse_args()
    images, labels = _energy.data(arguments.images)
    net, variables = _energy.load(arguments.network, arguments.weights)

    @jax.jit
    def sweep(variables, x, y, constants):
        forward = partial(net.apply, variables, occupancy=_energy.OCCUPANCIES[_energy.HARD])

        def one(constant):
            attack = attacks.grad_auto(constant, steps=arguments.steps, learning_rate=_energy.RATE, keep="last")
            return attack(forward, x, y)

        return jax.vmap(one)(constants)

    results, seconds = _energy.timed(sweep, variables, images, labels, jnp.asarray(KS))
    rows = []
    for number, (constant, (recovery, decibel)) in enumerate(zip(KS, CLAIMED)):
        result = jax.tree.map(lambda leaf, number=number: np.asarray(leaf)[number], results)
        claimed = {"claimed %": recovery, "claimed dB": decibel}
        rows.append({"K": constant, **claimed, **_energy.numbers(result, images, labels)})
    print(_record.table(rows, list(COLUMNS)))
    _record.save(
        "gradauto_table3",
        rows,
        folder=arguments.results,
        data="handwritten digits, test",
        network=arguments.network,
        images=arguments.images,
        steps=arguments.steps,
        seconds=seconds,
        seed=0,
    )


if __name__ == "__main__":
    main()
