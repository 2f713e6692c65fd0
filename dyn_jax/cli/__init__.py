"""The command ``dyn-jax``: parses, then calls the library."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command.

    Returns:
      0 when it worked; 2 with one plain line on standard error for bad input; 130 after Ctrl-C; 141 where what reads
      the output has gone (``dyn-jax list | head -1``), without a word.
    """
    if argv is None:  # the process is the command's own; what calls `main` from Python sets JAX itself
        # before jax is imported: jaxlib writes lines of alarm about programs that it kept on the very same machine
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        keep_programs()
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["convert"]:
        from weights_convert.__main__ import main as convert

        return convert(argv[1:])
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # what is still buffered must not meet the closed pipe again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as stop:
        print(f"dyn-jax: interrupted{stop}", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, TypeError, ArithmeticError, OSError, ImportError, MemoryError) as error:
        print(f"dyn-jax: {error}", file=sys.stderr)
        return 2
    return 0


def keep_programs() -> None:
    """Compiled programs are kept for the next command, in ``$XDG_CACHE_HOME/dyn_jax/compiled`` (below ``~/.cache``).

    JAX's own variables go first: ``JAX_COMPILATION_CACHE_DIR`` names another folder,
    ``JAX_ENABLE_COMPILATION_CACHE=false`` keeps nothing. A folder that cannot be made: nothing is kept.
    """
    import jax

    given, wanted = (
        getattr(jax.config, f"jax_{name}") for name in ("compilation_cache_dir", "enable_compilation_cache")
    )
    if given is not None or not wanted:
        return
    above = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(above, "dyn_jax", "compiled")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", folder)


TRAIN = """\
Networks: skipnet-digits, skipnet-rl-digits, dynconv-digits, sact-digits, manidp-digits,
avit-digits (tokens), moe-digits, vmoe-digits (experts),
sdn-{vgg16,resnet56,mobilenet}-digits (early exits), cnn-{vgg16,resnet56,mobilenet}-digits (without them),
minkunet-rooms, minkfcnn-objects, cylinder3d-streets (sparse 3D). Nothing is downloaded; one to some
minutes on two cores.
On CIFAR-10, from a published static network, and for longer: skipnet-32-cifar10, dynconv-32-cifar10,
manidp-32-cifar10, sact-32-cifar10 (--trunk: resnet-32-cifar10), sdn-resnet56-cifar10 (resnet-56-cifar10).

  dyn-jax train skipnet-digits --output skipnet.msgpack
  python -m weights_convert resnet-32-cifar10 resnet32.th resnet32.msgpack
  dyn-jax train skipnet-32-cifar10 --trunk resnet32.msgpack --data FOLDER --float16 --output skipnet.msgpack
  dyn-jax train sdn-resnet56-digits --seed 1 --epochs 5 --output sdn.msgpack

Interrupted or killed, the same command goes on where it was, and ends with the same weights. Load them with
dyn_jax.networks.checkpoint.load_variables(FILE) for dyn_jax.networks.create(NAME).
"""


def _parser() -> argparse.ArgumentParser:
    from dyn_jax import __version__
    from dyn_jax.cli import evaluate

    parser = argparse.ArgumentParser(
        prog="dyn-jax",
        description="Attacks on adaptive neural networks.",
        epilog="Start with: dyn-jax demo. Every command explains itself: dyn-jax train --help.",
    )
    parser.add_argument("--version", action="version", version=f"dyn-jax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser(
        "demo",
        help="attack the embedded networks with FGSM and BIM, FGM against LGM",
        description="Attacks networks that ship with the package, prints a table and draws pictures; some minutes.",
    )
    demo.add_argument("--output", default="demo_output", metavar="FOLDER", help="where the pictures go")
    demo.add_argument("--examples", type=int, help="test images, at most 500 (default 100)")
    demo.add_argument("--data", metavar="FOLDER", help="with CIFAR-10: attack the networks of the papers' size instead")
    demo.add_argument("--points", action="store_true", help="attack the embedded rooms (sparse 3D) instead")
    demo.add_argument("--rooms", type=int, help="test rooms of --points, at most 16 (default 2)")
    demo.add_argument("--lidar", action="store_true", help="attack a network on simulated streets (LiDAR) instead")
    demo.add_argument("--streets", type=int, help="test streets of --lidar, at most 16 (default 1)")
    demo.set_defaults(run=_demo)

    train = commands.add_parser(
        "train",
        help="train one of the embedded networks from scratch",
        description="Trains one of the embedded networks from scratch, then measures it on the test data.",
        epilog=TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("network", help="its name, see below")
    train.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    train.add_argument("--epochs", type=int, help="of every stage, instead of the recipe's own number")
    train.add_argument("--trunk", metavar="FILE", help="variables of the static network to start from (CIFAR-10)")
    train.add_argument("--data", metavar="FOLDER", help="with CIFAR-10 (default: $DYN_JAX_DATA or ~/.cache/dyn_jax)")
    train.add_argument("--output", required=True, metavar="FILE", help="variables, flax msgpack")
    train.add_argument("--float16", action="store_true", help="write kernels in half precision")
    train.add_argument("--checkpoint", metavar="FILE", help="where the run is kept until it ends (default: OUTPUT.run)")
    train.add_argument("--every", type=int, default=50, metavar="STEPS", help="between checkpoints (default 50)")
    train.set_defaults(run=_train)

    data = commands.add_parser(
        "prepare-cifar10",
        help="write CIFAR-10 for TFDS, without TensorFlow or a download",
        description="Writes CIFAR-10, from the original archive that you have, where TFDS finds it.",
    )
    data.add_argument("source", help="folder with the original archive or batches")
    data.set_defaults(run=_prepare)

    scans = commands.add_parser(
        "prepare-semantickitti",
        help="write SemanticKITTI for TFDS, without TensorFlow or a download",
        description="Writes SemanticKITTI, from the folder that you have, where TFDS finds it: dyn_jax.datasets."
        'scans_from_tfds("semantickitti", "val") reads it.',
    )
    scans.add_argument("source", help="folder with sequences/00/velodyne and so on")
    splits = "of train, val, test (default val)"
    scans.add_argument("--splits", nargs="+", default=["val"], metavar="SPLIT", help=splits)
    scans.set_defaults(run=_prepare_scans)
    for command in (data, scans):
        command.add_argument("--data-dir", help="TFDS folder (default: below $DYN_JAX_DATA or ~/.cache/dyn_jax)")

    evaluate.add_to(commands)

    commands.add_parser("convert", help="a PyTorch checkpoint as variables, as python -m weights_convert")

    listing = commands.add_parser("list", help="names of the networks", description="Names for networks.create.")
    listing.set_defaults(run=_list)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from dyn_jax import _files, _validate
    from dyn_jax.cli import demo, demo_lidar, demo_points

    own = "streets" if arguments.lidar else "rooms" if arguments.points else "examples"
    given = {name: getattr(arguments, name) for name in ("examples", "data", "rooms", "streets")}
    for name, value in given.items():
        if value is not None and name != own and (name, own) != ("data", "examples"):
            raise ValueError(f"--{name}: got {value!r}, expected none: it says nothing about a demo of {own}")
    if arguments.lidar and arguments.points:
        raise ValueError("--points: got it beside --lidar, expected one of them")
    usual, most = {"examples": (100, 500), "rooms": (2, 16), "streets": (1, 16)}[own]
    count = usual if given[own] is None else _validate.positive_int(f"--{own}", given[own])
    if count > most:
        raise ValueError(f"--{own}: got {count}, expected at most {most}, all there are")
    _files.folder("--output", arguments.output)
    if own == "examples":
        demo.run(arguments.output, count, arguments.data)
    else:
        (demo_lidar if arguments.lidar else demo_points).run(arguments.output, count)


def _train(arguments: argparse.Namespace) -> None:
    import json

    from tqdm import tqdm

    from dyn_jax.networks.checkpoint import halved, save_variables, whole
    from dyn_jax.training import embedded, runs
    from dyn_jax.training.loop import evaluate

    name, output = arguments.network, arguments.output
    checkpoint = f"{output}.run" if arguments.checkpoint is None else arguments.checkpoint
    recipe = embedded.recipe_of(name, arguments.epochs)
    if os.path.realpath(runs.writable("--output", output)) == os.path.realpath(checkpoint):
        raise ValueError(f"--checkpoint: got the file of --output, {output!r}, expected another one")
    epochs = sum(stage.epochs for stage in recipe.stages)
    if os.path.exists(checkpoint):
        print(f"going on from {checkpoint}")

    def report(epoch: int, loss: float) -> None:
        tqdm.write(f"epoch {epoch:3d} of {epochs}  loss {loss:8.4f}")
        sys.stdout.flush()

    try:
        variables = embedded.train(
            name,
            seed=arguments.seed,
            epochs=arguments.epochs,
            trunk=arguments.trunk,
            folder=arguments.data,
            checkpoint=checkpoint,
            every=arguments.every,
            report=report,
        )
    except KeyboardInterrupt as stop:
        kept = f"; the same command goes on from {checkpoint}" if os.path.exists(checkpoint) else ""
        raise KeyboardInterrupt(kept) from stop
    if arguments.float16:
        variables = halved(variables)
    size = save_variables(output, variables)
    if os.path.exists(checkpoint):
        os.remove(checkpoint)
    print(f"{output}: {size} bytes")
    test = embedded.data_of(name, "test", arguments.data)
    print(json.dumps(evaluate(embedded.network_of(name), whole(variables), test, recipe.source)))


def _prepare(arguments: argparse.Namespace) -> None:
    from dyn_jax.datasets import prepare_tfds

    print(prepare_tfds(arguments.source, arguments.data_dir))


def _prepare_scans(arguments: argparse.Namespace) -> None:
    from dyn_jax.datasets import prepare_scans_tfds, semantickitti

    splits = {split: semantickitti(split, arguments.source) for split in arguments.splits}
    print(prepare_scans_tfds(splits, "semantickitti", arguments.data_dir))


def _list(arguments: argparse.Namespace) -> None:
    del arguments
    from dyn_jax import networks

    print("\n".join(networks.names()))
