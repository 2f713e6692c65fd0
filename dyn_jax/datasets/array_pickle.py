"""Reads pickles of plain values and uint8 arrays, as CIFAR-10's python batches are, without running anything.

A pickle runs code by naming a function and asking for it to be called. Here every name outside a list of five
is refused before anything is imported, and the five stand for functions of this file, not for NumPy's: an
array in the file becomes plain fields, checked, and only then a view of its bytes.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np


def load_array_pickle(blob: bytes) -> Any:
    """The value in a pickle of dicts, lists, tuples, numbers, strings, bytes and uint8 arrays.

    Protocols 2 to 4 serve, written by Python 2 or 3 and NumPy 1 or 2. Strings of Python 2 come as bytes.
    Arrays are read-only views; they may stand at the top level or as values of the top dict.

    Raises:
      ValueError: the pickle is truncated or broken, or names anything else (the message says what).

    Source: Python's ``pickletools`` describes the opcodes, NumPy's ``ndarray.__setstate__`` an array's state.
    """
    try:
        _check_memo(blob)
        value = _Unpickler(io.BytesIO(blob), encoding="bytes").load()
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(str(error) or type(error).__name__) from error
    if isinstance(value, dict):
        return {key: _array(item) for key, item in value.items()}
    return _array(value)


class _Array:
    """What the pickle of an array says."""

    __slots__ = ("content", "fortran", "shape")

    def __init__(self) -> None:
        self.shape, self.fortran, self.content = None, False, None

    def __setstate__(self, state: Any) -> None:
        _version, self.shape, dtype, self.fortran, self.content = state
        if not isinstance(dtype, _Uint8):
            raise pickle.UnpicklingError(f"got an array of {type(dtype).__name__}, expected uint8")


class _Uint8:
    """The dtype uint8; its state (byte order and the like) says nothing more."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Allowed:
    """A name that a pickle may use, standing for a function of this file; a pickle cannot set its state."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("got a state for a function, expected none")


def _reconstruct(*_arguments: Any) -> _Array:
    return _Array()


def _dtype(code: Any, *_flags: Any) -> _Uint8:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"got dtype {code!r}, expected 'u1' (uint8)")
    return _Uint8()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"got text in {encoding!r}, expected latin1")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 2
    ("numpy", "ndarray"): _reconstruct,  # only ever an argument of the two above
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes up to protocol 2
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Allowed:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"refused {module}.{name}, which a file of numbers does not need")
        return _Allowed(_ALLOWED[module, name])


def _check_memo(blob: bytes) -> None:
    """Refuses memo slots beyond the file's length: the unpickler would allocate all the slots below."""
    for opcode, argument, _ in pickletools.genops(blob):
        if opcode.name in ("PUT", "LONG_BINPUT") and argument > len(blob):
            raise pickle.UnpicklingError(f"got memo slot {argument}, expected fewer than the file has bytes")


def _array(value: Any) -> Any:
    """The array of an `_Array`, once its fields fit together; other values as they are."""
    if not isinstance(value, _Array):
        return value
    shape, content = value.shape, value.content
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"got an array of shape {shape!r}, expected a tuple of integers")
    if not isinstance(content, bytes) or len(content) != int(np.prod(shape, dtype=object)):
        size = len(content) if isinstance(content, bytes) else type(content).__name__
        raise ValueError(f"got an array of shape {shape} with {size} bytes, expected one byte per element")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if value.fortran else "C")
