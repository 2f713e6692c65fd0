"""Multiply-adds by formula: one rule a layer, and a count over a traced function that knows no silent zero.

A multiply-add counts as one. Networks add up the rules below; `of_function` is their cross-check, walking the jaxpr of
a dense forward pass. (XLA's own cost analysis is no reference: it counts a scan body once.) All results are Python
integers; what an input really executes is `dyn_jax.metrics.executed_macs`, a function of the trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def conv2d(kernel_size: int, in_features: int, out_features: int, positions: int = 1) -> int:
    """``k * k * in * out`` for each of `positions` output positions (1: the cost of a single position)."""
    return kernel_size * kernel_size * in_features * out_features * positions


def dense(in_features: int, out_features: int) -> int:
    """``in * out``; the bias is an addition and not counted."""
    return in_features * out_features


def lstm(in_features: int, hidden: int) -> int:
    """One step of a four-gate LSTM: ``4 * hidden * (in + hidden)``; elementwise products are not counted."""
    return 4 * hidden * (in_features + hidden)


# Primitives that move, compare or combine elements without a contraction.
_FREE = frozenset(
    """
    abs add add_any and argmax argmin broadcast_in_dim ceil clamp concatenate convert_element_type copy copy_p cos
    cumsum div eq erf erfc exp exp2 expand_dims floor gather ge gt integer_pow iota is_finite le log log1p logistic lt
    max min mul ne neg not or pad pow real reduce_and reduce_max reduce_min reduce_or reduce_precision reduce_prod
    reduce_sum reduce_window_max reduce_window_sum rem reshape rev round rsqrt scatter scatter-add select_n
    shift_right_logical sign sin slice sort split sqrt square squeeze stop_gradient sub tanh top_k transpose xor
    dynamic_slice dynamic_update_slice select_and_gather_add random_bits random_wrap random_unwrap random_fold_in
    random_seed threefry2x32 shift_left mul_add optimization_barrier stack unstack
    """.split()
)

# Jitted functions that compute a layer in another form: name -> rule on their equation.
RULES: dict[str, Callable[[Any], int]] = {}


def of_function(fun: Callable, *args: Any) -> int:
    """Multiply-adds of one call of `fun`, from its jaxpr: convolutions, dot products, scans times their length.

    Args:
      fun: a function of arrays. Padding counts like data, as in every paper's table.
      *args: arrays or `jax.ShapeDtypeStruct`; nothing is executed.

    Returns:
      An integer, for the whole batch in `args`.

    Raises:
      NotImplementedError: the function holds a primitive without a rule (never counted as zero).
    """
    return _of_jaxpr(jax.make_jaxpr(fun)(*args))


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":  # the kernel's inputs are already divided by feature_group_count
        kernel, outputs = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        each = math.prod(size for axis, size in enumerate(kernel) if axis != outputs)
        return math.prod(equation.outvars[0].aval.shape) * each
    if name == "dot_general":
        (lhs_contract, _), (_, _) = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in lhs_contract)
    if name == "scan":
        return params["length"] * _of_jaxpr(params["jaxpr"])
    if name == "while":
        raise NotImplementedError("macs.of_function: a while loop has no static length; count its body yourself")
    if name == "cond":
        return max(map(_of_jaxpr, params["branches"]))
    if params.get("name") in RULES:
        return RULES[params["name"]](equation)
    if inner := [params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params]:
        return sum(map(_of_jaxpr, inner))
    if name in _FREE:
        return 0
    raise NotImplementedError(f"macs.of_function: no rule for the primitive {name!r}")
