"""Tables of the documentation, made from the records in experiments/results and benchmarks/results.

A page holds a marked region for each table; ``python -m docs.tables`` fills all of them anew, ``--check`` only
compares. A table is a function here: record -> Markdown. No measured number stands anywhere else. Two more regions:
``file`` holds a file of the repository as a code block, ``api`` the reference of every public name of a package.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
import pathlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = (ROOT / "experiments" / "results", ROOT / "benchmarks" / "results")
TABLES: dict[str, Callable[[], str]] = {}
REGION = re.compile(r"<!-- (table|file|api): (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def named(name: str, *, waits: str = "", command: str = "") -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Registers a table under the name that pages call it by.

    Until the record that it `waits` for is there, the `command` that makes it stands in its place.
    """

    def register(function: Callable[[], str]) -> Callable[[], str]:
        def table() -> str:
            missing = waits and not any((folder / f"{waits}.json").is_file() for folder in FOLDERS)
            return f"Not measured yet: `python -m {command}`." if missing else function()

        TABLES[name] = table
        return function

    return register


@functools.cache
def record(name: str) -> dict[str, Any]:
    """The record of that name, from either folder."""
    for folder in FOLDERS:
        if (folder / f"{name}.json").is_file():
            return json.loads((folder / f"{name}.json").read_text())
    raise FileNotFoundError(f"no record {name}.json in {', '.join(folder.name for folder in FOLDERS)}")


def find(rows: Iterable[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The one row with these values (keys with spaces: ``**{"eps (m)": 0.01}``)."""
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"{wanted}: got {len(found)} rows, expected one")
    return found[0]


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; None is an empty cell, no line breaks before ± and /."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join("" if cell is None else _unbroken(str(cell)) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def columns(rows: Iterable[dict[str, Any]], cells: dict[str, Callable[[dict[str, Any]], Any]]) -> str:
    """A Markdown table of rows: for each heading, what stands under it."""
    return markdown(list(cells), ([cell(row) for cell in cells.values()] for row in rows))


def _unbroken(cell: str) -> str:
    return re.sub(r" ([±/]) ", "\u00a0\\1\u00a0", re.sub(r" (%|dB)", "\u00a0\\1", cell))


def source(*names: str) -> str:
    """One line that says how the numbers above were made."""
    lines = []
    for name in names:
        r = record(name)
        folder = next(folder for folder in FOLDERS if (folder / f"{name}.json").is_file())
        first, *others = r["command"].split(" ; ")
        made = [
            f"`{first}`" + (f" and {len(others)} more of its kind, named in the record" if others else ""),
            r["date"],
        ]
        made += [f"commit {r['commit'][:7]}" if r["commit"] else None]
        made += [f"jax {r['versions']['jax']}", r["device"]["model"] or r["device"]["platform"].upper()]
        cores = r["device"]["cores"]
        made += [f"{cores} core{'s' * (cores > 1)}" if cores else None]
        made += [f"seeds {', '.join(map(str, r['seeds']))}" if r["seeds"] else None]
        before = sorted({e["commit"][:7] for e in r.get("earlier", [])})
        made += [f"other rows at commit {', '.join(before)}" if before else None]
        lines.append(f"<small>{', '.join(filter(None, made))}; `{folder.parent.name}/results/{name}.json`</small>")
    return "<br>\n".join(lines)


def block(*parts: str) -> str:
    """Table, source line and notes, one paragraph each."""
    return "\n\n".join(parts)


def span(values: Iterable[float], form: str = ".0f") -> str:
    """``lowest to highest``, or the one value where they print alike."""
    values = list(values)
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def bold_least(values: Sequence[float | None], form: str = ".1f") -> list[str | None]:
    """The values as text, the least in bold."""
    least = min(v for v in values if v is not None)
    return [None if v is None else f"**{v:{form}}**" if v == least else f"{v:{form}}" for v in values]


def reference(package: str) -> str:
    """Lines for mkdocstrings: the package's own text, then every name that its ``__init__`` hands on, in its order."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    lines = [f"::: {package}\n    options: {{members: [], show_root_heading: false}}"]
    for node in tree.body:
        for alias in node.names if isinstance(node, ast.ImportFrom) and alias_only(node) else ():
            inside = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
            if inside.is_dir() or inside.with_suffix(".py").is_file():
                continue  # a module: it has a region of its own, or its names stand above
            lines.append(f"::: {node.module}.{alias.name}\n    options: {{heading: {package}.{alias.name}}}")
    return "\n" + "\n\n".join(lines) + "\n"


def alias_only(node: ast.ImportFrom) -> bool:
    """Whether the names are handed on under their own name (``from m import x as x``)."""
    return all(alias.asname == alias.name for alias in node.names)


def fill(text: str) -> str:
    """A page's text with every marked region made anew.

    Raises:
      ValueError: for a region of a name that no table has.
    """
    for module in pkgutil.iter_modules(__path__):
        if module.name != "__main__":
            importlib.import_module(f"docs.tables.{module.name}")  # it registers its tables

    def made(match: re.Match[str]) -> str:
        kind, name = match.groups()
        if kind == "file":
            body = f"```python\n{(ROOT / name).read_text().rstrip()}\n```"
        elif kind == "api":
            body = reference(name)
        elif name in TABLES:
            body = f"\n{TABLES[name]()}\n"
        else:
            raise ValueError(f"no table {name!r}; there are {', '.join(sorted(TABLES))}")
        return f"<!-- {kind}: {name} -->\n{body}\n<!-- end -->"

    return REGION.sub(made, text)


def pages() -> list[pathlib.Path]:
    """README.md and everything below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
