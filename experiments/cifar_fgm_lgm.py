"""LGM's tables I and II, and FGM against LGM on every adaptive network, on CIFAR-10.

    python -m experiments.cifar_fgm_lgm --data FOLDER --trunk resnet32.msgpack [--networks skipnet-32-cifar10 ...]
    python -m experiments.cifar_fgm_lgm --data FOLDER --weights FOLDER --seeds 0 1 2 --results PARTS
    python -m experiments.cifar_fgm_lgm --join PARTS/*.json

FOLDER has cifar10_{lossless,jpeg}_{train,test}.npz, the trunk (without it no static network) is what
``python -m weights_convert resnet-32-cifar10`` wrote; weights of other training seeds are NAME-seed1.msgpack and so on,
as ``dyn-jax train NAME --seed 1`` writes them. Lambda is chosen for each network, attack, eps and occupancy on
training images that were held back; tested are JPEG test images, so accuracies are lower than on the originals. FGM and
both LGM with all their lambdas are one compiled program, several occupancies at once in one `vmap`.

Beside the attacks stands what explains them: how far scores lie from the threshold, how accurate the soft network is
that soft LGM differentiates, and what as many random flips of units cost as the attack under FGM makes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, occupancy
from dyn_jax.attacks.batched import in_batches
from dyn_jax.datasets import cifar10_lossless, cifar10_packed
from dyn_jax.objectives import hinge_margin
from dyn_jax.types import Variables
from experiments import _record, _run, _weights
from experiments._paired import Flipped, paired, percent

NETWORKS = ("skipnet-32-cifar10", "dynconv-32-cifar10", "manidp-32-cifar10", "sact-32-cifar10", "sdn-resnet56-cifar10")
STATIC = "resnet-32-cifar10"
LAMBDAS = (0.0001, 0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 40.0)
AT_ONCE = 3  # occupancies in one call; divides 2 x 9 lambdas
MASK = np.asarray(attacks.random_pixels(jax.random.key(1), 32, 32, 0.05))


class Setting(NamedTuple):
    """An attack of the table: what makes it of eps, the eps (of 255) that are tried, where it may move, its aim."""

    make: Callable[[jax.Array], attacks.Attack]
    eps: tuple[float, ...]
    mask: np.ndarray | None = None
    targeted: bool = False


STEPS = 20
ON_FEW = {  # table II: eps 8 in the release's unit of 2/255, 5 % of the pixels
    "BIM": lambda eps: attacks.bim(eps, eps / 4, STEPS),
    "PGD": lambda eps: attacks.pgd(eps, eps / 4, STEPS),
    "C&W": lambda eps: attacks.lgm_carlini_wagner(eps, eps / 4, STEPS),
    "auto-step": lambda eps: attacks.lgm_auto_step(eps, eps / 4, STEPS),
    "APGD": lambda eps: attacks.apgd(eps, STEPS),
}
ATTACKS = {
    "FGSM": Setting(attacks.fgsm, (1, 2, 4, 8, 16)),
    "BIM-10": Setting(lambda eps: attacks.bim(eps, eps / 4, 10), (1, 2)),
    "PGD-10": Setting(lambda eps: attacks.pgd(eps, eps / 4, 10), (1, 2)),
    **{f"{name}-{STEPS}, 5 % of the pixels": Setting(make, (16, 64), MASK) for name, make in ON_FEW.items()},
    **{
        f"{name}-{STEPS}, 5 % of the pixels, targeted": Setting(make, (64,), MASK, True)
        for name, make in ON_FEW.items()
    },
    # goes on where the network that it differentiates is fooled and the deployed one is not
    f"C&W-{STEPS} of confidence 20, 5 % of the pixels": Setting(
        lambda eps: attacks.lgm_carlini_wagner(eps, eps / 4, STEPS, objective=hinge_margin(20.0)), (64,), MASK
    ),
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

    def targets(self) -> np.ndarray:
        """Another class for each image, the same at every call."""
        return (self.y + np.random.default_rng(0).integers(1, 10, len(self.y))) % 10


def runner(net: nn.Module, variables: Variables, setting: Setting, batch: int) -> Callable[..., dict[str, np.ndarray]]:
    """``run(images, eps, gates)``: [gate, n], compiled once for all eps and gates.

    ``stands``: still answered rightly; under a targeted attack, not answered as wished. ``change``: share of switched
    elements, mean over units.
    """

    @jax.jit
    def attack(variables: Variables, rows: jax.Array, x: jax.Array, y: jax.Array, t: Any, eps: jax.Array, gates: Any):
        def under(gate: Leaded) -> dict[str, jax.Array]:
            forward = partial(net.apply, variables, occupancy=gate)
            victim = partial(net.apply, variables, occupancy=occupancy.hard())
            where = {"mask": setting.mask, "index": rows, "targets": t if setting.targeted else None}
            found = setting.make(eps)(forward, x, y, victim=victim, key=jax.random.key(0), **where)
            pairs = zip(found.trace_clean.units, found.trace_adversarial.units)
            changes = [jnp.mean((a.on != b.on).reshape(len(x), -1), axis=1) for a, b in pairs]
            change = jnp.mean(jnp.stack(changes, axis=1), axis=1) if changes else jnp.zeros(len(x))
            answer = jnp.argmax(found.logits_adversarial, 1)
            return {"stands": answer != t if setting.targeted else answer == y, "change": change}

        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), jax.vmap(under)(gates))

    def run(images: Images, eps: float, gates: Leaded) -> dict[str, np.ndarray]:
        radius, t, n = jnp.float32(eps / 255), images.targets(), len(images.y)
        call = lambda rows: attack(variables, rows, images.x[rows], images.y[rows], t[rows], radius, gates)
        return {key: value.T for key, value in in_batches(call, n, batch).items()}

    return run


def stacked(gates: list[Leaded]) -> Leaded:
    """A `Leaded` of arrays [gate]."""
    return jax.tree.map(lambda *leaves: jnp.asarray(leaves, jnp.float32), *gates)


def attack_rows(head: dict[str, Any], run: Callable, eps: float, held: Images, test: Images) -> Iterator[dict]:
    """FGM, and each LGM with the lambda that leaves least on the held-back images."""
    kinds = {} if head["network"] == STATIC else LGM
    grid, left = [make(lam) for make in kinds.values() for lam in LAMBDAS], []
    for first in range(0, len(grid), AT_ONCE):
        left += list(run(held, eps, stacked(grid[first : first + AT_ONCE]))["stands"].mean(1))
    of = {kind: left[i * len(LAMBDAS) : (i + 1) * len(LAMBDAS)] for i, kind in enumerate(kinds)}
    best = {kind: LAMBDAS[int(np.argmin(shares))] for kind, shares in of.items()}
    got = run(test, eps, stacked([FGM, *(LGM[kind](lam) for kind, lam in best.items())]))
    for i, (gradient, lam) in enumerate([("FGM", None), *best.items()]):
        after, error = percent(got["stands"][i])
        row = head | {"eps": eps, "gradient": gradient, "lambda": lam, "after %": after, "se": error}
        row |= {"units switched %": round(100 * float(got["change"][i].mean()), 2)}
        if i:
            row |= paired(got["stands"][0], got["stands"][i])
            row |= {"held back %": [round(100 * float(share), 1) for share in of[gradient]]}
        yield row


def facts_of(
    net: nn.Module, variables: Variables, held: Images, sets: dict[str, Images], flips: float, batch: int
) -> dict[str, Any]:
    """What explains a network's rows: accuracies, margins, the soft network, random flips. Percent."""
    forward = jax.jit(lambda x, gate: _summary(net.apply(variables, x, occupancy=gate)))
    random = jax.jit(lambda x, key: _summary(net.apply(variables, x, occupancy=Flipped(flips), rngs={"gate": key})))
    over = lambda images, call: in_batches(lambda rows: call(images.x[rows]), len(images.y), batch)
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
    return {
        "answer": jnp.argmax(output.logits, 1),
        "executed": metrics.executed_macs(trace),
        "dense": jnp.full(len(output.logits), float(metrics.dense_macs(trace))),
        "shares": metrics.example_shares(trace),
        "margin": jnp.stack(margin, axis=1),
    }


def main() -> None:
    parser = _run.parser(__doc__, data=None, trunk=None, weights=None, images=1000, batch=100)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="training seeds")
    parser.add_argument("--attacks", nargs="+", default=tuple(ATTACKS), choices=tuple(ATTACKS))
    parser.add_argument("--held-back", type=int, default=200, help="images that choose lambda")
    parser.add_argument("--threads", type=int, default=1, help="attacks that are compiled at once")
    parser.add_argument("--record", default="cifar_fgm_lgm", help="name of the record")
    parser.add_argument("--join", nargs="+", default=None, help="records of parts: makes one of them, attacks nothing")
    arguments = parser.parse_args()
    if arguments.join:
        print(_record.join(arguments.record, arguments.join, folder=arguments.results))
        return
    read = lambda split: Images(*_run.first(cifar10_packed(arguments.data, split)))
    jpeg, held = read("test"), Images(*(part[: arguments.held_back] for part in read("held_back")))
    test = Images(*(part[: arguments.images] for part in jpeg))
    sets = {"JPEG": jpeg, "lossless": Images(*_run.first(cifar10_lossless(arguments.data, "test")))}
    rows, facts = [], {}
    victims: dict[tuple[str, int], Any] = {
        (name, seed): _weights.of_seed(name, seed, arguments.weights)
        for name, seed in itertools.product(arguments.networks, arguments.seeds)
    }
    if arguments.trunk:
        victims[STATIC, 0] = _weights.load(STATIC, arguments.trunk)

    def of(name: str, seed: int, attack: str) -> list[dict[str, Any]]:
        run = runner(*victims[name, seed], ATTACKS[attack], arguments.batch)
        head = {"network": name, "seed": seed, "attack": attack}
        made = (attack_rows(head, run, eps, held, test) for eps in ATTACKS[attack].eps)
        return _run.shown(itertools.chain.from_iterable(made), "held back %")

    for (name, seed), (net, variables) in victims.items():
        with ThreadPoolExecutor(arguments.threads) as pool:
            new = [row for part in pool.map(partial(of, name, seed), arguments.attacks) for row in part]
        rows += new
        if name != STATIC:
            flips = new[0]["units switched %"] / 100
            label = name if seed == 0 else f"{name}, seed {seed}"
            facts[label] = facts_of(net, variables, held, sets, flips, arguments.batch)
            print(label, facts[label], flush=True)
    settings = {"data": "CIFAR-10 test images as JPEG (lossy)", "lambdas": list(LAMBDAS), "facts": facts}
    settings |= {"seeds": sorted({seed for _, seed in victims}), "without": ("batch", "threads", "join", "record")}
    print(_record.save(arguments.record, rows, folder=arguments.results, arguments=arguments, **settings))


if __name__ == "__main__":
    main()
