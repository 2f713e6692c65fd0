"""Strict JAX settings for every test, and where the large golden arrays are looked for."""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import os
import pathlib
import re

import jax
import numpy as np
import pytest
from compiled import QUICK_FLAGS, context
from hypothesis import settings

# Where there is a worker for every core, each stays on its own, subprocesses too: the threads in which one compiles do
# not take the other's. Before the first array: XLA starts a thread for every core that it may use.
if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    cores = sorted(os.sched_getaffinity(0))
    if int(os.environ["PYTEST_XDIST_WORKER_COUNT"]) == len(cores):
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
# Tests compile much and run it once or twice: code that is made fast rather than fast, in subprocesses too.
os.environ.setdefault("XLA_FLAGS", QUICK_FLAGS)  # read when the first program is compiled
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)
jax.config.update("jax_enable_compilation_cache", False)  # else JAX makes a key of every program, for no folder
jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody looks up in which line an instruction was written
settings.register_profile("dyn_jax", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("dyn_jax")


def pytest_collection_finish():
    """What is imported stays: without this, each full collection of garbage looks through it anew while JAX traces."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


GOLDEN = pathlib.Path(__file__).parent / "golden"
SHARED = os.environ.get("DYN_JAX_SHARED")


FILES = itertools.count(1)


@pytest.fixture(autouse=True, scope="module")
def forget(request):
    """Compiled programs go after every fourth file: a worker that kept them all would need more than ten gigabytes.
    They go with a file that replaces functions, too: what was traced meanwhile would stay behind."""
    yield
    replaces = re.search("monkeypatch|mock.patch", inspect.getsource(request.module))
    if replaces or next(FILES) % 4 == 0:
        context.cache_clear()
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def quick_programs():
    """Programs that are compiled fast rather than fast: for files that compile much and compare nothing to the bit."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder with large reference data, from the environment variable DYN_JAX_SHARED."""
    if not SHARED:
        pytest.skip("DYN_JAX_SHARED is not set: it names the folder of golden/, reference/, data/ (large files)")
    return pathlib.Path(SHARED)


@pytest.fixture(scope="session")
def golden():
    """Loads tests/golden/NAME.npz, or the whole file golden/NAME.npz below DYN_JAX_SHARED; a file is read once.

    Skips, with the file's name, where DYN_JAX_SHARED is not set; where it is, a missing file is an error.
    """
    read: dict[str, dict[str, np.ndarray]] = {}

    def load(name: str) -> dict[str, np.ndarray]:
        path = GOLDEN / f"{name}.npz"
        if not path.is_file():
            if not SHARED:
                pytest.skip(f"{name}.npz does not fit into tests/golden, and DYN_JAX_SHARED is not set")
            path = pathlib.Path(SHARED) / "golden" / path.name
        if name not in read:
            with np.load(path, allow_pickle=False) as arrays:
                read[name] = {key: arrays[key] for key in arrays.files}
        return dict(read[name])

    return load


@pytest.fixture(scope="session")
def meta():
    """meta(arrays) -> the configuration that a golden file was made with."""
    return lambda arrays: json.loads(str(arrays["meta"]))
