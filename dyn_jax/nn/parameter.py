"""A layer's parameter, at no cost where it is there."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta
from flax.errors import ScopeParamShapeError


def parameter(layer: nn.Module, name: str, init: Callable[..., jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """``layer.param(name, init, shape)``; a parameter that is there is compared with `shape`.

    Flax traces the initialiser to know that shape, for every parameter whenever a network is traced.

    Raises:
      flax.errors.ScopeParamShapeError: the parameter has another shape.
    """
    if not layer.has_variable("params", name):
        return layer.param(name, init, shape)
    value = meta.unbox(layer.get_variable("params", name))
    if np.shape(value) != tuple(shape):
        raise ScopeParamShapeError(name, "/" + "/".join(layer.path), np.shape(value), tuple(shape))
    return value
