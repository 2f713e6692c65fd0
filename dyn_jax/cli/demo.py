"""The demo: FGSM and BIM under FGM and LGM on a SkipNet and a DynConv that ship with the package."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, occupancy, plotting
from dyn_jax.datasets import digits, to_float
from dyn_jax.training.embedded import data_of
from dyn_jax.types import Occupancy, Variables

EPS = ("4/255", "8/255", "16/255")
LAMBDAS = {"skipnet-digits": 10.0, "dynconv-digits": 3.0}
CIFAR_EPS = ("1/255", "2/255", "4/255")
CIFAR_LAMBDAS = {"skipnet-32-cifar10": 10.0, "dynconv-32-cifar10": 3.0}  # chosen on held-back images
STEPS = 10


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; accuracies and changes in [0, 1], multiply-adds per example."""

    network: str
    attack: str
    eps: str
    gradient: str
    clean_accuracy: float
    accuracy: float
    architecture_change: float
    macs_clean: float
    macs_adversarial: float
    seconds: float


ATTACKS: dict[str, Callable[[jax.Array], attacks.Attack]] = {
    "FGSM": lambda eps: attacks.fgsm(eps),
    f"BIM-{STEPS}": lambda eps: attacks.bim(eps, step_size=eps / 4, steps=STEPS),
}


def compare(
    name: str,
    net: nn.Module,
    variables: Variables,
    images: np.ndarray,
    labels: np.ndarray,
    gradients: Mapping[str, Occupancy],
    *,
    eps: Sequence[str] = EPS,
) -> Iterator[tuple[Row, attacks.AttackResult]]:
    """Attacks one network with every attack, eps and gradient; the gradients differ in the occupancy only.

    eps, lambda and the weights are arguments of the compiled function, so each attack is compiled once for each kind
    of occupancy. The seconds are those of a run after compilation.

    Args:
      gradients: {name: occupancy of the gradient}, e.g. ``{"FGM": hard(), "LGM 3": sigmoid(3.0)}``.
      eps: radii, each at most once.
    """

    @partial(jax.jit, static_argnames="attack")
    def run(attack: str, variables: Variables, x: jax.Array, radius: jax.Array, gate: Occupancy):
        forward = partial(net.apply, variables, occupancy=gate)
        victim = partial(net.apply, variables, occupancy=occupancy.hard())
        return ATTACKS[attack](radius)(forward, x, labels, victim=victim)

    compiled = set()
    for attack, text, (gradient, gate) in itertools.product(ATTACKS, eps, gradients.items()):
        radius = jnp.float32(attacks.ball("linf", text).eps)
        if (attack, type(gate)) not in compiled:
            jax.block_until_ready(run(attack, variables, images, radius, gate))
            compiled.add((attack, type(gate)))
        began = time.perf_counter()
        result = jax.block_until_ready(run(attack, variables, images, radius, gate))
        yield _row(name, attack, text, gradient, result, time.perf_counter() - began), result


def _row(name: str, attack: str, eps: str, gradient: str, result: attacks.AttackResult, seconds: float) -> Row:
    attacked = ~result.clean_success
    dilated = "dilated" in result.trace_clean.units[0].extras
    change = metrics.architecture_change(
        result.trace_clean,
        result.trace_adversarial,
        count="masks" if dilated else "units",
        where=None if dilated else attacked,
    )
    return Row(
        network=name,
        attack=attack,
        eps=eps,
        gradient=gradient,
        clean_accuracy=float(jnp.mean(attacked)),
        accuracy=float(metrics.robust_accuracy(result)),
        architecture_change=float(change),
        macs_clean=float(jnp.mean(metrics.executed_macs(result.trace_clean))),
        macs_adversarial=float(jnp.mean(metrics.executed_macs(result.trace_adversarial))),
        seconds=seconds,
    )


HEADER = (
    f"{'network':18} {'attack':7} {'eps':>6} {'gradient':8} {'clean %':>8} {'after %':>8} "
    f"{'arch. chg. %':>13} {'Mmacs':>14} {'s':>6}"
)


def format_row(row: Row) -> str:
    """One line of the printed table."""
    return (
        f"{row.network:18} {row.attack:7} {row.eps:>6} {row.gradient:8} {100 * row.clean_accuracy:8.1f} "
        f"{100 * row.accuracy:8.1f} {100 * row.architecture_change:13.2f} "
        f"{row.macs_clean / 1e6:6.2f} ->{row.macs_adversarial / 1e6:5.2f} {row.seconds:6.2f}"
    )


def run(output: str, examples: int, folder: str | None = None) -> None:
    """Prints the table for both networks and draws one picture of each into the folder `output`.

    Args:
      folder: with CIFAR-10, see `dyn_jax.training.embedded.data_of`, for the networks of its size. None: the small ones
        on handwritten digits, which come with scikit-learn; CIFAR-10 names no licence, so the package ships none of it.
    """
    eps, lambdas = (EPS, LAMBDAS) if folder is None else (CIFAR_EPS, CIFAR_LAMBDAS)
    data = digits("test") if folder is None else data_of(next(iter(lambdas)), "test", folder)
    images, labels = to_float(data.images[:examples]), data.labels[:examples]
    print(f"{len(labels)} test images of {data.name}; LGM n: soft occupancy with lambda n in the gradient")
    if folder is None:
        print("small networks; networks of the papers' size: dyn-jax demo --data FOLDER, where CIFAR-10 is")
    print(HEADER)
    for name, lam in lambdas.items():
        net, variables = networks.pretrained(name)
        gradients = {"FGM": occupancy.hard(), f"LGM {lam:g}": occupancy.sigmoid(lam)}
        for row, result in compare(name, net, variables, images, labels, gradients, eps=eps):
            print(format_row(row), flush=True)
            shown = jax.tree.map(np.asarray, result)  # the last row's: BIM, LGM, largest eps
        title = f"{name}: {row.attack}, eps {row.eps}, {row.gradient}"
        path = plotting.attack_figure(shown, images, labels, os.path.join(output, f"{name}.png"), title=title)
        print(f"picture: {path}")
