"""Sparse convolution over a kernel map, forward and backward on the compacted pairs."""

from __future__ import annotations

import jax

from dyn_jax.sparse3d.blocked import gather_multiply_add, kernel_gradient
from dyn_jax.sparse3d.maps import KernelMap, check_rows


@jax.custom_vjp
def convolve(features: jax.Array, kernel: jax.Array, pairs: KernelMap) -> jax.Array:
    """``out[j] = sum_k in[i] @ kernel[k]`` over the pairs (i, j) of every slice k.

    A cross-correlation: the kernel is not flipped. For a transposed convolution, hand in ``pairs.swap()`` of the
    matching strided one. Differentiable in features and kernel (reverse mode); each gradient is a loop over the same
    pairs, and the one that is not asked for is not computed under jit.

    Args:
      features: [size_in, in].
      kernel: [volume, in, out].
      pairs: a `kernel_map`.

    Returns:
      [size_out, out]; rows behind the last valid one hold no information.

    Source: LGM paper eq. 24; MinkowskiEngine.
    """
    check_rows(features, pairs)
    if kernel.ndim != 3 or kernel.shape[:2] != (pairs.volume, features.shape[1]):
        raise ValueError(
            f"kernel: got shape {kernel.shape}, expected [{pairs.volume}, {features.shape[1]}, out] "
            "(slices, channels in, channels out)"
        )
    loop = gather_multiply_add(pairs.size_out)
    out = loop(features, kernel, pairs.rows_in, pairs.rows_out, pairs.offset, pairs.blocks)
    return out if pairs.centre is None else out + features @ kernel[pairs.centre]


def _backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    features, kernel, pairs = saved
    listed = pairs.offset, pairs.blocks
    loop = gather_multiply_add(pairs.size_in)
    to_features = loop(cotangent, kernel.transpose(0, 2, 1), pairs.rows_out, pairs.rows_in, *listed)
    to_kernel = kernel_gradient(features, cotangent, pairs.rows_in, pairs.rows_out, *listed, pairs.volume)
    if pairs.centre is not None:
        to_features = to_features + cotangent @ kernel[pairs.centre].T
        to_kernel = to_kernel.at[pairs.centre].add(features.T @ cotangent)
    return to_features, to_kernel, None


convolve.defvjp(lambda *given: (convolve(*given), given), _backward)
