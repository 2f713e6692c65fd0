"""The paper's three criteria for the approximation of a step, as checks."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.occupancy import Stochastic
from dyn_jax.testing._compare import close, fail, require
from dyn_jax.types import Occupancy

_RANGE = 4.0  # half-width of the fine grid, in margins
_STEPS = 20001  # points of the fine grid
_FAR = (10.0, 100.0, 1e3, 1e4)  # margins; where exp overflows
_ROUNDING = 1e-6
_CHECK = "check_occupancy"
_CLOSE = "check_occupancy, criterion 1 (close to the step away from the boundary)"
_STEEP = "check_occupancy, criterion 2 (steep near the boundary)"
_SMOOTH = "check_occupancy, criterion 3 (finite and smooth derivative)"


def check_occupancy(
    occupancy: Occupancy,
    *,
    boundary: float = 0.0,
    margin: float = 1.0,
    tolerance: float = 0.05,
    steepness: float = 1.0,
    flatness: float = 0.5,
    max_slope: float | None = None,
    roughness: float = 10.0,
    surrogate: bool = False,
) -> None:
    """Checks that `occupancy` is fit to replace the step ``1 if score >= boundary else 0``.

    1. Close to the step: within `tolerance` of it wherever ``|score - boundary| >= margin``.
    2. Steep near the boundary: the derivative there is at least ``steepness / (2 margin)`` (the slope of a straight
       ramp between the margins), and at most `flatness` of it is left beyond the margins.
    3. Finite and smooth derivative: no NaN or infinity (up to 10^4 margins away, where a carelessly written
       exponential overflows), nowhere larger than `max_slope`, and without jumps: between neighbouring points of a
       fine grid, denser towards the boundary, it changes by at most ``roughness * peak^2`` per unit of score, `peak`
       being its largest value (the sigmoid's factor is 1.54, erf's 1.52, arctan's 2.04).

    Beyond the paper: values lie in [0, 1]; it works elementwise (an element does not see the others), keeps shape and
    dtype, and gives the same under ``jit`` and ``vmap``.

    Args:
      occupancy: score array -> value array of the same shape, deterministic. (Bind the key of a stochastic one with
        ``functools.partial``.)
      boundary: score of the step.
      margin: how far from the boundary "away" begins, in units of the score. Take the spread of your network's
        scores: ``sigmoid(lam)`` passes the default for lam from 3 to 400, ``sigmoid(0.1)`` passes with margin 30.
      tolerance, steepness, flatness, roughness: see above.
      max_slope: default ``100 / margin``.
      surrogate: the value is exactly the step and only the derivative is that of an approximation
        (`straight_through`): criterion 1 asks for the exact step everywhere, 2 and 3 for the derivative.

    Raises:
      ValueError: margin not positive.

    Source: LGM paper section III.B, the three criteria; their numbers are this function's arguments.
    """
    if isinstance(occupancy, Stochastic):
        fail(_CHECK, f"{type(occupancy).__name__} is stochastic; bind its key, functools.partial(occupancy, key=key)")
    if not margin > 0:
        raise ValueError(f"margin: got {margin}, expected a positive score")
    near = np.linspace(-_RANGE, _RANGE, _STEPS)
    geometric = 2.0 ** -np.arange(1, 17)
    offsets = np.unique(np.concatenate([near, geometric, -geometric, [0.0]]))
    everywhere = np.concatenate([offsets, _FAR, -np.array(_FAR)])
    score = jnp.asarray(boundary + margin * everywhere, jnp.float32)
    with jax.debug_nans(False):
        _check_elementwise(occupancy, jnp.asarray(boundary + margin * np.linspace(-1.5, 1.5, 24), jnp.float32))
        value, pullback = jax.vjp(occupancy, score)
        slope = pullback(jnp.ones_like(value))[0]
    score, value, slope = (np.asarray(a, np.float64) for a in (score, value, slope))

    outside = ~((value >= -_ROUNDING) & (value <= 1 + _ROUNDING))
    require(not outside.any(), _CHECK, f"values in [0, 1]: {_at(score, value, outside)}")
    away, allowed = (0.0, 0.0) if surrogate else (margin, tolerance)
    wrong = (np.abs(score - boundary) >= away) & (np.abs(value - (score >= boundary)) > allowed)
    require(not wrong.any(), _CLOSE, f"more than {allowed:.3g} from the step: {_at(score, value, wrong)}")
    bad = ~np.isfinite(slope)
    require(not bad.any(), _SMOOTH, f"derivative not finite: {_at(score, slope, bad)}")
    _check_steep(score, slope, boundary, margin, steepness, flatness)
    steep = np.abs(slope) > (100.0 / margin if max_slope is None else max_slope)
    require(not steep.any(), _SMOOTH, f"derivative beyond max_slope: {_at(score, slope, steep)}")
    _check_jumps(score[: offsets.size], slope[: offsets.size], roughness)


def _at(score: np.ndarray, what: np.ndarray, where: np.ndarray) -> str:
    first = int(np.argmax(where))
    return f"{what[first]:.6g} at score {score[first]:.6g} ({int(where.sum())} of {score.size} scores)"


def _check_elementwise(occupancy: Callable, score: jax.Array) -> None:
    for dtype, shape in ((jnp.float32, (2, 3, 4)), (jnp.bfloat16, (24,))):
        got = occupancy(score.reshape(shape).astype(dtype))
        signature = (jnp.shape(got), getattr(got, "dtype", type(got)))
        require(signature == (shape, dtype), _CHECK, f"shape, dtype: got {signature}, expected {(shape, dtype)}")
    whole = occupancy(score)
    alone = np.concatenate([occupancy(score[i : i + 1]) for i in range(score.size)])
    close(_CHECK, "elementwise: an element among 24 and the same one alone", whole, alone, 1e-5)
    jacobian = np.asarray(jax.jacrev(occupancy)(score))
    across = np.nan_to_num(jacobian * (1 - np.eye(score.size)))
    close(_CHECK, "elementwise: derivative by another element's score", across, np.zeros_like(across), 1e-6)
    close(_CHECK, "jit and eager", jax.jit(occupancy)(score), whole, 1e-5)
    close(_CHECK, "vmap and loop", jax.vmap(occupancy)(score.reshape(6, 4)).reshape(-1), whole, 1e-5)


def _check_steep(
    score: np.ndarray, slope: np.ndarray, boundary: float, margin: float, steepness: float, flatness: float
) -> None:
    there = slope[np.argmin(np.abs(score - boundary))]
    least = steepness / (2 * margin)
    require(there >= least, _STEEP, f"derivative {there:.6g} at the boundary {boundary}, expected at least {least:.6g}")
    steep = (np.abs(score - boundary) >= margin) & (np.abs(slope) > flatness * there)
    text = f"derivative {there:.6g} at the boundary, expected at most {flatness} of it beyond the margin: "
    require(not steep.any(), _STEEP, text + _at(score, slope, steep))


def _check_jumps(score: np.ndarray, slope: np.ndarray, roughness: float) -> None:
    width = np.diff(score)
    change = np.abs(np.diff(slope))[width > 0] / width[width > 0]
    allowed = roughness * np.max(np.abs(slope)) ** 2
    jump = change > allowed
    text = f"a jump; change of the derivative per unit of score, at most {allowed:.6g} allowed: "
    require(not jump.any(), _SMOOTH, text + _at(score[:-1][width > 0], change, jump))
