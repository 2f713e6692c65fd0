"""Strict JAX settings for every test, and where the large golden arrays are looked for."""

from __future__ import annotations

import os
import pathlib

import jax
import numpy as np
import pytest
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)
settings.register_profile("dyn_jax", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("dyn_jax")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder with large reference data, from the environment variable DYN_JAX_SHARED."""
    folder = os.environ.get("DYN_JAX_SHARED")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("DYN_JAX_SHARED does not name a folder with golden/, data/ (large reference files)")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def golden():
    """Loads tests/golden/NAME.npz, or golden/NAME.npz below DYN_JAX_SHARED; skips where there is neither."""

    def load(name: str) -> dict[str, np.ndarray]:
        folders = [GOLDEN]
        if os.environ.get("DYN_JAX_SHARED"):
            folders.append(pathlib.Path(os.environ["DYN_JAX_SHARED"]) / "golden")
        for folder in folders:
            if (folder / f"{name}.npz").is_file():
                with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
                    return {key: arrays[key] for key in arrays.files}
        pytest.skip(f"golden file {name}.npz is not in {', '.join(map(str, folders))}; set DYN_JAX_SHARED")

    return load
