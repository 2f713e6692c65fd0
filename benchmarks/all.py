"""Every benchmark one after the other, each in a process of its own, then the tables of the documentation's page.

    python -m benchmarks.all [--only NAME ...] [--pass "bim_resnet32: --data FOLDER" ...] [--keep FOLDER]

A benchmark is a file of this folder that does not begin with an underscore. One that fails, or needs an option that it
was not given (the checkpoint or the data of `bim_resnet32` and `sparse3d`), is named at the end; the others still run.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import subprocess
import sys
import time

from docs import tables

HERE = pathlib.Path(__file__).parent
PAGE = tables.ROOT / "docs" / "benchmarks.md"


def names() -> list[str]:
    """The benchmarks of the folder, in the order of the alphabet."""
    return sorted(path.stem for path in HERE.glob("[a-z]*.py") if path.stem != pathlib.Path(__file__).stem)


def options(given: list[str]) -> dict[str, list[str]]:
    """``["NAME: --data FOLDER"]`` as {name: its options}.

    Raises:
      ValueError: for a name that is no benchmark.
    """
    split = {name.strip(): shlex.split(rest) for name, _, rest in (item.partition(":") for item in given)}
    if unknown := sorted(set(split) - set(names())):
        raise ValueError(f"--pass: got {unknown}, expected names of {names()}")
    return split


def run(name: str, extra: list[str], folder: pathlib.Path) -> bool:
    """Whether the benchmark ended well; its record is ``folder/NAME_cpu.json``."""
    began = time.perf_counter()
    print(f"== {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *extra, "--output", str(folder / f"{name}_cpu.json")]
    ended = subprocess.run(command, cwd=HERE.parent, check=False)
    print(f"== {name}: {time.perf_counter() - began:.0f} s, exit status {ended.returncode}", flush=True)
    return ended.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), help="default: all")
    parser.add_argument("--pass", nargs="+", dest="given", default=[], metavar="'NAME: OPTIONS'")
    parser.add_argument("--keep", type=pathlib.Path, default=HERE / "results", help="folder of the records")
    arguments = parser.parse_args()
    given, folder = options(arguments.given), arguments.keep.resolve()
    failed = [name for name in arguments.only if not run(name, given.get(name, []), folder)]
    tables.FOLDERS = (folder, *tables.FOLDERS)
    print(tables.fill(PAGE.read_text()))
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
