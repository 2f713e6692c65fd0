"""Runs an attack over a data set in batches of one shape: compiled once, results independent of the batch size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, AttackResult


def run_batched(
    attack: Attack,
    forward: Callable,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 128,
    key: jax.Array | None = None,
    victim: Callable | None = None,
    targets: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    progress: bool = False,
) -> AttackResult:
    """The attack's result for all of `images`, on the host.

    The last batch is filled up with copies of its last example (and the copies dropped), so that one shape is traced.
    Example i uses ``fold_in(key, i)`` whatever the batch size. Attacks that couple the examples of a batch
    (`lgm_auto_step`, `mi_fgsm` with ``protocol="release"``) are exact only where no filling was needed.

    Args:
      attack, forward, victim, key, targets, mask: as for calling the attack; a mask is shared by all images.
      images: [n, height, width, channel].
      labels: [n].
      batch_size: examples in one compiled call.
      progress: show a progress bar on standard error.

    Returns:
      An `AttackResult` of numpy arrays with n in place of batch.

    Raises:
      ValueError, TypeError: what the attack raises, before anything is compiled.
    """
    _validate.positive_int("batch_size", batch_size)
    images = np.asarray(_validate.images("images", images))
    _validate.within("images", images, attack.threat.bounds)
    count = images.shape[0]
    labels = np.asarray(_validate.labels("labels", labels, count))
    if targets is not None:
        targets = np.asarray(_validate.labels("targets", targets, count))
        _validate.differ("targets", targets, labels)
    batch_size = min(batch_size, count)

    @jax.jit
    def run(rows: jax.Array, x: jax.Array, y: jax.Array, t: jax.Array | None) -> AttackResult:
        return attack(forward, x, y, key=key, victim=victim, targets=t, mask=mask, index=rows)

    results = []
    starts = range(0, count, batch_size)
    if progress:
        from tqdm import tqdm

        starts = tqdm(starts, unit="batch")
    for first in starts:
        rows = np.minimum(np.arange(first, first + batch_size), count - 1)
        result = run(rows, images[rows], labels[rows], None if targets is None else targets[rows])
        results.append(jax.tree.map(np.asarray, result))
    return jax.tree_util.tree_map_with_path(partial(_join, count), *results)


# Below these names the leaves are [step or exit, batch, ...]; all others have the batch first.
_BATCH_SECOND = ("loss_history", "exits", "record")


def _join(count: int, path: tuple, *leaves: np.ndarray) -> np.ndarray:
    """The leaves of all batches in one, without the filling of the last."""
    axis = 1 if any(part.name in _BATCH_SECOND for part in path if hasattr(part, "name")) else 0
    joined = np.concatenate(leaves, axis=axis)
    return joined[:, :count] if axis else joined[:count]
