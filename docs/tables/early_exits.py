"""Tables of "Dynamic Neural Network is All You Need": four questions on early exits."""

from __future__ import annotations

from functools import partial
from typing import Any

from docs.tables import block, markdown, named, record, source, span


def _percent(cell: dict[str, Any]) -> str | None:
    """Mean of a share in percent, with the deviation over seeds where there are several."""
    return _spread(cell, 100, ".0f")


def _plain(cell: dict[str, Any]) -> str | None:
    return _spread(cell, 1, ".2f")


def _spread(cell: dict[str, Any], times: float, form: str) -> str | None:
    if cell["mean"] is None:
        return None
    mean = format(times * cell["mean"], form)
    return mean if cell["std"] is None else f"{mean} ± {format(times * cell['std'], form)}"


def _claims(name: str) -> str:
    return "Claimed: " + "; ".join(f"{claim} ({where})" for where, claim in record(name)["claimed"].items()) + "."


def _settings(name: str) -> str:
    s, seeds = record(name)["settings"], len(record(name)["seeds"])
    trained = f"± over {seeds} trained networks of each kind" if seeds > 1 else "one trained network of each kind"
    return (
        f"Data: {s['data']}, {s['examples']} images, {s['held out for the surrogates']:,} others held out for the "
        f"surrogates; eps {255 * s['eps']:.0f}/255; networks of {s['epochs']} epochs, surrogates of "
        f"{s['surrogate_epochs']}; {trained}."
    )


def rq1(name: str) -> str:
    """Transfer between static and dynamic networks."""
    kept = record(name)
    share = lambda r, of: _spread({"mean": r[f"{of} %"], "std": r[f"{of} std"]}, 1, ".0f")
    body = [
        (
            *(r["attack"], *(share(r, of) for of in ("S2D", "D2S", "S2D both right", "D2S both right"))),
            *(f"{r['S2D seconds']:.2f}", f"{r['D2S seconds']:.2f}"),
        )
        for r in kept["summary"]
    ]
    header = ("attack", "static to dynamic, %", "dynamic to static, %", "both targets right: static to dynamic, %")
    clean = [100 * r["target's accuracy"]["mean"] for r in kept["rows"]]
    early = [r["work share of a surrogate pass"]["mean"] for r in kept["rows"] if r["direction"] == "D2S"]
    return block(
        markdown((*header, "dynamic to static, %", "static, s", "dynamic, s"), body),
        source(name),
        _claims(name),
        f"{_settings(name)} The targets answer {span(clean)} % of the clean images rightly; so beside all images stand "
        "those that both targets of a pair, static and dynamic, answer rightly. A dynamic surrogate, at its exits, "
        f"would do {span([100 * share for share in early])} % of its work on the adversarial images; seconds are of "
        "attacks that evaluate every exit.",
    )


def rq2(name: str) -> str:
    """What accuracy attacks cost."""
    kept = record(name)
    body = [
        (
            *(r["box"], r["network"], r["attack"], _plain(r["exit change"]), _percent(r["raised by more than one"])),
            *(_percent(r["leaves earlier"]), _percent(r["saved work, clean"]), _percent(r["saved work, adversarial"])),
        )
        for r in kept["rows"]
    ]
    header = ("box", "network", "attack", "exits later", "more than one later, %", "earlier, %", "saved work, clean, %")
    means = [
        sum(r["exit change"]["mean"] for r in rows) / len(rows)
        for box in ("white", "black")
        for attack in ("FGSM", "PGD", "MI-FGSM")
        if (rows := [r for r in kept["rows"] if (r["box"], r["attack"]) == (box, attack)])
    ]
    return block(
        markdown((*header, "adversarial, %"), body),
        source(name),
        _claims(name),
        f"{_settings(name)} Over the networks, white box +{span(means[:3], '.1f')} exits on average, black box "
        f"+{span(means[3:], '.1f')}.",
    )


def rq3(name: str) -> str:
    """Which exit changes its label first."""
    kept = record(name)
    body = [
        (r["box"], r["network"], r["attack"], r["examples"], _percent(r["first exit changed"]),
         _plain(r["mean first changed exit"]))
        for r in kept["rows"]
    ]  # fmt: skip
    white, black = (
        [100 * r["first exit changed"]["mean"] for r in kept["rows"] if r["box"] == box] for box in ("white", "black")
    )
    counts = span(r["examples"] for r in kept["rows"] if r["box"] == "black")
    header = ("box", "network", "attack", "examples", "first exit changed, %", "mean first changed exit")
    return block(
        markdown(header, body),
        source(name),
        _claims(name),
        f"{_settings(name)} White box {span(white)} %, black box {span(black)} %, with {counts} examples a cell.",
    )


def rq4(name: str) -> str:
    """Early Attack against its baselines."""
    kept = record(name)
    networks = list(dict.fromkeys(r["network"] for r in kept["rows"]))
    body = []
    for attack in dict.fromkeys(r["attack"] for r in kept["rows"]):
        cells = {r["network"]: r for r in kept["rows"] if r["attack"] == attack}
        body.append((attack, *(_percent(cells[n]["success"]) for n in networks),
                     *(_plain(cells[n]["L2 distance"]) for n in networks)))  # fmt: skip
    header = ("attack", *(f"success, {n}, %" for n in networks), *(f"L2, {n}" for n in networks))
    transfers = [
        (r["from"], r["to"], _percent(r["T1, last exit kept"]), _percent(r["T2, early exits changed"]))
        for r in kept["transfer"]
    ]
    s = kept["settings"]
    return block(
        markdown(header, body),
        markdown(("from", "to", "T1: last exit kept, %", "T2: early exits changed, %"), transfers),
        source(name),
        _claims(name),
        f"Data: {s['data']}; {s['steps']} steps at learning rate {s['learning_rate']:g}, started from {s['start']}.",
    )


for _number, _table in enumerate((rq1, rq2, rq3, rq4), start=1):
    for _of in ("", "_cifar"):
        named(f"early-exit-rq{_number}{_of.replace('_', '-')}")(partial(_table, f"early_exit_rq{_number}{_of}"))


@named("rdi")
def rdi() -> str:
    """RDI-ResNet-38: the authors' attacks, FGM against LGM on its exits, attacks on the energy."""
    kept = record("rdi_defended")
    part = lambda name: [row for row in kept["rows"] if row["part"] == name]
    joined = lambda values: " ".join(f"{value:.1f}" for value in values)
    reference = [
        (
            *(r["input"], f"{r['claimed answer %']:.1f}", f"{r['answer %']:.1f} ± {r['standard error']:.1f}"),
            *(joined(r["claimed exits %"]), joined(r["exits %"]), f"{r['claimed cost']:.2f}", f"{r['cost']:.2f}"),
        )
        for r in part("reference")
    ]
    leaded = [
        (r["gradient"], r["lambda"], f"{r['after %']:.1f} ± {r['se']:.1f}", r.get("broken by FGM only"),
         r.get("broken by LGM only"))
        for r in part("lgm")
    ]  # fmt: skip
    spent = [(r["attack"], r["images"], r["recovered %"], r["exits later"], r["answer %"]) for r in part("energy")]
    header = ("images", "claimed, %", "answer, %", "claimed, each exit, %", "each exit, %", "claimed cost", "cost")
    return block(
        markdown(header, reference),
        markdown(("gradient", "lambda", "PGD-20, answer, %", "broken by FGM only", "by LGM only"), leaded),
        markdown(("attack", "images", "recovered, %", "exits later", "answer, %"), spent),
        source("rdi_defended"),
        f"{kept['settings']['data']}; eps {kept['settings']['eps']}, ± is a standard error. Claimed is what the "
        "authors' code gives on the same images; cost is their table of floating-point operations, in millions.",
    )
