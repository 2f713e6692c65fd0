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

CLAIMED = {
    **{1e-3: (71.0, 78.13), 1e-2: (85.2, 67.60), 1e-1: (87.0, 57.57)},
    **{1.0: (88.9, 54.54), 1e1: (88.9, 53.92), 1e2: (88.9, 53.87)},
}
KS = (1e-5, 1e-4, *CLAIMED)
COLUMNS = ("distance", "K", "claimed %", "claimed dB", "recovery %", "standard error", "PSNR dB", "accuracy kept %")


def main() -> None:
    parser = _energy.parser(__doc__, images=20)
    parser.add_argument("--network", default="skipnet-rl-digits")
    arguments = parser.parse_args()
    images, labels = _energy.data(arguments.images)
    net, variables = _energy.load(arguments.network, arguments.weights)

    @partial(jax.jit, static_argnames="distance")
    def sweep(distance, variables, x, y, constants):
        forward = partial(net.apply, variables, occupancy=_energy.OCCUPANCIES[_energy.HARD])
        budget = {"steps": arguments.steps, "learning_rate": _energy.RATE}
        attack = lambda k: attacks.grad_auto(k, distance=distance, keep="last", **budget)
        return jax.vmap(lambda k: attack(k)(forward, x, y))(constants)

    rows, seconds = [], 0.0
    for distance in ("norm", "squares"):
        results, took = _energy.timed(sweep, distance, variables, images, labels, jnp.asarray(KS))
        seconds += took
        for number, constant in enumerate(KS):
            result = jax.tree.map(lambda leaf, number=number: np.asarray(leaf)[number], results)
            recovery, decibel = CLAIMED.get(constant, (None, None))
            claimed = {"claimed %": recovery, "claimed dB": decibel}
            measured = _energy.numbers(result, images, labels)
            rows.append({"distance": distance, "K": constant, **claimed, **measured})
    print(_record.table(rows, list(COLUMNS)))
    _energy.save("gradauto_table3", rows, arguments, network=arguments.network, seconds=seconds)


if __name__ == "__main__":
    main()
