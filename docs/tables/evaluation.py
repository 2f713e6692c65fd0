"""Tables of the standard evaluation."""

from __future__ import annotations

from docs.tables import block, markdown, named, record, source


@named("autoattack")
def autoattack() -> str:
    """AutoAttack here against its released code, image by image."""
    rows = record("autoattack_reference")["rows"]
    body = [
        (r["images of"], r["network"], f"{r['eps']:g}/255", r["after"], r["claimed %"], r["measured %"], r["here only"],
         r["there only"])
        for r in rows
        if r["after"] != "all"
    ]  # fmt: skip
    header = ("set", "network", "eps", "after", "claimed, %", "measured, %", "stand here only", "there only")
    cost = [
        (r["images of"], r["images"], r["claimed CPU seconds an image"], r["CPU seconds an image"])
        for r in rows
        if r["after"] == "all"
    ]
    return block(
        markdown(header, body),
        markdown(("set", "images", "released code, CPU s an image", "here, compile time counted"), cost),
        source("autoattack_reference"),
        "The released code's seconds come with its arrays, from one thread of a busy machine: not a paired run.",
    )
