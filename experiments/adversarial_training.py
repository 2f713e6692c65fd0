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

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, objectives, occupancy, training
from dyn_jax.datasets import ImageData, digits
from dyn_jax.training.loop import fit
from dyn_jax.training.recipe import Recipe
from dyn_jax.training.sparsity import skipnet_recipe
from dyn_jax.types import Occupancy
from experiments import _run

EPS, STEPS, JUDGE_STEPS = 16 / 255, 3, 10
SOFT = occupancy.straight_through(1.0)
SIZES = {"depths": (1, 1, 1), "image_size": 16, "gate": "ff1"}


def pgd(steps: int, objective: Any = "ce") -> attacks.Attack:
    return attacks.pgd(EPS, 2.5 * EPS / steps, steps, objective=objective, attack_all=True)


ENERGY = objectives.energy(tau=None)
DEFENCES: dict[str, tuple[attacks.Attack, Occupancy | None]] = {
    "answer, FGM": (pgd(STEPS), None),
    "answer, LGM": (pgd(STEPS), SOFT),
    "energy": (pgd(STEPS, ENERGY), SOFT),
    "both, LGM": (pgd(STEPS, training.both(ENERGY)), SOFT),
}
"""What networks are trained against: (attack, occupancy of the attacked network)."""


def small(data: ImageData) -> ImageData:
    """Images of half the size, by the mean of 2 x 2 pixels, of the data's dtype."""
    images = np.asarray(data.images)
    n, h, w, c = images.shape
    means = images.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return data._replace(images=means.astype(images.dtype))


@functools.partial(jax.jit, static_argnums=0)
def judge(net: nn.Module, variables: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """What the attacks do to a network; compiled once for all variables."""
    answer, energy = pgd(JUDGE_STEPS), pgd(JUDGE_STEPS, ENERGY)
    hard, soft = (functools.partial(net.apply, variables, occupancy=gate) for gate in (None, SOFT))
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


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def study(
    name: str, how: argparse.Namespace, plain: Recipe, defences: dict[str, Any], measures: Callable, **facts: Any
) -> None:
    """The table of ``measures(recipe, seed)``, spread over the seeds: `plain` and what it becomes under `defences`."""
    facts |= {"eps": EPS, "data": "handwritten digits, 16 x 16", "attacked share of a batch": 0.5}
    rows: list[dict[str, Any]] = []
    for against, defence in {"nothing": None, **defences}.items():
        recipe = plain if defence is None else training.adversarial(plain, defence[0], occupancy=defence[1], share=0.5)
        found = _run.shown(measures(recipe, seed) for seed in range(how.seeds))
        rows.append({"trained against": against} | {k: spread([one[k] for one in found]) for k in found[0]})
        # after every row: a run that is stopped keeps what it has
        _run.finish(name, rows, how, arguments=how, seeds=list(range(how.seeds)), **facts)


def main() -> None:
    how = _run.parser(__doc__, seeds=3, epochs=16, examples=200).parse_args()
    data, test = small(digits("train")), small(digits("test"))
    images, labels = jnp.asarray(test.images[: how.examples]), jnp.asarray(test.labels[: how.examples])
    net = networks.create("skipnet-digits", **SIZES)

    def measures(recipe: Recipe, seed: int) -> dict[str, float]:
        numbers = judge(net, fit(net, data, recipe, seed=seed), images, labels, jax.random.key(seed))
        return {key: float(value) for key, value in numbers.items()}

    facts = {"steps in training": STEPS, "steps of the judge": JUDGE_STEPS, "lambda": 1.0}
    study("adversarial_training", how, skipnet_recipe(how.epochs), DEFENCES, measures, **facts)


if __name__ == "__main__":
    main()
