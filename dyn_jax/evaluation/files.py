"""What a finished run leaves beside its shards: ``result.json``, ``adversarial.npz``, 8-bit PNGs, ``pictures.npz``."""

from __future__ import annotations

import io
import json
import os
import pathlib
from typing import Any

import numpy as np

from dyn_jax import _files
from dyn_jax.evaluation import programs
from dyn_jax.evaluation.chunks import Chunks
from dyn_jax.evaluation.shards import write

RESULT, ADVERSARIAL, PICTURES = "result.json", "adversarial.npz", "pictures.npz"
SHOWN = 6  # examples of each kind among the pictures
KEPT = ("label", "prediction", "correct", "invalid", "broken", "found_by", "rate", "adversarial", "macs", "macs_worst")


def save(folder: str | os.PathLike, evaluation: Any, pictures: dict[str, np.ndarray]) -> None:
    """Writes the files of a finished run: the same bytes for the same results.

    ``adversarial.npz`` has float32 images [example, ...], the clean one where the example stood, and what was found
    about each; ``png/NUMBER.png`` the broken ones in 8 bits, rounded towards the clean image so that they stay inside
    the ball, and judged again in ``broken_8bit``.
    """
    place = pathlib.Path(folder)
    examples = evaluation.examples
    kept = {name: examples[name] for name in (*KEPT, "broken_8bit")}
    write(place / ADVERSARIAL, packed(kept))
    write(place / PICTURES, packed(pictures))
    if np.all(examples["grid"]):
        (place / "png").mkdir(exist_ok=True)
        for row in np.flatnonzero(examples["broken"]):
            write(place / "png" / f"{row:06d}.png", png(examples["adversarial_8bit"][row]))
    text = json.dumps(evaluation.summary, indent=1, allow_nan=False)
    write(place / RESULT, text.encode() + b"\n")


def load(folder: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(summary, pictures) of a finished run; an OSError or BadFile where there is none says what is missing."""
    place = pathlib.Path(folder)
    if not (place / RESULT).exists():
        there = "its run is not finished: repeat the command that began it" if (place / "shards").exists() else ""
        raise FileNotFoundError(f"{place / RESULT}: no such file{there and '; ' + there}")
    summary = _files.read_json(place / RESULT, "the folder of a finished evaluation")
    with _files.opened(place / PICTURES) as file, _files.reading(os.fspath(place / PICTURES), "pictures of a run"):
        with np.load(file, allow_pickle=False) as archive:
            return summary, {name: archive[name] for name in archive.files}


def pictures_of(job: programs.Job, examples: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    """The broken examples that come first, and those that cost most more, with what was on before and after.

    Returns:
      ``kind`` ("accuracy" or "energy"), ``index``, ``label``, ``before``, ``after`` (classes), ``found_by``,
      ``macs_before``, ``macs_after`` [shown]; ``clean``, ``adversarial`` [shown, height, width, channel];
      ``on_before/K`` and ``on_after/K`` [shown, *elements] bool of unit K.
    """
    change = np.abs(examples["shares_worst"] - examples["shares"]).sum(axis=1)
    broken = np.flatnonzero(examples["broken"])[:SHOWN]
    costly = np.flatnonzero(examples["macs_worst"] > examples["macs"])
    costly = costly[np.argsort(-change[costly], kind="stable")][:SHOWN]
    index = np.concatenate([broken, costly]).astype(int)
    kind = np.array(["accuracy"] * len(broken) + ["energy"] * len(costly), dtype="<U8")
    moved = np.concatenate([examples["adversarial"][broken], examples["costliest"][costly]])
    facts = {"kind": kind, "index": index, "clean": images[index], "adversarial": moved}
    facts |= {"label": examples["label"][index], "found_by": examples["found_by"][index]}
    if not len(index):
        return facts
    run = Chunks(programs.shown(job), job.subject.variables, len(index))
    rows = np.arange(len(index))
    (before,), (after,) = list(run([rows], images[index])), list(run([rows], moved))
    for when, got in (("before", before), ("after", after)):
        facts |= {f"on_{when}/{k}": np.asarray(on) for k, on in enumerate(got["on"])}
        facts |= {when: got["prediction"], f"macs_{when}": got["macs"]}
    return facts


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of an npz file, the same for the same arrays."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def png(image: np.ndarray) -> bytes:
    """An 8-bit image [height, width, 1 or 3] as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    return file.getvalue()
