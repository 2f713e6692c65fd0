"""Applies a family's name table to a state dict, strict both ways: every key used, every leaf filled, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import dyn_jax
from dyn_jax._files import listed, short
from dyn_jax._precision import half
from dyn_jax.networks.checkpoint import target_shapes
from weights_convert import layout, names
from weights_convert.tables import format_of, reorder, table_for

Path = tuple[str, ...]
_LARGEST = np.finfo(np.float32).max


class ConversionError(ValueError):
    """A state dict that does not fit the network; the message lists the first keys and shapes that did not match."""


def convert(
    network: str | nn.Module, state_dict: Mapping[str, Any], *, kernel_order: str = "cube", **fields: Any
) -> dict[str, Any]:
    """PyTorch state dict -> Flax variables of the network called `network`.

    Args:
      network: a name of `dyn_jax.networks.names`, or a module (a reduced or changed network).
      state_dict: {torch key: array}, as `weights_convert.torch_io.read_state_dict` returns it. A prefix that all keys
        carry and what wrappers add to names are taken off (`names.plain`); ``num_batches_tracked`` and the like are
        ignored. SACT's are TensorFlow variables,
        {name: array} as TensorFlow's ``load_checkpoint`` lists them; optimiser slots and averages are ignored. V-MoE's
        are Flax parameters, {``Encoder/.../kernel``: array}.
      kernel_order: of MinkUNet's 3x3x3 block kernels: ``cube`` (MinkowskiEngine 0.5), or ``hybrid`` (0.4 with STS's
        networks, among them the published ScanNet and S3DIS checkpoints). The shapes are the same: a wrong order
        cannot be noticed here, and the network is then useless.
      **fields: passed to `dyn_jax.networks.create` with a name, e.g. ``num_classes=100``.

    Returns:
      ``{'params': ..., 'batch_stats': ...}`` of numpy float arrays.

    Raises:
      ValueError: unknown name; unknown kernel order, or ``hybrid`` for another family; keys of several models,
        each under its own prefix.
      TypeError: `state_dict` is not a mapping from names to arrays; no network; fields beside a module.
      ConversionError: unmatched keys, missing leaves, wrong shapes, integers, non-finite values, or two keys of one
        shared tensor that differ. Nothing is returned then.
    """
    module = dyn_jax.networks.create(network, **fields) if isinstance(network, str) else network
    if not isinstance(module, nn.Module):
        raise TypeError(f"network: got {short(module)}, expected a name or a module")
    if fields and module is network:
        raise TypeError(
            f"network: got a module and {listed(fields)}, expected a name with fields: a module has its own"
        )
    arrays = _clean(state_dict)
    expected = {path: leaf.shape for path, leaf in target_shapes(module).items()}
    rename = table_for(module)
    form = format_of(module)

    def target(key: str) -> Path | None:
        if form == "flax":
            return ("params", *key.removeprefix("params/").split("/"))
        if form == "tensorflow":
            return _tensorflow_target(rename, key)
        return None if form == "minkowski" and not layout.is_minkowski(key) else _target(rename, key)

    while not any(target(key) in expected for key in arrays) and (shorter := names.without_prefix(arrays)):
        arrays = shorter
    arrays = reorder(module, arrays, kernel_order)
    filled: dict[Path, Any] = {}
    source: dict[Path, str] = {}
    problems = []
    for key, array in arrays.items():
        if form == "tensorflow" and key.endswith(layout.DROPPED_TENSORFLOW):
            continue
        path = target(key)
        if path is None or path not in expected:
            problems.append(f"unexpected key {key} {array.shape}")
            continue
        value, wanted = layout.fitted(form, key, array, expected[path])
        if value is None:
            problems.append(f"wrong shape {key}: got {array.shape}, expected {wanted}")
        elif value.dtype.kind != "f":
            problems.append(f"integers {key}: got {value.dtype}, expected floats (quantised weights have scales)")
        elif not (np.abs(value) <= _LARGEST).all():
            problems.append(f"not finite {key}: got NaN, infinite or values beyond float32")
        elif path in filled and not np.array_equal(filled[path], value):
            problems.append(f"shared tensor differs: {source[path]} and {key} are one layer, got two values")
        filled.setdefault(path, value)
        source.setdefault(path, key)
    problems += [f"missing {'/'.join(path)} {expected[path]}" for path in expected if path not in filled]
    if problems:
        separator = "\n  "
        kinds: dict[str, list[str]] = {}
        for problem in problems:
            kinds.setdefault(problem.split()[0], []).append(problem)
        name = network if isinstance(network, str) else type(network).__name__
        raise ConversionError(
            f"{name}: {names.hint(arrays)}{len(problems)} of {len(arrays)} keys and {len(expected)} leaves "
            f"do not match:{separator}{separator.join(listed(group, separator, 8) for group in kinds.values())}"
        )
    return traverse_util.unflatten_dict(filled)


def _clean(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: got {type(state_dict).__name__}, expected a mapping from names to arrays")
    if strange := [key for key in state_dict if not isinstance(key, str)]:
        raise TypeError(f"state_dict: got the key {short(strange[0])}, expected names")
    arrays = {}
    for key, value in names.plain(state_dict).items():
        if not hasattr(value, "shape"):
            raise TypeError(f"state_dict[{short(key)!r}]: got {type(value).__name__}, expected an array")
        if key.endswith(layout.DROPPED):
            continue
        try:
            array = np.asarray(value)
        except (TypeError, RuntimeError) as error:  # a PyTorch tensor that NumPy cannot see
            raise TypeError(f"state_dict[{short(key)!r}]: {error}; see torch_io.read_state_dict") from error
        is_float = jnp.issubdtype(array.dtype, jnp.floating)  # bfloat16 too
        if not is_float and array.dtype.kind not in "iu":
            raise TypeError(f"state_dict[{short(key)!r}]: got dtype {array.dtype}, expected numbers")
        arrays[key] = array.astype(np.float32 if half(array.dtype) else array.dtype.newbyteorder("="), copy=False)
    return arrays


def _target(rename: Any, key: str) -> Path | None:
    """Torch key -> (collection, layer, ..., leaf), or None where the table does not know it."""
    layer, _, leaf = key.rpartition(".")
    path = rename(layer)
    if path is None:
        return None
    is_norm = path[-1].startswith(("bn", "norm")) or layer.endswith(".bn")  # the second: MinkowskiEngine
    if leaf in layout.BUFFERS:
        return None if is_norm else ("batch_stats", *path, leaf)
    if leaf in layout.BATCH_STATS:
        return ("batch_stats", *path, layout.BATCH_STATS[leaf]) if is_norm else None
    if leaf == "weight":
        leaf = "scale" if is_norm else "kernel"
    elif leaf.endswith("_l0"):
        leaf = leaf.removesuffix("_l0")
    return ("params", *path, leaf)


def _tensorflow_target(rename: Any, key: str) -> Path | None:
    """TensorFlow variable name -> (collection, layer, ..., leaf), or None where the table does not know it."""
    layer, _, leaf = key.rpartition("/")
    path = rename(layer)
    if path is None or leaf not in layout.TENSORFLOW:
        return None
    collection, name = layout.TENSORFLOW[leaf]
    return (collection, *path, name)
