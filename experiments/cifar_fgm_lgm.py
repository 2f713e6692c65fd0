"""LGM's tables I and II, and FGM against LGM on every adaptive network, on CIFAR-10.

    python -m experiments.cifar_fgm_lgm --data FOLDER --trunk resnet32.msgpack [--networks skipnet-32-cifar10 ...]

FOLDER has cifar10_{lossless,jpeg}_{train,test}.npz, the trunk (without it no static network) is what
``python -m weights_convert resnet-32-cifar10`` wrote. Lambda is chosen for each network, attack, eps and occupancy on
training images that were held back; tested are JPEG test images, so accuracies are lower than on the originals. FGM and
both LGM are one compiled program with three numbers as arguments.

Beside the attacks stands what explains them: how far scores lie from the threshold, how accurate the soft network is
that soft LGM differentiates, and what as many random flips of units cost as the attack under FGM makes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, occupancy
from dyn_jax.attacks.batched import in_batches
from dyn_jax.datasets import cifar10_lossless, cifar10_packed, to_float
from dyn_jax.networks.checkpoint import load_variables
from dyn_jax.types import Variables
from experiments import _record
from experiments._flipped import Flipped
from experiments._paired import paired, percent

NETWORKS = ("skipnet-32-cifar10", "dynconv-32-cifar10", "manidp-32-cifar10", "sact-32-cifar10", "sdn-resnet56-cifar10")
STATIC = "resnet-32-cifar10"
LAMBDAS = (0.0001, 0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 40.0)
BATCH = 100
MASK = np.asarray(attacks.random_pixels(jax.random.key(1), 32, 32, 0.05))


class Setting(NamedTuple):
    """An attack of the table: what makes it of eps, where it may move, and the eps (of 255) that are tried."""

    make: Callable[[jax.Array], attacks.Attack]
    eps: tuple[float, ...]
    mask: np.ndarray | None = None


ATTACKS = {
    "FGSM": Setting(attacks.fgsm, (1, 2, 4, 8, 16)),
    "BIM-10": Setting(lambda eps: attacks.bim(eps, eps / 4, 10), (1, 2)),
    "PGD-10": Setting(lambda eps: attacks.pgd(eps, eps / 4, 10), (1, 2)),
    "auto-step-20, 5 % of the pixels": Setting(lambda eps: attacks.lgm_auto_step(eps, eps / 4, 20), (64,), MASK),
    "APGD-20, 5 % of the pixels": Setting(lambda eps: attacks.apgd(eps, 20), (64,), MASK),
}


@flax.struct.dataclass
class Leaded:
    """Every gradient of the table as one occupancy: soft value or step, with a sigmoid's derivative or none."""

    lam: jax.typing.ArrayLike
    soft: jax.typing.ArrayLike
    slope: jax.typing.ArrayLike

    def __call__(self, score: jax.Array) -> jax.Array:
        smooth = occupancy.Sigmoid(self.lam)(score)
        still = jax.lax.stop_gradient(smooth)
        return self.soft * still + (1 - self.soft) * occupancy.hard()(score) + self.slope * (smooth - still)


FGM = Leaded(1.0, 0.0, 0.0)
LGM = {"LGM soft": lambda lam: Leaded(lam, 1.0, 1.0), "LGM straight-through": lambda lam: Leaded(lam, 0.0, 1.0)}


class Images(NamedTuple):
    x: np.ndarray
    y: np.ndarray

    def first(self, count: int) -> Images:
        return Images(self.x[:count], self.y[:count])


def runner(net: nn.Module, variables: Variables, setting: Setting) -> Callable[..., dict[str, np.ndarray]]:
    """``run(images, eps, gate)``: [n] for each image, compiled once for all eps and gates."""

    @jax.jit
    def attack(variables: Variables, rows: jax.Array, x: jax.Array, y: jax.Array, eps: jax.Array, gate: Leaded):
        forward = partial(net.apply, variables, occupancy=gate)
        victim = partial(net.apply, variables, occupancy=occupancy.hard())
        found = setting.make(eps)(forward, x, y, victim=victim, key=jax.random.key(0), mask=setting.mask, index=rows)
        before, after = found.trace_clean, found.trace_adversarial
        change = jnp.mean(_changes(before, after), axis=1) if before.units else jnp.zeros(len(x))
        return {"right": jnp.argmax(found.logits_adversarial, 1) == y, "change": change}

    def run(images: Images, eps: float, gate: Leaded) -> dict[str, np.ndarray]:
        radius = jnp.float32(eps / 255)
        call = lambda rows: attack(variables, rows, images.x[rows], images.y[rows], radius, gate)
        return in_batches(call, len(images.y), BATCH)

    return run


def _changes(before: Any, after: Any) -> jax.Array:
    """[batch, unit]: share of a unit's elements that were switched."""
    moved = [(a.on != b.on).reshape(len(a.score), -1) for a, b in zip(before.units, after.units)]
    return jnp.stack([jnp.mean(m, axis=1) for m in moved], axis=1)


def attack_rows(name: str, run: Callable, attack: str, eps: float, held: Images, test: Images) -> list[dict[str, Any]]:
    """FGM, and each LGM with the lambda that leaves least on the held-back images."""
    fgm = run(test, eps, FGM)
    head = {"network": name, "attack": attack, "eps": eps}
    rows = [head | {"gradient": "FGM", "lambda": None} | _measures(fgm)]
    for kind, make in LGM.items() if name != STATIC else ():
        left = [float(run(held, eps, make(lam))["right"].mean()) for lam in LAMBDAS]
        lam = LAMBDAS[int(np.argmin(left))]
        got = run(test, eps, make(lam))
        row = head | {"gradient": kind, "lambda": lam} | _measures(got) | paired(fgm["right"], got["right"])
        rows.append(row | {"held back %": [round(100 * share, 1) for share in left]})
    for row in rows:
        print({key: value for key, value in row.items() if key != "held back %"}, flush=True)
    return rows


def _measures(got: dict[str, np.ndarray]) -> dict[str, float]:
    after, error = percent(got["right"])
    return {"after %": after, "se": error, "units switched %": round(100 * float(got["change"].mean()), 2)}


def facts_of(net: nn.Module, variables: Variables, held: Images, sets: dict[str, Images], flips: float) -> dict:
    """What explains a network's rows: accuracies, margins, the soft network, random flips. Percent."""
    forward = jax.jit(lambda x, gate: _summary(net.apply(variables, x, occupancy=gate)))
    random = jax.jit(lambda x, key: _summary(net.apply(variables, x, occupancy=Flipped(flips), rngs={"gate": key})))
    over = lambda images, call: in_batches(lambda rows: call(images.x[rows]), len(images.y), BATCH)
    right = lambda images, got: round(100 * float(np.mean(got["answer"] == images.y)), 2)
    hard = {label: over(images, lambda x: forward(x, FGM)) for label, images in sets.items()}
    facts: dict[str, Any] = {f"clean %, {label}": right(sets[label], got) for label, got in hard.items()}
    got = over(held, lambda x: forward(x, FGM))
    facts["multiply-adds executed %"] = round(100 * float(got["executed"].mean() / got["dense"].mean()), 1)
    facts["units on %"] = [round(100 * float(v), 1) for v in got["shares"].mean(0)]
    facts["varying, sd %"] = [round(100 * float(v), 1) for v in got["shares"].std(0)]
    facts["median |score|"] = [round(float(v), 3) for v in np.median(got["margin"], axis=0)]
    facts["soft network, held back %"] = {
        str(lam): right(held, over(held, lambda x, lam=lam: forward(x, LGM["LGM soft"](lam)))) for lam in LAMBDAS
    }
    flipped = [right(held, over(held, lambda x, i=i: random(x, jax.random.key(i)))) for i in range(3)]
    facts["held back %"], facts["flips %"] = right(held, got), round(100 * flips, 2)
    facts["held back % with as many random flips"] = round(float(np.mean(flipped)), 2)
    return facts


def _summary(output: Any) -> dict[str, jax.Array]:
    trace = output.trace
    margin = [jnp.median(jnp.abs(unit.score).reshape(len(unit.score), -1), axis=1) for unit in trace.units]
    count = len(output.logits)
    return {
        "answer": jnp.argmax(output.logits, 1),
        "executed": metrics.executed_macs(trace),
        "dense": jnp.full((count,), float(metrics.dense_macs(trace))),
        "shares": metrics.example_shares(trace),
        "margin": jnp.stack(margin, axis=1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with cifar10_{lossless,jpeg}_{train,test}.npz")
    parser.add_argument("--trunk", default=None, help="variables of the static resnet-32-cifar10")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--attacks", nargs="+", default=tuple(ATTACKS), choices=tuple(ATTACKS))
    parser.add_argument("--images", type=int, default=1000, help="test images attacked")
    parser.add_argument("--held-back", type=int, default=200, help="images that choose lambda")
    parser.add_argument("--record", default="cifar_fgm_lgm", help="name of the record")
    parser.add_argument("--results", default=None, help="folder for the JSON record (default: experiments/results)")
    arguments = parser.parse_args()
    read = lambda split: Images(*_floats(cifar10_packed(arguments.data, split)))
    jpeg, held = read("test"), read("held_back").first(arguments.held_back)
    sets = {"JPEG": jpeg, "lossless": Images(*_floats(cifar10_lossless(arguments.data, "test")))}
    test, rows, facts = jpeg.first(arguments.images), [], {}
    victims: dict[str, Any] = {name: networks.pretrained(name) for name in arguments.networks}
    if arguments.trunk:
        victims[STATIC] = networks.create(STATIC), load_variables(arguments.trunk, STATIC)
    for name, (net, variables) in victims.items():
        for attack in arguments.attacks:
            run = runner(net, variables, ATTACKS[attack])
            for eps in ATTACKS[attack].eps:
                rows += attack_rows(name, run, attack, eps, held, test)
        if name != STATIC:
            flips = next(row["units switched %"] for row in rows if row["network"] == name) / 100
            facts[name] = facts_of(net, variables, held, sets, flips)
            print(name, facts[name], flush=True)
    settings = {"data": "CIFAR-10 test images as JPEG (lossy)", "lambdas": list(LAMBDAS)}
    print(
        _record.save(
            arguments.record, rows, folder=arguments.results, arguments=arguments, facts=facts, seed=0, **settings
        )
    )


def _floats(data: Any) -> tuple[np.ndarray, np.ndarray]:
    return to_float(data.images), data.labels


if __name__ == "__main__":
    main()
