"""Standard AutoAttack against the verdicts of its released code, image by image, on two networks.

    python -m experiments.autoattack_reference --data FOLDER --checkpoints FOLDER --reference FOLDER [--sets NAME ...]

``claimed`` is what the released code (PyTorch, one thread) left of the same images at the same eps; its arrays, with
its CPU seconds, are `eval_aa_*.npz` in the reference folder. Every set has a record of its own, `autoattack_SET.json`,
so that sets may be run alone, and on another machine than the rest. The networks are a published ResNet-20 and the
last exit of the published RDI-ResNet-38; the images are original CIFAR-10 test images.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import Any

import numpy as np

import weights_convert
from dyn_jax import networks
from dyn_jax.datasets import cifar10_lossless, to_float
from dyn_jax.evaluation import Budget, evaluate
from experiments import _record
from weights_convert.torch_io import read_state_dict

SETS = {
    "resnet20_eps1": ("resnet-20-cifar10", "resnet20-12fca82f.th"),
    "resnet20_eps2": ("resnet-20-cifar10", "resnet20-12fca82f.th"),
    "rdi38_eps8": ("rdi-resnet38-cifar10", "rdi_resnet38_checkpoint_60000.pth.tar"),
}
ATTACKS = {"apgd_ce": "apgd-ce", "apgd_t": "apgd-t", "fab_t": "fab-t", "square": "square"}
BATCH = 64


def last_exit(net: Any):
    """(variables, images) -> logits: those of the last exit where there are several."""

    def forward(variables: Any, images: Any) -> Any:
        output = net.apply(variables, images)
        return output.logits if output.trace.exits is None else output.trace.exits[:, -1]

    return forward


def victim(name: str, checkpoints: pathlib.Path | str) -> tuple[Any, Any]:
    """The network of a set and its variables."""
    network, file = SETS[name]
    net = networks.create(network)
    return net, weights_convert.convert(net, read_state_dict(pathlib.Path(checkpoints) / file))


def percent(flags: np.ndarray) -> float:
    return round(100 * float(flags.mean()), 2)


def compared(name: str, wanted: dict[str, np.ndarray], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each attack: what stands after it, claimed beside measured."""
    net, variables = victim(name, arguments.checkpoints)
    count = min(arguments.images, len(wanted["index"]))
    index = wanted["index"][:count]
    images = to_float(cifar10_lossless(arguments.data, "test").images[index])
    began = time.process_time()
    found = evaluate(
        last_exit(net),
        variables,
        images,
        wanted["label"][:count],
        eps=float(wanted["eps"]),
        budget=Budget(steps=arguments.steps, queries=arguments.queries),
        batch_size=BATCH,
        progress=True,
    )
    assert found is not None  # one process
    seconds = time.process_time() - began
    by, rows = found.examples["found_by"], []
    for number, (there, here) in enumerate(ATTACKS.items()):
        claimed = wanted.get(f"robust_after_{there}")
        if claimed is None:  # nothing was left
            claimed = wanted["robust"]
        claimed = claimed[:count]
        standing = found.examples["correct"] & ~((by >= 0) & (by <= number))
        row = {"images of": name, "network": SETS[name][0], "eps": round(255 * float(wanted["eps"]), 3), "after": here}
        row |= {
            "claimed %": round(100 * float(claimed.mean()), 2),
            "measured %": round(100 * float(standing.mean()), 2),
        }
        row |= {
            "here only": int(np.sum(standing & ~claimed)),
            "there only": int(np.sum(claimed & ~standing)),
        }
        rows.append(row)
    total = {"images of": name, "network": SETS[name][0], "eps": rows[0]["eps"], "after": "all", "images": count}
    total |= {"CPU seconds an image": round(seconds / count, 2)}
    total |= {"claimed CPU seconds an image": round(float(wanted["cpu_seconds"].sum()) / len(wanted["index"]), 2)}
    total |= {"checks": [one["code"] for one in found.summary["checks"]]}
    return [*rows, total]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with cifar10_lossless_test.npz")
    parser.add_argument("--checkpoints", required=True, help="folder with the published weights")
    parser.add_argument("--reference", required=True, help="folder with eval_aa_*.npz")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--results", default=None, help="folder for the JSON record (default: experiments/results)")
    arguments = parser.parse_args()
    for name in arguments.sets:
        with np.load(pathlib.Path(arguments.reference) / f"eval_aa_{name}.npz") as archive:
            rows = compared(name, dict(archive), arguments)
        print(*rows, sep="\n", flush=True)
        print(
            _record.save(f"autoattack_{name}", rows, folder=arguments.results, arguments=arguments, seed=0), flush=True
        )


if __name__ == "__main__":
    main()
