"""2D convolution whose input gradient stays fast inside ``scan`` and ``fori_loop`` on CPU."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from dyn_jax import _validate, macs
from dyn_jax.nn.kernel_gradient import kernel_gradient
from dyn_jax.nn.winograd import fits_winograd, winograd_conv3x3

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_NARROW = 16  # XLA's CPU backend has its fast kernel only above this many channels

FORMS = ("auto", "standard", "rewritten")
_form = "auto"


@contextlib.contextmanager
def convolutions(form: str) -> Iterator[None]:
    """What is traced inside takes one form of `conv2d`, on any backend: to test on CPU what a GPU runs.

    ``standard``: XLA's own convolutions and gradients; ``rewritten``: those for CPU; ``auto``: by the backend; another:
    ValueError. What was compiled before keeps its form.
    """
    global _form
    before, _form = _form, _validate.choice("form", form, FORMS)
    try:
        yield
    finally:
        _form = before


def rewritten() -> bool:
    """Whether convolutions take the forms that are fast on CPU: the one place that asks for the backend."""
    return jax.default_backend() == "cpu" if _form == "auto" else _form == "rewritten"


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0, winograd: bool = False) -> jax.Array:
    """Cross-correlation of `x` with `kernel`, square stride and symmetric zero padding, as in PyTorch.

    Inside a loop body XLA's CPU backend runs JAX's own input-gradient convolution (dilated, with a reversed kernel)
    about ten times slower than outside (compare jax-ml/jax#12868), and an attack spends all its time there. So on
    CPU the backward pass to `x` is an ordinary forward convolution, that to `kernel` a product (`kernel_gradient`), and
    convolutions of at most 16 channels compute neighbouring output pixels as further channels, to reach the backend's
    fast kernel. Elsewhere the forms are the standard ones; `convolutions` takes either anywhere. `benchmarks/README.md`
    has the measurements.

    Args:
      x: [batch, height, width, in].
      kernel: [k, k, in, out].
      stride: step between output positions.
      padding: zeros added on every side; at most ``k - 1``.
      winograd: on CPU, 3x3 convolutions of more than 16 channels by Winograd's F(4, 3) along the height: about a
        tenth faster for a whole ResNet, relative error 2e-6 instead of 3e-7 per layer.

    Returns:
      [batch, 1 + (height + 2 padding - k) // stride, ..., out].

    Only reverse-mode differentiation is defined (any order); ``jax.jvp`` raises.
    """
    return _conv2d(x, kernel, stride, padding, winograd, rewritten())


def _lax_conv(x, kernel, stride, padding, lhs_dilation=(1, 1)):
    return jax.lax.conv_general_dilated(
        x, kernel, stride, padding, lhs_dilation=lhs_dilation, dimension_numbers=_DIMENSIONS
    )


def _forward(x, kernel, stride, padding, winograd, fast):
    if fast:
        if winograd and fits_winograd(x, kernel, stride, padding, _NARROW):
            return winograd_conv3x3(x, kernel)
        group = _group(x, kernel, stride, padding)
        if group > 1:
            return grouped_pixels_conv(x, kernel, padding, group)
    return _lax_conv(x, kernel, (stride, stride), ((padding, padding),) * 2)


def _group(x, kernel, stride, padding) -> int:
    """How many neighbouring output pixels make more than 16 channels; 1 where that is not needed or does not fit."""
    size, _, fan_in, fan_out = kernel.shape
    if stride != 1 or size == 1 or max(fan_in, fan_out) > _NARROW:
        return 1
    group = 2
    while group * fan_out <= _NARROW:
        group *= 2
    width = x.shape[2] + 2 * padding - size + 1
    return group if width % group == 0 else 1


@partial(jax.jit, static_argnums=(2, 3))
def grouped_pixels_conv(x: jax.Array, kernel: jax.Array, padding: int, group: int) -> jax.Array:
    """Stride-1 convolution with `group` neighbouring output pixels of a row as channels of one wider window."""
    shifted = [jnp.pad(kernel, ((0, 0), (i, group - 1 - i), (0, 0), (0, 0))) for i in range(group)]
    y = _lax_conv(x, jnp.concatenate(shifted, -1), (1, group), ((padding, padding),) * 2)
    return y.reshape(*y.shape[:2], y.shape[2] * group, kernel.shape[3])


def input_gradient(
    g: jax.Array, kernel: jax.Array, size: tuple[int, ...], stride: int, padding: int, winograd: bool, fast: bool
) -> jax.Array:
    """Gradient of `conv2d` to an input of height and width `size`, as a forward convolution of the cotangent `g`;
    in the forms for CPU where it is to be `fast` there."""
    k = kernel.shape[0]
    if stride == 1:
        return _forward(g, jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3), 1, k - 1 - padding, winograd, fast)
    if fast:
        return _strided_input_gradient(g, kernel, size, stride, padding)
    # Rows of x that no window reaches, at the far edge, get zero gradient.
    low = k - 1 - padding
    pads = tuple((low, low + (n + 2 * padding - k) % stride) for n in size)
    return _lax_conv(g, jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3), (1, 1), pads, (stride, stride))


def _strided_input_gradient(g, kernel, size, stride, padding):
    """The stride x stride phases of the gradient as channels of one dense convolution, then depth to space."""
    k, _, fan_in, fan_out = kernel.shape
    # Position s q + r of the gradient takes tap t from output q + d with s d = r + padding - t.
    pairs = [(r, t) for r in range(stride) for t in range(k) if (r + padding - t) % stride == 0]
    offset = {(r, t): (r + padding - t) // stride for r, t in pairs}
    first, last = min(offset.values()), max(offset.values())
    taps = np.full((last - first + 1, stride), k)  # index k: no tap, a zero
    for (r, t), d in offset.items():
        taps[d - first, r] = t
    padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    window = padded[taps][:, :, taps]  # [window, phase, window, phase, in, out]
    window = window.transpose(0, 2, 5, 1, 3, 4).reshape(len(taps), len(taps), fan_out, stride * stride * fan_in)
    blocks = [-(-n // stride) for n in size]
    pads = tuple((-first, q + last - n) for q, n in zip(blocks, g.shape[1:3]))
    y = _lax_conv(g, window, (1, 1), pads).reshape(-1, *blocks, stride, stride, fan_in)
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(-1, blocks[0] * stride, blocks[1] * stride, fan_in)
    return y[:, : size[0], : size[1]]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Height and width of what was convolved, and of the kernel."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]


def _conv2d_fwd(x, kernel, *how):
    # What is not differentiated is not kept: an attack needs no x, and traces no gradient of the kernel. An empty array
    # stands for it: under an inlined jit JAX takes for granted that what is kept has one structure for all gradients.
    nothing = jnp.zeros(0)
    kept = x.value if kernel.perturbed else nothing, kernel.value if x.perturbed else nothing
    sizes = _Sizes(x.value.shape[1:3], kernel.value.shape[:2])
    return _forward(x.value, kernel.value, *how), (*kept, sizes)


def _conv2d_bwd(stride, padding, winograd, fast, residuals, cotangent):
    x, kernel, sizes = residuals
    if isinstance(cotangent, SymbolicZero):
        return None, None
    x_bar = kernel_bar = None
    if kernel.ndim > 1:
        x_bar = input_gradient(cotangent, kernel, sizes.x, stride, padding, winograd, fast)
    if x.ndim > 1:
        kernel_bar = _kernel_gradient(x, cotangent, sizes.kernel[0], stride, padding, fast)
    return x_bar, kernel_bar


def _kernel_gradient(x, g, size, stride, padding, fast):
    if fast:
        return kernel_gradient(x, g, size, stride, padding)
    shape = (size, size, x.shape[3], g.shape[3])
    plain = lambda kernel: _lax_conv(x, kernel, (stride, stride), ((padding, padding),) * 2)
    return jax.linear_transpose(plain, jax.ShapeDtypeStruct(shape, x.dtype))(g)[0]


_differentiable = jax.custom_vjp(_forward, nondiff_argnums=(2, 3, 4, 5))
_differentiable.defvjp(_conv2d_fwd, _conv2d_bwd, symbolic_zeros=True)
_conv2d = jax.jit(_differentiable, static_argnums=(2, 3, 4, 5), inline=True)


def _macs_of_equation(equation) -> int:
    """Multiply-adds of the convolution that a rewritten form stands for."""
    kernel = equation.invars[1].aval.shape
    return equation.outvars[0].aval.size * kernel[0] * kernel[1] * kernel[2]


macs.RULES |= {"grouped_pixels_conv": _macs_of_equation, "winograd_conv3x3": _macs_of_equation}
