"""Does training against LGM's gradient beat training against FGM's, and does robustness in accuracy buy one in energy?

``python -m experiments.adversarial_training``: a small SkipNet on handwritten digits of 16 x 16 pixels, trained by its
recipe on clean images, against PGD through hard occupancies (FGM), through soft ones (LGM), on the energy, on both.
Each is judged by PGD on the answer (the stronger of both gradients, image by image) and on the energy. Nobody has
published numbers: nothing is claimed.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, objectives, occupancy, training
from dyn_jax.datasets import ImageData, digits
from dyn_jax.training.loop import fit
from dyn_jax.training.sparsity import skipnet_recipe
from dyn_jax.types import Occupancy
from experiments._record import save, table

EPS, STEPS, JUDGE_STEPS = 16 / 255, 3, 10
SOFT = occupancy.straight_through(1.0)
SIZES = {"depths": (1, 1, 1), "image_size": 16, "gate": "ff1"}


def pgd(steps: int, objective: Any = "ce") -> attacks.Attack:
    return attacks.pgd(EPS, 2.5 * EPS / steps, steps, objective=objective, attack_all=True)


def defences() -> dict[str, tuple[attacks.Attack, Occupancy | None] | None]:
    """What each network is trained against: (attack, occupancy of the attacked network)."""
    energy = objectives.energy(tau=None)
    return {
        "nothing": None,
        "answer, FGM": (pgd(STEPS), None),
        "answer, LGM": (pgd(STEPS), SOFT),
        "energy": (pgd(STEPS, energy), SOFT),
        "both, LGM": (pgd(STEPS, training.both(energy)), SOFT),
    }


def small(data: ImageData) -> ImageData:
    """Images of half the size, by the mean of 2 x 2 pixels, of the data's dtype."""
    images = np.asarray(data.images)
    n, h, w, c = images.shape
    means = images.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return data._replace(images=means.astype(images.dtype))


@functools.cache
def judge(apply: Callable) -> Callable:
    """(variables, images, labels, key) -> what the attacks do to a network; compiled once for all of them."""
    answer, energy = pgd(JUDGE_STEPS), pgd(JUDGE_STEPS, objectives.energy(tau=None))

    @jax.jit
    def run(variables: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        hard = functools.partial(apply, variables)
        soft = functools.partial(apply, variables, occupancy=SOFT)
        fgm, lgm = (answer(f, x, y, key=key, victim=hard) for f in (hard, soft))
        slow = energy(soft, x, y, key=key, victim=hard)
        share = lambda trace: jnp.mean(metrics.executed_macs(trace)) / metrics.dense_macs(trace)
        return {
            "clean accuracy": 1 - jnp.mean(fgm.clean_success),
            "robust accuracy, FGM": 1 - jnp.mean(fgm.success),
            "robust accuracy, LGM": 1 - jnp.mean(lgm.success),
            "robust accuracy, worst": 1 - jnp.mean(fgm.success | lgm.success),
            "clean work": share(slow.trace_clean),
            "work under attack on the energy": share(slow.trace_adversarial),
            "work under attack on the answer": share(lgm.trace_adversarial),
        }

    return run


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trained networks of each kind")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--examples", type=int, default=200, help="test images")
    parser.add_argument("--results", default=None, metavar="FOLDER", help="instead of experiments/results")
    how = parser.parse_args()
    data, test = small(digits("train")), small(digits("test"))
    images, labels = jnp.asarray(test.images[: how.examples]), jnp.asarray(test.labels[: how.examples])
    net, plain = networks.create("skipnet-digits", **SIZES), skipnet_recipe(how.epochs)
    facts = {"eps": EPS, "steps in training": STEPS, "steps of the judge": JUDGE_STEPS, "lambda": 1.0}
    facts |= {"data": "handwritten digits, 16 x 16", "attacked share of a batch": 0.5}
    rows: list[dict[str, Any]] = []
    for name, defence in defences().items():
        recipe = plain if defence is None else training.adversarial(plain, defence[0], occupancy=defence[1], share=0.5)
        found: list[dict[str, jax.Array]] = []
        for seed in range(how.seeds):
            variables = fit(net, data, recipe, seed=seed)
            found.append(judge(net.apply)(variables, images, labels, jax.random.key(seed)))
            print(name, seed, {key: round(float(value), 3) for key, value in found[-1].items()}, flush=True)
        rows.append({"trained against": name} | {k: spread([float(one[k]) for one in found]) for k in found[0]})
        # after every row: a run that is stopped keeps what it has
        save("adversarial_training", rows, arguments=how, seeds=list(range(how.seeds)), folder=how.results, **facts)
    flat = [{k: v if isinstance(v, str) else f"{v['mean']:.3f}" for k, v in row.items()} for row in rows]
    print(table(flat, list(flat[0])))


if __name__ == "__main__":
    main()
