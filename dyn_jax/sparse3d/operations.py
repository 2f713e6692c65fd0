"""Convolutions of a sparse tensor: functions that find the sites, build the kernel map, and keep the rows' order.

For one layer, or a network without levels to share. Networks hold levels and kernel maps once per forward pass
(`Passage`); here every call sorts and searches anew.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.sparse3d.convolution import convolve
from dyn_jax.sparse3d.kernel import Size, offsets, scaled, triple
from dyn_jax.sparse3d.maps import kernel_map
from dyn_jax.sparse3d.segments import Segments, segments, spread, sum_over
from dyn_jax.sparse3d.sites import Sites, coarsen, reached
from dyn_jax.sparse3d.tensor import SparseTensor


def convolution(
    tensor: SparseTensor,
    kernel: jax.Array,
    *,
    kernel_size: Size,
    stride: Size = 1,
    dilation: Size = 1,
    region: str = "cube",
    neighbourhood: Size | None = None,
    bias: jax.Array | None = None,
    capacity: int | None = None,
) -> SparseTensor:
    """Sparse convolution: ``out[u] = sum_k in[u + offset_k * tensor stride * dilation] @ kernel[k] + bias``.

    With stride 1 the output has the input's sites, rows and row order; else the distinct sites
    ``floor(c / s) * s`` with s the tensor's stride times `stride`, sorted, whatever the kernel size. Rows that are not
    valid come out as zeros. Differentiable in features, kernel and bias.

    Args:
      tensor: see `SparseTensor`.
      kernel: [volume, in, out] in the order of `offsets`, or [in, out] where the volume is 1.
      kernel_size, stride, dilation: an integer or three (x, y, z).
      region: see `offsets`.
      neighbourhood: size of the kernel whose neighbours are met instead: slice k of the kernel acts on neighbour k of
        this one, and slices beyond its last are not used. None: the kernel's own. (spconv 1.2 does so where layers of
        different kernels share an ``indice_key``, and Cylinder3D was trained that way.)
      bias: [out], or None.
      capacity: rows of a strided output; default as many as the tensor has. Too few set the output's overflow flag.

    Raises:
      TypeError: not a sparse tensor; sizes that are not integers.
      ValueError: a kernel or bias whose shape does not fit; a capacity with stride 1; a neighbourhood of more sites
        than the kernel has slices.

    Source: LGM paper eq. 24; MinkowskiEngine's MinkowskiConvolution.
    """
    kernel = _checked(tensor, kernel, bias, kernel_size, region)
    steps = triple("stride", stride)
    if neighbourhood is not None:
        kernel = _reused(kernel, neighbourhood, region)
        kernel_size = neighbourhood
    if capacity is not None:
        _validate.positive_int("capacity", capacity)
        if steps == (1, 1, 1):
            raise ValueError(f"capacity: got {capacity} with stride 1, expected None: the rows are the input's")
    if len(kernel) == 1 and steps == (1, 1, 1):
        features = jnp.where(tensor.valid[:, None], tensor.features, 0) @ kernel[0]
        return tensor.replace(features=_finish(features, bias, tensor.valid))
    fine, groups = _sorted(tensor)
    coarse = fine if steps == (1, 1, 1) else coarsen(fine, steps, capacity)
    pairs = kernel_map(fine, coarse, kernel_size, dilation=dilation, region=region)
    features = convolve(sum_over(tensor.features, groups), kernel, pairs)
    if coarse is fine:
        return tensor.replace(features=_finish(spread(features, groups), bias, tensor.valid), overflow=fine.overflow)
    features = _finish(features, bias, coarse.valid)
    return SparseTensor(coarse.coordinates, features, coarse.valid, coarse.overflow, coarse.stride)


def reaching_convolution(
    tensor: SparseTensor,
    kernel: jax.Array,
    *,
    kernel_size: Size,
    stride: Size,
    bounds: Size,
    region: str = "dense",
    bias: jax.Array | None = None,
    capacity: int | None = None,
) -> SparseTensor:
    """Strided convolution onto every site that the kernel reaches from a site: the output may have more than the input.

    On a dense grid [0, bounds) with zeros where nothing is, this is the convolution with padding ``k // 2``, read at
    the outputs that see some site; see `sites.reached`. Its transpose on the input's sites is `transposed_convolution`
    with ``like`` the input.

    Args:
      tensor, kernel, region, bias: as for `convolution`.
      kernel_size: odd, an integer or three (x, y, z).
      stride: an integer or three.
      bounds: cells of the grid of stride 1, an integer or three.
      capacity: rows of the output; default what always fits. Too few set the output's overflow flag.

    Raises:
      TypeError, ValueError: see `convolution`; an even kernel size.

    Source: spconv 1.2.1 and 2.3, SparseConv3d.
    """
    kernel = _checked(tensor, kernel, bias, kernel_size, region)
    fine, groups = _sorted(tensor)
    if capacity is None:
        most = [-(-k // s) for k, s in zip(triple("kernel_size", kernel_size), triple("stride", stride))]
        capacity = fine.capacity * most[0] * most[1] * most[2]
    coarse = reached(fine, stride, kernel_size, bounds=bounds, capacity=_validate.positive_int("capacity", capacity))
    pairs = kernel_map(fine, coarse, kernel_size, region=region)
    features = _finish(convolve(sum_over(tensor.features, groups), kernel, pairs), bias, coarse.valid)
    return SparseTensor(coarse.coordinates, features, coarse.valid, coarse.overflow, coarse.stride)


def transposed_convolution(
    tensor: SparseTensor,
    kernel: jax.Array,
    like: SparseTensor,
    *,
    kernel_size: Size,
    stride: Size,
    dilation: Size = 1,
    region: str = "cube",
    bias: jax.Array | None = None,
) -> SparseTensor:
    """Transposed sparse convolution onto the sites of a finer tensor.

    ``out[u + offset_k * s * dilation] += in[u] @ kernel[k]`` with s the stride of `like`: the pairs of the convolution
    from `like` to `tensor`, run backwards. The kernel is not flipped.

    Args:
      tensor, kernel, kernel_size, dilation, region, bias: as for `convolution`.
      like: has the output's sites, rows and row order; its features do not matter.
      stride: of `tensor` over that of `like`, an integer or three.

    Raises:
      TypeError: not sparse tensors; sizes that are not integers.
      ValueError: the stride of `tensor` is not that of `like` times `stride`; a kernel or bias that does not fit.

    Source: MinkowskiEngine's MinkowskiConvolutionTranspose onto an existing coordinate map.
    """
    _check_tensor("like", like)
    kernel = _checked(tensor, kernel, bias, kernel_size, region)
    if tensor.stride != (expected := scaled(like.stride, stride, "stride")):
        raise ValueError(
            f"tensor: got stride {tensor.stride}, expected {expected}: {like.stride} of like, times stride"
        )
    coarse, from_rows = _sorted(tensor)
    fine, to_rows = _sorted(like)
    pairs = kernel_map(fine, coarse, kernel_size, dilation=dilation, region=region).swap()
    features = spread(convolve(sum_over(tensor.features, from_rows), kernel, pairs), to_rows)
    return like.replace(features=_finish(features, bias, like.valid), overflow=fine.overflow | coarse.overflow)


def _sorted(tensor: SparseTensor) -> tuple[Sites, Segments]:
    """(sites of the tensor, its rows grouped by site): `sum_over` sorts features, `spread` puts them back."""
    sites = tensor.sites()
    row, _ = sites.find(tensor.coordinates, tensor.valid)
    return sites, segments(row, sites.capacity)


def _finish(features: jax.Array, bias: jax.Array | None, valid: jax.Array) -> jax.Array:
    if bias is not None:
        features = features + bias.astype(features.dtype)[None]
    return jnp.where(valid[:, None], features, 0)


def _check_tensor(name: str, tensor: SparseTensor) -> None:
    if not isinstance(tensor, SparseTensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, expected a SparseTensor")


def _checked(
    tensor: SparseTensor, kernel: jax.Array, bias: jax.Array | None, kernel_size: Size, region: str
) -> jax.Array:
    """The kernel as [volume, in, out] of the features' dtype, if tensor, kernel and bias fit together."""
    _check_tensor("tensor", tensor)
    volume = len(offsets(kernel_size, region))
    kernel, channels = jnp.asarray(kernel), tensor.features.shape[-1]
    full = kernel[None] if kernel.ndim == 2 and volume == 1 else kernel
    if full.ndim != 3 or full.shape[:2] != (volume, channels):
        expected = f"[{volume}, {channels}, out]" + (f" or [{channels}, out]" if volume == 1 else "")
        raise ValueError(f"kernel: got shape {kernel.shape}, expected {expected}")
    if bias is not None and jnp.shape(bias) != full.shape[2:]:
        raise ValueError(f"bias: got shape {jnp.shape(bias)}, expected {full.shape[2:]}")
    return full.astype(tensor.features.dtype)


def _reused(kernel: jax.Array, neighbourhood: Size, region: str) -> jax.Array:
    """The slices of `kernel` that act on the sites of another kernel size."""
    volume = len(offsets(neighbourhood, region))
    if volume > len(kernel):
        raise ValueError(
            f"neighbourhood: got {neighbourhood}, {volume} sites, expected at most {len(kernel)}: the kernel's slices"
        )
    return kernel[:volume]
