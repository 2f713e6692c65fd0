"""What every network of dyn_jax promises about its forward pass, as a check."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.metrics import dense_unit_macs, executed_unit_macs
from dyn_jax.occupancy import hard, sigmoid
from dyn_jax.testing._compare import close, quick_jit, require
from dyn_jax.types import Occupancy, Output, Variables

_CHECK = "check_network"
_SHARES = ("probability", "dilated")  # extras that lie in [0, 1]


def check_network(
    net: nn.Module,
    variables: Variables,
    images: jax.Array,
    *,
    occupancy: Occupancy | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Checks the contract of `dyn_jax.types.Output` in evaluation mode.

    Every array of the output is finite and has the batch first: logits [batch, class], exits [batch, exit, class], of
    every unit score and occupancy in one shape, and what an element costs, a non-negative integer or an array that
    broadcasts to the score. `hard` gives ``score >= 0`` and runs at most the dense multiply-adds, `occupancy` is what
    the trace says it is. jit = eager; an example's result depends neither on its place in the batch nor on the others;
    vmap = loop; the gradient of the logits and of the executed multiply-adds by the images is finite for both.

    Args:
      net: ``net.apply(variables, images, occupancy=...)`` -> `Output`.
      variables: of `net`.
      images: [batch, height, width, channel], at least two different ones. Scores closer to 0 than the rounding of
        the network make the check undecided, and it may fail: use other images.
      occupancy: a soft one; default ``sigmoid(2)``.
      tolerance: of every comparison, relative to the largest value (at least 1).
    """
    soft = sigmoid(2.0) if occupancy is None else occupancy
    batch = images.shape[0]
    require(batch >= 2, _CHECK, f"images: got a batch of {batch}, expected at least 2")

    def run(x: jax.Array, is_soft: jax.Array) -> tuple[jax.Array, Output]:
        def total(x: jax.Array) -> tuple[jax.Array, Output]:
            output: Any = net.apply(variables, x, occupancy=lambda s: jnp.where(is_soft, soft(s), hard()(s)))
            _check_shapes(output, batch)
            units = output.trace.units
            executed = sum((jnp.sum(executed_unit_macs(unit)) for unit in units), start=jnp.zeros(()))
            return jnp.sum(jax.nn.logsumexp(output.logits, axis=-1)) + executed, output

        return jax.grad(total, has_aux=True)(x)

    jitted = quick_jit(run)  # one compilation for both
    with jax.debug_nans(False):
        for name, how in (("hard", hard()), ("soft", soft)):
            gradient, output = jitted(images, name == "soft")
            _check_values(output, how, tolerance, name)
            shares = np.isfinite(np.asarray(gradient)).mean()
            require(shares == 1, _CHECK, f"{name}: gradient by the images finite in {100 * shares:.1f} % of the pixels")

        reference = jitted(images, False)[1]
        eager: Any = net.apply(variables, images, occupancy=hard())
        _same("jit = eager", eager, reference, tolerance)
        order = np.roll(np.arange(batch), 1)
        moved = jitted(np.asarray(images)[order], False)[1]
        _same("order of the batch", moved, jax.tree.map(lambda leaf: np.asarray(leaf)[order], reference), tolerance)

        def alone(x: jax.Array) -> Output:
            return jax.tree.map(lambda leaf: leaf[0], net.apply(variables, x[None], occupancy=hard()))

        _same("vmap = batch", quick_jit(jax.vmap(alone))(images), reference, tolerance)
        one = quick_jit(alone)
        loop = jax.tree.map(lambda *leaves: np.stack(leaves), *map(one, np.asarray(images)))
        _same("an example alone = in the batch", loop, reference, tolerance)


def _check_shapes(output: Output, batch: int) -> None:
    """Shapes, which a trace knows, and static numbers."""
    require(isinstance(output, Output), _CHECK, f"got {type(output).__name__}, expected an Output")
    shape = output.logits.shape
    require(len(shape) == 2 and shape[0] == batch, _CHECK, f"logits {shape}, expected ({batch}, classes)")
    trace = output.trace
    _check_integer("static_macs", trace.static_macs)
    if trace.exits is not None:
        got, expected = trace.exits.shape, f"({batch}, exits, {shape[1]})"
        require(len(got) == 3 and got[::2] == shape, _CHECK, f"exits {got}, expected {expected}")
    for number, unit in enumerate(trace.units):
        where = f"unit {number} {unit.name}"
        got = (unit.score.shape, unit.occupancy.shape)
        fits = got[0] == got[1] and got[0][:1] == (batch,)
        require(fits, _CHECK, f"{where}: score and occupancy {got}, expected equal shapes ({batch}, ...)")
        if unit.dense_macs is not None:
            _check_integer(f"{where}: dense_macs", unit.dense_macs)
        if isinstance(unit.macs, int):
            _check_integer(f"{where}: macs", unit.macs)
        else:
            got, of = jnp.shape(unit.macs), unit.score.shape
            fits = len(got) == len(of) and got[0] == batch and all(a in (1, b) for a, b in zip(got, of))
            require(fits, _CHECK, f"{where}: macs {got}, expected an integer, or batch first and broadcast to {of}")
        for key, value in unit.extras.items():
            got = jnp.shape(value)
            require(got[:1] == (batch,), _CHECK, f"{where}: {key} {got}, expected ({batch}, ...)")


def _check_values(output: Output, how: Occupancy, tolerance: float, name: str) -> None:
    """Numbers that are finite, in their range, and what the occupancy function makes of the score."""
    _check_finite(f"{name}: logits", output.logits)
    if output.trace.exits is not None:
        _check_finite(f"{name}: exits", output.trace.exits)
    for number, unit in enumerate(output.trace.units):
        where = f"{name}: unit {number} {unit.name}"
        for what, value in {"score": unit.score, "occupancy": unit.occupancy, "macs": unit.macs, **unit.extras}.items():
            _check_finite(f"{where}: {what}", value)
        shares = {"occupancy": unit.occupancy, **{key: unit.extras[key] for key in _SHARES if key in unit.extras}}
        for what, value in shares.items():
            low, high = float(np.min(value)), float(np.max(value))
            require(low >= 0 and high <= 1, _CHECK, f"{where}: {what} in [{low:.6g}, {high:.6g}], expected [0, 1]")
        least = float(np.min(np.asarray(unit.macs, float)))
        require(least >= 0, _CHECK, f"{where}: macs down to {least:.6g}, expected at least 0")
        if name == "hard" and unit.dense_macs is not None:
            ran, dense = float(jnp.max(executed_unit_macs(unit))), dense_unit_macs(unit)
            require(ran <= dense * (1 + 1e-5), _CHECK, f"{where}: runs {ran:.9g} multiply-adds of a dense {dense}")
        what = f"{where}: occupancy and the occupancy function of the score"
        close(_CHECK, what, unit.occupancy, how(unit.score), tolerance)


def _check_finite(what: str, value: jax.Array | int) -> None:
    bad = int(np.sum(~np.isfinite(np.asarray(value))))
    require(bad == 0, _CHECK, f"{what}: {bad} of {np.size(value)} values are not finite")


def _check_integer(what: str, got: Any) -> None:
    static = isinstance(got, (int, np.integer)) and not isinstance(got, bool)
    require(static and got >= 0, _CHECK, f"{what}: got {got!r} ({type(got).__name__}), expected an integer >= 0")


def _same(promise: str, got: Output, expected: Output, tolerance: float) -> None:
    """Every array agrees; soft values and costs compare like scores."""
    pairs: dict[str, tuple[Any, Any]] = {f"{promise}: logits": (got.logits, expected.logits)}
    if expected.trace.exits is not None:
        pairs[f"{promise}: exits"] = (got.trace.exits, expected.trace.exits)
    for number, (a, b) in enumerate(zip(got.trace.units, expected.trace.units)):
        where = f"{promise}: unit {number} {b.name}"
        for what in ("score", "occupancy", "macs"):
            pairs[f"{where}: {what}"] = (getattr(a, what), getattr(b, what))
        pairs |= {f"{where}: {what}": (a.extras[what], b.extras[what]) for what in b.extras}
    for what, (a, b) in pairs.items():
        close(_CHECK, what, a, b, tolerance)
