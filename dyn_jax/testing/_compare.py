"""Comparisons whose failures say what, where and by how much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np


def quick_jit(fun: Callable) -> Callable:
    """``jax.jit`` that spends less on the code it makes: a check compiles much and runs it once or twice."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(fun, compiler_options=options)


def fail(check: str, what: str) -> NoReturn:
    """Raises AssertionError("<check>: <what>")."""
    raise AssertionError(f"{check}: {what}")


def require(condition: Any, check: str, what: str) -> None:
    """Fails unless `condition`."""
    if not condition:
        fail(check, what)


def close(check: str, what: str, got: Any, expected: Any, tolerance: float) -> None:
    """Fails unless shapes agree and ``|got - expected| <= tolerance * max(1, max |expected|)``; NaN never agrees."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    require(got.shape == expected.shape, check, f"{what}: shapes {got.shape} and {expected.shape} differ")
    if not got.size:
        return
    difference = np.abs(got - expected)
    allowed = tolerance * max(1.0, float(np.max(np.abs(expected))))
    if not (difference <= allowed).all():
        at = np.unravel_index(np.argmax(np.where(np.isnan(difference), np.inf, difference)), difference.shape)
        where = [int(i) for i in at]
        fail(check, f"{what}: at {where} {got[at]:.6g} against {expected[at]:.6g} (allowed difference {allowed:.3g})")
