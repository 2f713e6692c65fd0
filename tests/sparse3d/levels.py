"""Random levels and kernel maps, compiled once per shape: eager JAX would compile every small operation by itself."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import twins

from dyn_jax.sparse3d import KernelMap, Sites, coarsen, kernel_map, sites_of

# integers in, integers out: the compiler's optimisations only cost time here
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
sites_at = quick(sites_of, static_argnums=(2, 3))
below = quick(coarsen, static_argnums=(1, 2))


@functools.lru_cache(maxsize=64)
def level(seed: int, count: int, capacity: int) -> Sites:
    """`count` random sites of [-4, 4)^3 in three batch items."""
    coordinates = np.zeros((capacity, 4), np.int32)
    coordinates[:count] = twins.random_sites(seed, count, low=-4, high=4)
    return sites_at(jnp.asarray(coordinates), jnp.arange(capacity) < count)


def pairs_of(source: Sites, target: Sites, kernel_size, **arguments) -> KernelMap:
    """`kernel_map`; a jitted function would take one level given twice for two."""
    given = tuple(sorted(arguments.items()))
    return (
        _pairs(True, kernel_size, given)(source)
        if source is target
        else _pairs(False, kernel_size, given)(source, target)
    )


@functools.cache
def _pairs(same: bool, kernel_size, arguments: tuple):
    """One jitted function for every kernel, so that levels of one shape share its compilation."""
    if same:
        return quick(lambda one: kernel_map(one, one, kernel_size, **dict(arguments)))
    return quick(lambda one, other: kernel_map(one, other, kernel_size, **dict(arguments)))


def rows_of(given: Sites) -> list[tuple[int, ...]]:
    """The coordinates in use."""
    return [tuple(site) for site in np.asarray(given.coordinates)[: int(given.count)].tolist()]
