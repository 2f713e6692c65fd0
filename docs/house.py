"""What the house weighs: ``python -m docs.house [COMMIT ...]`` prints lines and repeated blocks at each commit.

A repeated block is a run of six lines, stripped of indentation, comments and blank lines left out, that stands at a
second place of the same folder.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys

FOLDERS = ("dyn_jax", "experiments", "weights_convert", "benchmarks", "tests", "examples", "docs")
LIBRARY = FOLDERS[:3]
BLOCK = 6


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def files(commit: str, folder: str) -> dict[str, list[str]]:
    """{path: lines} of the Python files below a folder at a commit."""
    names = git("ls-tree", "-r", "--name-only", commit, f"{folder}/").splitlines()
    return {name: git("show", f"{commit}:{name}").splitlines() for name in names if name.endswith(".py")}


def repeated(content: dict[str, list[str]]) -> int:
    """Lines that stand in a block which stands elsewhere too."""
    places: dict[bytes, list[tuple[str, int]]] = {}
    for name, lines in content.items():
        code = [line.strip() for line in lines]
        code = [line for line in code if len(line) > 3 and not line.startswith(("#", "import ", "from "))]
        for at in range(len(code) - BLOCK + 1):
            key = hashlib.sha1("\n".join(code[at : at + BLOCK]).encode()).digest()
            places.setdefault(key, []).append((name, at))
    found = [place for all_places in places.values() if len(all_places) > 1 for place in all_places]
    return len({(name, at + step) for name, at in found for step in range(BLOCK)})


def main(commits: list[str]) -> None:
    print(f"{'':16}" + "".join(f"{commit[:12]:>14}" for commit in commits))
    table: dict[str, list[str]] = {}
    for commit in commits:
        total = 0
        for folder in FOLDERS:
            content = files(commit, folder)
            lines = sum(map(len, content.values()))
            total += lines if folder in LIBRARY else 0
            table.setdefault(folder, []).append(f"{lines} ({repeated(content)})")
        table.setdefault("the first three", []).append(str(total))
        table.setdefault("README.md", []).append(str(len(git("show", f"{commit}:README.md").splitlines())))
    for name, cells in table.items():
        print(f"{name:16}" + "".join(f"{cell:>14}" for cell in cells))
    print("lines of Python (of which in repeated blocks)")


if __name__ == "__main__":
    main(sys.argv[1:] or ["HEAD"])
