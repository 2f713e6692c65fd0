"""SkipNet's hybrid reinforcement learning on CIFAR-10: from the paper's supervised gates and from those shipped.

    python -m experiments.cifar_hrl --data FOLDER --trunk resnet-32.msgpack [--alphas 0.1 1.0]

The paper's supervised stage starts from open gates, straight-through, and nothing makes them save; the one
shipped has noise, a budget and `information_loss`. From each, HRL with every alpha (the reward of skipping). FOLDER has
cifar10_{lossless,jpeg}_{train,test}.npz, the trunk is what ``python -m weights_convert resnet-32-cifar10`` wrote.
Source: SkipNet section 3.3; released: 10,000 iterations at a rate of 1e-4 with alpha 0.1, here shorter and faster.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from dyn_jax import networks
from dyn_jax.datasets import cifar10_lossless, cifar10_packed, to_float
from dyn_jax.networks.checkpoint import load_variables, save_variables
from dyn_jax.training.cifar import IMAGES
from dyn_jax.training.embedded import CALIBRATION, TRUNKS
from dyn_jax.training.hrl import hrl_recipe
from dyn_jax.training.loop import fit
from dyn_jax.training.recipe import SGD, Recipe, edited
from dyn_jax.types import Variables
from experiments import _run
from experiments.cifar_networks import row

NAME = "skipnet-32-cifar10"
CLAIMED = {"SkipNet, abstract": "saves 30 to 90 % of the computation at the accuracy of the full network"}


def opened(variables: Any, by: float = 2.0) -> Any:
    """A SkipNet's variables with `by` added to every score."""
    return edited(variables, "params/control/proj/bias", lambda bias: bias + by)


def main() -> None:
    parser = _run.parser(__doc__, "trunk", data=None, batch=100, epochs=20)
    parser.add_argument("--alphas", nargs="+", type=float, default=[0.1, 1.0])
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of HRL at its start")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--weights", default=None, help="folder for what was trained (default: it is not kept)")
    arguments = parser.parse_args()
    read = lambda split: cifar10_packed(arguments.data, split)
    data, sets = read("train"), {"held back": read("held_back"), "JPEG test": read("test")}
    sets["lossless test"] = cifar10_lossless(arguments.data, "test")
    shipped: Any
    net, shipped = networks.pretrained(NAME)
    trunk = load_variables(arguments.trunk, TRUNKS[NAME])

    def trained() -> Iterator[tuple[str, float | None, int, Variables]]:
        for seed in arguments.seeds:
            supervised = Recipe(arguments.epochs, 128, SGD(0.03), source=IMAGES, decay_gates=False)
            start = opened(networks.embed(net, trunk, images=to_float(data.images[:CALIBRATION]), seed=seed))
            stages = {"as published": fit(net, data, supervised, seed=seed, initial=start), "shipped": shipped}
            for stage, variables in stages.items():
                yield stage, None, seed, variables
                for alpha in arguments.alphas:
                    recipe = hrl_recipe(arguments.epochs, alpha, learning_rate=arguments.rate)
                    recipe = dataclasses.replace(recipe, batch_size=128, source=IMAGES)
                    after = fit(net, data, recipe, seed=seed, initial=variables)
                    yield stage, alpha, seed, after
                    if arguments.weights:
                        file = f"{NAME}-hrl-{stage.replace(' ', '-')}-{alpha:g}-seed{seed}.msgpack"
                        save_variables(pathlib.Path(arguments.weights) / file, after)

    names = ("supervised stage", "HRL, alpha", "seed")
    rows = _run.shown(
        dict(zip(names, head)) | row(net, variables, sets, arguments.batch) for *head, variables in trained()
    )
    facts = {"data": "CIFAR-10 test images as JPEG (lossy) and as they are", "claimed": CLAIMED}
    facts |= {"seeds": arguments.seeds, "without": ("batch", "trunk", "weights")}
    _run.finish("cifar_hrl", rows, arguments, arguments=arguments, **facts)


if __name__ == "__main__":
    main()
