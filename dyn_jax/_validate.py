"""Checks for the public doors: one message form (name, got, expected); traced values pass unchecked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, overload

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

BOUND_SLACK = 1e-6
_LARGEST = 1e30  # beyond it single precision overflows in the first product
ROUNDING = 1e-3  # metres, the most that a coordinate may be rounded by; float32 keeps to it below 32,768 m


def is_concrete(*values: Any) -> bool:
    """True where no value is a tracer, so that its numbers can be looked at on the host."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def choice(name: str, got: str, allowed: Iterable[str]) -> str:
    """Returns `got`; ValueError with the nearest names if it is not one of `allowed`."""
    allowed = list(allowed)
    if got in allowed:
        return got
    near = difflib.get_close_matches(str(got), allowed, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    listed = ", ".join(sorted(allowed)) if len(allowed) <= 12 or not near else f"{len(allowed)} names"
    raise ValueError(f"{name}: got {got!r}, expected one of {listed}{hint}")


def positive_int(name: str, got: Any, minimum: int = 1) -> int:
    """Returns `got` as an int; TypeError/ValueError if it is not an integer of at least `minimum`."""
    if isinstance(got, bool) or not isinstance(got, (int, np.integer)):
        raise TypeError(f"{name}: got {got!r} ({type(got).__name__}), expected an integer")
    if got < minimum:
        raise ValueError(f"{name}: got {got}, expected at least {minimum}")
    return int(got)


@overload
def number(name: str, got: float, minimum: float | None = None) -> float: ...
@overload
def number(name: str, got: jax.typing.ArrayLike | str, minimum: float | None = None) -> jax.typing.ArrayLike: ...
def number(name: str, got: Any, minimum: float | None = None) -> Any:
    """Parses a number, a fraction such as "8/255", or passes a scalar array (leaf of a vmap) through."""
    if isinstance(got, str):
        try:
            numerator, _, denominator = got.partition("/")
            got = float(numerator) / (float(denominator) if denominator else 1.0)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f'{name}: got {got!r}, expected a number or a fraction such as "8/255"') from None
    if isinstance(got, bool) or not isinstance(got, (int, float, np.ndarray, np.generic, jax.Array)):
        raise TypeError(f"{name}: got {got!r} ({type(got).__name__}), expected a number or a string")
    dtype = getattr(got, "dtype", np.dtype(float))
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name}: got dtype {dtype}, expected a real number")
    if np.ndim(got):
        raise ValueError(f"{name}: got an array of shape {np.shape(got)}, expected one number (a sweep is a jax.vmap)")
    if is_concrete(got):
        if not np.all(np.abs(np.asarray(got, np.float64)) <= _LARGEST):
            raise ValueError(f"{name}: got {got}, expected finite numbers")
        if minimum is not None and np.any(np.asarray(got) < minimum):
            raise ValueError(f"{name}: got {got}, expected at least {minimum}")
    return got


def positive(name: str, got: Any) -> Any:
    """`number` that must be above 0 where it is concrete."""
    got = number(name, got)
    if is_concrete(got) and not np.asarray(got) > 0:
        raise ValueError(f"{name}: got {got}, expected a positive number")
    return got


def share(name: str, got: Any) -> Any:
    """`number` that must lie in (0, 1) where it is concrete."""
    got = number(name, got)
    if is_concrete(got) and not 0 < np.asarray(got) < 1:
        raise ValueError(f"{name}: got {got}, expected a number in (0, 1)")
    return got


def images(name: str, got: Any, channels: int | None = None) -> jax.Array:
    """Checks rank 4 (NHWC), a floating dtype, a batch of at least one, and the channel count."""
    if not hasattr(got, "ndim"):
        raise TypeError(f"{name}: got {type(got).__name__}, expected an array [batch, height, width, channel]")
    if got.ndim != 4:
        raise ValueError(f"{name}: got shape {got.shape}, expected rank 4: [batch, height, width, channel]")
    if not jnp.issubdtype(got.dtype, jnp.floating):
        raise TypeError(f"{name}: got dtype {got.dtype}, expected floating point in [0, 1] (divide uint8 by 255)")
    if channels is not None and got.shape[3] != channels:
        hint = "; the layout is NHWC, transpose NCHW images first" if got.shape[1] == channels else ""
        raise ValueError(f"{name}: got {got.shape[3]} channels (shape {got.shape}), expected {channels}{hint}")
    if 0 in got.shape:
        raise ValueError(f"{name}: got an empty batch (shape {got.shape}), expected at least one example and pixel")
    return jnp.asarray(got)


def within(name: str, got: jax.typing.ArrayLike, bounds: tuple[float, float]) -> None:
    """Checks, on concrete values only, that all are finite and inside `bounds` (slack 1e-6)."""
    if not is_concrete(got):
        return
    host = np.asarray(got)
    bad = ~np.isfinite(host)
    if bad.any():
        raise ValueError(f"{name}: got {int(bad.sum())} NaN or infinite values, expected finite ones")
    if host.size and (host.min() < bounds[0] - BOUND_SLACK or host.max() > bounds[1] + BOUND_SLACK):
        raise ValueError(
            f"{name}: got values in [{host.min():.6g}, {host.max():.6g}], expected [{bounds[0]}, {bounds[1]}]"
        )


def integers(name: str, got: Any, low: int | None = None, high: int | None = None, what: str = "values") -> jax.Array:
    """Checks an integer dtype, and on concrete values a range: `low` to `high`, default what JAX can hold.

    Without x64, JAX cuts 64-bit integers: 2^32 + 1 would become 1.
    """
    got = got if hasattr(got, "dtype") else np.asarray(got)
    if not jnp.issubdtype(got.dtype, jnp.integer):
        raise TypeError(f"{name}: got dtype {got.dtype}, expected integers")
    if is_concrete(got) and np.size(got):
        host, held = np.asarray(got), jnp.iinfo(jax.dtypes.canonicalize_dtype(got.dtype))
        low, high = held.min if low is None else low, held.max if high is None else high
        if host.min() < low or host.max() > high:
            raise ValueError(f"{name}: got {what} in [{host.min()}, {host.max()}], expected [{low}, {high}]")
    return jnp.asarray(got)


def finite(name: str, got: Any, like: jax.Array) -> jax.Array:
    """`got` with shape and dtype of `like`, which takes the place of what is not finite where only run time sees it.

    ValueError on concrete values, where `like` is finite (a cloud may be filled up with NaN): a search from NaN finds
    nothing, and nothing found looks like robustness.
    """
    if jnp.shape(got) != like.shape:
        raise ValueError(f"{name}: got shape {jnp.shape(got)}, expected {like.shape}")
    if is_concrete(got, like):
        bad = int(np.sum(~np.isfinite(np.asarray(got, np.float64)) & np.isfinite(np.asarray(like))))
        if bad:
            raise ValueError(f"{name}: got {bad} NaN or infinite values, expected finite ones")
    got = jnp.asarray(got, like.dtype)
    return jnp.where(jnp.isfinite(got), got, like)


def labels(name: str, got: Any, batch: int, classes: int | None = None) -> jax.Array:
    """Checks integer labels [batch]; on concrete values also that they lie in [0, classes)."""
    if not hasattr(got, "ndim"):
        got = np.asarray(got)
    if not jnp.issubdtype(got.dtype, jnp.integer):
        raise TypeError(f"{name}: got dtype {got.dtype}, expected integer class labels")
    if got.shape != (batch,):
        raise ValueError(f"{name}: got shape {got.shape}, expected ({batch},), one label per example")
    return integers(name, got, *(() if classes is None else (0, classes - 1)), what="labels")


def rows(name: str, got: Any, batch: int) -> jax.Array:
    """Checks flags [batch]: one bool for each example."""
    got = got if hasattr(got, "ndim") else np.asarray(got)
    if got.dtype != bool:
        raise TypeError(f"{name}: got dtype {got.dtype}, expected bool, one flag per example (not indices)")
    if got.shape != (batch,):
        raise ValueError(f"{name}: got shape {got.shape}, expected ({batch},), one flag per example")
    return jnp.asarray(got)


def logits(name: str, got: Any) -> jax.Array:
    """Checks logits [row, class] of at least one row."""
    if jnp.ndim(got) != 2 or not jnp.shape(got)[0]:
        raise ValueError(f"{name}: got shape {jnp.shape(got)}, expected [batch, class] with at least one row")
    return jnp.asarray(got)


def same_shape(name: str, got: Any, like: Any) -> None:
    """Checks two arrays that must not broadcast against each other."""
    if jnp.shape(got) != jnp.shape(like):
        raise ValueError(f"{name}: got shapes {jnp.shape(got)} and {jnp.shape(like)}, expected equal ones")


def differ(name: str, got: Any, labels: Any) -> None:
    """Checks, on concrete values only, that no target equals its label."""
    if is_concrete(got, labels):
        equal = int(np.sum(np.asarray(got) == np.asarray(labels)))
        if equal:
            raise ValueError(f"{name}: got {equal} equal to their label, expected none")


def coordinates(name: str, got: Any, origin: Any = None) -> np.ndarray:
    """Host coordinates [point, 3], metres, as float32; `origin` [3] is subtracted first, in float64.

    ValueError for another shape, no points, NaN or infinite values, and where float32, or the dtype they come in,
    rounds the largest of them by more than `ROUNDING`: such a cloud has lost its shape, and no attack could move it.
    """
    given = np.asarray(got)
    if given.ndim != 2 or given.shape[1] != 3 or not len(given):
        raise ValueError(f"{name}: got shape {given.shape}, expected [points, 3] with at least one point")
    if not jnp.issubdtype(given.dtype, jnp.floating) and given.dtype.kind not in "iu":
        raise TypeError(f"{name}: got dtype {given.dtype}, expected numbers")
    metres = given.astype(np.float64)
    bad = int((~np.isfinite(metres)).any(axis=1).sum())
    if bad:
        raise ValueError(f"{name}: got {bad} points with NaN or infinite values, expected finite ones")
    largest = float(np.abs(metres).max())
    if origin is not None:
        origin = np.asarray(origin, np.float64)
        if origin.shape != (3,) or not np.isfinite(origin).all():
            raise ValueError(f"origin: got {origin!r:.200}, expected three finite numbers, [3]")
        metres = metres - origin
    kept = given.dtype if jnp.issubdtype(given.dtype, jnp.floating) else np.dtype(np.float64)
    unrounded(name, largest, kept)
    unrounded(name, float(np.abs(metres).max()), np.dtype(np.float32))
    return metres.astype(np.float32)


def unrounded(name: str, largest: float, dtype: np.dtype) -> None:
    """ValueError where `dtype` rounds coordinates up to `largest`, metres, by more than `ROUNDING`."""
    step = float(jnp.finfo(dtype).eps) * 2.0 ** np.floor(np.log2(max(largest, 1e-30))) / 2
    if step > ROUNDING:
        raise ValueError(
            f"{name}: got coordinates up to {largest:.9g} m, which {dtype} rounds by up to {step:.3g} m, expected at "
            f"most {ROUNDING:g} m: subtract an origin (for example the smallest of each column) in float64"
        )


def cloud_rows(cloud: Any) -> None:
    """Checks what says which points of a `PointCloud` are there and whose: `valid` [point], `batch` [point].

    Raises:
      TypeError, ValueError: another shape or dtype; on concrete values a batch index outside [0, clouds).
    """
    count = jnp.shape(cloud.xyz)[0]
    if jnp.shape(cloud.valid) != (count,):
        raise ValueError(f"valid: got shape {jnp.shape(cloud.valid)}, expected ({count},)")
    if not jnp.issubdtype(jnp.result_type(cloud.valid), jnp.bool_):
        raise TypeError(f"valid: got dtype {jnp.result_type(cloud.valid)}, expected bool")
    positive_int("clouds", cloud.clouds)
    if cloud.batch is None:
        if cloud.clouds > 1:
            raise ValueError(f"batch: got None with clouds={cloud.clouds}, expected [{count}] integers")
        return
    dtype = getattr(cloud.batch, "dtype", np.dtype(object))
    if np.shape(cloud.batch) != (count,) or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"batch: got {dtype}{list(np.shape(cloud.batch))}, expected integers [{count}]")
    if is_concrete(cloud.batch, cloud.valid):
        integers("batch", np.asarray(cloud.batch)[np.asarray(cloud.valid)], 0, cloud.clouds - 1, "indices")
