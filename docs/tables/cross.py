"""The cross table: every attack on every network that ships."""

from __future__ import annotations

from typing import Any

from docs.tables import block, markdown, named, record, source

POINTS = ("minkunet-rooms", "minkfcnn-objects", "cylinder3d-streets")


def _rows(points: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Network -> its rows, in the order of the record."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in record("cross_table")["rows"]:
        if (row["network"] in POINTS) == points:
            found.setdefault(row["network"], []).append(row)
    return found


@named("cross-answers")
def answers() -> str:
    """Accuracy that FGM and LGM leave, one line a network."""
    kept = record("cross_table")
    body, attacks = [], ("FGSM", "BIM-10", "PGD-10")
    for network, rows in _rows().items():
        of = {(row["attack"], row["gradient"].split()[0] if row["gradient"] else ""): row for row in rows}
        cells = [
            f"{of[attack, 'FGM']['accuracy after %']:.0f} / {of[attack, 'LGM']['accuracy after %']:.0f}"
            + (" *" if of[attack, "LGM"]["p"] < 0.01 else "")
            for attack in attacks
        ]
        noise = of["noise", ""]["accuracy after %"]
        body.append((network, f"{of['noise', '']['accuracy before %']:.0f}", f"{noise:.0f}", *cells))
    s = kept["settings"]
    eps = ", ".join(f"{255 * value:.0f}/255 ({data})" for data, value in kept["eps"].items())
    return block(
        markdown(("network", "clean, %", "noise", *(f"{attack}, FGM / LGM" for attack in attacks)), body),
        source("cross_table"),
        f"{s['images']} images a network ({s['data']}), so a standard error is up to 6 points; eps {eps}. LGM's "
        f"occupancy (soft or straight-through, lambda 1 or 10) is chosen on {s['images']} training images. A star: LGM "
        "below FGM with p < 0.01 (McNemar, one-sided).",
    )


def _cell(row: dict[str, Any]) -> str:
    return "-" if row.get("recovery %") is None else f"{row['recovery %']:.0f}"


@named("cross-energy")
def energy() -> str:
    """The share of the saved multiply-adds that comes back, attack by network."""
    names = [row["attack"] for row in next(iter(_rows().values())) if not row["gradient"] and row["attack"] != "noise"]
    body = []
    for network, rows in _rows().items():
        of = {row["attack"]: row for row in rows if not row["gradient"]}
        cells = [_cell(of[n]) for n in names]
        body.append((network, f"{of['noise']['work before %']:.0f}", *cells))
    s = record("cross_table")["settings"]
    return block(
        markdown(("network", "work, %", *names), body),
        source("cross_table"),
        f"Recovery in percent, {s['steps']} steps of each attack; below 0 the network saves more than before. A dash: "
        "refused, the reasons stand below, or a constant cost, of which nothing can come back. "
        "Early Attack starts at random images, and in so few steps comes back from them halfway.",
    )


@named("cross-refused")
def refused() -> str:
    """Why attacks are refused."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for rows in _rows().values():
        for row in rows:
            if row.get("refused"):
                reasons.setdefault((row["attack"], row["refused"]), []).append(row["network"])
    body = [(attack, ", ".join(networks), reason) for (attack, reason), networks in reasons.items()]
    return block(markdown(("attack", "networks", "why it is refused"), body), source("cross_table"))


@named("cross-points")
def points() -> str:
    """Networks of points: answers, and multiply-adds, which have no dense cost."""
    rows = [row for own in _rows(points=True).values() for row in own]
    body = [
        (
            *(row["network"], row["attack"], row["gradient"]),
            f"{row['accuracy before %']:.1f} to {row['accuracy after %']:.1f}",
            f"{row['increase of multiply-adds %']:+.1f}",
        )
        for row in rows
        if "refused" not in row
    ]
    header = ("network", "attack", "gradient", "points (objects) right, %", "multiply-adds, %")
    return block(markdown(header, body), source("cross_table"), "One room, one street, eight objects: see the order.")


@named("cross-all")
def everything() -> str:
    """One line for each network and attack."""
    body = [
        (
            *(row["network"], row["attack"], row["gradient"]),
            f"{row['accuracy before %']:.0f} to {row['accuracy after %']:.0f}",
            f"{row['units switched %']:.1f}",
            f"{row['work before %']:.1f} to {row['work after %']:.1f}",
            None if row.get("recovery %") is None else f"{row['recovery %']:.1f}",
            None if row.get("PSNR dB") is None else f"{row['PSNR dB']:.1f}",
        )
        for rows in _rows().values()
        for row in rows
        if "refused" not in row
    ]
    header = ("network", "attack", "gradient", "accuracy, %", "units switched, %", "work, %", "recovery, %", "PSNR, dB")
    return block(markdown(header, body), source("cross_table"))
