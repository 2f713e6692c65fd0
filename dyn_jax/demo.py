"""The embedded demo: FGSM and BIM under FGM and LGM on the two small networks that ship with the package."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, occupancy, plotting
from dyn_jax.datasets import digits
from dyn_jax.types import Variables

EPS = ("2/255", "4/255", "8/255", "16/255")
LAMBDAS = (1.0, 3.0)
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
    net: object,
    variables: Variables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    eps: Sequence[str] = EPS,
    lambdas: Sequence[float] = LAMBDAS,
) -> Iterator[tuple[Row, attacks.AttackResult]]:
    """Attacks one network with every attack, eps and gradient; FGM and LGM differ in the occupancy only.

    eps and lambda are arguments of the compiled function, so each attack is compiled twice: hard and soft. The
    seconds are those of a run after compilation.
    """
    victim = partial(net.apply, variables, occupancy=occupancy.hard())
    labels = jnp.asarray(labels)
    gradients = [("FGM", occupancy.hard())] + [(f"LGM {lam:g}", occupancy.sigmoid(lam)) for lam in lambdas]
    for attack_name, make in ATTACKS.items():

        @jax.jit
        def run(x: jax.Array, radius: jax.Array, gate: Callable, make: Callable = make) -> attacks.AttackResult:
            return make(radius)(partial(net.apply, variables, occupancy=gate), x, labels, victim=victim)

        for _, gate in gradients[:2]:
            run(images, jnp.float32(0), gate)  # compiles
        for text in eps:
            radius = jnp.float32(attacks.ball("linf", text).eps)
            for gradient, gate in gradients:
                began = time.perf_counter()
                result = jax.block_until_ready(run(images, radius, gate))
                seconds = time.perf_counter() - began
                yield _row(name, attack_name, text, gradient, result, seconds), result


def _row(name: str, attack: str, eps: str, gradient: str, result: attacks.AttackResult, seconds: float) -> Row:
    attacked = ~result.clean_success
    dilated = result.trace_clean.units[0].dilated is not None
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
        accuracy=float(jnp.mean(~result.success)),
        architecture_change=float(change),
        macs_clean=float(jnp.mean(metrics.executed_macs(result.trace_clean))),
        macs_adversarial=float(jnp.mean(metrics.executed_macs(result.trace_adversarial))),
        seconds=seconds,
    )


HEADER = f"{'network':15} {'attack':7} {'eps':>6} {'gradient':8} {'clean %':>8} {'after %':>8} {'arch. chg. %':>13} {'Mmacs':>14} {'s':>6}"


def format_row(row: Row) -> str:
    """One line of the printed table."""
    return (
        f"{row.network:15} {row.attack:7} {row.eps:>6} {row.gradient:8} {100 * row.clean_accuracy:8.1f} "
        f"{100 * row.accuracy:8.1f} {100 * row.architecture_change:13.2f} "
        f"{row.macs_clean / 1e6:6.2f} ->{row.macs_adversarial / 1e6:5.2f} {row.seconds:6.2f}"
    )


def run(output: str, *, examples: int = 200) -> list[Row]:
    """Prints the table for both networks and draws one picture of each into the folder `output`."""
    data = digits("test")
    images, labels = data.images[:examples], data.labels[:examples]
    print(f"{len(labels)} test images of {data.name}; LGM n: soft occupancy with lambda n in the gradient")
    print(HEADER)
    rows = []
    for name in ("skipnet-digits", "dynconv-digits"):
        net, variables = networks.pretrained(name)
        for row, result in compare(name, net, variables, images, labels):
            print(format_row(row), flush=True)
            rows.append(row)
            if (row.attack, row.eps, row.gradient) == (f"BIM-{STEPS}", "8/255", f"LGM {LAMBDAS[-1]:g}"):
                shown = jax.tree.map(np.asarray, result)
        path = plotting.attack_figure(shown, images, labels, os.path.join(output, f"{name}.png"))
        print(f"picture: {path}")
    return rows
