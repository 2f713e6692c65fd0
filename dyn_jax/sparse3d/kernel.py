"""Kernel offsets in the order that released weights are stored in."""

from __future__ import annotations

import functools

import numpy as np

from dyn_jax import _validate

Three = tuple[int, int, int]
Size = int | Three
REGIONS = ("cube", "cross", "hybrid", "dense")


def triple(name: str, value: Size, minimum: int = 1) -> Three:
    """An integer or three of them, as three; TypeError or ValueError where one is no integer of at least `minimum`."""
    values = tuple(value) if isinstance(value, (tuple, list, np.ndarray)) and np.ndim(value) else (value,) * 3
    if len(values) != 3:
        raise ValueError(f"{name}: got {value}, expected one integer or three")
    first, second, third = (_validate.positive_int(name, v, minimum) for v in values)
    return first, second, third


def scaled(stride: Three, factor: Size, name: str = "factor") -> Three:
    """A level's stride times `factor`."""
    (a, b, c), (u, v, w) = stride, triple(name, factor)
    return a * u, b * v, c * w


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
def _offsets(size: Three, region: str) -> np.ndarray:
    if region in ("cube", "dense"):
        axes = [np.arange(s) - (s // 2 if s % 2 else 0) for s in size]
        x, y, z = np.meshgrid(*axes, indexing="ij")
        result = np.stack([v.ravel("F" if region == "cube" else "C") for v in (x, y, z)], axis=1)
    elif region == "cross":
        if any(s % 2 == 0 for s in size):
            raise ValueError(f"kernel_size: got {size}, expected odd sizes for a cross")
        arms = [(axis, step) for axis, s in enumerate(size) for step in (*range(1, s // 2 + 1), *range(-(s // 2), 0))]
        result = np.array([(0, 0, 0), *(step * np.eye(3, dtype=int)[axis] for axis, step in arms)])
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


def cube_from_hybrid() -> np.ndarray:
    """[27], ``cube_kernel = hybrid_kernel[cube_from_hybrid()]``."""
    where = {tuple(site): row for row, site in enumerate(offsets(3, "hybrid").tolist())}
    return np.array([where[tuple(site)] for site in offsets(3).tolist()])
