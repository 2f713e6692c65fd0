"""LGM table VII on the embedded rooms: mean IoU by lambda and eps, all lambdas of one eps in one vmap.

python -m experiments.lgm_table7_lambda
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import metrics
from dyn_jax.cli import demo_points
from dyn_jax.occupancy import voxel
from experiments import _record, _rooms

LAMBDAS = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0)
CLAIMED = {  # on ScanNet; before the attack 72.22
    0.005: (46.14, 30.04, 26.14, 25.09, 24.35, 25.45, 24.46, 25.32),
    0.01: (17.07, 10.87, 12.28, 14.75, 16.94, 18.79, 20.63, 20.8),
    0.02: (12.47, 5.09, 6.03, 6.67, 7.03, 7.78, 8.51, 8.30),
    0.05: (9.18, 3.17, 2.78, 3.04, 3.33, 3.56, 3.74, 3.80),
}


def main() -> None:
    options = _rooms.parser(__doc__, rooms=3)
    options.add_argument("--protocol", choices=_rooms.PROTOCOLS, default="release")
    arguments = options.parse_args()
    made = _rooms.setup(arguments.rooms, arguments.points, arguments.weights)
    how = _rooms.PROTOCOLS[arguments.protocol]
    function = demo_points.attack_function(made.net, made.small, made.large, steps=arguments.steps, **how)

    @jax.jit
    def sweep(variables: dict, cloud: object, labels: jax.Array, eps: jax.Array, step: jax.Array, lam: jax.Array):
        def one(lam: jax.Array) -> tuple[jax.Array, ...]:
            result = function(variables, cloud, labels, eps, step, voxel.lgm(voxel.sigmoid(lam)))
            scores = (_rooms.confusion(z, labels) for z in (result.logits_clean, result.logits_adversarial))
            return result.overflow, *scores

        return jax.vmap(one)(lam)

    rows = []
    for eps, step in demo_points.STEP.items():
        sizes = (jnp.float32(eps), jnp.float32(step), jnp.asarray(LAMBDAS))
        results = [sweep(made.variables, cloud, labels, *sizes) for cloud, labels in zip(made.clouds, made.labels)]
        overflow, before, after = (np.stack(column) for column in zip(*results))  # [room, lambda, ...]
        _rooms.trusted(overflow, f"eps {eps}")
        for number, lam in enumerate(LAMBDAS):
            rows.append(
                {
                    "eps (m)": eps,
                    "lambda": lam,
                    "before %": 100 * float(metrics.mean_iou(before[:, number].sum(0))),
                    **_rooms.after(after[:, number]),
                    "claimed % (ScanNet)": CLAIMED[eps][number],
                }
            )
            print(rows[-1], flush=True)
    print(_record.table(rows, ["eps (m)", "lambda", "after %", "sd over rooms", "claimed % (ScanNet)"]))
    facts = _rooms.facts(arguments, made.net) | {"protocol": arguments.protocol}
    print(_record.save("lgm_table7_lambda", rows, folder=arguments.results, **facts))


if __name__ == "__main__":
    main()
