"""Runs a compiled function over chunks of examples: on every local device at once, in halves where memory is short.

Every device meets chunks of one shape, so that one device and many give the same bits; nothing crosses between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

Call = Callable[..., Any]  # (shared, rows, *arrays [row, ...]) -> tree of arrays [row, ...], pure


def divided(rows: Any, size: int) -> list[Any]:
    """Rows (or what else can be sliced) in chunks of `size`, the last one smaller."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]


class Chunks:
    """A compiled function of chunks.

    Args:
      call: see `Call`; compiled once for each size.
      shared: its first argument, the same for all.
      size: rows of a chunk as compiled; smaller chunks are filled up with copies of their last row.
      devices: default all local ones.
    """

    def __init__(self, call: Call, shared: Any, size: int, devices: Sequence[Any] | None = None) -> None:
        self.size = size
        self._shared = shared
        devices = list(jax.local_devices() if devices is None else devices)
        self.at_once = len(devices)  # chunks that run at the same time
        self._compiled = jax.jit(call)
        if self.at_once > 1:
            mesh = Mesh(np.array(devices), ("device",))
            row, whole = PartitionSpec("device"), PartitionSpec()

            def spread(shared: Any, *arrays: Any) -> Any:
                specs = (whole, *(row for _ in arrays))
                return jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=row, check_vma=False)(shared, *arrays)

            self._compiled = jax.jit(spread)

    def __call__(self, chunks: Sequence[np.ndarray], *arrays: np.ndarray) -> Iterator[Any]:
        """What the function makes of each chunk, on the host; MemoryError where not even a single row fits.

        Args:
          chunks: row numbers, at most `size` each.
          arrays: [example, ...], of which the chunks pick rows.
        """
        for group in divided(chunks, self.at_once):
            yield from self._group(list(group), arrays)

    def _group(self, group: list[np.ndarray], arrays: tuple[np.ndarray, ...]) -> list[Any]:
        """As many chunks as there are devices; where they do not fit, in halves, now and from now on."""
        while True:
            parts = [divided(rows, self.size) for rows in group]
            pieces = [piece for chunk in parts for piece in chunk]
            try:
                done = [one for some in divided(pieces, self.at_once) for one in self._side_by_side(some, arrays)]
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if self.size == 1:
                    raise MemoryError("one example alone does not fit into the memory of the device") from error
                self.size = (self.size + 1) // 2
                continue
            left = iter(done)
            return [jax.tree.map(lambda *pieces: np.concatenate(pieces), *islice(left, len(p))) for p in parts]

    def _side_by_side(self, group: list[np.ndarray], arrays: tuple[np.ndarray, ...]) -> list[Any]:
        whole = [*group, *[group[-1]] * (self.at_once - len(group))]  # every device gets a chunk
        filled = np.concatenate([np.pad(rows, (0, self.size - len(rows)), mode="edge") for rows in whole])
        got = jax.device_get(self._compiled(self._shared, filled, *(array[filled] for array in arrays)))
        take = lambda k: jax.tree.map(lambda leaf: leaf[k * self.size : k * self.size + len(group[k])], got)
        return [take(k) for k in range(len(group))]
