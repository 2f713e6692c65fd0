"""Results that record themselves: numbers with the command, versions and device they came from, as JSON."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
import sys
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"


def save(
    name: str, rows: list[dict[str, Any]], *, folder: str | os.PathLike | None = None, **facts: Any
) -> pathlib.Path:
    """Writes ``results/NAME.json``: the rows, what was claimed beside what was measured, and how they were made.

    Args:
      name: of the file, without extension.
      rows: one dict a line of the table.
      folder: instead of the committed results (tests write elsewhere).
      **facts: data, seeds, settings.

    Returns:
      The file.
    """
    import jax

    record = {
        "command": "python -m experiments." + pathlib.Path(sys.argv[0]).stem + " " + " ".join(_public(sys.argv[1:])),
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **facts,
        "rows": rows,
    }
    path = pathlib.Path(folder or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def _public(arguments: list[str]) -> list[str]:
    """Folders of this machine are no part of a record: only their last name stays."""
    return [os.path.basename(a.rstrip("/")) if os.sep in a else a for a in arguments]


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """A Markdown table of some columns."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(c, "") for c in columns]
        lines.append("| " + " | ".join(_cell(c) for c in cells) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return str(value)
