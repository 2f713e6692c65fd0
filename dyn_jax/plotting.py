"""Pictures of attacks. matplotlib is imported where it is used, with a backend that needs no screen."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dyn_jax import metrics
from dyn_jax.attacks import AttackResult
from dyn_jax.types import Trace, UnitTrace

ON, OFF, SWITCHED_ON, SWITCHED_OFF = (0.75, 0.75, 0.75), (1.0, 1.0, 1.0), (0.85, 0.25, 0.2), (0.2, 0.4, 0.8)


def figure(rows: int, columns: int, *, figsize: tuple[float, float] | None = None, **options: Any) -> Any:
    """``plt.subplots`` without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=figsize, layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, squeeze=False, **options)


def colours(count: int) -> np.ndarray:
    """[count, 4], one colour a line, all different up to 20."""
    import matplotlib

    return matplotlib.colormaps["tab20"](np.arange(count) % 20)


def flip_map(before: jax.typing.ArrayLike, after: jax.typing.ArrayLike) -> np.ndarray:
    """Which elements of one example were on before and after -> colours [..., 3]: `ON`, `OFF`, `SWITCHED_ON`, ..."""
    was, now = np.asarray(before, bool), np.asarray(after, bool)
    colours = np.where(now[..., None], np.array(ON), np.array(OFF))
    colours[~was & now] = SWITCHED_ON
    colours[was & ~now] = SWITCHED_OFF
    return colours


def attack_figure(
    result: AttackResult, images: np.ndarray, labels: np.ndarray, path: str, *, rows: int = 5, title: str = ""
) -> str:
    """Clean image, adversarial image, difference and flipped units of the first successes; written to `path`.

    Args:
      result: of an adaptive network, on the host.
      images, labels: the clean batch.
      path: PNG file; returned.
      rows: examples shown, successes first, then the others.
      title: names network and attack.
    """
    fresh = np.asarray(result.success) & ~np.asarray(result.clean_success)
    chosen = np.argsort(~fresh, kind="stable")[:rows]
    adversarial = np.asarray(result.adversarial)
    before, after = (np.argmax(logits, axis=-1) for logits in (result.logits_clean, result.logits_adversarial))
    units = list(zip(result.trace_clean.units, result.trace_adversarial.units))
    scalar = units[0][0].occupancy.ndim == 1
    columns = 3 + (1 if scalar else len(units))
    widths = [1, 1, 1, 2.5] if scalar else [1] * columns
    fig, axes = figure(
        len(chosen), columns, figsize=(1.5 * sum(widths), 1.75 * len(chosen)), gridspec_kw={"width_ratios": widths}
    )
    scale = max(float(np.abs(adversarial - images).max()), 1e-6)
    for axis_row, n in zip(axes, chosen):
        _show(axis_row[0], images[n], f"clean: {before[n]} (is {labels[n]})")
        _show(axis_row[1], np.clip(adversarial[n], 0, 1), f"adversarial: {after[n]}")
        difference = 0.4 * (adversarial[n] - images[n]) / scale + 0.5
        _show(axis_row[2], difference, f"difference, largest {255 * scale:.1f}/255")
        if scalar:
            _gate_strip(axis_row[3], units, n)
        else:
            for axis, (was, now) in zip(axis_row[3:], units):
                flips = flip_map(was.on[n], now.on[n])
                changed = np.mean(np.any(flips == SWITCHED_ON, -1) | np.any(flips == SWITCHED_OFF, -1))
                _show(axis, flips, f"{was.name}: {changed:.0%} flipped")
    legend = "grey: unit on, white: off, red: switched on, blue: switched off"
    return _saved(fig, path, f"{title}\n{legend}" if title else legend, 8)


def token_layers(trace: Trace) -> np.ndarray:
    """How many of a vision transformer's token units are on at each patch: integers [batch, side, side].

    The class token, fused tokens and units of heads or sub-layers are left out.

    Raises:
      ValueError: the trace of a network without units of tokens.
    """
    total = 0
    for unit in trace.units:
        kind, on = unit.name.rpartition("_")[2], np.asarray(unit.on)
        if not unit.name.startswith("blocks_") or kind in ("attention", "mlp", "heads"):
            continue
        if kind != "tokens" and not unit.constant:
            on = on[:, 1:]  # A-ViT: the class token halts too
        side = math.isqrt(on.shape[1])
        total = total + on[:, : side * side].astype(int).reshape(-1, side, side)
    if isinstance(total, int):
        raise ValueError("trace: got no units of tokens, expected those of A-ViT, AdaViT or EViT")
    return total


def token_figure(images: np.ndarray, traces: dict[str, Trace], path: str, *, rows: int = 5, title: str = "") -> str:
    """Each image beside a map for every trace: how many token units are on at each patch; written to `path`.

    Args:
      images: [batch, height, width, 3] in [0, 1].
      traces: label -> trace of the batch, on the host, for example the clean and the attacked one.
      path, title: as of `attack_figure`.
      rows: images shown, the first ones.
    """
    maps = {name: token_layers(trace) for name, trace in traces.items()}
    most = max(int(values.max()) for values in maps.values())
    count = min(rows, len(images))
    fig, axes = figure(count, 1 + len(maps), figsize=(1.6 * (1 + len(maps)), 1.75 * count))
    for n, axis_row in enumerate(axes):
        _show(axis_row[0], images[n], "image")
        for axis, (name, values) in zip(axis_row[1:], maps.items()):
            _show(axis, values[n], f"{name}: mean {values[n].mean():.1f}", cmap="viridis", vmax=max(most, 1))
    legend = f"units on at each patch, dark 0 to light {most}"
    return _saved(fig, path, f"{title}\n{legend}" if title else legend, 7)


def _saved(fig: Any, path: str, title: str, fontsize: int) -> str:
    """Writes the file, its folder too, and returns its path."""
    fig.suptitle(title, fontsize=fontsize)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    fig.savefig(path, dpi=110)
    return path


def _show(axis: Any, image: np.ndarray, title: str, *, vmax: float = 1, cmap: str | None = None) -> None:
    axis.imshow(image, interpolation="nearest", vmin=0, vmax=vmax, cmap=cmap)
    axis.set_title(title, fontsize=6)
    axis.set_xticks([])
    axis.set_yticks([])


def _gate_strip(axis: Any, units: list[tuple[UnitTrace, UnitTrace]], n: int) -> None:
    hard = np.array([[bool(unit.on[n]) for unit in pair] for pair in units]).T
    strip = np.stack([flip_map(hard[0], hard[0]), flip_map(hard[0], hard[1])])
    axis.imshow(strip, interpolation="nearest", aspect="auto")
    axis.set_yticks([0, 1], ["clean", "adversarial"], fontsize=6)
    axis.set_xticks(
        range(len(units)), [a.name.replace("_layer", ".").replace("group", "") for a, _ in units], fontsize=5
    )
    axis.set_xticks(np.arange(len(units) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="black", linewidth=0.5)
    axis.tick_params(length=0, which="both")
    axis.set_title(f"blocks run: {int(hard[0].sum())} -> {int(hard[1].sum())} of {len(units)}", fontsize=6)


def cloud_figure(result: AttackResult, xyz: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: str) -> str:
    """Labels, prediction before and after, and the points that became wrong, of one attacked cloud.

    The cloud is looked at from above one corner; what hides the inside (the highest tenth of the points) is left out.

    Args:
      result: of a segmentation network, on the host.
      xyz: [point, 3] clean coordinates, metres, z up.
      labels: [point].
      classes: names.
      path: PNG file; returned.
    """
    shown = xyz[:, 2] < np.quantile(xyz[:, 2], 0.9)
    fig, axes = figure(2, 2, figsize=(10, 7.5), subplot_kw={"projection": "3d"})
    for axis, (title, points, colours) in zip(axes.ravel(), _panels(result, xyz, labels, classes, metrics.mean_iou)):
        axis.scatter(*points[shown].T, c=colours[shown], s=1.5, linewidths=0)
        axis.set_title(title, fontsize=9)
        axis.view_init(elev=45, azim=-60)
        axis.set_box_aspect(np.ptp(xyz[shown], axis=0))
        axis.set_axis_off()
    return _finished(fig, result, classes, path)


def scan_figure(
    result: AttackResult,
    xyz: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    path: str,
    *,
    iou: Callable[[jax.Array], Any] = metrics.mean_iou,
    radius: float = 25.0,
) -> str:
    """`cloud_figure` of a LiDAR scan: seen from above, around the sensor, and the points that became wrong by angle.

    Args:
      result, xyz, labels, classes, path: see `cloud_figure`; the sensor is at the origin.
      iou: confusion matrix -> the number in the titles, e.g. `datasets.scan_iou`.
      radius: metres that are shown.
    """
    panels = _panels(result, xyz, labels, classes, iou)
    fig, axes = figure(3, 2, figsize=(10, 12), height_ratios=(4, 4, 1))
    for axis, (title, points, colours) in zip(axes.ravel(), panels):
        axis.scatter(points[:, 0], points[:, 1], c=colours, s=3, linewidths=0)
        axis.set_title(title, fontsize=9)
        axis.set(xlim=(-radius, radius), ylim=(-radius, radius), aspect="equal", xlabel="m")
    for axis, (title, points, colours) in zip(axes[2], (panels[0], panels[3])):
        flat = np.hypot(points[:, 0], points[:, 1])
        angles = np.degrees(np.arctan2(points[:, 1], points[:, 0])), np.degrees(np.arctan2(points[:, 2], flat))
        axis.scatter(*angles, c=colours, s=1.5, linewidths=0)
        axis.set_title(f"range image: {title}", fontsize=9)
        axis.set(xlabel="azimuth, degrees", ylabel="elevation")
    return _finished(fig, result, classes, path)


def _panels(
    result: AttackResult, xyz: np.ndarray, labels: np.ndarray, classes: Sequence[str], iou: Callable
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(title, points, colours) of labels, prediction before, after, and what became wrong."""
    before, after = (np.argmax(z, axis=1) for z in (result.logits_clean, result.logits_adversarial))
    moved = np.asarray(result.adversarial)
    fresh = (before == labels) & (after != labels)
    percent = lambda said: 100 * float(iou(metrics.confusion(said, labels, len(classes))))
    palette = colours(len(classes))[:, :3]
    return [
        ("labels", xyz, palette[np.minimum(labels, len(classes) - 1)]),
        (f"before: mIoU {percent(before):.1f} %", xyz, palette[before]),
        (f"after: mIoU {percent(after):.1f} %", moved, palette[after]),
        (f"red: {np.mean(fresh):.0%} of the points became wrong", moved, np.where(fresh[:, None], SWITCHED_ON, ON)),
    ]


def _finished(fig: Any, result: AttackResult, classes: Sequence[str], path: str) -> str:
    """Legend and title; writes the file."""
    from matplotlib.lines import Line2D

    dots = [Line2D([], [], marker="o", linestyle="", color=c, label=n) for c, n in zip(colours(len(classes)), classes)]
    fig.legend(handles=dots, loc="outside lower center", ncols=len(classes), fontsize=7, frameon=False)
    return _saved(fig, path, f"largest move {100 * float(np.max(result.distance)):.1f} cm", 9)
