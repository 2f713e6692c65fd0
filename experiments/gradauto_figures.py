"""GradAuto's figures 1 to 3, drawn from the attack's own record, on the embedded SkipNet+HRL or one of CIFAR-10.

    python -m experiments.gradauto_figures [--images 8] [--network skipnet-rl-digits]
    python -m experiments.gradauto_figures --data FOLDER --network skipnet-32-cifar10

Figure 1: the plain complexity loss (eq. 7): gradient norm and gating values along the steps, for the two images whose
gates switch off most often. Figure 2: the same images with both corrections, and the angle between the complexity and
the finished gradient for every image. Figure 3: the images themselves, ILFO beside GradAuto with several K.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from dyn_jax import attacks, metrics, plotting
from dyn_jax.attacks.ilfo import ILFO
from experiments import _energy, _record

KS = (1e-4, 1e-3, 1e-2, 1.0, 1e2)


def runs(victim: _energy.Victim, budget: dict) -> dict[str, attacks.AttackResult]:
    """Results by name."""
    plain, start, last = attacks.Rectify(False, False), attacks.Rectify(begin=0), attacks.Form(keep="last")
    methods = {
        "eq. 7": attacks.grad_auto(rectify=plain, **budget),
        "GradAuto": attacks.grad_auto(rectify=start, **budget),
        "ILFO": attacks.ilfo(form=ILFO.replace(keep="last"), **budget),
    }
    results = {name: victim.timed(victim.runner(attack))[0] for name, attack in methods.items()}
    sweep = victim.runner(lambda k: attacks.grad_auto(k, form=last, **budget))
    return results | {f"K = {k:g}": victim.timed(sweep, np.float32(k))[0] for k in KS}


def gates_axis(axis: Any, record: Any, n: int, title: str) -> None:
    """Gating value minus threshold of every gate along the steps."""
    values = np.asarray(record.gating)[n]
    colours = plotting.colours(values.shape[1])
    for unit in range(values.shape[1]):
        axis.plot(values[:, unit], linewidth=0.8, label=str(unit + 1), color=colours[unit])
    axis.axhline(0, color="black", linewidth=0.6)
    _label(axis, title, "gating value - threshold", "gate")


def _label(axis: Any, title: str, y: str, legend: str) -> None:
    axis.set_title(title, fontsize=8)
    axis.set_xlabel("step", fontsize=7)
    axis.set_ylabel(y, fontsize=7)
    axis.legend(title=legend, fontsize=5, title_fontsize=5, loc="center left", bbox_to_anchor=(1.0, 0.5))


def figure_1(result: attacks.AttackResult, chosen: np.ndarray, path: str) -> None:
    """Gradient norms (A, B) and gating values (C, D) of two images under eq. 7."""
    fig, axes = plotting.figure(2, 2, figsize=(9, 6))
    for column, (n, upper, lower) in enumerate(zip(chosen, "AB", "CD")):
        axes[0][column].semilogy(np.maximum(result.record.complexity_norm[n], 1e-12), linewidth=0.8)
        axes[0][column].set_title(f"{upper}: norm of the complexity gradient, image {n}", fontsize=8)
        axes[0][column].set_xlabel("step", fontsize=7)
        gates_axis(axes[1][column], result.record, n, f"{lower}: gating values, image {n}")
    fig.suptitle("Figure 1: eq. 7 without corrections", fontsize=9)
    fig.savefig(path, dpi=110)


def figure_2(result: attacks.AttackResult, chosen: np.ndarray, path: str) -> None:
    """Gating values of the same two images (A, B) and every image's angle (C), with both corrections."""
    fig, axes = plotting.figure(1, 3, figsize=(13, 3.6))
    for column, (n, letter) in enumerate(zip(chosen, "AB")):
        gates_axis(axes[0][column], result.record, n, f"{letter}: gating values, image {n}, K = 1")
    cosine = np.asarray(result.record.cosine)
    angle = np.where(cosine == 0, np.nan, np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    for n in range(len(angle)):
        axes[0][2].plot(angle[n], linewidth=0.6, label=str(n))
    axes[0][2].axhline(90, color="black", linewidth=0.6)
    _label(axes[0][2], "C: angle between complexity and finished gradient", "degrees", "image")
    fig.suptitle("Figure 2: GradAuto", fontsize=9)
    fig.savefig(path, dpi=110)


def figure_3(results: dict[str, attacks.AttackResult], images: np.ndarray, path: str) -> None:
    """Up to four clean images beside those of ILFO and of GradAuto with several K, each with PSNR and units on."""
    names = ["ILFO", *(f"K = {k:g}" for k in KS)]
    rows = min(4, len(images))
    fig, axes = plotting.figure(rows, 1 + len(names), figsize=(1.5 * (1 + len(names)), 1.8 * rows))
    on = lambda trace, n: sum(int(unit.on[n]) for unit in trace.units)
    for n in range(rows):
        clean = results[names[0]].trace_clean
        shown = [(images[n], f"clean, {on(clean, n)} of {len(clean.units)} on")]
        for name in names:
            image, trace = results[name].adversarial[n], results[name].trace_adversarial
            decibel = float(metrics.psnr(image[None], images[n : n + 1])[0])
            shown.append((image, f"{name}: {decibel:.1f} dB, {on(trace, n)} on"))
        for axis, (image, title) in zip(axes[n], shown):
            axis.imshow(np.clip(image, 0, 1), interpolation="nearest")
            axis.set_title(title, fontsize=6)
            axis.set(xticks=[], yticks=[])
    fig.savefig(path, dpi=110)


def main() -> None:
    how = _energy.parser(__doc__, 8, network="skipnet-rl-digits").parse_args()
    folder = str(how.results or _record.RESULTS)
    os.makedirs(folder, exist_ok=True)
    ((_, victim),) = _energy.victims(how, how.network)
    results = runs(victim, _energy.budget(how))
    chosen = np.argsort(-results["eq. 7"].record.switched_off.sum(1), kind="stable")[:2]
    suffix = "" if how.data is None else "_cifar"
    paths = [os.path.join(folder, f"gradauto_fig{number}{suffix}.png") for number in (1, 2, 3)]
    figure_1(results["eq. 7"], chosen, paths[0])
    figure_2(results["GradAuto"], chosen, paths[1])
    figure_3(results, victim.images, paths[2])
    cosine = np.asarray(results["GradAuto"].record.cosine)
    print(
        f"obtuse in {100 * np.mean(cosine[cosine != 0] < 0):.1f} % of the steps with both gradients", *paths, sep="\n"
    )


if __name__ == "__main__":
    main()
