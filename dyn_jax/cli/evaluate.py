"""``dyn-jax evaluate``, ``attack`` and ``report``: from a network's name or file, and images, to a report."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from typing import Any

import numpy as np

EVALUATE = """\
NETWORK is a name of `dyn-jax list` or module:attribute, a Linen module, a function that makes one without arguments, or
a function (variables, images) of your own. Without --weights the network must be one that ships with the package.

  dyn-jax evaluate dynconv-digits --data digits --eps 8/255 --output run
  dyn-jax evaluate resnet-32-cifar10 --weights resnet32.th --data cifar10 --eps 2/255 --output run
  dyn-jax evaluate skipnet-32-cifar10 --data FOLDER --attacks dynamics,energy --eps 2/255 --output run
  dyn-jax evaluate mine:net --weights mine.msgpack --data test.npz --eps 8/255 --output run

--attacks takes names and plans, separated by commas:
  standard   AutoAttack: apgd-ce, apgd-t, fab-t, square
  plus       AutoAttack's plus: five restarts, DLR and untargeted FAB as well
  rand       AutoAttack's rand, for networks that draw: apgd-ce, apgd-dlr on the mean of --draws draws
  dynamics   the same, led by LGM as well: apgd-ce@soft, apgd-ce@straight-through, ...
  energy     energy-apgd (inside the ball), grad-auto, ilfo, grad-mdm: the most multiply-adds
  curve      fmn: the smallest perturbation of each image, so the accuracy at every eps
others: fgsm, bim, pgd, rays (yes and no alone), spsa (numbers alone), ddn (smallest L2 perturbation); @soft and
@straight-through lead those by gradients.
An image that one attack broke is not attacked again. Interrupted or killed, the same command goes on where it was, and
ends with the same files: result.json, report.html, adversarial.npz, png/.
"""
ATTACK = """\
  dyn-jax attack dynconv-digits --data digits --attack bim@soft --eps 8/255 --lambdas 3 --output adversarial.npz
  dyn-jax attack sact-digits --data digits --attack grad-auto --eps 8/255
"""


def add_to(commands: Any) -> None:
    """The sub-commands."""
    raw = argparse.RawDescriptionHelpFormatter
    whole = commands.add_parser(
        "evaluate",
        help="attack a network with an ensemble, check it, and write a report",
        description="Attacks a network with an ensemble of attacks, keeps the worst of each image, writes a report.",
        epilog=EVALUATE,
        formatter_class=raw,
    )
    _network(whole)
    whole.add_argument("--attacks", default="standard", metavar="NAMES", help="see below (default standard)")
    whole.add_argument("--output", required=True, metavar="RUN", help="folder of the run; made")
    whole.add_argument("--resume", action="store_true", help="insist that there is a run to go on with")
    whole.set_defaults(run=_evaluate)

    one = commands.add_parser(
        "attack",
        help="attack a network with one attack",
        description="Attacks a network with one attack, and prints what it did.",
        epilog=ATTACK,
        formatter_class=raw,
    )
    _network(one)
    one.add_argument("--attack", required=True, metavar="NAME", help="e.g. apgd-ce, bim@soft, grad-auto, fmn")
    one.add_argument("--output", metavar="FILE", help="npz of what the attack returned, and of what came of it")
    one.set_defaults(run=_attack)

    page = commands.add_parser("report", help="write the report of a finished run anew", description="RUN/report.html.")
    page.add_argument("run_folder", metavar="RUN", help="what dyn-jax evaluate --output named")
    page.set_defaults(run=_report)


def _network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", metavar="NETWORK", help="a name, or module:attribute; see below")
    weights = "variables (.msgpack) or a PyTorch checkpoint (.pth, .th, .pt)"
    data = "npz with image and label; a folder for each class; a folder with CIFAR-10; or digits, cifar10"
    parser.add_argument("--weights", metavar="FILE", help=weights)
    parser.add_argument("--entry", metavar="NAME", help="which state dict of a checkpoint with several")
    parser.add_argument("--data", required=True, metavar="FILE|FOLDER|NAME", help=data)
    parser.add_argument("--examples", type=int, metavar="N", help="the first N images (default: all)")
    parser.add_argument("--eps", default="8/255", help="radius, e.g. 8/255 or 0.5 (default 8/255)")
    parser.add_argument("--norm", default="linf", help="linf, l2 or l1 (default linf)")
    parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="images at once (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="of attacks by gradients (default 100)")
    parser.add_argument("--targets", type=int, metavar="N", help="wrong classes that targeted attacks try (default 9)")
    parser.add_argument("--queries", type=int, metavar="N", help="of square and rays (default 5000)")
    parser.add_argument("--energy-steps", type=int, metavar="N", help="of grad-auto, ilfo and grad-mdm (default 300)")
    parser.add_argument("--lambdas", metavar="L,L", help="steepness of LGM's softened gates (default 1,3,10)")
    parser.add_argument("--gumbel", type=float, metavar="T", help="random gates: Gumbel noise at this temperature")
    parser.add_argument("--draws", type=int, default=20, metavar="N", help="of random gates (default 20)")


def _evaluate(arguments: argparse.Namespace) -> None:
    from dyn_jax.evaluation import evaluate, report

    found = evaluate(**_given(arguments), attacks=arguments.attacks, output=arguments.output, resume=arguments.resume)
    if found is None:
        print(f"this share is done; the process that ends last writes the report into {arguments.output}")
        return
    _print(found)
    print(f"report: {report(arguments.output)}")


def _attack(arguments: argparse.Namespace) -> None:
    from dyn_jax import _files
    from dyn_jax.evaluation import evaluate, files
    from dyn_jax.evaluation.plan import PLANS, names_of

    name, *others = names_of(arguments.attack)
    if others or arguments.attack.strip() in PLANS:
        raise ValueError(
            f"--attack: got {arguments.attack!r}, expected one attack; several: dyn-jax evaluate --attacks"
        )
    if arguments.output is not None:
        _files.target(arguments.output)
    found = evaluate(**_given(arguments), attacks=name)
    assert found is not None  # one process
    _print(found)
    if arguments.output is not None:
        got = {field: found.attacks[name][field] for field in ("run", "success", "distance", "macs", "prediction")}
        moved = got["run"][:, None, None, None]  # what was wrong already is as it was
        images = np.where(moved, found.attacks[name]["adversarial"], found.examples["adversarial"])
        kept = {"adversarial": images, "label": found.examples["label"], **got}
        _files.write(arguments.output, files.packed(kept))
        print(arguments.output)


def _report(arguments: argparse.Namespace) -> None:
    from dyn_jax.evaluation import report

    print(report(arguments.run_folder))


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `evaluate` takes, from the command line."""
    from dyn_jax import _validate, occupancy
    from dyn_jax.datasets import to_float
    from dyn_jax.evaluation import Budget

    data = images_of(arguments.data)
    count = len(data.labels)
    wanted = count if arguments.examples is None else _validate.positive_int("--examples", arguments.examples)
    if wanted > count:
        raise ValueError(f"--examples: got {wanted}, expected at most {count}, all there are")
    net, variables = network_of(arguments.network, arguments.weights, arguments.entry)
    chosen = {name: getattr(arguments, name) for name in ("steps", "targets", "queries", "energy_steps")}
    if arguments.lambdas is not None:
        try:
            chosen["lambdas"] = tuple(map(float, arguments.lambdas.split(",")))
        except ValueError:
            raise ValueError(f"--lambdas: got {arguments.lambdas!r}, expected numbers separated by commas") from None
    return {
        "net": net,
        "variables": variables,
        "images": to_float(data.images[:wanted]),
        "labels": data.labels[:wanted],
        "eps": arguments.eps,
        "norm": arguments.norm,
        "occupancy": None if arguments.gumbel is None else occupancy.gumbel_sigmoid(arguments.gumbel),
        "budget": Budget(**{name: value for name, value in chosen.items() if value is not None}),
        "seed": _validate.positive_int("--seed", arguments.seed, 0),
        "batch_size": _validate.positive_int("--batch-size", arguments.batch_size),
        "draws": (arguments.draws, arguments.draws),
        "progress": sys.stderr.isatty(),
        "facts": {"name": arguments.network, "dataset": data.name, "architecture": type(net).__name__},
    }


def network_of(name: str, weights: str | None, entry: str | None = None) -> tuple[Any, Any]:
    """(network, variables) of a name or ``module:attribute``, and a file of weights or the ones that ship.

    ValueError, OSError, ImportError: an unknown name, with the nearest; no such module or attribute; weights that are
    missing or of another network.
    """
    from dyn_jax import networks
    from dyn_jax.networks.checkpoint import load_variables, whole

    if entry is not None and (weights is None or weights.endswith(".msgpack")):
        raise ValueError(f"--entry: got {entry!r}, expected none: only a PyTorch checkpoint has several state dicts")
    if ":" in name:
        net = _attribute(name)
        if weights is None:
            raise ValueError(f"--weights: got none, expected the variables of {name}, e.g. written by save_variables")
    elif weights is None:
        if name not in networks.PRETRAINED:
            networks.create(name)  # an unknown name is the first thing to say
            raise ValueError(
                f"--weights: got none for {name}, expected a file; networks that ship: {', '.join(networks.PRETRAINED)}"
            )
        return networks.pretrained(name)
    else:
        net = networks.untrained(name) if name in networks.PRETRAINED else networks.create(name)
    if weights.endswith(".msgpack"):
        import flax.linen as nn

        return net, whole(load_variables(weights, net if isinstance(net, nn.Module) else None))
    import weights_convert
    from weights_convert import torch_io

    return net, weights_convert.convert(net, torch_io.read_state_dict(weights, entry=entry))


def _attribute(name: str) -> Any:
    """The object of ``module:attribute``; the module may lie in the folder where the command runs."""
    import flax.linen as nn

    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ImportError(f"network: got {name!r}, but {error}; expected module:attribute") from error
    except AttributeError:
        raise ValueError(f"network: got {name!r}, but the module has no {attribute!r}") from None
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found()
    if callable(found) and not isinstance(found, nn.Module):
        if not any(p.default is p.empty for p in inspect.signature(found).parameters.values()):
            return found()  # a function that makes one
    return found


def images_of(data: str) -> Any:
    """The images of a file, a folder or a name; a ValueError or OSError where it is none of these."""
    from dyn_jax import datasets
    from dyn_jax.training.embedded import data_of

    if data in ("digits", "cifar10"):
        return data_of(f"-{data}", "test")
    if os.path.isdir(data):
        names = os.listdir(data)
        if any(name.startswith(("cifar10_", "cifar-10-batches", "data_batch")) for name in names):
            return data_of("-cifar10", "test", data)
        return datasets.image_folder(data)
    if data.endswith(".npz"):
        return datasets.image_file(data)
    raise ValueError(f"--data: got {data!r}, expected an npz file, a folder, digits or cifar10")


def _print(found: Any) -> None:
    """The few lines of a terminal."""
    summary = found.summary
    print(
        f"{summary['examples']} images, {summary['threat']} {summary['eps']}: clean {summary['clean_acc']} %, "
        f"robust {summary['robust_acc']} % (95 %: {summary['interval_95'][0]} to {summary['interval_95'][1]})"
    )
    for line in summary["attacks"]:
        said = [f"{key.replace('_', ' ')} {line[key]}" for key in ("run_on", "broken", "accuracy_after") if key in line]
        said += [f"{key} {line[key]:.4g}" for key in ("macs", "psnr") if line.get(key) is not None]
        print(f"  {line['attack']:28} {', '.join(said)}")
    if (energy := summary["energy"]) is not None:
        back = "" if (part := energy["recovery_in_ball"]) is None else f"; recovered {100 * part:.1f} %"
        print(
            f"multiply-adds {energy['macs_clean']:.4g}, at worst in the ball {energy['macs_worst_in_ball']:.4g}{back}"
        )
    for finding in summary.get("checks", []):
        print(f"  ! {finding['code']}: {finding['message']}; {finding['remedy']}")
