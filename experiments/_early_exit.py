"""What the four experiments on early exits share: networks, surrogates, attacks, densities, command line.

Networks are trained on first use and kept in a cache folder, so the four scripts share them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dyn_jax import attacks, networks
from dyn_jax.datasets import ImageData, digits
from dyn_jax.datasets.corruptions import with_corrupted_copies
from dyn_jax.training import sdn
from dyn_jax.networks.checkpoint import load_variables, save_variables
from dyn_jax.types import Output, Variables

VARIANTS = ("vgg16", "resnet56", "mobilenet")
# (surrogate, target) of the black-box rows: every architecture attacks another one.
PAIRS = (("resnet56", "vgg16"), ("vgg16", "mobilenet"), ("mobilenet", "resnet56"))
EPS, PGD_STEPS = 32 / 255, 10  # handwritten digits are rich in contrast
ATTACKS: dict[str, attacks.Attack] = {
    "FGSM": attacks.fgsm(EPS),
    "PGD": attacks.pgd(EPS, EPS / 8, PGD_STEPS),
    "MI-FGSM": attacks.mi_fgsm(EPS, EPS / 10, 10),
}
HELD_OUT = 150  # of the 500 test digits: these label the surrogates' data, the attacked ones are among the rest


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where trained networks are kept, the seeds, and how long training takes."""

    cache: pathlib.Path
    seeds: tuple[int, ...]
    epochs: int
    surrogate_epochs: int
    examples: int
    results: str | None

    def facts(self) -> dict[str, int]:
        """What a record says about training and data."""
        return {"epochs": self.epochs, "surrogate_epochs": self.surrogate_epochs, "examples": self.examples}


def setting(description: str, argv: Sequence[str] | None = None) -> Setting:
    """Parses the options that all four scripts have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cache", default=os.path.join("~", ".cache", "dyn_jax", "early_exit"), metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3, help="trained networks of each kind")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--surrogate-epochs", type=int, default=12)
    parser.add_argument("--examples", type=int, default=200, help="images attacked, at most 350")
    parser.add_argument("--results", default=None, metavar="FOLDER", help="instead of experiments/results")
    arguments = parser.parse_args(argv)
    cache = pathlib.Path(arguments.cache).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    return Setting(
        cache,
        tuple(range(arguments.seeds)),
        arguments.epochs,
        arguments.surrogate_epochs,
        min(arguments.examples, 500 - HELD_OUT),
        arguments.results,
    )


def attacked_data(how: Setting) -> tuple[jax.Array, jax.Array]:
    """Images and labels that the attacks see."""
    data = digits("test")
    rows = slice(HELD_OUT, HELD_OUT + how.examples)
    return jnp.asarray(data.images[rows]), jnp.asarray(data.labels[rows])


# Networks are arguments here (pytrees of their variables): another seed compiles nothing.
@partial(jax.jit, static_argnames="name")
def attack_on(name: str, source: Callable, x: jax.Array, y: jax.Array, key: jax.Array) -> attacks.AttackResult:
    """The attack of that name on a network."""
    return ATTACKS[name](source, x, y, key=key)


@jax.jit
def answers(target: Callable, x: jax.Array) -> Output:
    """A network's output."""
    return target(x)


def generated(result: attacks.AttackResult) -> np.ndarray:
    """[batch] bool, adversarial on the attacked network though the clean image was not."""
    return np.asarray(result.success & ~result.clean_success)


def network(how: Setting, family: str, variant: str, seed: int) -> Callable:
    """The trained ``sdn-*`` or ``cnn-*`` network as images -> Output."""
    name = f"{family}-{variant}-digits"
    train = partial(sdn.train_digits, name, seed=seed, epochs=how.epochs)
    return Partial(networks.create(name).apply, _cached(how, f"{name}-{seed}-{how.epochs}", train))


def surrogate(how: Setting, family: str, variant: str, target_variant: str, seed: int) -> Callable:
    """A copy of the target of the other family, trained on its answers to held-out and corrupted images."""
    target_family = "cnn" if family == "sdn" else "sdn"

    def train() -> Variables:
        target = network(how, target_family, target_variant, seed)
        test = digits("test")
        held_out = ImageData(test.images[:HELD_OUT], test.labels[:HELD_OUT], test.name)
        data = with_corrupted_copies(held_out, seed=seed)
        data = data._replace(labels=attacks.query(target, data.images))
        recipe = sdn.digits_recipe("full" if family == "sdn" else "static", how.surrogate_epochs)
        return sdn.fit(networks.create(f"{family}-{variant}-digits"), data, recipe, seed=100 + seed)

    stem = f"{family}-{variant}-of-{target_family}-{target_variant}-{seed}-{how.epochs}-{how.surrogate_epochs}"
    return Partial(networks.create(f"{family}-{variant}-digits").apply, _cached(how, stem, train))


def _cached(how: Setting, stem: str, train: Callable[[], Variables]) -> Variables:
    path = how.cache / f"{stem}.msgpack"
    if not path.exists():
        began = time.perf_counter()
        save_variables(path, train())
        print(f"trained {stem} in {time.perf_counter() - began:.0f} s", flush=True)
    return load_variables(path)


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


def plot_densities(panels: dict[str, dict[str, dict[str, Any]]], path: pathlib.Path, xlabel: str) -> pathlib.Path:
    """One panel for each network, one line of shares (with the spread over seeds) for each attack; PNG."""
    from dyn_jax.plotting import figure

    fig, axes = figure(1, len(panels), figsize=(3.2 * len(panels), 2.6), sharey=True)
    for axis, (title, lines) in zip(axes[0], panels.items()):
        for label, line in lines.items():
            if line["mean"] is not None:
                axis.errorbar(line["support"], line["mean"], yerr=line["std"], label=label, marker="o", capsize=2)
        axis.set_title(title, fontsize=8)
        axis.set_xlabel(xlabel, fontsize=8)
    axes[0][0].set_ylabel("share of examples", fontsize=8)
    axes[0][-1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    return path


def flat_table(rows: list[dict[str, Any]], table: Callable) -> str:
    """Rows whose spreads are written as "mean +- std"."""

    def cell(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value["mean"] is None:
            return "none"
        return f"{value['mean']:.3f}" + ("" if value["std"] is None else f" +- {value['std']:.3f}")

    return table([{name: cell(value) for name, value in row.items()} for row in rows], list(rows[0]))


def key_of(seed: int) -> jax.Array:
    """The key of a seed's attacks."""
    return jax.random.key(1000 + seed)


if __name__ == "__main__":  # trains everything that the four experiments use
    chosen = setting(__doc__)
    for number in chosen.seeds:
        for kind in ("sdn", "cnn"):
            for form in VARIANTS:
                network(chosen, kind, form, number)
            for source, goal in PAIRS:
                surrogate(chosen, kind, source, goal, number)
