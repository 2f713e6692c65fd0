"""Tables of the standard evaluation."""

from __future__ import annotations

from docs.tables import block, markdown, named, record, source

SETS = ("resnet20_eps1", "resnet20_eps2", "rdi38_eps8")
"""Of `experiments.autoattack_reference`."""


@named("autoattack")
def autoattack() -> str:
    """AutoAttack here against its released code, image by image."""
    names = [f"autoattack_{name}" for name in SETS]
    rows = [row for name in names for row in record(name)["rows"]]
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
        source(*names),
        "The released code's seconds come with its arrays, from one thread of a busy machine: not a paired run.",
    )
