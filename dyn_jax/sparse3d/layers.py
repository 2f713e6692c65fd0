"""Linen layers on the rows of one level. They own parameters and call the functions of this package."""

from __future__ import annotations

import flax.linen as nn
import jax

from dyn_jax.nn.parameter import parameter
from dyn_jax.sparse3d.convolution import convolve
from dyn_jax.sparse3d.maps import KernelMap


class Convolution(nn.Module):
    """Sparse convolution over a kernel map, or a plain product of every row where there is none.

    Attributes:
      features: channels out.
      use_bias: whether a bias is added.
    """

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, pairs: KernelMap | None = None) -> jax.Array:
        """x [voxel, in] -> [voxel out, features]; kernel [volume, in, out], or [in, out] without `pairs`."""
        shape = (x.shape[-1], self.features)
        if pairs is None:
            y = x @ parameter(self, "kernel", nn.initializers.he_normal(), shape)
        else:
            initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=-2, out_axis=-1)
            kernel = parameter(self, "kernel", initializer, (pairs.volume, *shape))
            y = convolve(x, kernel.astype(x.dtype), pairs)
        if self.use_bias:
            y = y + parameter(self, "bias", nn.initializers.zeros, (self.features,))[None]
        return y
