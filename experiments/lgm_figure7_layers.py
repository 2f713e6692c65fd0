"""LGM's figure 7: which layers SkipNet-32 runs for images of each class, before and after BIM under FGM and under LGM.

    python -m experiments.lgm_figure7_layers --data FOLDER

The paper draws ImageNet's classes and t-SNE of their execution rates; here are CIFAR-10's ten classes, and the gates
of every image along their two principal components, which need no other package and keep distances as they are. The
attack is the paper's: all pixels, 100 iterations; a step is eps/4, lambda `cifar_fgm_lgm`'s for BIM-10 at 2/255.

What the figure says in words is measured as well: the share of the gates' variance that lies between classes.
"""

from __future__ import annotations

import pathlib
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, networks, occupancy, plotting
from dyn_jax.attacks.batched import in_batches
from dyn_jax.datasets import CIFAR10_CLASS_NAMES, cifar10_packed
from dyn_jax.types import Variables
from experiments import _run
from experiments._paired import Z
from experiments.cifar_fgm_lgm import FGM, LGM, Leaded, stacked
from experiments.lgm_figure9_steps import chosen

NETWORK, KIND, CHOSEN_AT = "skipnet-32-cifar10", "LGM soft", 2
CLASSES = len(CIFAR10_CLASS_NAMES)
RESAMPLES = 1000
HEAT = {"vmin": 0, "vmax": 1, "cmap": "viridis", "aspect": "auto", "interpolation": "nearest"}
RECORD = pathlib.Path(__file__).parent / "results" / "cifar_fgm_lgm.json"


class Seen(NamedTuple):
    """Gates [image, layer] and answers [image], before or after an attack."""

    gates: np.ndarray
    answers: np.ndarray


def answered_rightly(net: nn.Module, variables: Variables, images: np.ndarray, labels: np.ndarray, count: int) -> tuple:
    """The first `count` images and labels that the network answers rightly; only they are attacked."""
    answer = jax.jit(lambda x: jnp.argmax(net.apply(variables, x).logits, axis=1))
    some = min(len(labels), 2 * count)
    right = in_batches(lambda rows: answer(images[rows]), some, 500) == labels[:some]
    rows = np.flatnonzero(right)[:count]
    return images[rows], labels[rows]


def attacked(
    net: nn.Module, variables: Variables, images: np.ndarray, labels: np.ndarray, gates: Leaded, options: Any
) -> dict[float, list[Seen]]:
    """eps -> what was seen [before, after each gradient]; one compiled program."""

    @jax.jit
    def run(x: jax.Array, y: jax.Array, eps: jax.Array) -> tuple:
        victim = partial(net.apply, variables, occupancy=occupancy.hard())
        on = lambda trace: jnp.stack([unit.on for unit in trace.units], axis=1)

        def under(gate: Leaded) -> tuple:
            forward = partial(net.apply, variables, occupancy=gate)
            r = attacks.bim(eps, eps / 4, options.steps)(forward, x, y, victim=victim)
            answers = (jnp.argmax(logits, axis=1) for logits in (r.logits_clean, r.logits_adversarial))
            return on(r.trace_clean), on(r.trace_adversarial), *answers

        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), jax.vmap(under)(gates))

    seen = {}
    for eps in options.eps:
        call = lambda rows, eps=eps: run(images[rows], labels[rows], jnp.float32(eps / 255))
        before, after, said, says = in_batches(call, len(labels), options.batch)
        each = (Seen(after[:, number], says[:, number]) for number in range(after.shape[1]))
        seen[eps] = [Seen(before[:, 0], said[:, 0]), *each]
        print(f"eps {eps}: fooled {[float(np.mean(s.answers != labels)) for s in seen[eps]]}", flush=True)
    return seen


def rates(gates: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """[class, layer] share of the class's images that run a layer; NaN for a class without images."""
    return np.array([gates[classes == c].mean(0) if np.any(classes == c) else np.full(gates.shape[1], np.nan)
                     for c in range(CLASSES)])  # fmt: skip


def between(gates: np.ndarray, classes: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Share of the gates' variance that lies between classes, 0 to 1, corrected for chance.

    ``1 - (n - 1) / (n - k) (1 - eta^2)``, ``eta^2`` the sum of squares between the k classes over the whole one, both
    summed over the layers (Kelley's epsilon^2): about 0 where gates do not know the class. NaN where no gate varies, or
    no class has two images. Gates are [image, layer], `counts` [image] how often each image occurs (a resample).
    """
    counts = np.ones(len(gates)) if counts is None else counts
    member = (classes[:, None] == np.arange(CLASSES)) * counts[:, None]
    sizes, n = member.sum(0), counts.sum()
    centred = gates - counts @ gates / n
    sums = member.T @ centred
    inner = float(((sums**2).sum(1)[sizes > 0] / sizes[sizes > 0]).sum())
    whole, free = float(counts @ (centred**2).sum(1)), float(n - np.sum(sizes > 0))
    return 1 - (n - 1) / free * (1 - inner / whole) if whole and free else float("nan")


def numbers(seen: list[Seen], labels: np.ndarray) -> list[dict[str, Any]]:
    """Per state (before, FGM, LGM): shares between classes with normal intervals of bootstrap errors, paired."""
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=RESAMPLES).astype(float)
    by_label = [between(s.gates, labels) for s in seen]
    again = np.array([[between(s.gates, labels, counts) for s in seen] for counts in draws])
    percents = lambda values: {key: round(100 * float(value), 2) for key, value in values.items()}
    rows = []
    for i, s in enumerate(seen):
        fooled = s.answers != labels
        all_of = [bool(fooled[labels == c].all()) for c in range(CLASSES) if np.any(labels == c)]
        row: dict[str, Any] = {"state": ("before", "FGM", "LGM")[i], "classes all fooled": sum(all_of)}
        row |= percents({"fooled %": fooled.mean(), "gates switched %": np.mean(s.gates != seen[0].gates)})
        row |= percents({"gates on %": s.gates.mean(), "variance of a gate %": s.gates.var(0).mean()})
        named = {"by true class %": (by_label[i], again[:, i])}
        if i:
            named["minus before"] = by_label[i] - by_label[0], again[:, i] - again[:, 0]
            mistaken = [np.where(fooled, draw, 0) for draw in draws]
            mine = between(s.gates, s.answers, fooled.astype(float))
            named["by mistaken class %"] = mine, [between(s.gates, s.answers, counts) for counts in mistaken]
        if i == 2:
            named["minus FGM"] = by_label[2] - by_label[1], again[:, 2] - again[:, 1]
        for name, (value, sample) in named.items():
            half = Z * float(np.std(sample))
            row |= percents({name: value, f"{name}, low": value - half, f"{name}, high": value + half})
        rows.append(row)
    return rows


def plane(seen: list[Seen]) -> tuple[list[np.ndarray], float]:
    """The gates of every state along the two principal components of all; the share of the variance they have."""
    everything = np.concatenate([s.gates for s in seen]).astype(float)
    mean = everything.mean(0)
    _, sizes, axes = np.linalg.svd(everything - mean, full_matrices=False)
    return [(s.gates - mean) @ axes[:2].T for s in seen], float((sizes[:2] ** 2).sum() / (sizes**2).sum())


def draw(seen: list[Seen], labels: np.ndarray, eps: float, path: pathlib.Path) -> None:
    """Rates by class above, images in the plane below."""
    states = [("before", seen[0], labels), *(
        (f"{name}, {how}", s, classes)
        for name, s in zip(("FGM", "LGM"), seen[1:])
        for how, classes in (("true class", labels), ("mistaken for", s.answers))
    )]  # fmt: skip
    points, share = plane(seen)
    low, high = np.min(np.concatenate(points), axis=0) - 0.2, np.max(np.concatenate(points), axis=0) + 0.2
    fig, axes = plotting.figure(2, len(states), figsize=(13, 5.6), height_ratios=(1, 1.15))
    colours, rng = plotting.colours(2 * CLASSES)[::2], np.random.default_rng(0)
    for column, (title, s, classes) in enumerate(states):
        shown = s.answers != labels if "mistaken" in title else np.ones(len(labels), bool)
        upper, lower = axes[:, column]
        image = upper.imshow(rates(s.gates[shown], classes[shown]), **HEAT)
        upper.set_title(title, fontsize=10)
        upper.set_xticks(range(0, s.gates.shape[1], 3), range(1, s.gates.shape[1] + 1, 3), fontsize=8)
        upper.set_yticks(range(CLASSES), CIFAR10_CLASS_NAMES if not column else [""] * CLASSES, fontsize=8)
        upper.set_xlabel("changeable layer", fontsize=8)
        at = points[(column + 1) // 2][shown]
        at = at + rng.normal(0, 0.04, at.shape)  # gates are 0 or 1: many images share a place
        lower.scatter(*at.T, c=colours[classes[shown]], s=9, linewidths=0, alpha=0.8)
        lower.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        lower.tick_params(labelsize=7)
        lower.set_xlabel("first component", fontsize=8)
    axes[1][0].set_ylabel("second component", fontsize=8)
    fig.colorbar(image, ax=axes[0], pad=0.01).set_label("share that runs the layer", fontsize=8)
    dots = [axes[1][0].scatter([], [], color=c, s=20, label=name) for c, name in zip(colours, CIFAR10_CLASS_NAMES)]
    fig.legend(handles=dots, loc="outside lower center", ncols=CLASSES, fontsize=8, frameon=False)
    fig.suptitle(f"BIM, eps {eps:g}/255; below: each image's gates, {share:.0%} of their variance", fontsize=10)
    fig.savefig(path, dpi=90)


def main() -> None:
    parser = _run.parser(__doc__, data=None, images=300, steps=100, batch=100)
    parser.add_argument("--eps", nargs="+", type=float, default=[16.0, 2.0], help="of 255; the first one is drawn")
    parser.add_argument("--lambdas", default=str(RECORD), help="the record of cifar_fgm_lgm")
    arguments = parser.parse_args()
    net, variables = networks.pretrained(NETWORK)
    data = _run.first(cifar10_packed(arguments.data, "test"))
    images, labels = answered_rightly(net, variables, *data, arguments.images)
    lam = chosen(arguments.lambdas, NETWORK, "BIM-10", CHOSEN_AT)[KIND]
    seen = attacked(net, variables, images, labels, stacked([FGM, LGM[KIND](lam)]), arguments)
    rows = [{"eps": eps} | row for eps, states in seen.items() for row in numbers(states, labels)]
    first = arguments.eps[0]
    settings = {"network": NETWORK, "data": "CIFAR-10 test images as JPEG (lossy)", "lambda": lam, "kind": KIND}
    settings |= {"layers": seen[first][0].gates.shape[1], "step": "eps/4", "resamples": RESAMPLES}
    settings |= {"seed": 0, "without": ("batch", "lambdas")}
    file = _run.finish("lgm_figure7_layers", rows, arguments, list(rows[-1]), arguments=arguments, **settings)
    draw(seen[first], labels, first, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
