"""Kernel offsets in the order that released weights are stored in."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from dyn_jax import _validate

Size = int | tuple[int, int, int]
REGIONS = ("cube", "cross", "hybrid", "dense")


def triple(name: str, value: Size, minimum: int = 1) -> tuple[int, int, int]:
    """An integer or three of them, as three.

    Raises:
      TypeError, ValueError: not integers of at least `minimum`, or not three.
    """
    values = tuple(value) if isinstance(value, (tuple, list, np.ndarray)) and np.ndim(value) else (value,) * 3
    if len(values) != 3:
        raise ValueError(f"{name}: got {value}, expected one integer or three")
    first, second, third = (_validate.positive_int(name, v, minimum) for v in values)
    return first, second, third


def offsets(kernel_size: Size, region: str = "cube") -> np.ndarray:
    """The kernel's offsets [volume, 3] (x, y, z), in units of the tensor stride, in weight order.

    ``cube``: x fastest; odd sizes are centred (3: -1, 0, 1), even ones start at 0 (2: 0, 1).
    ``cross`` (odd sizes): the centre, then per axis +1 ... +r, -r ... -1.
    ``hybrid`` (size 3): the order of MinkowskiEngine 0.4's hybrid region, in which the block kernels of the released
    MinkUNets are stored; the same sites as the cube.
    ``dense``: the cube, z fastest: a dense kernel [x, y, z, in, out] with its first three axes made one (spconv).

    Raises:
      TypeError, ValueError: a size below 1, an even cross, a hybrid of another size than 3, an unknown region.

    Source: measured from MinkowskiEngine 0.5.4 (cube, cross) and 0.4.3 (hybrid), and from spconv 1.2.1 and 2.3 (dense).
    """
    return _offsets(triple("kernel_size", kernel_size), _validate.choice("region", region, REGIONS))


@functools.lru_cache(maxsize=256)
def _offsets(size: tuple[int, int, int], region: str) -> np.ndarray:
    if region in ("cube", "dense"):
        axes = [np.arange(s) - (s // 2 if s % 2 else 0) for s in size]
        x, y, z = np.meshgrid(*axes, indexing="ij")
        result = np.stack([v.ravel("F" if region == "cube" else "C") for v in (x, y, z)], axis=1)
    elif region == "cross":
        if any(s % 2 == 0 for s in size):
            raise ValueError(f"kernel_size: got {size}, expected odd sizes for a cross")
        result = np.array([(0, 0, 0), *_cross_arms(size)])
    else:
        if size != (3, 3, 3):
            raise ValueError(f"kernel_size: got {size}, expected 3 for the hybrid region")
        sites = [np.zeros(3, int)]
        for axis in range(3):  # every axis appends both neighbours of what is there; the centre's come first
            unit = np.eye(3, dtype=int)[axis]
            sites += [site + sign * unit for site in list(sites) for sign in (-1, 1)]
        result = np.array(sites)
    result.setflags(write=False)
    return result


def _cross_arms(size: tuple[int, int, int]) -> Iterator[tuple[int, ...]]:
    for axis, s in enumerate(size):
        reach = s // 2
        for step in (*range(1, reach + 1), *range(-reach, 0)):
            yield tuple(step if a == axis else 0 for a in range(3))


def cube_from_hybrid() -> np.ndarray:
    """[27], ``cube_kernel = hybrid_kernel[cube_from_hybrid()]``."""
    where = {tuple(site): row for row, site in enumerate(offsets(3, "hybrid").tolist())}
    return np.array([where[tuple(site)] for site in offsets(3).tolist()])
