"""Results that record themselves: numbers with the command, commit, versions, device, date, seeds and settings."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import Any

import dyn_jax
from dyn_jax import _files

RESULTS = pathlib.Path(__file__).parent / "results"
VERSIONS = ("python", "jax", "jaxlib", "flax", "numpy", "dyn_jax")
DEVICE = ("platform", "model", "cores")
FIELDS = ("command", "commit", "date", "versions", "device", "seeds", "settings", "rows")


def save(name: str, rows: list[dict[str, Any]], *, folder: str | os.PathLike | None = None, **facts: Any):
    """Writes ``results/NAME.json``, see `write`; `folder` stands in for the committed results. Returns the file."""
    return write(pathlib.Path(folder or RESULTS) / f"{name}.json", rows, **facts)


def write(
    path: str | os.PathLike,
    rows: list[dict[str, Any]],
    *,
    arguments: argparse.Namespace | None = None,
    seeds: list[int] | None = None,
    seed: int | None = None,
    packages: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    **facts: Any,
) -> pathlib.Path:
    """Writes one record, a JSON file: what was claimed beside what was measured, and how. Returns the file.

    Args:
      path, rows: of the file, whose folder is made; one dict a line of the table.
      arguments: the parsed options of the script: they are settings, but for those that name files and folders.
      seeds, seed: of everything random; no seeds at all means that nothing is.
      packages: distributions whose versions matter beside dyn_jax's own, e.g. a peer's.
      without: options that the numbers do not depend on.
      **facts: single values and lists of them are settings; dicts, lists of dicts and ``seconds`` are results that
        stand beside the rows.

    ValueError: for what `faults` finds.
    """
    entry = lambda value: value[0] if isinstance(value, list) and value else value
    results = {key: value for key, value in facts.items() if key == "seconds" or isinstance(entry(value), dict)}
    options = {} if arguments is None else vars(arguments)
    without = (*without, "results", "output", "seeds")
    settings = {k: v for k, v in options.items() if not _names_a_place(v) and k not in without}
    record = {
        "command": command(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(*packages),
        "device": device(),
        "seeds": list(seeds) if seeds is not None else [] if seed is None else [seed],
        "settings": settings | {key: value for key, value in facts.items() if key not in results},
        **results,
        "rows": rows,
    }
    return _write(pathlib.Path(path), record)


def _write(path: pathlib.Path, record: dict[str, Any]) -> pathlib.Path:
    if found := faults(record):
        raise ValueError(f"{path.name}: {'; '.join(found)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.write(path, (json.dumps(record, indent=1) + "\n").encode())
    return path


def join(name: str, parts: list[str], *, folder: str | os.PathLike | None = None) -> pathlib.Path:
    """One record of several that one script made part by part: their rows and results one after the other.

    ValueError: parts of another commit, device, version or single setting; lists (of networks, say) are united.
    """
    records = [json.loads(pathlib.Path(part).read_text()) for part in parts]
    first, whole = records[0], dict(records[0])
    for part, record in zip(parts[1:], records[1:]):
        for field in ("commit", "versions", "device"):
            if record[field] != first[field]:
                raise ValueError(f"{os.path.basename(part)}: got {field} {record[field]}, expected {first[field]}")
        for key, value in record["settings"].items():
            here = whole["settings"][key]
            if value != here and not (isinstance(value, list) and isinstance(here, list)):
                raise ValueError(f"{os.path.basename(part)}: got {key} {value}, expected {here}")
            if isinstance(value, list):
                whole["settings"] = whole["settings"] | {key: list(dict.fromkeys([*here, *value]))}
        whole["rows"] = whole["rows"] + record["rows"]
        whole["seeds"] = sorted({*whole["seeds"], *record["seeds"]})
        for field in set(record) - set(FIELDS):
            here, there = whole.get(field), record[field]
            whole[field] = {**here, **there} if isinstance(there, dict) and isinstance(here, dict) else there
    whole["command"] = " ; ".join(dict.fromkeys(record["command"] for record in records))
    return _write(pathlib.Path(folder or RESULTS) / f"{name}.json", whole)


def renewed(kept: dict[str, Any], rows: list[dict[str, Any]], by: str) -> dict[str, Any]:
    """For `save`: `rows` with those of an earlier record that have other values of the column `by`, in that record's
    order; and ``earlier``: how those that stay were made."""
    order = list(dict.fromkeys(row[by] for row in [*kept["rows"], *rows]))
    new = {row[by] for row in rows}
    both = [*(row for row in kept["rows"] if row[by] not in new), *rows]
    earlier = [*kept.get("earlier", []), {key: kept[key] for key in ("command", "commit", "date")}]
    return {"rows": sorted(both, key=lambda row: order.index(row[by])), "earlier": earlier}


def faults(record: dict[str, Any]) -> list[str]:
    """What a record lacks, one sentence each; a field may be null where an old record did not keep it."""
    found = [f"{field}: missing" for field in FIELDS if field not in record]
    if found:
        return found
    for field, names in (("versions", VERSIONS), ("device", DEVICE)):
        found += [f"{field}.{name}: missing" for name in names if name not in record[field]]
    kinds = {"command": str, "commit": str, "date": str, "seeds": list, "settings": dict, "rows": list}
    for field, kind in kinds.items():
        if record[field] is not None and not isinstance(record[field], kind):
            found.append(f"{field}: got {type(record[field]).__name__}, expected {kind.__name__}")
    written = {"commit": (r"[0-9a-f]{40}(-dirty)?", "40 hex digits"), "date": (r"\d{4}-\d\d-\d\d", "YYYY-MM-DD")}
    for field, (form, words) in written.items():
        if record[field] is not None and not re.fullmatch(form, str(record[field])):
            found.append(f"{field}: got {record[field]!r}, expected {words}")
    if not record["rows"]:
        found.append("rows: none")
    if place := re.search(r".{0,20}/(home|root|tmp|mnt|work|Users)/", json.dumps(record)):
        found.append(f"a folder of one machine: {place[0]}")
    return found


def command() -> str:
    """What was typed; folders of this machine are no part of it, only their last name stays."""
    script = pathlib.Path(sys.argv[0])
    return " ".join(["python -m", f"{script.parent.name}.{script.stem}", *map(_public, sys.argv[1:])])


def commit() -> str | None:
    """The commit that is checked out, ``-dirty`` where tracked files differ from it; None outside a repository."""
    git = ["git", "-C", pathlib.Path(__file__).parent, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(*packages: str) -> dict[str, str | None]:
    """Versions of what the numbers may depend on; None for a package that is not installed."""

    known: dict[str, str | None] = {"python": platform.python_version(), "dyn_jax": dyn_jax.__version__}
    for name in {*VERSIONS, *packages} - set(known):
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            known[name] = None
    return {name: known[name] for name in (*VERSIONS, *packages)}


def device() -> dict[str, Any]:
    """What jax runs on: platform, model of the processor or card, cores that this process may use."""
    import jax

    first = jax.devices()[0]
    model = first.device_kind
    if first.platform == "cpu":
        try:
            model = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())[1]  # type: ignore[index]
        except (OSError, TypeError):
            model = platform.processor() or None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"platform": first.platform, "model": model, "cores": cores}


def _public(argument: str) -> str:
    number = re.fullmatch(r"[\d.]+/[\d.]+", argument)  # an eps such as 8/255
    return os.path.basename(argument.rstrip("/")) if os.sep in argument and not number else argument


def _names_a_place(value: Any) -> bool:
    """Whether an option is a file or folder: by its type or its slashes, or because there is one of that name."""
    place = isinstance(value, str) and (_public(value) != value or os.path.exists(value))
    return place or isinstance(value, os.PathLike)


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """A Markdown table of some columns."""
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):  # a mean and its spread
        return _cell(value["mean"]) + ("" if value["std"] is None else f" +- {value['std']:.3g}")
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return str(value)
