"""Saving and loading variables: one flax msgpack file, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np

from dyn_jax.types import Variables


def save_variables(path: str | os.PathLike[str], variables: Variables) -> int:
    """Writes ``{'params': ..., ...}`` to `path` as flax msgpack.

    The bytes go to a temporary file in the same folder, which then takes the place of `path` in one step: an
    interrupted write leaves what was there before. A symbolic link is followed.

    Args:
      path: the file to write; its folder must exist.
      variables: nested mappings of arrays (any shape; numbers, bool, bfloat16) with a ``params`` collection.

    Returns:
      The size of the file in bytes.

    Raises:
      FileNotFoundError: the folder of `path` does not exist.
      TypeError: a key is no string, or a leaf is no array of numbers.
      ValueError: no ``params`` collection, or `path` is a folder.
    """
    target = Path(os.path.realpath(os.fspath(path)))
    if target.is_dir():
        raise ValueError(f"path: got {str(path)!r}, which is a folder, expected the name of a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: got {str(path)!r}, but its folder {str(target.parent)!r} does not exist")
    encoded = flax.serialization.msgpack_serialize(_checked(variables))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return len(encoded)


def load_variables(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save_variables` wrote: nested dicts of numpy arrays. The format holds no code (no pickle).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a folder; empty, truncated or not msgpack; without ``params``; a leaf that is no array.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        raise ValueError(f"variables: {name!r} is a folder, expected a file that save_variables wrote")
    if not os.path.exists(name):
        raise FileNotFoundError(f"variables: there is no file {name!r}")
    encoded = Path(name).read_bytes()
    if not encoded:
        raise ValueError(f"variables: {name!r} is empty (0 bytes)")
    try:
        content = flax.serialization.msgpack_restore(encoded)
    except Exception as error:  # damaged bytes surface as many kinds of error
        raise ValueError(
            f"variables: {name!r} ({len(encoded)} bytes) is truncated, damaged or not a file that "
            f"save_variables wrote ({type(error).__name__})"
        ) from error
    try:
        return _checked(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r} is not a file that save_variables wrote: {error}") from error


def _checked(variables: Any) -> dict[str, Any]:
    """Plain nested dicts of numpy arrays; TypeError/ValueError naming the first thing that is not."""
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables: got {type(variables).__name__}, expected a mapping with a 'params' collection")
    if "params" not in variables:
        raise ValueError(f"variables: got the collections {sorted(map(str, variables))}, expected 'params' among them")
    return _checked_mapping(variables, "variables")


def _checked_mapping(node: Mapping, where: str) -> dict[str, Any]:
    checked = {}
    for key, value in node.items():
        if not isinstance(key, str):
            raise TypeError(f"{where}: got the key {key!r} ({type(key).__name__}), expected a string")
        place = f"{where}[{key!r}]"
        checked[key] = _checked_mapping(value, place) if isinstance(value, Mapping) else _checked_leaf(value, place)
    return checked


def _checked_leaf(value: Any, where: str) -> np.ndarray:
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise TypeError(f"{where}: got {type(value).__name__}, expected an array")
    try:
        array = np.asarray(value)
    except TypeError as error:  # a tracer, or a typed random key
        raise TypeError(f"{where}: {error}") from error
    is_number = np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_ or array.dtype.name == "bfloat16"
    if not is_number:
        raise TypeError(f"{where}: got an array of {array.dtype}, expected numbers")
    return array
