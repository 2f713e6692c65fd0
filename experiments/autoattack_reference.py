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

from dyn_jax.datasets import cifar10_lossless, to_float
from dyn_jax.evaluation import Budget, evaluate
from experiments import _run, _weights
from experiments._paired import percent

SETS = {
    "resnet20_eps1": "resnet-20-cifar10",
    "resnet20_eps2": "resnet-20-cifar10",
    "rdi38_eps8": "rdi-resnet38-cifar10",
}
ATTACKS = {"apgd_ce": "apgd-ce", "apgd_t": "apgd-t", "fab_t": "fab-t", "square": "square"}
COLUMNS = ("after", "claimed %", "measured %", "here only", "there only", "CPU seconds an image", "checks")
BATCH = 64


def last_exit(net: Any):
    """(variables, images) -> logits: those of the last exit where there are several."""

    def forward(variables: Any, images: Any) -> Any:
        output = net.apply(variables, images)
        return output.logits if output.trace.exits is None else output.trace.exits[:, -1]

    return forward


def compared(name: str, wanted: dict[str, np.ndarray], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each attack: what stands after it, claimed beside measured."""
    net, variables = _weights.published(SETS[name], arguments.checkpoints)
    count = min(arguments.images, len(wanted["index"]))
    images = to_float(cifar10_lossless(arguments.data, "test").images[wanted["index"][:count]])
    given, eps = (last_exit(net), variables, images, wanted["label"][:count]), float(wanted["eps"])
    budget, began = Budget(steps=arguments.steps, queries=arguments.queries), time.process_time()
    found = evaluate(*given, eps=eps, budget=budget, batch_size=BATCH, progress=True)
    assert found is not None  # one process
    seconds = time.process_time() - began
    by, rows, head = found.examples["found_by"], [], {"images of": name, "network": SETS[name]}
    head["eps"] = round(255 * eps, 3)
    for number, (there, here) in enumerate(ATTACKS.items()):
        claimed = wanted.get(f"robust_after_{there}", wanted["robust"])[:count]  # the latter where nothing was left
        standing = found.examples["correct"] & ~((by >= 0) & (by <= number))
        row = head | {"after": here, "claimed %": percent(claimed)[0], "measured %": percent(standing)[0]}
        row |= {"here only": int(np.sum(standing & ~claimed)), "there only": int(np.sum(claimed & ~standing))}
        rows.append(row)
    total = head | {"after": "all", "images": count, "CPU seconds an image": round(seconds / count, 2)}
    total |= {"claimed CPU seconds an image": round(float(wanted["cpu_seconds"].sum()) / len(wanted["index"]), 2)}
    total |= {"checks": [one["code"] for one in found.summary["checks"]]}
    return [*rows, total]


def main() -> None:
    parser = _run.parser(__doc__, "data", "checkpoints", images=128, steps=100)
    parser.add_argument("--reference", required=True, help="folder with eval_aa_*.npz")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--queries", type=int, default=5000)
    arguments = parser.parse_args()
    for name in arguments.sets:
        with np.load(pathlib.Path(arguments.reference) / f"eval_aa_{name}.npz") as archive:
            rows = compared(name, dict(archive), arguments)
        _run.finish(f"autoattack_{name}", rows, arguments, COLUMNS, arguments=arguments, seed=0)


if __name__ == "__main__":
    main()
