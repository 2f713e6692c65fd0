"""Hand-made runs of an evaluation, and their pages as a parser sees them."""

from __future__ import annotations

import html.parser
import json
import pathlib
import re

import numpy as np

from dyn_jax.evaluation import files, report
from dyn_jax.evaluation.report import REPORT

VOID = {"meta", "img", "br", "wbr", "line", "polyline"}
UNITS = {"gates": ((), ()), "maps": ((4, 4), (2, 2), ()), "vectors": ((40,), (3, 1, 1)), "blocks": ((2, 3, 4),)}
"""Shapes of the elements of each unit."""
EVIL = "<script>alert('x')</script> & \"q\""


def result_of(shapes: tuple = (), **changed) -> dict:
    """What `summary.summarise` leaves of 20 images, two attacks on the accuracy and, with units, one on the energy."""
    row = {"kind": "accuracy", "run_on": 18, "broken": 11, "found_first": 11, "accuracy_after": "35.00"}
    row |= {"attack": "apgd-ce", "nonfinite_gradients": 0, "distance_of_broken": 8 / 255}
    attacks = [row, {"attack": "apgd-t", "kind": "accuracy", "run_on": 0}]
    energy = None
    if shapes:
        row |= {"units_changed": 0.25, "macs": 1234567.0}
        attacks.append({"attack": "energy-apgd@soft", "kind": "energy", "run_on": 20, "broken": 3, "inside_ball": 19})
        attacks[-1] |= {"nonfinite_gradients": 2, "distance_of_broken": None, "units_changed": 0.5, "macs": 2.5e6}
        attacks[-1] |= {"lambda": {"1": 12, "10": 8}, "psnr": 31.24, "accuracy_kept": "61.11"}
        energy = {"dense_macs": 4e6, "macs_clean": 1.5e6, "macs_worst_in_ball": 2.4e6, "recovery_in_ball": 0.36}
        energy |= {"recovery": {"energy-apgd@soft": 0.4}, "units": [f"unit{k}" for k in range(len(shapes))]}
        energy |= {"on_before": [0.5] * len(shapes), "on_worst": [0.875] * len(shapes)}
    settings = {"steps": 5, "targets": 3, "queries": 50, "energy_steps": 5, "lambdas": [1.0, 10.0]}
    return {
        "name": "a-net", "dataset": "some-images", "threat": "Linf", "eps": "8/255", "link": None, "authors": None,
        "venue": None, "architecture": None, "additional_data": None, "number_forward_passes": 1, "clean_acc": "90.00",
        "reported": None, "autoattack_acc": None, "robust_acc": "35.00", "unreliable": False, "examples": 20,
        "broken": 11, "invalid": 0, "not_confirmed": 0, "broken_in_8_bits": 10, "interval_95": [-0.0, 56.71],
        "attacks": attacks, "energy": energy, "random": None,
        "curves": {"eps": None, "steps": {"apgd-ce": {"loss": [0.5, 0.75, None, 1.25]}}},
        "facts": {}, "settings": settings | {"seed": 7, "batch_size": 10, "draws": None},
        "environment": {"python": "3.11.7", "device": "cpu"},
    } | changed  # fmt: skip


def pictures_of(shapes: tuple = (), count: int = 2) -> dict[str, np.ndarray]:
    """Of `count` images, the last one the most expensive; in every unit the first element is switched on."""
    random = np.random.default_rng(0)
    clean = random.random((count, 8, 8, 3)).astype(np.float32)
    pictures = {
        "kind": np.array(["accuracy"] * (count - 1) + ["energy"], "<U8"),
        "index": np.arange(count) + 40,
        "clean": clean,
        "adversarial": np.clip(clean + np.float32(8 / 255), 0, 1),
        "label": np.full(count, 1),
        "before": np.full(count, 1),
        "after": np.full(count, 2),
        "found_by": np.zeros(count, int),
        "macs_before": np.full(count, 1e6),
        "macs_after": np.full(count, 3e6),
    }
    for k, shape in enumerate(shapes):
        before = random.random((count, *shape)) > 0.5
        before.reshape(count, -1)[:, 0] = False
        after = before.copy()
        after.reshape(count, -1)[:, 0] = True
        pictures |= {f"on_before/{k}": before, f"on_after/{k}": after}
    return pictures


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of a page; raises where it is not well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def put(folder: pathlib.Path, result: dict, pictures: dict[str, np.ndarray]) -> pathlib.Path:
    (folder / files.RESULT).write_text(json.dumps(result))
    (folder / files.PICTURES).write_bytes(files.packed(pictures))
    return folder


def page_of(folder: pathlib.Path, result: dict, pictures: dict[str, np.ndarray]) -> Page:
    path = report(put(folder, result, pictures))
    assert path == folder / REPORT
    text = path.read_text("utf-8")
    page = Page(text)
    alone(page, text)
    return page


def alone(page: Page, text: str) -> None:
    """Nothing is fetched from anywhere and nothing runs."""
    assert not re.search(r"(?i)https?:|url\(|@import|javascript:", text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base", "a"}
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "xlink:href")]
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
