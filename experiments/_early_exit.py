"""What the four experiments on early exits share: networks, surrogates, attacks, densities, command line.

Networks are trained on first use and kept in a cache folder, so the four scripts share them. Images are the embedded
handwritten digits, or CIFAR-10 where its folder is given: of its test images, as in the paper, half are held out.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dyn_jax import attacks, networks
from dyn_jax.datasets import ImageData, to_float
from dyn_jax.datasets.corruptions import with_corrupted_copies
from dyn_jax.plotting import figure
from dyn_jax.training.loop import fit
from dyn_jax.training.recipe import SGD, Recipe
from dyn_jax.training.sdn import digits_recipe, sdn_recipe
from dyn_jax.types import Output, Trace
from experiments import _run
from experiments._run import images_of
from experiments._weights import kept

VARIANTS = ("vgg16", "resnet56", "mobilenet")
STAGE = {"sdn": "full", "cnn": "static"}
# (surrogate, target) of the black-box rows: every architecture attacks another one.
PAIRS = (("resnet56", "vgg16"), ("vgg16", "mobilenet"), ("mobilenet", "resnet56"))
PGD_STEPS = 10
ATTACKS: dict[str, Callable[[float], attacks.Attack]] = {
    "FGSM": attacks.fgsm,
    "PGD": lambda eps: attacks.pgd(eps, eps / 8, PGD_STEPS),
    "MI-FGSM": lambda eps: attacks.mi_fgsm(eps, eps / 10, 10),
}


class Domain(NamedTuple):
    """The images of a study, and what depends on them."""

    label: str  # in the networks' names
    title: str
    suffix: str  # of the records
    recipe: Callable[[str, int], Recipe]  # of a stage of `sdn_recipe` and a number of epochs
    held_out: int  # test images that label the surrogates' data; those that are attacked are among the rest
    eps: float  # of the attacks; handwritten digits are rich in contrast
    surrogate_epochs: int  # unless the command says otherwise, as `examples`
    examples: int
    severe: str  # how strong the surrogates' corrupted copies are, see `with_corrupted_copies`


DIGITS = Domain("digits", "handwritten digits", "", digits_recipe, 150, 32 / 255, 12, 200, "imagenet")
LOSSY = "CIFAR-10, test images as JPEG (lossy)"
# as published, in a tenth of the epochs: larger batches, a cosine in place of milestones
SHORTER = partial(sdn_recipe, optimizer=SGD(0.1, 5e-4), batch_size=256)
CIFAR = Domain("cifar10", LOSSY, "_cifar", SHORTER, 5000, 8 / 255, 5, 500, "cifar")


def setting(doc: str | None) -> argparse.Namespace:
    """The options of all four scripts: the data (else digits), where networks are kept, how many, how long to train."""
    parser = _run.parser(doc, data=None, seeds=3, epochs=10, examples=None)
    parser.add_argument("--cache", default=os.path.join("~", ".cache", "dyn_jax", "early_exit"), metavar="FOLDER")
    parser.add_argument("--surrogate-epochs", type=int, default=None)
    how = parser.parse_args()
    how.domain = DIGITS if how.data is None else CIFAR
    for option in ("surrogate_epochs", "examples"):
        if getattr(how, option) is None:
            setattr(how, option, getattr(how.domain, option))
    how.cache, how.seeds = pathlib.Path(how.cache).expanduser(), list(range(how.seeds))
    how.attacks = {name: make(how.domain.eps) for name, make in ATTACKS.items()}
    return how


def attacked_data(how: argparse.Namespace) -> tuple[jax.Array, jax.Array]:
    """Images and labels that the attacks see."""
    data, first = images_of("test", how.data), how.domain.held_out
    if how.examples > (rest := len(data.labels) - first):
        raise ValueError(f"--examples: got {how.examples}, expected at most {rest}")
    rows = slice(first, first + how.examples)
    return to_float(data.images[rows]), jnp.asarray(data.labels[rows])


# Networks are arguments here (pytrees of their variables): another seed compiles nothing.
@partial(jax.jit, static_argnums=0)
def attack_on(attack: attacks.Attack, source: Callable, x: jax.Array, y: jax.Array, seed: int) -> attacks.AttackResult:
    """An attack on a network."""
    return attack(source, x, y, key=key_of(seed))


@jax.jit
def answers(target: Callable, x: jax.Array) -> Output:
    """A network's output."""
    return target(x)


def generated(result: attacks.AttackResult) -> np.ndarray:
    """[batch] bool, adversarial on the attacked network though the clean image was not."""
    return np.asarray(result.success & ~result.clean_success)


@functools.cache
def _apply(name: str) -> Callable:
    """One bound method for every name: jit compares those by identity."""
    return networks.create(name).apply


def _trained(how: argparse.Namespace, name: str, file: str, seed: int, data: Callable, epochs: int) -> Callable:
    """The network of the file, which is made if it is missing, as images -> Output."""
    recipe = how.domain.recipe(STAGE[name[:3]], epochs)
    train = lambda: fit(networks.create(name), data(), recipe, seed=seed)
    return Partial(_apply(name), kept(how.cache / f"{file}.msgpack", train))


def network(how: argparse.Namespace, family: str, variant: str, seed: int) -> Callable:
    """The trained ``sdn-*`` or ``cnn-*`` network as images -> Output."""
    name = f"{family}-{variant}-{how.domain.label}"
    data = lambda: images_of("train", how.data)
    return _trained(how, name, f"{name}-{seed}-{how.epochs}", seed, data, how.epochs)


def surrogate(how: argparse.Namespace, family: str, variant: str, target_variant: str, seed: int) -> Callable:
    """A copy of the target of the other family, trained on its answers to held-out and corrupted images."""
    target_family = "cnn" if family == "sdn" else "sdn"
    label = how.domain.label

    def data() -> ImageData:
        target = network(how, target_family, target_variant, seed)
        test, count = images_of("test", how.data), how.domain.held_out
        held_out = test._replace(images=test.images[:count], labels=test.labels[:count])
        corrupted = with_corrupted_copies(held_out, seed=seed, table=how.domain.severe)
        return corrupted._replace(labels=attacks.query(target, corrupted.images))

    file = f"{family}-{variant}-of-{target_family}-{target_variant}-{label}-{seed}-{how.epochs}-{how.surrogate_epochs}"
    return _trained(how, f"{family}-{variant}-{label}", file, 100 + seed, data, how.surrogate_epochs)


class Seen(NamedTuple):
    """An attack's result on its source, and what the dynamic target did with the clean and the adversarial images."""

    result: attacks.AttackResult
    clean: Trace
    adversarial: Trace


def on_dynamic_targets(
    how: argparse.Namespace,
    white: Callable[[Partial, str, int], Callable],
    numbers: Callable[[list[Seen]], tuple[dict[str, Any], list[np.ndarray]]],
    support: range,
) -> tuple[list[dict[str, Any]], dict[str, dict]]:
    """Rows of every dynamic network under every attack, and densities over the `support`.

    ``white(target, variant, seed)`` is what the white box attacks; the black box: a surrogate of another architecture.
    ``numbers`` of one `Seen` a seed: a row, and the values whose density is drawn.
    """
    rows: list[dict[str, Any]] = []
    panels: dict[str, dict] = {}
    images, labels = attacked_data(how)
    surrogate_of = {target: source for source, target in PAIRS}
    for box, variant in itertools.product(("white", "black"), VARIANTS):
        seen: dict[str, list[Seen]] = {name: [] for name in how.attacks}
        for seed in how.seeds:
            target = network(how, "sdn", variant, seed)
            if box == "white":
                source = white(target, variant, seed)
            else:
                source = surrogate(how, "cnn", surrogate_of[variant], variant, seed)
            clean = answers(target, images).trace
            for name, attack in how.attacks.items():
                result = attack_on(attack, source, images, labels, seed)
                seen[name].append(Seen(result, clean, answers(target, result.adversarial).trace))
        found = {name: numbers(runs) for name, runs in seen.items()}
        head = {"box": box, "network": f"sdn-{variant}"}
        rows += _run.shown(head | {"attack": name} | row for name, (row, _) in found.items())
        panels[f"{variant}, {box} box"] = {name: density(values, support) for name, (_, values) in found.items()}
    return rows, panels


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean, standard deviation between seeds, and the values; values that are not finite (no example) are left out."""
    values = [float(v) for v in values]
    finite = [v for v in values if np.isfinite(v)]
    mean = float(np.mean(finite)) if finite else None
    return {"mean": mean, "std": float(np.std(finite, ddof=1)) if len(finite) > 1 else None, "seeds": values}


def density(values: Sequence[np.ndarray], support: range) -> dict[str, Any]:
    """Share of every value of `support`, over all seeds together and its standard deviation between seeds."""
    shares = [[float(np.mean(v == x)) for x in support] for v in values if len(v)]
    if not shares:
        return {"support": list(support), "mean": None, "std": None}
    std = np.std(shares, axis=0, ddof=1).tolist() if len(shares) > 1 else None
    return {"support": list(support), "mean": np.mean(shares, axis=0).tolist(), "std": std}


def report(
    name: str, how: argparse.Namespace, rows: list[dict], panels: dict[str, dict], xlabel: str, **facts: Any
) -> None:
    """Writes the record (the claims and all else are among the `facts`) and draws the densities: a panel a network."""
    facts |= {"data": how.domain.title, "held out for the surrogates": how.domain.held_out}
    facts |= {"eps": how.domain.eps, "pgd_steps": PGD_STEPS, "densities": panels}
    facts |= {key: vars(how)[key] for key in ("seeds", "epochs", "surrogate_epochs", "examples")}
    file = _run.finish(name + how.domain.suffix, rows, how, **facts)
    fig, axes = figure(1, len(panels), figsize=(3.2 * len(panels), 2.6), sharey=True)
    for axis, (title, lines) in zip(axes[0], panels.items()):
        for label, line in lines.items():
            if line["mean"] is not None:
                axis.errorbar(line["support"], line["mean"], yerr=line["std"], label=label, marker="o", capsize=2)
        axis.set_title(title, fontsize=8)
        axis.set_xlabel(xlabel, fontsize=8)
    axes[0][0].set_ylabel("share of examples", fontsize=8)
    if axes[0][-1].get_legend_handles_labels()[0]:
        axes[0][-1].legend(fontsize=7)
    fig.savefig(file.with_suffix(".png"), dpi=120)


def key_of(seed: int) -> jax.Array:
    """The key of a seed's attacks."""
    return jax.random.key(1000 + seed)
