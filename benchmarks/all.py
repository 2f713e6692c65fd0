"""Every benchmark one after the other, each in a process of its own, then the tables of the documentation's page.

    python -m benchmarks.all --data FOLDER --checkpoint FILE --checkpoints FOLDER --peer FOLDER --scannet FILE
        --nuscenes FILE --scan FILE --large FILE

A benchmark has the options and the minutes that `PLANS` gives it, 40 together; one that needs longer is ended. One that
fails, is ended or misses its files is named at the end; the others still run. ``python -m docs.tables`` then writes the
page from the records that were kept.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from docs import tables

HERE = pathlib.Path(__file__).parent
FILES = ("data", "checkpoint", "checkpoints", "peer", "scannet", "nuscenes", "scan", "large")
PAGE = tables.ROOT / "docs" / "benchmarks.md"


class Plan(NamedTuple):
    """Options of one benchmark, the minutes it may take, the files it is given, those it must have, and its picture."""

    options: str
    minutes: float
    files: tuple[str, ...] = ()
    must: tuple[str, ...] = ()
    figure: bool = False


PLANS = {
    "compile_time": Plan("--steps 3 --rounds 5", 4),
    "bim_resnet32": Plan("--steps 10 --rounds 5", 3, ("checkpoint", "data")),
    "grad_auto": Plan("--steps 30 --rounds 5", 4),
    "early_attack": Plan("--steps 8 --rounds 5", 2),
    "training_step": Plan("--rounds 5", 2),
    "deployed": Plan("--rounds 5", 4, ("data",), ("data",), figure=True),
    "compaction": Plan("--rounds 5", 2, ("data",), ("data",)),
    "autoattack": Plan("--images 16", 3, ("data", "checkpoints", "peer"), ("data", "checkpoints")),
    "growth": Plan("--rounds 5", 4, figure=True),
    "sharding": Plan("--rounds 5", 2),
    "sparse3d": Plan("--growth --repeats 5", 3, ("scannet",), ("scannet",)),
    "sparse_stack": Plan("--repeats 20", 1, ("nuscenes",), ("nuscenes",)),
    "cylinder3d": Plan("--repeats 3", 5, ("scan", "large"), ("scan",)),
}


def command(name: str, given: dict[str, pathlib.Path | None], record: pathlib.Path, figures: pathlib.Path) -> list[str]:
    """The command line of one benchmark.

    Raises:
      ValueError: a file that it must have is not given.
    """
    plan = PLANS[name]
    if missing := [f"--{file}" for file in plan.must if given[file] is None]:
        raise ValueError(f"{name}: got no {', '.join(missing)}")
    words = [sys.executable, "-m", f"benchmarks.{name}", *plan.options.split()]
    for file in plan.files:
        words += [] if given[file] is None else [f"--{file}", str(given[file])]
    words += ["--figure", str(figures / f"bench_{name}.png")] if plan.figure else []
    return [*words, "--output", str(record)]


def launch(words: list[str], minutes: float) -> int:
    """The exit status of a command; 124 where it was ended, with what it had started, because its time was over."""
    process = subprocess.Popen(words, cwd=HERE.parent, start_new_session=True)
    try:
        return process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for file in FILES:
        parser.add_argument(
            f"--{file}", type=pathlib.Path, help="see bim_resnet32, autoattack, sparse3d, sparse_stack and cylinder3d"
        )
    parser.add_argument("--only", nargs="+", choices=PLANS, default=list(PLANS), help="default: all")
    parser.add_argument("--output", type=pathlib.Path, default=HERE / "results", help="folder of the records")
    parser.add_argument("--figures", type=pathlib.Path, default=PAGE.parent / "assets", help="folder of the pictures")
    parser.add_argument("--device", default="cpu", help="of the records' names; the page shows those of cpu")
    arguments = parser.parse_args()
    folder, figures = arguments.output.resolve(), arguments.figures.resolve()
    given = {name: path and path.resolve() for name, path in vars(arguments).items() if name in FILES}
    failed, start = [], time.perf_counter()
    for name in arguments.only:
        began = time.perf_counter()
        print(f"== {name}", flush=True)
        try:
            status: int | str = launch(
                command(name, given, folder / f"{name}_{arguments.device}.json", figures), PLANS[name].minutes
            )
        except ValueError as error:
            status = str(error)
        print(f"== {name}: {time.perf_counter() - began:.0f} s, {status or 'done'}", flush=True)
        failed += [f"{name} ({status})"] if status else []
    kept = tables.FOLDERS
    tables.FOLDERS = (folder, *kept)
    tables.record.cache_clear()
    try:
        print(tables.fill(PAGE.read_text()))
    finally:
        tables.FOLDERS = kept
        tables.record.cache_clear()
    print(f"all: {(time.perf_counter() - start) / 60:.1f} minutes; failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
