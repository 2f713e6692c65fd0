"""Saving and loading variables: one flax msgpack file with a checksum, written whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from flax import traverse_util

from dyn_jax import _files
from dyn_jax._precision import single
from dyn_jax.types import Variables

CHECKSUM = "checksum"
"""Entry beside the collections: SHA-256 of what they hold."""
LARGEST = 2**33
MOST_ENTRIES = 10**6
"""Of all mappings in a file together; a network has some thousands."""
DEEPEST = 64

_FORM = "a file that save_variables wrote"


def save_variables(path: str | os.PathLike[str], variables: Variables, *, allow_nonfinite: bool = False) -> int:
    """Writes ``{'params': ..., ...}`` to `path` as flax msgpack, with a checksum that `load_variables` verifies.

    The bytes go to a temporary file in the same folder, which then takes the place of `path` in one step: an
    interrupted write leaves what was there before. A symbolic link is followed.

    Args:
      path: the file to write; its folder must exist.
      variables: nested mappings of arrays (any shape; numbers, bool, bfloat16) with a ``params`` collection.
      allow_nonfinite: whether NaN and infinite values may be among them.

    Returns:
      The size of the file in bytes.

    Raises:
      FileNotFoundError, PermissionError: the folder of `path` does not exist, or may not be written to.
      TypeError: a key is no string, or a leaf is no array of numbers.
      ValueError: no ``params`` collection, or one called ``checksum``; NaN or infinite values; `path` is a folder, a
        device or the like.
    """
    _files.target(path)
    checked = _checked(variables, allow_nonfinite)
    if CHECKSUM in checked:
        raise ValueError(f"variables: got a collection {CHECKSUM!r}, expected another name, the file has its own")
    encoded = flax.serialization.msgpack_serialize({**checked, CHECKSUM: _digest(checked)})
    _files.write(path, encoded)
    return len(encoded)


def load_variables(
    path: str | os.PathLike[str], network: nn.Module | str | None = None, *, allow_nonfinite: bool = False
) -> dict[str, Any]:
    """Reads what `save_variables` wrote: nested dicts of numpy arrays. The format holds no code (no pickle).

    Args:
      path: the file. One without a checksum, as flax itself writes it, is read as well.
      network: the module, or a name of `dyn_jax.networks.names`, that the variables are for; they must then be exactly
        its own. None: not compared.
      allow_nonfinite: whether NaN and infinite values may be among them.

    Raises:
      FileNotFoundError, PermissionError: there is no such file, or it may not be read.
      ValueError: a folder, pipe or device; empty, truncated, damaged or not msgpack; without ``params``; a leaf that is
        no array, or holds NaN or infinite values; variables that do not fit `network`. The message names the file.
    """
    name = os.fspath(path)
    encoded = _files.read(path, limit=LARGEST)
    if not encoded:
        raise _files.BadFile(f"{name}: is empty (0 bytes), expected {_FORM}")
    with _files.reading(name, _FORM):
        _check_bombs(encoded)
        content = flax.serialization.msgpack_restore(encoded)
    try:
        stored = content.pop(CHECKSUM, None) if isinstance(content, dict) else None
        variables = _checked(content, allow_nonfinite)
        if stored is not None and stored != _digest(variables):
            raise ValueError("its checksum differs, the file is damaged")
        if network is not None:
            check_variables(network, variables)
    except (TypeError, ValueError) as error:
        raise _files.BadFile(f"{name}: not {_FORM}: {error}") from error
    return variables


def halved(variables: Variables) -> dict[str, Any]:
    """Variables with the kernels of ``params`` in half precision, for small files; statistics and vectors stay."""
    half = lambda leaf: np.asarray(leaf, np.float16) if np.ndim(leaf) > 1 else np.asarray(leaf)
    return {**variables, "params": jax.tree.map(half, variables["params"])}


def whole(variables: Variables) -> dict[str, Any]:
    """Variables with what is in half precision in single precision."""
    return jax.tree.map(single, dict(variables))


def check_variables(network: nn.Module | str, variables: Variables) -> None:
    """ValueError naming the first leaves that are missing, of no use, or of another shape or kind of number.

    TypeError where `variables` is no mapping.
    """
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables: got {type(variables).__name__}, expected a mapping with a 'params' collection")
    if isinstance(network, str):
        from dyn_jax.networks.registry import create

        network = create(network)
    expected = target_shapes(network)
    got: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(dict(variables)))
    problems = [f"missing {'/'.join(path)} {expected[path].shape}" for path in expected if path not in got]
    problems += [f"unexpected {'/'.join(path)} {np.shape(got[path])}" for path in got if path not in expected]
    for path in expected:
        if path in got:
            leaf, wanted = got[path], expected[path]
            if np.shape(leaf) != wanted.shape:
                problems.append(f"wrong shape {'/'.join(path)}: got {np.shape(leaf)}, expected {wanted.shape}")
            elif jnp.issubdtype(leaf.dtype, jnp.floating) != jnp.issubdtype(wanted.dtype, jnp.floating):
                problems.append(f"wrong dtype {'/'.join(path)}: got {leaf.dtype}, expected {wanted.dtype}")
    if problems:
        name = type(network).__name__
        raise ValueError(f"variables: {len(problems)} leaves do not fit the {name}: {_files.listed(problems, '; ')}")


def check_own(network: Any, variables: Variables) -> None:
    """`check_variables` of a network of this package; somebody else's may have layers that only training makes.

    Without it, a deeper network's weights run in a shallower one, most of them unread.
    """
    if isinstance(network, nn.Module) and type(network).__module__.startswith("dyn_jax."):
        check_variables(network, variables)


def check_finite(name: str, variables: Variables) -> None:
    """ValueError that names the first leaf with NaN or infinite values: what is made of them would have them too."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if bad := int((~np.isfinite(np.asarray(leaf))).sum()):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name}: got {bad} NaN or infinite values at {where}, expected finite ones")


def target_shapes(network: nn.Module) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """{(collection, layer, ..., leaf): shape and dtype} of the module's variables, without computing them."""
    try:
        hash(network)
    except TypeError:  # fields that are arrays or lists
        return _shapes(network)
    return dict(_known_shapes(network, jax.dtypes.canonicalize_dtype(np.float64)))


def _shapes(network: nn.Module) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    if hasattr(network, "example_input"):
        example = jax.eval_shape(network.example_input)
    else:
        size = getattr(network, "image_size", 32)
        example = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    shapes: Any = traverse_util.flatten_dict(jax.eval_shape(network.init, jax.random.key(0), example))
    return shapes


@functools.lru_cache(maxsize=64)
def _known_shapes(network: nn.Module, default: np.dtype) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """`_shapes`, kept for each type that initialisers choose by themselves: another one under x64."""
    return _shapes(network)


def _check_bombs(encoded: bytes) -> None:
    """Refuses what only unpacks to more memory than the file has bytes: many or deep mappings, lists, odd arrays."""
    entries = 0

    def count(pairs: list) -> None:
        nonlocal entries
        entries += 1 + len(pairs)
        if entries > MOST_ENTRIES:
            raise ValueError(f"it has more than {MOST_ENTRIES:,} entries")
        if any(not isinstance(key, str) for key, _ in pairs):
            raise ValueError("it has keys that are no strings")

    def header(code: int, data: bytes) -> None:
        shape, _, _ = msgpack.unpackb(data, raw=True, max_array_len=64, max_map_len=0)
        if code not in (1, 3) or (code == 3 and shape):  # flax's codes of an array and of a scalar
            raise ValueError(f"it has an extension {code} of shape {_files.short(str(shape))}")

    limits = {"max_array_len": 2**16, "max_map_len": MOST_ENTRIES, "max_bin_len": 2**10, "max_str_len": 2**16}
    msgpack.unpackb(encoded, object_pairs_hook=count, ext_hook=header, raw=False, **limits)


def _digest(variables: Mapping[str, Any]) -> bytes:
    """SHA-256 over the names, dtypes, shapes and bytes of all leaves, and the names of empty mappings, in order."""
    sha = hashlib.sha256()
    flat = traverse_util.flatten_dict(dict(variables), keep_empty_nodes=True)
    for path in sorted(flat):
        leaf = flat[path]
        is_array = isinstance(leaf, np.ndarray)
        sha.update(repr((path, leaf.dtype.name, leaf.shape) if is_array else path).encode())
        if is_array:
            sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.digest()


def _checked(variables: Any, allow_nonfinite: bool) -> dict[str, Any]:
    """Plain nested dicts of numpy arrays; TypeError/ValueError naming the first thing that is not."""
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables: got {type(variables).__name__}, expected a mapping with a 'params' collection")
    if "params" not in variables:
        names = f"[{_files.listed(map(repr, map(_files.short, sorted(variables, key=str))))}]" if variables else "[]"
        raise ValueError(f"variables: got the collections {names}, expected 'params' among them")
    return _checked_mapping(variables, "variables", allow_nonfinite, DEEPEST)


def _checked_mapping(node: Mapping, where: str, allow_nonfinite: bool, deepest: int) -> dict[str, Any]:
    if not deepest:
        raise ValueError(f"{where[:200]}...: got mappings more than {DEEPEST} levels deep, expected fewer")
    checked = {}
    for key, value in node.items():
        if not isinstance(key, str):
            raise TypeError(f"{where}: got the key {_files.short(key)} ({type(key).__name__}), expected a string")
        place = f"{where}[{_files.short(key)!r}]"
        if isinstance(value, Mapping):
            checked[key] = _checked_mapping(value, place, allow_nonfinite, deepest - 1)
        else:
            checked[key] = _checked_leaf(value, place, allow_nonfinite)
    return checked


def _checked_leaf(value: Any, where: str, allow_nonfinite: bool) -> np.ndarray:
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise TypeError(f"{where}: got {type(value).__name__}, expected an array")
    try:
        array = np.asarray(value)
    except TypeError as error:  # a tracer, or a typed random key
        raise TypeError(f"{where}: {error}") from error
    is_number = jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_
    if not is_number:
        raise TypeError(f"{where}: got an array of {array.dtype}, expected numbers")
    if not allow_nonfinite and jnp.issubdtype(array.dtype, jnp.inexact):
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise ValueError(f"{where}: got {bad} NaN or infinite values, expected none (see allow_nonfinite)")
    # the file has bytes without their order
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
