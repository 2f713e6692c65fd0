"""What wrappers leave in the names of a state dict, and what they count beside its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dyn_jax._files import listed

PREFIXES = ("module", "model", "net", "network")
"""First parts of a name, from DataParallel, SWA, Lightning and training scripts; no network here has such a layer."""
INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Parts that stand anywhere: torch.compile, FSDP, activation checkpoints, Lightning's strategies."""
COUNTERS = ("n_averaged", "total_ops", "total_params")
"""Last parts of what is no weight: SWA's steps, thop's counts."""
AVERAGED = re.compile(r"(?:^|[^a-z])(?:ema|swa|shadow|teacher|averaged?|avg|polyak)(?:[^a-z]|$)", re.IGNORECASE)
"""Names of averaged weights beside the trained ones."""


def plain(state: Mapping[str, Any], entry: str | None = None) -> dict[str, Any]:
    """The state dict under its layers' own names.

    Takes `COUNTERS` out, the parts `INSIDE` off, and one by one the `PREFIXES` that every key left carries.

    Args:
      state: {name: anything}.
      entry: keep only the keys that begin with this prefix, and take it off.

    Raises:
      ValueError: two keys that become one; keys under several prefixes, which are several models, and no `entry`; or no
        key under it.
    """
    kept: dict[str, Any] = {}
    for key, value in state.items():
        if key.rpartition(".")[2] not in COUNTERS:
            name = ".".join(part for part in key.split(".") if part not in INSIDE)
            if name in kept:
                raise ValueError(f"two keys are {name!r} without what torch.compile or FSDP adds, expected one")
            kept[name] = value
    kept = _stripped(kept)
    if entry is not None:
        chosen = {key.removeprefix(f"{entry}."): value for key, value in kept.items() if key.startswith(f"{entry}.")}
        if not chosen:
            raise ValueError(f"entry: got {entry!r}, expected one of {listed(sorted(_heads(kept)))}")
        return _stripped(chosen)
    heads = _heads(kept)
    if len(heads) > 1 and all(head in PREFIXES or AVERAGED.search(head) for head in heads):
        names = ", ".join(map(repr, sorted(heads)))
        raise ValueError(f"it holds {len(heads)} state dicts, under the prefixes {names}: {choose(sorted(heads)[-1])}")
    return kept


def choose(name: str) -> str:
    """How to choose one of several state dicts, for messages."""
    return f"choose one with entry={name!r} (on the command line: --entry {name})"


def without_prefix(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state dict without the first part that all its keys have in common; None where they have none."""
    heads = _heads(state)
    if len(heads) != 1 or not all("." in key for key in state):
        return None
    return {key.partition(".")[2]: value for key, value in state.items()}


def hint(state: Mapping[str, Any]) -> str:
    """One line about a prefix that some keys carry and others do not; empty where there is none."""
    for head in PREFIXES:
        count = sum(key.startswith(f"{head}.") for key in state)
        if count:
            others = [key for key in state if not key.startswith(f"{head}.")]
            return f"{count} of {len(state)} keys have the prefix '{head}.', not {listed(others[:3])}: {choose(head)}; "
    return ""


def _stripped(state: dict[str, Any]) -> dict[str, Any]:
    while _heads(state) <= set(PREFIXES) and (shorter := without_prefix(state)):
        state = shorter
    return state


def _heads(state: Mapping[str, Any]) -> set[str]:
    return {key.partition(".")[0] for key in state}
