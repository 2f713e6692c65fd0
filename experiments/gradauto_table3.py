"""GradAuto's table 3: the Lipschitz constant K against recovery and PSNR, all K in one vmap, on SkipNet+HRL.

    python -m experiments.gradauto_table3 [--images 20] [--network skipnet-rl-digits]
    python -m experiments.gradauto_table3 --data FOLDER --network skipnet-32-cifar10

Returned is the last iterate, not the one that executes most: only then does K decide how far an image moves.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import attacks
from dyn_jax.attacks.domains import l2, squares
from experiments import _energy

CLAIMED = {
    **{1e-3: (71.0, 78.13), 1e-2: (85.2, 67.60), 1e-1: (87.0, 57.57)},
    **{1.0: (88.9, 54.54), 1e1: (88.9, 53.92), 1e2: (88.9, 53.87)},
}
KS = (1e-5, 1e-4, *CLAIMED)
COLUMNS = ("distance", "K", "claimed %", "claimed dB", "recovery %", "standard error", "PSNR dB", "accuracy kept %")


def main() -> None:
    how = _energy.parser(__doc__, 20, network="skipnet-rl-digits").parse_args()
    ((_, victim),) = _energy.victims(how, how.network)
    budget, rows, seconds = _energy.budget(how), [], 0.0
    for name, distance in (("norm", l2), ("squares", squares)):
        form = attacks.Form(distance=distance, keep="last")
        sweep = victim.runner(lambda k, form=form: attacks.grad_auto(k, form=form, **budget))
        results, took = victim.timed(jax.vmap(sweep, (None, None, None, 0)), jnp.asarray(KS))
        seconds += took
        for number, constant in enumerate(KS):
            result = jax.tree.map(lambda leaf, number=number: leaf[number], results)
            recovery, decibel = CLAIMED.get(constant, (None, None))
            row = {"distance": name, "K": constant, "claimed %": recovery, "claimed dB": decibel}
            rows.append(row | _energy.numbers(result, victim.images, victim.labels))
    facts = {"network": how.network, "seconds": seconds, **budget}
    _energy.finish("gradauto_table3", rows, COLUMNS, how, **facts)


if __name__ == "__main__":
    main()
