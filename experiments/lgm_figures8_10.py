"""LGM's figures 8 and 10: a room as the attacked network sees it, and objects with what they are taken for.

    python -m experiments.lgm_figures8_10

Point-BIM under LGM on the embedded rooms, in the paper's form and in the released one, and on the embedded objects, at
every eps of tables IV and XI. Drawn are the first room and the first objects of the test split. The figures' captions
claim that moves cannot be seen (rooms) or can (objects), and that a wrong answer still describes the shape. So the
record also has moves in units of the spacing of the points, and how often a wrong answer was the clean object's second.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from functools import partial
from typing import Any

import jax
import numpy as np
from scipy.spatial import cKDTree

from dyn_jax import attacks, metrics, plotting
from dyn_jax.cli import demo_points
from dyn_jax.datasets import OBJECT_CLASSES, ROOM_CLASSES, objects
from dyn_jax.occupancy import voxel
from dyn_jax.training.points import OBJECT_POINTS, ROOM_POINTS
from experiments import _record, _rooms, _run
from experiments.lgm_table11_objects import ATTACKS, attacked

OBJECTS, EPS, LAMBDA = "minkfcnn-objects", (0.02, 0.05, 0.1, 0.2), 10.0
OCCUPANCY = voxel.lgm(voxel.sigmoid(LAMBDA))
DRAWN = 4
FLAT = {"marker": "s", "linewidths": 0, "depthshade": False, "antialiased": False}  # few colours: a small file
RIGHT, WRONG = "#1e8449", "#c0392b"


def visible(clean: np.ndarray, moved: np.ndarray) -> float:
    """How far points moved, on average, in units of the median distance to the nearest other point."""
    spacing = np.median(cKDTree(clean).query(clean, k=2)[0][:, 1])
    return float(np.linalg.norm(moved - clean, axis=1).mean() / spacing)


def rooms(arguments: argparse.Namespace, path: pathlib.Path) -> tuple[list[dict[str, Any]], Any]:
    """Rows of every room, form and eps, and the network; figure 8 is written to `path`."""
    made = _rooms.setup(arguments)
    rows, first = [], {}
    for form, how in _rooms.PROTOCOLS.items():
        run = made.attack(arguments.steps, **how)
        for row, results in made.compared(run, demo_points.STEP, {"LGM": OCCUPANCY}):
            _rooms.trusted(row.overflow, f"{form}, eps {row.eps}")
            first[form, row.eps] = results[0]
            for number, (result, labels) in enumerate(zip(results, made.labels)):
                before, after = (np.argmax(z, 1) == labels for z in (result.logits_clean, result.logits_adversarial))
                clean = np.asarray(made.clouds[number].xyz)
                head = {"room": number, "form": form, "eps (m)": row.eps, "step (m)": demo_points.STEP[row.eps]}
                numbers = {
                    "before %": round(100 * float(row.clean_rooms[number]), 2),
                    "after %": round(100 * float(row.after_rooms[number]), 2),
                    "became wrong %": round(100 * float(np.mean(before & ~after)), 2),
                    "move in spacings": round(visible(clean, result.adversarial), 3),
                }
                rows += _run.shown([head | numbers])
        jax.clear_caches()
    draw_room(first, np.asarray(made.clouds[0].xyz), made.labels[0], path)
    return rows, made.net


def draw_room(found: dict[Any, attacks.AttackResult], xyz: np.ndarray, labels: np.ndarray, path: pathlib.Path) -> None:
    """Labels over the prediction before; then the predictions after, one row a form; from above, without a ceiling."""
    from matplotlib.lines import Line2D

    shown = xyz[:, 2] < np.quantile(xyz[:, 2], 0.9)
    colours = plotting.colours(2 * len(ROOM_CLASSES))[::2]
    iou = lambda said: 100 * float(metrics.mean_iou(metrics.confusion(said, labels, len(ROOM_CLASSES))))
    said = np.argmax(next(iter(found.values())).logits_clean, 1)
    panels = {"paper": [("labels", xyz, labels)], "release": [(f"before: mIoU {iou(said):.0f} %", xyz, said)]}
    for (form, eps), result in found.items():
        says = np.argmax(result.logits_adversarial, 1)
        title = f"{form}'s form, {100 * eps:g} cm: {iou(says):.0f} %"
        panels[form].append((title, np.asarray(result.adversarial), says))
    width = len(panels["paper"])
    fig, axes = plotting.figure(2, width, figsize=(3 * width, 6), subplot_kw={"projection": "3d"})
    for axis, (title, points, classes) in zip(axes.ravel(), panels["paper"] + panels["release"]):
        axis.scatter(*points[shown].T, c=colours[classes[shown]], s=2.5, **FLAT)
        axis.set_title(title, fontsize=11)
        axis.view_init(elev=50, azim=-60)
        axis.set_box_aspect(np.ptp(xyz[shown], axis=0), zoom=1.25)
        axis.set_axis_off()
    dots = [Line2D([], [], marker="o", linestyle="", color=c, label=name) for c, name in zip(colours, ROOM_CLASSES)]
    fig.legend(handles=dots, loc="outside lower center", ncols=len(dots), fontsize=9, frameon=False)
    fig.savefig(path, dpi=72)


def attacked_objects(how: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, dict[float, Any]]:
    """Clean points [object, point, 3], labels, eps -> (moved points, logits before, logits after)."""
    data = objects("test", how.objects, points=OBJECT_POINTS)
    made, make = _rooms.of_objects(OBJECTS, data, max(EPS) / 5), partial(ATTACKS["Point-BIM"], how.object_steps)
    seen = lambda r: (r.overflow[0], r.adversarial, r.logits_clean[0], r.logits_adversarial[0])
    found = {}
    for eps, (overflow, *parts) in zip(EPS, attacked(made, make, OCCUPANCY, seen, EPS, how.objects)):
        _rooms.trusted(overflow, f"objects, eps {eps}")
        found[eps] = parts
    return data.xyz, data.labels, found


def object_rows(xyz: np.ndarray, labels: np.ndarray, found: dict[float, Any]) -> tuple[list[dict], list[dict]]:
    """One row an eps, and one for each answer that is drawn."""
    rows, answers = [], []
    for eps, (moved, before, after) in found.items():
        second = np.argsort(before, axis=1)[:, -2]
        says, sure = after.argmax(1), np.asarray(jax.nn.softmax(after, axis=1)).max(1)
        wrong = (says != labels) & (before.argmax(1) == labels)
        moves = [visible(clean, object_) for clean, object_ in zip(xyz, moved)]
        row = {"eps (m)": eps, "became wrong": int(wrong.sum())}
        row |= {"of which the second answer before": int((wrong & (says == second)).sum())}
        row |= {"mean confidence when wrong %": round(100 * float(sure[wrong].mean()), 1)}
        rows += _run.shown([row | {"move in spacings": round(float(np.mean(moves)), 2)}])
        answers += [
            {"object": OBJECT_CLASSES[labels[n]], "eps (m)": eps, "answer": OBJECT_CLASSES[says[n]]}
            | {"confidence %": round(100 * float(sure[n]), 1), "second before": OBJECT_CLASSES[second[n]]}
            for n in range(min(DRAWN, len(labels)))
        ]
    return rows, answers


def draw_objects(xyz: np.ndarray, labels: np.ndarray, found: dict[float, Any], path: pathlib.Path) -> None:
    """Clean objects, then those of every eps: green where the answer is right, with its confidence."""
    count = min(DRAWN, len(labels))
    columns = [("clean", xyz, next(iter(found.values()))[1])]
    columns += [(f"eps {eps:g} m", moved, after) for eps, (moved, _, after) in found.items()]
    fig, axes = plotting.figure(
        count, len(columns), figsize=(2.1 * len(columns), 2.1 * count), subplot_kw={"projection": "3d"}
    )
    for n, axis_row in enumerate(axes):
        for axis, (name, points, logits) in zip(axis_row, columns):
            says, sure = int(logits[n].argmax()), float(jax.nn.softmax(logits[n]).max())
            colour = RIGHT if says == labels[n] else WRONG
            axis.scatter(*points[n].T, color=colour, s=4, **FLAT)
            head = f"{name}\n" if n == 0 else ""
            axis.set_title(f"{head}{OBJECT_CLASSES[says]} {sure:.0%}", fontsize=9, color=colour)
            axis.view_init(elev=20, azim=-60)
            axis.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
            axis.set_box_aspect((1, 1, 1), zoom=1.5)
            axis.set_axis_off()
    fig.savefig(path, dpi=75)


def main() -> None:
    parser = _run.parser(__doc__, rooms=2, points=ROOM_POINTS, steps=20)
    parser.add_argument("--objects", type=int, default=40, help="test objects, at most 200; the first ones are drawn")
    parser.add_argument("--object-steps", type=int, default=15, help="of Point-BIM on objects")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.results or _record.RESULTS)
    os.makedirs(folder, exist_ok=True)
    rows, net = rooms(arguments, folder / "lgm_figure8_rooms.png")
    xyz, labels, found = attacked_objects(arguments)
    of_objects, answers = object_rows(xyz, labels, found)
    draw_objects(xyz, labels, found, folder / "lgm_figure10_objects.png")
    facts = _rooms.facts(arguments, net) | {"objects": len(labels), "network of objects": OBJECTS, "lambda": LAMBDA}
    facts |= {"object_steps": arguments.object_steps, "eps of objects (m)": list(EPS)}
    facts |= {"by object eps": of_objects, "answers": answers}
    print(_record.save("lgm_figures8_10", rows, folder=arguments.results, seeds=[], **facts))


if __name__ == "__main__":
    main()
