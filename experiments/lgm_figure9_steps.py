"""LGM's figure 9: success along the attack on 5 % of the pixels, FGM against LGM, on SkipNet-32 and DynConv-32.

    python -m experiments.lgm_figure9_steps --data FOLDER

Attacks, eps and lambdas are those of the record `cifar_fgm_lgm_iterated`, where lambda was chosen on held-back images;
an attack whose lambda it lacks is left out. The deployed network judges what the attack would return if it ended after
each step: soft LGM differentiates another network, so both are evaluated in the one pass that is differentiated.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, networks, occupancy, plotting
from dyn_jax.attacks.batched import in_batches
from dyn_jax.datasets import cifar10_packed
from dyn_jax.types import Output, Trace, Variables
from experiments import _record, _run
from experiments._paired import Z, paired, percent
from experiments.cifar_fgm_lgm import FGM, LGM, MASK, ON_FEW, STEPS, Leaded, stacked

NETWORKS = {"skipnet-32-cifar10": "SkipNet-32", "dynconv-32-cifar10": "DynConv-32"}
EPS = 16  # of 255; the paper's 8 in its code's unit of 2/255
AT = (1, 5, 10, 20)
RECORD = pathlib.Path(__file__).parent / "results" / "cifar_fgm_lgm_iterated.json"


def chosen(record: str, network: str, attack: str, eps: float) -> dict[str, float]:
    """Kind of LGM -> the lambda that was chosen on held-back images; nothing where the record lacks the attack."""
    wanted = {"network": network, "attack": attack, "eps": eps, "seed": 0}
    rows = json.loads(pathlib.Path(record).read_text())["rows"]
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return {row["gradient"]: row["lambda"] for row in found if row["lambda"] is not None}


def judged(net: nn.Module, variables: Variables, gate: Leaded) -> Callable[[jax.Array], Output]:
    """A forward pass that answers as the deployed network; what the `gate` makes of it is its one exit."""

    def forward(x: jax.Array) -> Output:
        leaded = net.apply(variables, x, occupancy=gate).logits
        deployed = net.apply(variables, x, occupancy=occupancy.hard()).logits
        return Output(deployed, Trace(exits=leaded[:, None]))

    return forward


def at_the_exit(attack: attacks.Attack) -> attacks.Attack:
    """The attack with its objective taken at the exit of `judged`: ascended as ever, judged on the deployed network."""

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None) -> jax.Array:
        exits = output.trace.exits
        assert exits is not None  # `judged` has one
        return attack.objective(Output(exits[:, 0]), labels, targets)

    return dataclasses.replace(attack, objective=objective)


def along(result: attacks.AttackResult, of_largest_loss: bool) -> jax.Array:
    """[image, steps + 1] bool: fooled by what the attack would return after 0, 1, ... steps.

    The attack records the value before every step and returns the last iterate; or (`of_largest_loss`, APGD) records
    every iterate and returns that of the largest loss so far.
    """
    error = result.steps.error
    if of_largest_loss:
        loss = result.steps.loss
        before = jnp.pad(jax.lax.cummax(loss, axis=1), ((0, 0), (1, 0)), constant_values=-jnp.inf)[:, :-1]
        best = jax.lax.cummax(jnp.where(loss > before, jnp.arange(loss.shape[1]), 0), axis=1)
        error = jnp.take_along_axis(error, best, axis=1)
    else:
        error = jnp.concatenate([error, result.success[:, None]], axis=1)
    return error | result.clean_success[:, None]


def curves(
    net: nn.Module, variables: Variables, attack: str, gates: Leaded, images: np.ndarray, labels: np.ndarray, batch: int
) -> np.ndarray:
    """[gate, image, steps + 1] bool, see `along`; one compiled program."""

    @jax.jit
    def run(rows: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        def under(gate: Leaded) -> jax.Array:
            made = at_the_exit(ON_FEW[attack](EPS / 255))
            result = made(judged(net, variables, gate), x, y, key=jax.random.key(0), mask=MASK, index=rows)
            return along(result, attack == "APGD")

        return jnp.moveaxis(jax.vmap(under)(gates), 0, 1)

    call = lambda rows: run(rows, images[rows], labels[rows])
    return np.moveaxis(in_batches(call, len(labels), batch), 0, 1)


def row_of(fooled: np.ndarray, under_fgm: np.ndarray) -> dict[str, Any]:
    """Numbers of one curve [image, steps + 1], and of its lead over FGM's; everything in percent or points."""
    shares = [percent(column) for column in fooled.T]
    row: dict[str, Any] = {"success %": [share for share, _ in shares], "se": [error for _, error in shares]}
    ahead = (fooled.astype(float) - under_fgm)[:, 1:]
    lead = ahead.mean(0)
    tests = [paired(~under_fgm[:, k], ~fooled[:, k]) for k in AT if k < fooled.shape[1]]
    row["lead at"] = [k for k in AT if k < fooled.shape[1]]
    row |= {"lead": [0 - t["minus FGM"] for t in tests], "p": [t["p"] for t in tests]}
    row |= {"lead low": [0 - t["high"] for t in tests], "lead high": [0 - t["low"] for t in tests]}
    each = ahead.mean(1)  # an image's lead, mean over the steps
    error = Z * float(each.std(ddof=1)) / len(each) ** 0.5
    row |= {"mean lead": 100 * float(each.mean()), "mean lead, half interval": 100 * error}
    behind = np.flatnonzero(lead <= 0)
    first = int(behind[-1]) + 2 if len(behind) else 1
    row["ahead for good from step"] = first if first <= len(lead) else None
    return row | {"steps ahead %": 100 * float(np.mean(lead > 0))}


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """One panel a network and attack; bands of one standard error."""
    names, attacked = (list(dict.fromkeys(row[key] for row in rows)) for key in ("network", "attack"))
    fig, axes = plotting.figure(len(attacked), len(names), figsize=(4.2 * len(names), 3.1 * len(attacked)))
    styles = {"FGM": ("#444444", "--"), "LGM soft": ("#c0392b", "-"), "LGM straight-through": ("#2471a3", "-")}
    for axis_row, attack in zip(axes, attacked):
        for axis, name in zip(axis_row, names):
            for row in (row for row in rows if (row["network"], row["attack"]) == (name, attack)):
                success, error = np.array(row["success %"]), np.array(row["se"])
                colour, line = styles[row["gradient"]]
                label = row["gradient"] if row["lambda"] is None else f"{row['gradient']}, lambda {row['lambda']:g}"
                axis.plot(success, line, color=colour, linewidth=1.3, label=label)
                axis.fill_between(range(len(success)), success - error, success + error, color=colour, alpha=0.15, lw=0)
            axis.set_title(f"{NETWORKS[name]}, {attack}", fontsize=10)
            axis.set_xlabel("steps", fontsize=9)
            axis.set_ylabel("success, %", fontsize=9)
            axis.set_xticks(range(0, STEPS + 1, 5))
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.25)
            if axis.lines:
                axis.legend(fontsize=8, loc="lower right")
    fig.savefig(path, dpi=100)


def main() -> None:
    parser = _run.parser(__doc__, data=None, images=500, batch=100)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--attacks", nargs="+", default=list(ON_FEW), choices=list(ON_FEW))
    parser.add_argument("--lambdas", default=str(RECORD), help="the record of cifar_fgm_lgm")
    arguments = parser.parse_args()
    images, labels = _run.first(cifar10_packed(arguments.data, "test"), arguments.images)
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        net, variables = networks.pretrained(name)
        for attack in arguments.attacks:
            lambdas = chosen(arguments.lambdas, name, f"{attack}-{STEPS}, 5 % of the pixels", EPS)
            if not lambdas:
                print(f"{name}, {attack}: no lambda in the record, left out", flush=True)
                continue
            gates = [FGM, *(LGM[kind](lam) for kind, lam in lambdas.items())]
            found = curves(net, variables, attack, stacked(gates), images, labels, arguments.batch)
            for (kind, lam), fooled in zip({"FGM": None, **lambdas}.items(), found):
                head = {"network": name, "attack": attack, "gradient": kind, "lambda": lam}
                rows.append(head | row_of(fooled, found[0]))
                print(rows[-1], flush=True)
    arguments.attacks = list(dict.fromkeys(row["attack"] for row in rows))  # those that had a lambda
    settings = {"data": "CIFAR-10 test images as JPEG (lossy)", "eps (of 255)": EPS, "steps": STEPS, "pixels %": 5}
    settings |= {"seed": 0, "without": ("batch", "lambdas")}
    file = _record.save("lgm_figure9_steps", rows, folder=arguments.results, arguments=arguments, **settings)
    draw(rows, file.with_suffix(".png"))
    print(file)


if __name__ == "__main__":
    main()
