"""``report.html``: what a finished run found, on one page that needs no network, no script and no other file.

Numbers, shapes of curves and pictures are made here; the template only places them, and escapes every text.
"""

from __future__ import annotations

import base64
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from dyn_jax import _files, _validate, plotting
from dyn_jax.evaluation import files, shards
from dyn_jax.evaluation.chunks import divided
from dyn_jax.evaluation.plan import ACCURACY, ENERGY

REPORT = "report.html"
STATES = ("off", "switched-on", "switched-off", "on")
"""Class of an element that was (on before, on after), read as a binary number."""
BALLS = {"Linf": "L∞", "L2": "L2", "L1": "L1"}
ROBUSTBENCH = (
    *("name", "authors", "venue", "link", "architecture", "dataset", "threat", "eps", "additional_data"),
    *("number_forward_passes", "clean_acc", "reported", "autoattack_acc", "unreliable"),
)
FIELDS = (
    *("robust_acc", "interval_95", "examples", "broken", "invalid", "not_confirmed", "broken_in_8_bits"),
    *("attacks", "energy", "random", "curves", "facts", "settings", "environment"),
)
"""What a result must have beside `ROBUSTBENCH`."""
_TEMPLATE = pathlib.Path(__file__).with_name("report.html.jinja")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 200, 64, 12, 14, 28  # of a curve, in SVG units
_STRIP = 32  # elements of a vector of units in one line
_TABLE = 18  # units in one column of execution rates


def report(folder: str | os.PathLike) -> pathlib.Path:
    """Writes ``report.html`` into the folder that `evaluate` wrote to, the same bytes for the same run: its path.

    Raises:
      OSError, BadFile: no finished run there, or a damaged one: names the file.
    """
    place = pathlib.Path(folder)
    result, pictures = files.load(place)
    signed = place / shards.MANIFEST
    manifest = _files.read_json(signed, "the folder of an evaluation") if signed.exists() else {}
    about = lambda: _files.reading(os.fspath(place / files.RESULT), "the result of an evaluation")
    with about():
        context = _context(result, manifest)
    with _files.reading(os.fspath(place / files.PICTURES), "the pictures of this run"):
        examples = _examples(result, pictures)
    with about():
        page = _template(_unit(result)).render(context, examples=examples).encode()
    shards.write(place / REPORT, page)
    return place / REPORT


def _template(unit: str) -> jinja2.Template:
    """The page, with distances in 1/255 or plain numbers."""
    space = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    space.filters |= {"share": _share, "macs": _macs, "words": _words, "distance": lambda v: _distance(v, unit)}
    return space.from_string(_TEMPLATE.read_text("utf-8"))


def _context(result: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the template places, but for the pictures."""
    missing = [name for name in (*ROBUSTBENCH, *FIELDS) if name not in result]
    if missing:
        raise ValueError(f"it lacks {_files.listed(missing, most=4)}")
    if result["threat"] not in BALLS:
        raise ValueError(f"threat: got {_files.short(result['threat'])}, expected {' or '.join(BALLS)}")
    _radius(result)
    css = {"on": plotting.ON, "off": plotting.OFF, "up": plotting.SWITCHED_ON, "down": plotting.SWITCHED_OFF}
    hidden = ("name", "dataset", "classes", "command")  # said elsewhere
    return {
        "r": result,
        "findings": result.get("checks"),
        "table": result["attacks"],
        "ball": BALLS[result["threat"]],
        "colours": {name: "rgb({:.0f} {:.0f} {:.0f})".format(*(255 * c for c in rgb)) for name, rgb in css.items()},
        "found": _found(result),
        "costs": _costs(result["energy"]),
        "attacks_on_energy": [line for line in result["attacks"] if line["kind"] == ENERGY and "macs" in line],
        "eps_curve": _eps_curve(result, _unit(result)),
        "step_curves": _step_curves(result["curves"]["steps"]),
        "rates": _rates(result["energy"]),
        "settings": {name: value for name, value in result["settings"].items() if value is not None},
        "facts": {name: value for name, value in result["facts"].items() if name not in hidden},
        "robustbench": {name: result[name] for name in ROBUSTBENCH},
        "call": _call(result),
        "digests": {name: manifest[name] for name in ("weights", "data", "code", "occupancy") if name in manifest},
    }


def _unit(result: Mapping[str, Any]) -> str:
    """What distances are written in: 255 for 1/255."""
    return "255" if result["eps"].endswith("/255") else "1"


def _radius(result: Mapping[str, Any]) -> float:
    return float(np.asarray(_validate.number("eps", result["eps"], minimum=0)))


def _share(value: float | None) -> str:
    """0.123 -> 12.3 %."""
    return "not known" if value is None else f"{100 * value:.1f} %"


def _macs(value: float | None) -> str:
    """1234567 -> 1.235 M."""
    if value is None:
        return "not known"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g} {letter}"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _distance(value: float | None, unit: str) -> str:
    if value is None:
        return "none"
    return f"{255 * value:.2f}/255" if unit == "255" else f"{value:.4g}"


def _words(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _found(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What became of the examples: lines of a bar chart, widths in percent of all examples."""
    count = result["examples"]
    of = lambda percent: round(count * float(percent) / 100)
    by = [x for x in result["attacks"] if x["kind"] == ACCURACY or x.get("found_first")]
    lines = [(x["attack"], x.get("found_first", 0), "broken") for x in by]
    robust, wrong = of(result["robust_acc"]), count - of(result["clean_acc"])
    lines += [("robust: stood every attack", robust, "stood"), ("wrong to begin with", wrong, "wrong")]
    silent = count - result["broken"] - robust - wrong
    lines += [("no finite answer under attack", silent, "wrong")] if silent > 0 else []
    return _bars(lines, count)


def _costs(energy: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Multiply-adds of clean and worst images beside the dense network's."""
    if energy is None:
        return []
    lines = [
        ("clean images", energy["macs_clean"], "stood"),
        ("most expensive in the ball", energy["macs_worst_in_ball"], "broken"),
        ("every unit on", energy["dense_macs"], "wrong"),
    ]
    known = [line for line in lines if line[1] is not None]
    return _bars(known, max((value for _, value, _ in known), default=0) or 1)


def _bars(lines: Sequence[tuple[str, float, str]], most: float) -> list[dict[str, Any]]:
    """(name, count, kind) as lines of a bar chart, widths in percent of `most`."""
    return [{"name": n, "count": c, "kind": k, "width": f"{100 * c / most:.2f}"} for n, c, k in lines]


def _eps_curve(result: Mapping[str, Any], unit: str) -> dict[str, Any] | None:
    curve = result["curves"]["eps"]
    if not curve:
        return None
    radius = _radius(result)
    scale = lambda v: f"{255 * v:.3g}/255" if unit == "255" else f"{v:.3g}"
    ticks = [(0.0, "0"), *((v, scale(v)) for v in (radius, curve["eps"][-1]))]
    return _curve(curve["eps"], curve["accuracy"], (0, 100), ticks, mark=radius) | {"median": curve["median"]}


PATHS = {
    "accuracy": ("accuracy", "accuracy in percent along the search: images that stood every iterate so far", 1, 100),
    "recovery": (
        "recovery",
        "percent of the saved multiply-adds that the most expensive iterate so far runs",
        100,
        None,
    ),
    "loss": ("best loss", "best loss so far along the search, mean over the images it ran on", 1, None),
}
"""Curve along a search -> (short title, what it is, factor, upper end of the axis); the first that an attack has."""


def _step_curves(curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> list[tuple[str, str, str, dict]]:
    """(attack, short title, what it is, curve) of every attack that took steps."""
    shown = []
    for name, kinds in sorted(curves.items()):
        kind = next((kind for kind in PATHS if len(kinds.get(kind, ())) > 1), None)
        if kind is None:
            continue
        title, what, factor, most = PATHS[kind]
        values = [None if v is None else factor * v for v in kinds[kind]]
        ticks = [(0, "start"), (len(values) - 1, "end")]
        shown.append((name, title, what, _curve(range(len(values)), values, most and (0, most), ticks)))
    return shown


def _curve(
    xs: Sequence[float],
    ys: Sequence[float | None],
    limits: tuple[float, float] | None = None,
    x_ticks: Sequence[tuple[float, str]] = (),
    mark: float | None = None,
) -> dict[str, Any]:
    """Places of a line in the frame of an SVG; points that are null, or stand for NaN, are left out."""
    there = [(x, y) for x, y in zip(xs, ys) if y is not None and math.isfinite(y) and abs(y) < 9e8]
    values = [y for _, y in there]
    low, high = limits or (min(values, default=0.0), max(values, default=1.0))
    if high - low < 1e-12 * max(abs(high), 1):
        low, high = low - 0.5, high + 0.5
    first, last = min(xs), max(xs)
    along = lambda x: f"{_LEFT + (x - first) / ((last - first) or 1) * (_WIDTH - _LEFT - _RIGHT):.1f}"
    up = lambda y: f"{_HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM):.1f}"
    return {
        "points": " ".join(f"{along(x)},{up(y)}" for x, y in there),
        "y": [(up(y), f"{y:.3g}") for y in (low, (low + high) / 2, high)],
        "x": [(along(x), text) for x, text in x_ticks],
        "mark": None if mark is None else along(mark),
        "from": f"{values[0]:.4g}" if values else "not known",
        "to": f"{values[-1]:.4g}" if values else "not known",
        "frame": {"w": _WIDTH, "h": _HEIGHT, "l": _LEFT, "r": _WIDTH - _RIGHT, "t": _TOP, "b": _HEIGHT - _BOTTOM},
    }


def _rates(energy: Mapping[str, Any] | None) -> list[list[dict[str, Any]]]:
    """Columns of (unit, rate on clean images, on the most expensive ones)."""
    if energy is None:
        return []
    both = zip(energy["units"], energy["on_before"], energy["on_worst"])
    lines = [{"name": name, "before": before, "worst": worst} for name, before, worst in both]
    columns = max(1, math.ceil(len(lines) / _TABLE))
    return divided(lines, math.ceil(len(lines) / columns) or 1)


def _call(result: Mapping[str, Any]) -> str:
    """The call that does this evaluation again."""
    s = result["settings"]
    budget = ", ".join(f"{k}={s[k]}" for k in ("steps", "targets", "queries", "energy_steps"))
    lines = [
        f'eps="{result["eps"]}",',
        f'norm="{result["threat"].lower()}",',
        f'attacks="{",".join(line["attack"] for line in result["attacks"])}",',
        f"budget=Budget({budget}, lambdas={tuple(s['lambdas'])}),",
        f"seed={s['seed']},",
        f"batch_size={s['batch_size']},",
        *([f"draws={tuple(s['draws'])},"] if s["draws"] else []),
    ]
    body = "\n".join(f"    {line}" for line in lines)
    return (
        f"from dyn_jax.evaluation import Budget, evaluate\n\nevaluate(\n    net, variables, images, labels,\n{body}\n)"
    )


def _examples(result: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Pictures and facts of every example that is shown."""
    energy = result.get("energy")
    names = energy["units"] if energy else []
    radius = _radius(result)
    classes = [name.strip() for name in str((result.get("facts") or {}).get("classes", "")).split(",")]
    said = lambda k: classes[k] if 0 <= k < len(classes) and classes[k] else str(k)
    shown = []
    for n, index in enumerate(pictures["index"]):
        clean, adversarial = pictures["clean"][n], pictures["adversarial"][n]
        difference = np.asarray(adversarial, np.float64) - clean
        largest = float(np.abs(difference).max())
        inside = result["threat"] == "Linf" and largest <= radius * 1.001
        scale = radius if inside and radius else max(largest, 1e-9)
        accuracy = pictures["kind"][n] == ACCURACY
        by = result["attacks"][int(pictures["found_by"][n])]["attack"] if accuracy else None
        on = [(pictures[f"on_before/{k}"][n], pictures[f"on_after/{k}"][n]) for k in range(len(names))]
        shown.append(
            {
                "index": int(index),
                "why": f"broken by {by}" if accuracy else "most expensive image in the ball",
                **{name: said(int(pictures[name][n])) for name in ("label", "before", "after")},
                "macs": (float(pictures["macs_before"][n]), float(pictures["macs_after"][n])) if names else None,
                "clean": _inlined(clean),
                "adversarial": _inlined(adversarial),
                "difference": _inlined(0.5 + 0.5 * difference / scale),
                "scale": result["eps"] if inside else f"{255 * scale:.1f}/255",
                "small": max(clean.shape[:2]) <= 96,
                **_units(names, on),
            }
        )
    return shown


def _units(names: Sequence[str], on: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Single gates as cells, units of several elements as pictures."""
    gates, maps = [], []
    for name, (before, after) in zip(names, on):
        was, now = np.squeeze(np.asarray(before, bool)), np.squeeze(np.asarray(after, bool))
        if not was.ndim:
            gates.append({"name": name, "state": STATES[2 * int(was) + int(now)]})
            continue
        switched = {"up": int(np.sum(~was & now)), "down": int(np.sum(was & ~now)), "count": was.size}
        flat = lambda v: v.reshape(len(v), -1)
        picture = _strip(was, now) if was.ndim == 1 else plotting.flip_map(flat(was), flat(now))
        maps.append({"name": name, "picture": _inlined(picture), "wide": was.ndim == 1, **switched})
    changed = [gate for gate in gates if gate["state"].startswith("switched")]
    return {"gates": gates, "changed_gates": changed, "maps": maps}


def _strip(was: np.ndarray, now: np.ndarray) -> np.ndarray:
    """A vector of elements as lines of a picture, what is left of the last one transparent."""
    columns = min(len(was), _STRIP)
    rows = -(-len(was) // columns)
    picture = np.zeros((rows * columns, 4))
    picture[: len(was)] = np.concatenate([plotting.flip_map(was, now), np.ones((len(was), 1))], axis=1)
    return picture.reshape(rows, columns, 4)


def _inlined(image: np.ndarray) -> str:
    """[height, width, 1, 3 or 4] in [0, 1] as a PNG; any other number of channels is shown by its mean."""
    image = image if image.shape[-1] in (1, 3, 4) else image.mean(axis=-1, keepdims=True)
    content = files.png(np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8))
    return "data:image/png;base64," + base64.b64encode(content).decode()
