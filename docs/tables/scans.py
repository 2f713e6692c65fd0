"""Tables of LGM and of other attacks on LiDAR scans."""

from __future__ import annotations

import statistics

from docs.tables import block, bold_least, find, markdown, named, record, source

STREETS = {"waits": "lgm_streets", "command": "experiments.lgm_streets"}


@named("lgm-streets-occupancies", **STREETS)
def occupancies() -> str:
    """Tables V and VII outdoors: occupancy functions, and the slope of the sigmoid."""
    kept = record("lgm_streets")
    names = list(dict.fromkeys(r["occupancy"] for r in kept["rows"]))
    body = []
    for eps in dict.fromkeys(r["eps (m)"] for r in kept["rows"]):
        cells = [find(kept["rows"], occupancy=name, **{"eps (m)": eps})["after %"] for name in names]
        body.append((eps, *bold_least(cells)))
    return block(
        markdown(("eps (m)", *names), body),
        source("lgm_streets"),
        f"Mean IoU in % on `{kept['settings']['network']}`, {kept['settings']['data']}, "
        f"{kept['rows'][0]['before %']:.1f} before. Sigmoids by their slope lambda. No outdoor numbers were published.",
    )


@named("lgm-streets-work", **STREETS)
def work() -> str:
    """Table VI outdoors: cells and work of one gradient."""
    kept = record("lgm_streets")
    body = []
    for eps in dict.fromkeys(r["eps (m)"] for r in kept["rows"]):
        fgm, lgm = (find(kept["rows"], occupancy=name, **{"eps (m)": eps}) for name in ("FGM", "lambda 10"))
        cells = (f"{fgm['voxels']:,} / {lgm['voxels']:,}", f"{fgm['GFLOPs']:.3f} / {lgm['GFLOPs']:.3f}")
        body.append((eps, lgm["step (m)"], *cells, f"{lgm['GFLOPs'] / fgm['GFLOPs']:.2f}"))
    return block(
        markdown(("eps (m)", "step (m)", "cells, FGM / LGM", "GFLOPs, FGM / LGM", "times"), body),
        source("lgm_streets"),
        "Of the forward pass that a gradient is taken of, mean over steps and scans.",
    )


@named("lgm-streets-classes", **STREETS)
def classes() -> str:
    """Table X outdoors: IoU by class."""
    kept = record("lgm_streets")
    eps = sorted({r["eps (m)"] for r in kept["by_class"]})
    cell = {(r["gradient"], r["eps (m)"]): r for r in kept["by_class"]}
    claimed = kept["claimed by class % (SemanticKITTI, eps 0.02)"]
    text = lambda value: "" if value is None else f"{value:.1f}"
    body = []
    for number, name in enumerate(kept["settings"]["classes"]):
        measured = [cell[gradient, e]["after %"][number] for e in eps for gradient in ("FGM", "LGM")]
        published = [claimed[key][number] for key in ("before", "FGM", "LGM")]
        before = cell["FGM", eps[0]]["before %"][number]
        body.append((name, text(before), *map(text, measured), " / ".join(text(v) or "?" for v in published)))
    header = ("class", "before", *(f"{gradient}, {e:g} m" for e in eps for gradient in ("FGM", "LGM")))
    return block(
        markdown((*header, "claimed, 0.02 m: before / FGM / LGM"), body),
        source("lgm_streets"),
        "IoU in %. Claimed: the published Cylinder3D on SemanticKITTI, where the table could be read.",
    )


@named("lidar-returns", waits="lidar_returns", command="experiments.lidar_returns")
def returns() -> str:
    """What a LiDAR could see."""
    kept = record("lidar_returns")
    unit = {"late returns": "m", "absorbed": "points", "spoofed": "points"}
    body, control = [], []
    for r in kept["rows"]:
        each = r["after, each street %"]
        if r["how"] in ("random", "as placed"):
            control, against = each, None
        else:
            apart = [after - before for after, before in zip(each, control)]
            error = statistics.stdev(apart) / len(apart) ** 0.5
            against = f"{statistics.mean(apart):+.1f} ± {error:.1f}"
        body.append((r["attack"], f"{r['budget']:g} {unit[r['attack']]}", r["how"], f"{r['after %']:.1f}", against))
    return block(
        markdown(("attack", "budget", "how", "mean IoU after", "less its control, by street"), body),
        source("lidar_returns"),
        f"In % on `{kept['settings']['network']}`, {kept['settings']['data']}, {kept['rows'][0]['before %']:.1f} "
        "before; judged are the points of the scan that are still there. Controls: random, and spoofed points as "
        "placed; differences to them are means over the streets with standard errors.",
    )
