"""The command ``dyn-jax``: parses, then calls the library."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; 0 when it worked, 2 with one plain line on standard error for bad input."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"dyn-jax: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dyn-jax", description="Attacks on adaptive neural networks.")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="attack the embedded networks with FGSM and BIM, FGM against LGM")
    demo.add_argument("--output", default="demo_output", metavar="FOLDER", help="where the pictures go")
    demo.add_argument("--examples", type=int, default=100, help="test images, at most 500")
    demo.add_argument("--points", action="store_true", help="attack the embedded rooms (sparse 3D) instead")
    demo.add_argument("--rooms", type=int, default=2, help="test rooms of --points, at most 16")
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train", help="train one of the embedded networks from scratch")
    train.add_argument("network", help="{skipnet,skipnet-rl,dynconv,sact,manidp}-digits, minkunet-rooms, ...")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--epochs", type=int, default=None)
    train.add_argument("--output", required=True, metavar="FILE", help="variables, flax msgpack")
    train.set_defaults(run=_train)

    data = commands.add_parser("prepare-cifar10", help="write CIFAR-10 for TFDS, without TensorFlow or a download")
    data.add_argument("source", help="folder with the original archive or batches")
    data.add_argument("--data-dir", default=None, help="TFDS folder (default: below $DYN_JAX_DATA or ~/.cache/dyn_jax)")
    data.set_defaults(run=_prepare)

    listing = commands.add_parser("list", help="names of the networks")
    listing.set_defaults(run=_list)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from dyn_jax import _validate
    from dyn_jax.cli import demo, demo_points

    _validate.positive_int("--examples", arguments.examples)
    _validate.positive_int("--rooms", arguments.rooms)
    if arguments.points:
        demo_points.run(arguments.output, count=arguments.rooms)
        return
    demo.run(arguments.output, examples=arguments.examples)


def _train(arguments: argparse.Namespace) -> None:
    import json

    from dyn_jax import _validate, networks
    from dyn_jax.datasets import digits
    from dyn_jax.networks.checkpoint import save_variables
    from dyn_jax.training import digits as images
    from dyn_jax.training import points
    from dyn_jax.training.loop import evaluate

    began = time.perf_counter()

    def report(epoch: int, loss: float) -> None:
        print(f"epoch {epoch:3d}  loss {loss:8.4f}  {time.perf_counter() - began:6.1f} s", flush=True)

    name = _validate.choice("network", arguments.network, [*images.RECIPES, *images.STAGED, *points.RECIPES])
    recipes = points if name in points.RECIPES else images
    variables = recipes.train(name, seed=arguments.seed, epochs=arguments.epochs, report=report)
    size = save_variables(arguments.output, variables)
    net = networks.create(name)
    if recipes is points:
        print(json.dumps(points.evaluate(name, net, variables)))
    else:
        print(json.dumps(evaluate(net, variables, digits("test"))))
    print(f"{arguments.output}: {size} bytes")


def _prepare(arguments: argparse.Namespace) -> None:
    from dyn_jax.datasets import prepare_tfds

    print(prepare_tfds(arguments.source, arguments.data_dir))


def _list(arguments: argparse.Namespace) -> None:
    from dyn_jax import networks

    print("\n".join(networks.names()))


if __name__ == "__main__":
    sys.exit(main())
