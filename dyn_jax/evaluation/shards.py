"""A run on disk: a manifest of what it is, one shard for each chunk of each phase, written whole or not at all.

A shard names the run it is of and carries a digest of its arrays, so that a foreign, truncated or changed one is
refused by name. What is written does not depend on when or how often a run was killed.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dyn_jax import _files

Arrays = Mapping[str, np.ndarray]
MANIFEST = "manifest.json"
_OF, _DIGEST = "of run", "digest"


class Memory(dict[str, dict[str, np.ndarray]]):
    """A run that nobody wants to go on with."""

    put = dict.__setitem__


class Busy(OSError, RuntimeError):
    """A folder that another process is writing to."""


class Folder:
    """A run in a folder, held by this process until `close`; the folder is made, its parent must exist.

    The process has the share `part` of `parts` of the examples. `resume`: there must be a run to go on with. A folder
    that cannot take the run is refused as `check_folder` says; `Busy`: another process works on this part.
    """

    def __init__(
        self, path: str | os.PathLike, manifest: Mapping[str, Any], part: int = 0, parts: int = 1, resume: bool = False
    ) -> None:
        import fcntl  # not on Windows, where a run is kept in memory only

        self.path = pathlib.Path(path)
        check_folder(path, manifest, resume=resume)
        # what the shards of the run are signed with
        self.run = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        self.path.mkdir(exist_ok=True)
        self._shards = self.path / "shards" / f"{part + 1}-of-{parts}"
        self._shards.mkdir(parents=True, exist_ok=True)
        self._lock = open(self._shards / ".lock", "a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise Busy(
                f"output: another process is writing to {os.fspath(path)!r}; wait for it, or name another folder"
            ) from error
        # what a kill left half-written; the folder of the run is shared where there are several processes
        for folder in (self._shards, self.path) if parts == 1 else (self._shards,):
            for path in folder.glob(".*.tmp"):
                path.unlink()
        if not (self.path / MANIFEST).exists():
            write(self.path / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")

    def close(self) -> None:
        """Lets another process go on."""
        self._lock.close()

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        return read_shard(self._shards / f"{name}.npz", self.run)

    def put(self, name: str, arrays: Arrays) -> None:
        write(self._shards / f"{name}.npz", shard(arrays, self.run))


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all; the OSError of a full disk says what to do."""
    try:
        _files.write(path, content)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno, f"the disk is full at {path}; what is done is whole: free space and repeat the command"
            ) from error
        raise


def shard(arrays: Arrays, run: str) -> bytes:
    """The bytes of an npz file of these arrays, the same whenever they are the same."""
    file = io.BytesIO()
    content = {name: np.asarray(array) for name, array in sorted(arrays.items())}
    if objects := [name for name, array in content.items() if array.dtype.hasobject]:
        raise ValueError(f"{objects[0]}: got an array of Python objects, expected numbers or text")
    signed = {**content, _OF: np.array(run), _DIGEST: np.array(fingerprint(content))}
    # not allow_pickle=False: numpy 2.0 and 2.1 take it for one more array
    np.savez(file, **signed)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def read_shard(path: pathlib.Path, run: str) -> dict[str, np.ndarray] | None:
    """The arrays of a shard, None where there is no file; BadFile: truncated, damaged, changed or of another run."""
    if not path.exists():
        return None
    with _files.opened(path, "a shard of an evaluation") as file, _files.reading(os.fspath(path), "a shard"):
        if not zipfile.is_zipfile(file):
            raise ValueError("no zip archive")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
    of, digest = (str(content.pop(name, "")) for name in (_OF, _DIGEST))
    if of != run:
        raise _files.BadFile(f"{path}: is a shard of another run ({of[:12] or 'none'}, not {run[:12]}): remove it")
    if digest != fingerprint(content):
        raise _files.BadFile(f"{path}: was changed after it was written: remove it, and the same command makes it anew")
    return content


def check_folder(path: str | os.PathLike, manifest: Mapping[str, Any], *, resume: bool = False) -> None:
    """ValueError for a folder that holds something else, or another run: says what differs; FileNotFoundError where
    there is no parent folder, or nothing to resume. Writes nothing."""
    given, folder = os.fspath(path), pathlib.Path(path)
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"output: got {given!r}, but its folder {os.fspath(folder.parent)!r} does not exist")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: got {given!r}, which is a file, expected a folder")
    there = folder / MANIFEST
    if not there.exists():
        if resume:
            raise FileNotFoundError(f"output: got {given!r} to resume, but it holds no run ({MANIFEST} is missing)")
        # another process of the same run may be writing the manifest just now
        own = lambda name: name == "shards" or (name.startswith(f".{MANIFEST}.") and name.endswith(".tmp"))
        strangers = [entry.name for entry in folder.iterdir() if not own(entry.name)] if folder.exists() else []
        if strangers:
            raise ValueError(
                f"output: got {given!r}, which holds other files ({_files.listed(sorted(strangers), most=3)}), "
                "expected an empty or new folder"
            )
        return
    saved = _files.read_json(there, "a run of an evaluation")
    wanted = json.loads(json.dumps(manifest))
    text = lambda value: _files.short(str(value), 60)
    differ = [
        f"{key} is {text(saved.get(key, 'none'))} there and {text(wanted.get(key, 'none'))} here"
        for key in sorted({*saved, *wanted})
        if saved.get(key) != wanted.get(key)
    ]
    if differ:
        raise ValueError(f"output: {given!r} is of another run: {_files.listed(differ, '; ', 4)}. Name another folder")


def describe(config: Mapping[str, Any], variables: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The manifest of a run: its settings, and digests of weights, data and this package's code."""
    return {
        **config,
        "weights": fingerprint(variables),
        "data": fingerprint((images, labels)),
        "examples": len(labels),
        "dyn_jax": importlib.metadata.version("dyn_jax"),
        "code": _code(),
    }


def fingerprint(tree: Any) -> str:
    """A digest of a tree's arrays with their places, types and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _code() -> str:
    """A digest of every source file of the package."""
    digest = hashlib.blake2b(digest_size=16)
    root = pathlib.Path(_files.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(os.fspath(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()
