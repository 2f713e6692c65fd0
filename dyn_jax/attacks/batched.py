"""Runs an attack over a data set in batches of one shape: compiled once, results independent of the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, AttackResult
from dyn_jax.attacks.domains import check_binary


def without_traces(result: AttackResult) -> AttackResult:
    """The result less its two traces, which outgrow everything else (9 GiB for 10,000 ImageNet images)."""
    return result.replace(trace_clean=None, trace_adversarial=None)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a batched run; `result` is that of the batches that were done (None: none was)."""

    def __init__(self, result: Any) -> None:
        super().__init__("interrupted; the batches that were done are in .result")
        self.result = result


class Batched:
    """An attack on a network, ready for data sets: every call with images of one size shares one compiled program.

    Example i uses ``fold_in(key, i)`` whatever the batch size; the last batch is filled up with copies of its last
    example, and the copies dropped. Attacks that couple the examples of a batch (`lgm_auto_step`, `lgm.mi_fgsm`) are
    exact only where no filling was needed.

    Args:
      attack, forward, victim: as for calling the attack.
      batch_size: examples in one compiled call.
      keep: what of a batch's result to keep, a function of the `AttackResult` traced into the program: its leaves have
        the example first. Default: everything but the traces.
      progress: show a progress bar on standard error.
    """

    def __init__(
        self,
        attack: Attack,
        forward: Callable,
        *,
        victim: Callable | None = None,
        batch_size: int = 128,
        keep: Callable[[AttackResult], Any] = without_traces,
        progress: bool = False,
    ) -> None:
        self.attack, self.batch_size, self.progress = attack, _validate.positive_int("batch_size", batch_size), progress

        @jax.jit
        def run(rows: jax.Array, x: jax.Array, y: jax.Array, t: Any, key: Any, mask: Any) -> Any:
            return keep(attack(forward, x, y, key=key, victim=victim, targets=t, mask=mask, index=rows))

        self._run = run

    def batches(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        key: jax.Array | None = None,
        targets: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> Iterator[Any]:
        """What is kept of every batch, on the host, one after the other.

        Args:
          images: [n, height, width, channel].
          labels, targets: [n].
          key, mask: as for calling the attack; a mask is shared by all images, or [n, height, width, channel or 1].

        Raises:
          ValueError, TypeError: what the attack raises, before anything is compiled.
        """
        images = np.asarray(_validate.images("images", images))
        _validate.within("images", images, self.attack.threat.bounds)
        labels = np.asarray(_validate.labels("labels", labels, len(images)))
        if targets is not None:
            targets = np.asarray(_validate.labels("targets", targets, len(images)))
            _validate.differ("targets", targets, labels)
        each = False
        if mask is not None:
            check_binary(mask)
            mask = np.asarray(mask)
            each = mask.ndim == 4 and len(mask) > 1
            if each and len(mask) != len(images):  # a batch's own masks would begin again with the next batch
                raise ValueError(
                    f"mask: got shape {mask.shape}, expected one for all or for each of {len(images)} images"
                )

        def call(rows: np.ndarray) -> Any:
            t = None if targets is None else targets[rows]
            m = mask[rows] if each and mask is not None else mask
            return self._run(rows, images[rows], labels[rows], t, key, m)

        return _each(call, len(images), self.batch_size, self.progress)

    def __call__(self, images: np.ndarray, labels: np.ndarray, **given: Any) -> Any:
        """All batches in one, numpy arrays with n in place of batch; arguments as of `batches`.

        Raises:
          Interrupted: on Ctrl-C, with what was done.
        """
        parts: list[Any] = []
        try:
            parts.extend(self.batches(images, labels, **given))
        except KeyboardInterrupt:
            raise Interrupted(_joined(parts) if parts else None) from None
        return _joined(parts)


def in_batches(call: Callable[[np.ndarray], Any], count: int, batch_size: int) -> Any:
    """``call(rows)`` for all rows in batches of one size, joined on the host."""
    return _joined(list(_each(call, count, batch_size, False)))


def _each(call: Callable[[np.ndarray], Any], count: int, batch_size: int, progress: bool) -> Iterator[Any]:
    size = min(batch_size, count)
    starts: Any = range(0, count, size)
    if progress:
        from tqdm import tqdm

        starts = tqdm(starts, unit="batch")
    for first in starts:
        rows = np.minimum(np.arange(first, first + size), count - 1)
        used = min(size, count - first)
        yield jax.tree.map(lambda leaf, used=used: np.asarray(leaf)[:used], call(rows))


def _joined(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
