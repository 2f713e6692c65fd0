"""Standard AutoAttack beside its released code: robust accuracy, passes and seconds, in one run on one network.

    python -m benchmarks.autoattack --data FOLDER --checkpoints FOLDER [--peer FOLDER] [--images 32] [--output FILE]

The victim is the published ResNet-20, the images are the first original CIFAR-10 test images. `--peer` is a checkout of
github.com/fra31/auto-attack (``git clone`` it; without one our side alone is measured), which runs with one thread and
with all. Ours runs twice: the first time it compiles, into an empty cache; the second time it finds its programs there.
A pass is that of one image; ours are those of the loops, filled-up rows and queries after an image is done included.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from benchmarks import _turns
from dyn_jax.datasets import cifar10_lossless, to_float
from dyn_jax.evaluation import Budget, Evaluation, evaluate
from dyn_jax.nn import IMAGENET_MEAN_STD
from experiments import _record
from experiments._weights import PUBLISHED, published
from experiments.autoattack_reference import ATTACKS, BATCH, SETS, last_exit

EPS = {"resnet20_eps1": 1 / 255, "resnet20_eps2": 2 / 255}


@contextlib.contextmanager
def cached() -> Iterator[None]:
    """An empty cache of compiled programs, as ``JAX_COMPILATION_CACHE_DIR`` makes one that stays."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": 0.0}
        before = {name: getattr(jax.config, name) for name in options}
        try:
            for name, value in options.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def ours(name: str, images: np.ndarray, labels: np.ndarray, budget: Budget, checkpoints: str) -> Callable:
    """() -> `Evaluation`."""
    net, variables = published(SETS[name], checkpoints)

    def run() -> Evaluation:
        found = evaluate(last_exit(net), variables, images, labels, eps=EPS[name], budget=budget, batch_size=BATCH)
        assert found is not None  # one process
        return found

    return run


def passes(found: Evaluation, budget: Budget, classes: int) -> dict[str, int]:
    """Forward and backward passes of the loops of the four attacks."""
    targets, steps = min(budget.targets, classes - 1), budget.steps
    forward = {"apgd-ce": steps + 1, "apgd-t": targets * (steps + 2), "fab-t": 2 * targets * steps}
    backward = {"apgd-ce": steps + 1, "apgd-t": targets * (steps + 1), "fab-t": targets * steps}
    forward["square"] = budget.queries + 1
    rows = {name: int(np.sum(found.attacks[name]["run"])) for name in ATTACKS.values() if name in found.attacks}
    count = lambda each: sum(each.get(name, 0) * number for name, number in rows.items())
    return {"forward passes": count(forward), "backward passes": count(backward)}


class Counted:
    """A PyTorch network that counts images, forward and backward."""

    def __init__(self, net: Any) -> None:
        self.net, self.forward, self.backward = net, 0, 0

    def __call__(self, x: Any) -> Any:
        logits = self.net(x)
        self.forward += len(x)
        if logits.requires_grad:
            logits.register_hook(lambda g: self._count(len(g)))
        return logits

    def _count(self, images: int) -> None:
        self.backward += images


def released(torch: Any, arguments: argparse.Namespace, images: np.ndarray, labels: np.ndarray, threads: int):
    """() -> (standing [image] bool, passes), by the released code."""
    from autoattack import AutoAttack  # pyright: ignore  # of the checkout

    from benchmarks._torch_peers import ResNet
    from weights_convert.torch_io import read_state_dict

    net = ResNet(20, *IMAGENET_MEAN_STD)
    state = read_state_dict(pathlib.Path(arguments.checkpoints) / PUBLISHED[SETS[arguments.set]])
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False)
    net = net.eval().requires_grad_(False)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    y = torch.from_numpy(labels.astype(np.int64))

    def run() -> tuple[np.ndarray, dict[str, int]]:
        torch.set_num_threads(threads)
        counted = Counted(net)
        attack = AutoAttack(counted, norm="Linf", eps=EPS[arguments.set], seed=0, verbose=False, device="cpu")
        for part in (attack.apgd, attack.apgd_targeted, attack.fab):
            part.n_iter = arguments.steps
        attack.square.n_queries = arguments.queries
        adversarial = attack.run_standard_evaluation(x, y, bs=BATCH)
        made = {"forward passes": counted.forward, "backward passes": counted.backward}
        with torch.no_grad():
            return (net(adversarial).argmax(1) == y).numpy(), made

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of cifar10_lossless_test.npz")
    parser.add_argument("--checkpoints", required=True, help="folder of the published weights")
    parser.add_argument("--peer", type=pathlib.Path, default=None, help="checkout of github.com/fra31/auto-attack")
    parser.add_argument("--set", choices=list(EPS), default="resnet20_eps1")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--output", default=None, help="JSON file for the numbers")
    arguments = parser.parse_args()
    if arguments.peer and not (arguments.peer / "autoattack" / "autoattack.py").is_file():
        raise ValueError(f"peer: got {arguments.peer}, expected a checkout with autoattack/autoattack.py")
    data = cifar10_lossless(arguments.data, "test")
    images, labels = to_float(data.images[: arguments.images]), data.labels[: arguments.images]
    budget = Budget(steps=arguments.steps, queries=arguments.queries)
    rows: list[dict[str, Any]] = []
    peak = _turns.matrix_peak()
    each_pass = _turns.forward_macs(published(SETS[arguments.set], arguments.checkpoints)[0], images[:1])

    def row(contender: str, threads: int, run: Callable[[], tuple[np.ndarray, dict[str, int]]]) -> np.ndarray:
        made: list = []
        took = _turns.timed(lambda: made.append(run()))
        (standing, count), each = made[0], len(images)
        rows.append(
            {"contender": contender, "threads": threads, "robust accuracy %": 100 * float(standing.mean()), **count}
            | {"s an image": took.wall / each, "CPU s an image": took.cpu / each}
            | {_turns.SHARE: sum(count.values()) * each_pass / peak / took.wall}
        )
        print(rows[-1], flush=True)
        return standing

    def here() -> tuple[np.ndarray, dict[str, int]]:
        found = attack()
        examples = found.examples
        return examples["correct"] & ~examples["broken"], passes(found, budget, 10)

    cores = _record.device()["cores"]
    attack = ours(arguments.set, images, labels, budget, arguments.checkpoints)
    with cached():
        standing = row("dyn_jax, compilation counted", cores, here)
        row("dyn_jax, programs in the cache", cores, here)
    if arguments.peer:
        import torch

        sys.path.insert(0, str(arguments.peer))
        for threads in _turns.thread_counts(torch):
            there = row("released code", threads, released(torch, arguments, images, labels, threads))
            rows[-1] |= {"stand here only": np.flatnonzero(standing & ~there).tolist()}
            rows[-1] |= {"stand there only": np.flatnonzero(there & ~standing).tolist()}
    _turns.keep(rows, arguments)


if __name__ == "__main__":
    main()
