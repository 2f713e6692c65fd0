"""From the command line to the record: what every experiment does around its measurements."""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.datasets import ImageData, cifar10_packed, digits, to_float
from dyn_jax.types import Output
from experiments import _record

OPTIONS: dict[str, dict[str, Any]] = {  # option -> what argparse is told of it, wherever it occurs
    "batch": {"type": int, "help": "images in one call"},
    "checkpoints": {"metavar": "FOLDER", "help": "of the published weights"},
    "data": {"metavar": "FOLDER", "help": "of cifar10_{lossless,jpeg}_{train,test}.npz"},
    "epochs": {"type": int, "help": "of training"},
    "examples": {"type": int, "help": "test images"},
    "images": {"type": int, "help": "test images"},
    "network": {},
    "networks": {"nargs": "+"},
    "points": {"type": int, "help": "of a cloud"},
    "rdi": {"metavar": "FILE", "help": "RDI-Nets' published checkpoint"},
    "results": {"metavar": "FOLDER", "help": "of what is written (default: experiments/results)"},
    "rooms": {"type": int, "help": "test rooms, at most 16"},
    "seeds": {"type": int, "help": "trained networks of each kind"},
    "steps": {"type": int, "help": "of every attack that iterates"},
    "trunk": {"metavar": "FILE", "help": "variables of the static resnet-32-cifar10"},
    "weights": {"metavar": "FOLDER", "help": "of NAME-seedN.msgpack; default: those that ship"},
}


def parser(doc: str | None, *required: str, **defaults: Any) -> argparse.ArgumentParser:
    """A script's options: of `OPTIONS` those that are required, those that have a default, and ``--results``."""
    result = argparse.ArgumentParser(description=str(doc).splitlines()[0])
    for name in (*required, *defaults, "results"):
        result.add_argument(f"--{name}", required=name in required, default=defaults.get(name), **OPTIONS[name])
    return result


def shown(rows: Iterable[dict[str, Any]], *hidden: str) -> list[dict[str, Any]]:
    """The rows, each printed as soon as it is there, without the columns that are `hidden`."""
    kept = []
    for row in rows:
        print({key: value for key, value in row.items() if key not in hidden}, flush=True)
        kept.append(row)
    return kept


def finish(
    name: str, rows: list[dict[str, Any]], how: argparse.Namespace, columns: Sequence[str] = (), **facts: Any
) -> pathlib.Path:
    """Prints the table (of all columns unless some are named), writes the record (facts: see `_record.write`)."""
    print(_record.table(rows, list(columns or rows[0])))
    print(file := _record.save(name, rows, folder=how.results, **facts))
    return file


@functools.cache
def images_of(split: str, folder: str | None) -> ImageData:
    """Handwritten digits, or where a folder is given CIFAR-10 as JPEG; read once for all networks."""
    return digits(split) if folder is None else cifar10_packed(folder, split)


def first(data: ImageData, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images, as float32 in [0, 1], and their labels."""
    return to_float(data.images[:count]), data.labels[:count]


def signs(images: jax.typing.ArrayLike, eps: float, key: jax.Array | None = None) -> jax.Array:
    """Images with noise of random signs, +-eps on every number."""
    key = jax.random.key(0) if key is None else key
    return jnp.clip(images + eps * jnp.sign(jax.random.normal(key, jnp.shape(images))), 0, 1)


def both(before: Output, after: Output, column: str, of: Callable[[Output], float]) -> dict[str, float]:
    """A number of the clean outputs and of the attacked ones; ``{}`` in the column's name says which."""
    return {column.format(when): of(out) for when, out in (("before", before), ("after", after))}
