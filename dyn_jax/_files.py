"""One guarded reader, and one writer: every file that someone else may have written goes through here.

What is wrong with a file is one of three errors, and each names the file: FileNotFoundError, PermissionError, or
`BadFile`, which is a ValueError. Only regular files are opened (no pipe is waited for, no device read), sizes are
looked at before anything is read, and whatever a parser raises on damaged bytes leaves `reading` as a `BadFile`.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

LIMIT = 2 * 2**30  # bytes of the largest file that is read, where a reader names no other limit
UNPACKED, SPREAD = 2**28, 100
"""An archive may unpack to so many bytes, and to so many more for each of its own: images shrink by less."""
LISTED = 20  # entries of a listing in an error message; the others are counted

_KINDS = {
    **{stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"},
    **{stat.S_IFCHR: "device", stat.S_IFBLK: "device"},
}


class BadFile(ValueError):
    """A file that cannot be used, in words that already name it."""


def regular(path: str | os.PathLike, wanted: str = "", limit: int = LIMIT) -> str:
    """The path as text, ``~`` opened, of a regular file of at most `limit` bytes; links are followed.

    A TypeError where it is no path. `wanted`: what a message says was expected, e.g. "a list of scene names".
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path: got {short(path)} ({type(path).__name__}), expected a path")
    name = os.path.expanduser(os.fspath(path))
    with _reached(name, wanted):
        status = os.stat(name)
    _check_kind(name, status, limit)
    return name


@contextmanager
def opened(path: str | os.PathLike, wanted: str = "", limit: int = LIMIT) -> Iterator[io.BufferedReader]:
    """The file of `regular`, open for reading bytes."""
    name = regular(path, wanted, limit)
    with _reached(name, wanted):
        file = open(name, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0)))
    with file:
        _check_kind(name, os.fstat(file.fileno()), limit)  # what was opened, whatever stood there before
        yield file


def read(path: str | os.PathLike, wanted: str = "", limit: int = LIMIT) -> bytes:
    """The bytes of the file of `regular`."""
    with opened(path, wanted, limit) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)
    if len(content) != size:
        raise BadFile(f"{os.fspath(path)}: got a file whose size changes, expected {size:,} bytes")
    return content


@contextmanager
def reading(where: str, form: str) -> Iterator[None]:
    """Around a parser: whatever it raises becomes ``BadFile: <where>: not <form>, or truncated or damaged: <why>``."""
    try:
        yield
    except (BadFile, ImportError):
        raise
    except MemoryError as error:
        raise BadFile(f"{where}: not {form}, or damaged: it asks for more memory than there is") from error
    except Exception as error:  # damaged bytes surface as every kind of error
        why = short(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
        raise BadFile(f"{where}: not {form}, or truncated or damaged: {why}") from error


def read_json(path: str | os.PathLike, wanted: str = "") -> dict[str, Any]:
    """The object in a JSON file of at most 16 MiB."""
    content = read(path, wanted, 2**24)
    with reading(os.fspath(path), "a readable JSON file"):
        value = json.loads(content)
    if not isinstance(value, dict):
        raise BadFile(f"{os.fspath(path)}: got a JSON {type(value).__name__}, expected an object")
    return value


def read_npy(path: str | os.PathLike, wanted: str = "") -> np.ndarray:
    """The array in a .npy file, read-only; objects are refused, and a header that announces what the file lacks."""
    content = read(path, wanted)
    with reading(os.fspath(path), "a readable .npy file"):
        return _npy(content)


def _npy(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise ValueError("it has Python objects, expected numbers or text")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != len(content) - file.tell():  # before any of it is allocated
        raise ValueError(f"it announces {dtype} {short(str(shape))}, and has {len(content) - file.tell():,} bytes")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def read_npz(path: str | os.PathLike, names: Iterable[str], wanted: str = "an npz file") -> dict[str, np.ndarray]:
    """Those of the arrays called `names` that an npz file has; objects are refused, and what unpacks without end."""
    with opened(path, wanted) as file, reading(os.fspath(path), wanted):
        packed = os.fstat(file.fileno()).st_size
        if not zipfile.is_zipfile(file):
            raise ValueError("no zip archive")
        with zipfile.ZipFile(file) as archive:
            there = set(archive.namelist())
            kept = {name: archive.getinfo(f"{name}.npy") for name in names if f"{name}.npy" in there}
            size = sum(member.file_size for member in kept.values())
            if size > min(LIMIT, UNPACKED + SPREAD * packed):
                raise ValueError(f"it unpacks to {size:,} bytes")
            return {name: _npy(archive.read(member)) for name, member in kept.items()}


def target(path: str | os.PathLike) -> str:
    """Where writing to `path` would put its bytes: the real path of a regular file, or of one that can be made.

    For commands that work for hours before they write: call it first. FileNotFoundError and PermissionError are about
    its folder; a ValueError says that it is itself a folder, pipe, socket or device, at the end of links too.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: got {short(path)} ({type(path).__name__}), expected a path")
    given = os.fspath(path)
    try:
        name = os.path.realpath(given)
        mode = os.stat(name).st_mode if os.path.lexists(name) else None
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long, a null byte
        raise ValueError(f"path: got {short(given)!r}, expected the name of a file ({error})") from error
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError(f"path: got {given!r}, which is a {_kind(mode)}, expected the name of a file")
    folder = os.path.dirname(name)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"path: got {given!r}, but its folder {folder!r} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"path: got {given!r}, but its folder {folder!r} may not be written to")
    return name


def folder(name: str, path: str | os.PathLike) -> None:
    """ValueError or PermissionError where a folder can neither be found nor made: for what is computed before."""
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise ValueError(f"{name}: got {os.fspath(path)!r}, but {there!r} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}: got {os.fspath(path)!r}, but the folder {there!r} may not be written to")


def write(path: str | os.PathLike, content: bytes) -> None:
    """Puts `content` at `target(path)` in one step: an interrupted write leaves what was there before.

    OSError that names the file where the disk is full or a limit is met.
    """
    name = target(path)
    temporary = os.path.join(os.path.dirname(name), f".{os.path.basename(name)[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name)
    except OSError as error:  # writing names no file, the rest the temporary one
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def short(value: Any, most: int = 120) -> str:
    """A text of at most about `most` characters for a value from a file, which may be as large as it likes."""
    if isinstance(value, str):
        value = value if len(value) <= most else value[:most] + "..."
        return value if value.isprintable() else repr(value)[1:-1]
    if isinstance(value, bytes):
        return repr(value[:most])
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**18):
        return repr(value)
    return f"<{type(value).__name__}>"


def listed(entries: Iterable[Any], separator: str = ", ", most: int = LISTED) -> str:
    """The first `most` entries, each shortened, and how many more there are; ``none`` for none."""
    entries = list(entries)
    more = [f"and {len(entries) - most} more"] if len(entries) > most else []
    return separator.join([*(short(entry, 200) for entry in entries[:most]), *more]) or "none"


@contextmanager
def _reached(name: str, wanted: str) -> Iterator[None]:
    """Errors of stat and open, with the whole path."""
    where = os.path.abspath(name) if "\0" not in name else name
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{where}: no such file{wanted and '; expected ' + wanted}") from error
    except PermissionError as error:
        raise PermissionError(f"{where}: not allowed to read it") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadFile(f"{short(where)}: not the name of a readable file ({reason})") from error


def _check_kind(name: str, status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BadFile(f"{name}: is a {_kind(status.st_mode)}, expected a file")
    if status.st_size > limit:
        raise BadFile(f"{name}: got {status.st_size:,} bytes, expected at most {limit:,}")


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "special file")
