"""Reads pickles of plain values and uint8 arrays, as CIFAR-10's python batches are, without running anything.

A pickle runs code by naming a function and asking for it to be called. Here every name outside a list of five
is refused before anything is imported, and the five stand for functions of this file, not for NumPy's: an
array in the file becomes plain fields, checked, and only then a view of its bytes.

A pickle also costs time and memory without a call: `check_pickle` measures it first, here and for PyTorch's files.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from dyn_jax._files import BadFile, short

MOST_ELEMENTS = 10**7
"""Of the value in a pickle, written out in full: shared parts count as often as they are met."""
DEEPEST = 200
MOST_INSTRUCTIONS = 2 * 10**6
"""Of a pickle: CIFAR-10's batches have 40,000, a checkpoint some 60 for each tensor."""


def load_array_pickle(blob: bytes) -> Any:
    """The value in a pickle of dicts, lists, tuples, numbers, strings, bytes and uint8 arrays.

    Protocols 2 to 4 serve, written by Python 2 or 3 and NumPy 1 or 2. Strings of Python 2 come as bytes.
    Arrays are read-only views; they may stand at the top level or as values of the top dict.

    Raises:
      ValueError: the pickle is truncated or broken, fails `check_pickle`, or names anything else (the message says
        what).

    Source: Python's ``pickletools`` describes the opcodes, NumPy's ``ndarray.__setstate__`` an array's state.
    """
    try:
        check_pickle(io.BytesIO(blob))
        value = _Unpickler(io.BytesIO(blob), encoding="bytes").load()
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(short(str(error)) or type(error).__name__) from error
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
        raise pickle.UnpicklingError(f"got dtype {short(code)!r}, expected 'u1' (uint8)")
    return _Uint8()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"got text in {short(encoding)!r}, expected latin1")
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


def check_pickle(file: IO[bytes] | mmap.mmap) -> None:
    """Reads one pickle's instructions, running none, and refuses one whose value is out of proportion to it.

    Nested tuples that hold one another twice double with each level; hashing or printing one takes the time and the
    memory of all its elements written out. So does a slot of the memo beyond the file's length, for all slots below.

    Args:
      file: positioned at the pickle, and left behind it; ``read(n)`` must not allocate n where the file is shorter.

    Raises:
      BadFile: more than `MOST_ELEMENTS` when written out, deeper than `DEEPEST`, holding itself other than directly, of
        more than `MOST_INSTRUCTIONS`, or with a memo slot beyond the file's length.
      ValueError: no pickle, or truncated.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END) or file.tell()  # mmap.seek returns nothing before Python 3.13
    file.seek(start)
    parts: list[list[int]] = [[]]  # of every value that has some, the values in it; number 0 stands for all the others
    sizes = [1]  # of every value, without its parts
    stack: list[int | None] = []  # numbers of values; None is a mark
    memo: dict[Any, int] = {}
    instructions = pickletools.genops(file)  # pyright: ignore[reportArgumentType]: a map has read and tell, all it needs
    for count, (opcode, argument, _) in enumerate(instructions):
        if count >= MOST_INSTRUCTIONS:
            raise BadFile(f"refused: it has more than {MOST_INSTRUCTIONS:,} instructions")
        name, taken = opcode.name, opcode.stack_before
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            slot = len(memo) if argument is None else argument
            if slot > size:
                raise BadFile(f"got memo slot {slot}, expected fewer than the file has bytes")
            memo[slot] = _last(stack)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument, 0))
        elif name == "DUP":
            stack.append(_last(stack))
        elif name == "MARK":
            stack.append(None)
        else:
            held = []
            if pickletools.markobject in taken:
                while stack and (value := stack.pop()) is not None:
                    held.append(value)
                taken = taken[: taken.index(pickletools.markobject)]
            for _ in taken:
                held.append((stack.pop() if stack else 0) or 0)
            if not opcode.stack_after:
                continue
            whole = held.pop() if name in _CHANGING and held else 0  # the list, dict or object that takes in the others
            length = len(argument) // 64 if isinstance(argument, (str, bytes)) else 0
            if not whole and (held or length or name.startswith("EMPTY")):
                whole = len(parts)
                parts.append([])
                sizes.append(1 + length)
            parts[whole] += filter(None, held)
            sizes[whole] += held.count(0)
            stack.append(whole)
    _check_size(parts, sizes)


_CHANGING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


def _last(stack: list[int | None]) -> int:
    return (stack[-1] if stack else 0) or 0


def _check_size(parts: list[list[int]], sizes: list[int]) -> None:
    """Adds up sizes and depths from the parts to the whole; what is never reached holds itself."""
    holders: list[list[int]] = [[] for _ in parts]
    waiting = [0] * len(parts)
    for whole, inside in enumerate(parts):
        for part in inside:
            if part != whole:
                holders[part].append(whole)
                waiting[whole] += 1
    depths = [1] * len(parts)
    ready = [number for number, count in enumerate(waiting) if not count]
    done = 0
    while ready:
        part = ready.pop()
        done += 1
        if sizes[part] > MOST_ELEMENTS or depths[part] > DEEPEST:
            raise BadFile(
                f"refused: it holds a value of {sizes[part]:,} elements when written out, {depths[part]} levels deep, "
                f"expected at most {MOST_ELEMENTS:,} and {DEEPEST}"
            )
        for whole in holders[part]:
            sizes[whole] += sizes[part]
            depths[whole] = max(depths[whole], depths[part] + 1)
            waiting[whole] -= 1
            if not waiting[whole]:
                ready.append(whole)
    if done < len(parts):
        raise BadFile("refused: it holds a value that holds itself")


def _array(value: Any) -> Any:
    """The array of an `_Array`, once its fields fit together; other values as they are."""
    if not isinstance(value, _Array):
        return value
    shape, content = value.shape, value.content
    if not isinstance(shape, tuple) or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise ValueError(f"got an array of shape {short(shape)}, expected a tuple of integers")
    if not isinstance(content, bytes) or len(content) != int(np.prod(shape, dtype=object)):
        size = len(content) if isinstance(content, bytes) else type(content).__name__
        raise ValueError(f"got an array of shape {short(str(shape[:8]))} with {size} bytes, expected one byte each")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if value.fortran else "C")
