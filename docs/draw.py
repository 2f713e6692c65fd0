"""Draws docs/assets/flips.png, a clean and an attacked digit and the units that the attack flipped, and tokens.png.

python -m docs.draw
"""

from __future__ import annotations

import pathlib
from functools import partial

import jax
import matplotlib
import numpy as np

import dyn_jax
from dyn_jax import attacks, occupancy, plotting
from dyn_jax.datasets import digits

PATH = pathlib.Path(__file__).parent / "assets" / "flips.png"
TOKENS = PATH.with_name("tokens.png")
OFF, ON, CAME_ON, WENT_OFF = "#f2f2f2", "#9aa5b1", "#d1495b", "#2e6f9e"
WORDS = {ON: "position runs", OFF: "is skipped", CAME_ON: "switched on by the attack", WENT_OFF: "switched off"}


def attacked(images: int = 60) -> tuple[attacks.AttackResult, np.ndarray, np.ndarray]:
    """BIM under LGM on DynConv, judged on the deployed network: (result, images, labels)."""
    net, variables = dyn_jax.networks.pretrained("dynconv-digits")
    data = digits("test")
    x, y = data.images[:images], data.labels[:images]
    soft, hard = (partial(net.apply, variables, occupancy=o) for o in (occupancy.sigmoid(3.0), occupancy.hard()))
    result = jax.jit(lambda x, y: attacks.bim("8/255", "2/255", steps=10)(soft, x, y, victim=hard))(x, y)
    return jax.tree.map(np.asarray, result), x, y


def draw(path: pathlib.Path = PATH) -> pathlib.Path:
    """Writes the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    result, images, labels = attacked()
    pairs = [
        (np.asarray(a.on), np.asarray(b.on)) for a, b in zip(result.trace_clean.units, result.trace_adversarial.units)
    ]
    flips = sum((was != now).reshape(len(labels), -1).mean(1) for was, now in pairs)
    n = int(np.argmax(np.where(result.success & ~result.clean_success, flips, -1)))
    chosen = [0, 2, 4]
    fig = Figure(figsize=(9.2, 2.5), layout="constrained", dpi=160)
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, 2 + len(chosen))
    said = [int(np.argmax(z[n])) for z in (result.logits_clean, result.logits_adversarial)]
    for axis, picture, title in (
        (axes[0], images[n], f"clean: read as {said[0]}"),
        (axes[1], result.adversarial[n], f"eps 8/255: read as {said[1]}"),
    ):
        axis.imshow(np.clip(picture, 0, 1), interpolation="nearest")
        axis.set_title(title, fontsize=9)
    for axis, number in zip(axes[2:], chosen):
        was, now = (on[n] for on in pairs[number])
        axis.imshow(colours(was, now), interpolation="nearest")
        height, width = was.shape
        axis.set_title(f"unit {number + 1} of {len(pairs)}, {height} x {width}", fontsize=9)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    patches = [
        Patch(facecolor=colour, edgecolor="#666666", linewidth=0.4, label=word) for colour, word in WORDS.items()
    ]
    fig.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Software": None})
    return path


def colours(was: np.ndarray, now: np.ndarray) -> np.ndarray:
    """[height, width, 3] of a mask before and after."""
    picture = np.empty((*was.shape, 3))
    for colour, where in ((OFF, ~was & ~now), (ON, was & now), (CAME_ON, ~was & now), (WENT_OFF, was & ~now)):
        picture[where] = matplotlib.colors.to_rgb(colour)
    return picture


def tokens(path: pathlib.Path = TOKENS, steps: int = 150) -> str:
    """Writes how many layers each patch of some digits runs, before and under SlowFormer's patch."""
    net, variables = dyn_jax.networks.pretrained("avit-digits")
    forward = jax.jit(partial(net.apply, variables))
    train, test = digits("train").images[:50], digits("test").images[:4]
    attack = attacks.slowformer((8, 8), steps, mean_std=net.normalization)
    result = jax.jit(partial(attack, forward))(train, key=jax.random.key(0))
    patched = attacks.paste(test, result.adversarial[0, :8, :8])
    traces = {name: jax.device_get(forward(x).trace) for name, x in (("clean", test), ("with the patch", patched))}
    return plotting.token_figure(np.asarray(patched), traces, str(path), rows=4, title="avit-digits, SlowFormer")


if __name__ == "__main__":
    print(draw(), tokens())
