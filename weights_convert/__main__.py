"""``python -m weights_convert NAME in.pth out``: a PyTorch checkpoint as a dyn_jax variables file."""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

import weights_convert
from dyn_jax import _files, networks
from dyn_jax.networks import checkpoint
from weights_convert import torch_io
from weights_convert.tables import cylinder3d

BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 after one plain message on stderr with nothing written."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(networks.names()))
        return 0
    if args.out is None:
        parser.error("the arguments NAME, in and out are required (or --list)")
    try:
        print(_convert_file(args.name, args.source, args.out, args.entry, _fields(args)))
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"weights_convert: error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weights_convert",
        description="Converts a PyTorch checkpoint into a dyn_jax variables file (flax msgpack).",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="the network, e.g. resnet-32-cifar10 (see --list)")
    parser.add_argument("source", metavar="in", nargs="?", help="the PyTorch checkpoint (.pth, .th, .pt, .pth.tar)")
    parser.add_argument("out", nargs="?", help="the file to write; an existing one is replaced on success only")
    parser.add_argument("--classes", metavar="N", type=int, help="number of classes, where it is not the usual one")
    parser.add_argument(
        "--entry", metavar="NAME", help="which state dict of a file with several, e.g. state_dict_ema for the average"
    )
    parser.add_argument(
        "--field",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="another field of the network, e.g. --field depths=1,1,1 --field shortcut=B; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the networks")
    return parser


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    fields = {} if args.classes is None else {"num_classes": args.classes}
    for pair in args.field:
        key, equals, text = pair.partition("=")
        if not (key and equals and text):
            raise ValueError(f"--field: got {pair!r}, expected KEY=VALUE")
        try:
            fields[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[key] = text
    return fields


def _convert_file(name: str, source: str, out: str, entry: str | None, fields: dict[str, Any]) -> str:
    """Reads, converts and writes; returns the line to print. Writing comes last."""
    networks.create(name)
    _files.target(out)
    if os.path.exists(out) and os.path.exists(source) and os.path.samefile(source, out):
        raise ValueError(f"out: got {out!r}, which is the checkpoint itself, expected another file")
    state_dict = torch_io.read_state_dict(source, entry=entry)
    variables = weights_convert.convert(name, state_dict, **fields)
    size = checkpoint.save_variables(out, variables)
    leaves = jax.tree.leaves(variables)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    statistics = sum(leaf.size for leaf in leaves) - parameters
    unused = cylinder3d.unused_slices(state_dict) if fields.get("neighbourhoods", "shared") == "shared" else {}
    left = "".join(f"; {count} of 27 slices of {key} are read by no layer" for key, count in unused.items())
    return (
        f"{out}: {name}, {len(leaves)} tensors from {len(state_dict)} in the checkpoint, "
        f"{parameters:,} parameters and {statistics:,} batch statistics, {size:,} bytes{left}"
    )


if __name__ == "__main__":
    sys.exit(main())
