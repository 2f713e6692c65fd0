"""Does adversarial training protect early exits from DeepSloth, and against what must they be trained?

``python -m experiments.deepsloth_adversarial``: a small SDN on handwritten digits of 16 x 16 pixels, trained by its
recipe on clean images, against PGD on its last exit, against DeepSloth, and against both at once. Every network has a
threshold of its own, at which all save alike on clean training images that were held back: the released rule, a bound
on the accuracy that is lost, sends every image of these networks to the first exit. Claimed (Hong et al. 2021,
abstract): adversarial training gives limited protection.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dyn_jax import attacks, metrics, networks, objectives
from dyn_jax.datasets import ImageData, digits, to_float
from dyn_jax.training.loop import fit
from dyn_jax.training.sdn import digits_recipe
from dyn_jax.types import Variables
from experiments import _run
from experiments.adversarial_training import EPS, pgd, small, study
from experiments.deepsloth_efficacy import measured

STEPS, JUDGE_STEPS, SAVED, HELD = 5, 30, 0.7, 200
THRESHOLDS = tuple(round(0.01 * i, 2) for i in range(1, 100))
SIZES = {"depths": (2, 2, 2), "image_size": 16, "exit_after": (0, 1, 2, 3)}
LAST = objectives.exit_objective(-1)


UNSURE = objectives.unsure_exits()
DEFENCES = {"PGD": LAST, "DeepSloth": UNSURE, "both": lambda *given: LAST(*given) + UNSURE(*given)}
"""Trained against: the objective that the attack in training ascends."""


@functools.partial(jax.jit, static_argnums=0)
def judge(net: Any, variables: Variables, x: jax.Array, y: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """The images, attacked; compiled once for all variables."""
    forward = functools.partial(net.apply, variables)
    slowing = attacks.deepsloth(eps=EPS, steps=JUDGE_STEPS, step_size=2.5 * EPS / JUDGE_STEPS)
    found = {"PGD": pgd(JUDGE_STEPS, LAST), "DeepSloth": slowing}
    found = {name: attack(forward, x, y, key=key).adversarial for name, attack in found.items()}
    return {"clean": x, "noise": _run.signs(x, EPS, key)} | found


def measures(net: Any, variables: Variables, held: ImageData, test: ImageData, seed: int) -> dict[str, float]:
    """Efficacy and accuracy on clean images, noise, PGD's and DeepSloth's; the threshold saves `SAVED` of `held`."""
    clean = jnp.asarray(to_float(held.images))
    efficacy = jax.jit(lambda t: metrics.exits.efficacy(net.apply(variables, clean, threshold=t).trace))
    threshold = min(THRESHOLDS, key=lambda t: abs(float(efficacy(t)) - SAVED))
    x, y = jnp.asarray(to_float(test.images)), jnp.asarray(test.labels, jnp.int32)
    run = jax.jit(lambda x: net.apply(variables, x, threshold=threshold))
    found = {"threshold": threshold}
    for name, moved in judge(net, variables, x, y, jax.random.key(seed)).items():
        output = run(moved)
        each = measured(output.trace, y, output.logits)
        found |= {f"efficacy, {name}": each["efficacy"], f"accuracy, {name}": each["accuracy"]}
    return found


def main() -> None:
    how = _run.parser(__doc__, seeds=3, epochs=20, examples=200).parse_args()
    whole, test = small(digits("train")), small(digits("test"))
    cut = lambda data, part: data._replace(images=data.images[part], labels=data.labels[part])
    data, held, test = cut(whole, slice(HELD, None)), cut(whole, slice(HELD)), cut(test, slice(how.examples))
    net = networks.create("sdn-resnet56-digits", **SIZES)
    of = lambda recipe, seed: measures(net, fit(net, data, recipe, seed=seed), held, test, seed)
    defences = {name: (pgd(STEPS, objective), None) for name, objective in DEFENCES.items()}
    facts = {"steps in training": STEPS, "steps of the judge": JUDGE_STEPS, "efficacy held": SAVED, "held back": HELD}
    study("deepsloth_adversarial", how, digits_recipe(epochs=how.epochs), defences, of, **facts)


if __name__ == "__main__":
    main()
