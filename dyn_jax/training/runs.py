"""Checkpoints of training runs: the state, the position, and what the run is of."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import os
import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from dyn_jax import _files
from dyn_jax.networks.checkpoint import load_variables, save_variables
from dyn_jax.training.recipe import Recipe


class State(NamedTuple):
    """What a step changes."""

    params: Any
    batch_stats: Any
    optimizer: Any


class Position(NamedTuple):
    """Where a run is: stage, epoch and steps done in it (all from 0), and the means that are under way."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    cross_entropy: Any = np.inf  # mean of the epoch before, see `Progress`
    losses: tuple = ()  # of the steps done in this epoch, as the cross-entropies
    cross_entropies: tuple = ()


def save(path: str | os.PathLike, identity: dict[str, str], state: State, position: Position) -> None:
    """Writes a checkpoint, whole or not at all."""
    leaves = jax.tree.leaves(state.optimizer)
    of = np.frombuffer(json.dumps(identity).encode(), np.uint8)
    where = {name: np.asarray(value) for name, value in jax.device_get(position)._asdict().items()}
    content = {"params": state.params, "batch_stats": state.batch_stats, "run": {"of": of, **where}}
    numbered = {f"{number:05d}": leaf for number, leaf in enumerate(leaves)}
    # what has not been measured yet is infinite
    save_variables(path, {**content, "optimizer": numbered}, allow_nonfinite=True)


def load(path: str | os.PathLike | None, identity: dict[str, str]) -> tuple[dict[str, Any], Position] | None:
    """(what `restore` takes, position) of a checkpoint; None where there is no file.

    `identity` is what the run is of, or the part of it that is known. ValueError: a damaged file, one that is no
    checkpoint of a run, or of another run: says what differs.
    """
    if path is None or not os.path.exists(path):
        return None
    content = load_variables(path, allow_nonfinite=True)
    if not {"of", *Position._fields} <= set(content.get("run", {})):
        raise ValueError(f"checkpoint: {os.fspath(path)!r} holds variables, but is no checkpoint of a training run")
    with _files.reading(os.fspath(path), "a checkpoint of a training run"):
        run, saved = content["run"], dict(json.loads(bytes(content["run"]["of"])))
        restorable = all(isinstance(content.get(name), dict) for name in ("params", "batch_stats", "optimizer"))
        stage, epoch, step = (int(run[name]) for name in ("stage", "epoch", "step"))
        losses, entropies = (tuple(run[name]) for name in ("losses", "cross_entropies"))
        if not restorable or min(stage, epoch, step) < 0:
            raise ValueError("it has no state to go on from")
    differ = [
        f"{key} is {_short(saved.get(key, 'none'))} there and {_short(wanted)} here"
        for key, wanted in identity.items()
        if saved.get(key) != wanted
    ]
    if differ:
        more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise ValueError(
            f"checkpoint: {os.fspath(path)!r} is of another run: {'; '.join(differ[:4])}{more}. "
            "Remove it, or name another file"
        )
    return content, Position(stage, epoch, step, run["cross_entropy"], losses, entropies)


def restore(content: dict[str, Any], optimizer: optax.GradientTransformation) -> State:
    """The state in what `load` gave."""
    leaves = [content["optimizer"][name] for name in sorted(content["optimizer"])]
    structure = jax.tree.structure(jax.eval_shape(optimizer.init, content["params"]))
    return State(content["params"], content["batch_stats"], jax.tree.unflatten(structure, leaves))


def writable(name: str, path: str | os.PathLike) -> str:
    """Returns `path` as a string.

    Raises:
      FileNotFoundError, PermissionError, ValueError: a file could not be written there at the end of a long run.
    """
    path = os.fspath(path)
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.basename(path) or (os.path.exists(path) and not os.path.isfile(path)):
        what = "a folder" if os.path.isdir(path) else "no regular file"
        raise ValueError(f"{name}: got {path!r}, which is {what}, expected the name of a file")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{name}: got {path!r}, but its folder {folder!r} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}: got {path!r}, but its folder {folder!r} is not writable")
    return path


def identify(net: nn.Module, recipe: Recipe, seed: int, **arrays: Any) -> dict[str, str]:
    """What a run is of, in words: every field of the network and of the recipe, the seed, a fingerprint of `arrays`."""
    identity = {"network": type(net).__name__, "seed": str(seed)}
    for head, record in (("network", net), ("recipe", recipe)):
        identity |= {f"{head}.{name}": _describe(value) for name, value in _fields(record)}
    return identity | {name: _fingerprint(value) for name, value in arrays.items()}


def _fields(record: Any) -> list[tuple[str, Any]]:
    """Of a dataclass, without those that only place a module in another one."""
    names = [field.name for field in dataclasses.fields(record) if field.name not in ("parent", "name")]
    return [(name, getattr(record, name)) for name in names]


_PLAIN = (int, float, str, np.ndarray, np.generic, jax.Array)


def _beside(value: Any, function: types.FunctionType) -> bool:
    """Whether it is a function of the same module, a user's: those of this package are in the digest of its code."""
    callee = inspect.isfunction(value) or hasattr(value, "__wrapped__")  # by jax.jit
    own = callee and getattr(value, "__module__", None) == function.__module__
    return own and function.__module__.partition(".")[0] != __name__.partition(".")[0]


def _describe(value: Any, inside: tuple[int, ...] = ()) -> str:
    """Words that are equal for equal values in another process; a function is its code, what it closes over, and what
    it names of its module: numbers, strings, arrays, and a user's other functions."""
    if id(value) in inside:  # a function that calls itself
        return "..."
    inside = (*inside, id(value))
    listed = lambda values: ", ".join(_describe(v, inside) for v in values)
    if isinstance(value, functools.partial):
        return f"partial({listed([value.func, *value.args, value.keywords])})"
    if inspect.ismethod(value):
        return listed([value.__func__, value.__self__])
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(type(value)):
        pairs = ", ".join(f"{name}={_describe(v, inside)}" for name, v in _fields(value))
        return f"{type(value).__name__}({pairs})"
    if inspect.isfunction(value):
        code, words = _code(value.__code__)
        digest = hashlib.blake2b(code.encode(), digest_size=4).hexdigest()
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = [*(value.__defaults__ or ()), *sorted((value.__kwdefaults__ or {}).items())]
        named = [(word, value.__globals__.get(word)) for word in sorted(words)]
        named = [pair for pair in named if isinstance(pair[1], _PLAIN) or _beside(pair[1], value)]
        return f"{value.__module__}.{value.__qualname__}[{digest}]({listed([*held, *defaults, *named])})"
    if hasattr(value, "__wrapped__"):  # by jax.jit
        return f"{type(value).__name__}({_describe(value.__wrapped__, inside)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{key!r}: {_describe(v, inside)}' for key, v in value.items()))}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(_describe(v, inside) for v in value))}}}"
    if isinstance(value, (tuple, list)):
        return f"({listed(value)})"
    if hasattr(value, "dtype"):
        return repr(np.asarray(value).item()) if np.ndim(value) == 0 else _fingerprint(value)
    if type(value).__repr__ is object.__repr__:  # which says nothing of what it holds
        return f"{type(value).__qualname__}({_describe(getattr(value, '__dict__', {}), inside)})"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _code(code: types.CodeType) -> tuple[str, set[str]]:
    """(what a function's code and that of the functions inside it do, the names of globals in it)."""
    parts, words = [], set(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            constant, more = _code(constant)
            words |= more
        elif isinstance(constant, frozenset):  # in another order in another process
            constant = sorted(map(repr, constant))
        parts.append(constant)
    return repr((code.co_code, parts, code.co_names)), words


def _fingerprint(tree: Any) -> str:
    """A digest of a tree's arrays and strings, with their places."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        head = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        digest.update(head.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
