"""What every network of dyn_jax promises about its forward pass, as a check."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.occupancy import hard, sigmoid
from dyn_jax.testing._compare import close, quick_jit, require
from dyn_jax.types import Occupancy, Output, Variables

_CHECK = "check_network"


def check_network(
    net: nn.Module,
    variables: Variables,
    images: jax.Array,
    *,
    occupancy: Occupancy | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Checks the contract of `dyn_jax.types.Output` in evaluation mode.

    Logits [batch, class] are finite; every unit's score and occupancy are finite and [batch, ...]; multiply-adds are
    static non-negative integers; `hard` gives ``score >= 0``, and `occupancy` is what the trace says it is; jit =
    eager; an example's result depends neither on its place in the batch nor on the others; vmap = loop; the gradient
    by the images is finite for both occupancies.

    Args:
      net: ``net.apply(variables, images, occupancy=...)`` -> `Output`.
      variables: of `net`.
      images: [batch, height, width, channel], at least two different ones. Scores closer to 0 than the rounding of
        the network make the check undecided, and it may fail: use other images.
      occupancy: a soft one; default ``sigmoid(2)``.
      tolerance: of every comparison, relative to the largest value (at least 1).

    Raises:
      AssertionError: naming the promise that was broken, where and by how much.
    """
    soft = sigmoid(2.0) if occupancy is None else occupancy
    batch = images.shape[0]
    require(batch >= 2, _CHECK, f"images: got a batch of {batch}, expected at least 2")

    def run(x: jax.Array, how: Occupancy) -> tuple[jax.Array, Output]:
        def total(x: jax.Array) -> tuple[jax.Array, Output]:
            output = net.apply(variables, x, occupancy=how)
            require(isinstance(output, Output), _CHECK, f"got {type(output).__name__}, expected an Output")
            return jnp.sum(jax.nn.logsumexp(output.logits, axis=-1)), output

        return jax.grad(total, has_aux=True)(x)

    jitted = quick_jit(run)
    with jax.debug_nans(False):
        for name, how in (("hard", hard()), ("soft", soft)):
            gradient, output = jitted(images, how)
            _check_output(output, batch, name)
            _check_occupancies(output, how, tolerance, name)
            shares = np.isfinite(np.asarray(gradient)).mean()
            require(shares == 1, _CHECK, f"{name}: gradient by the images finite in {100 * shares:.1f} % of the pixels")

        reference = jitted(images, hard())[1]
        _same("jit = eager", net.apply(variables, images, occupancy=hard()), reference, tolerance)
        order = np.roll(np.arange(batch), 1)
        moved = jitted(images[order], hard())[1]
        _same("order of the batch", moved, jax.tree.map(lambda leaf: leaf[order], _batched(reference)), tolerance)

        def alone(x: jax.Array) -> Output:
            return jax.tree.map(lambda leaf: leaf[0], _batched(net.apply(variables, x[None], occupancy=hard())))

        _same("vmap = batch", quick_jit(jax.vmap(alone))(images), reference, tolerance)
        one = quick_jit(alone)
        loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one(images[i]) for i in range(batch)])
        _same("an example alone = in the batch", loop, reference, tolerance)


def _batched(output: Output) -> Output:
    """`output` with the batch axis first in every leaf (the exits carry it second)."""
    exits = output.trace.exits
    return output.replace(trace=output.trace.replace(exits=None if exits is None else jnp.swapaxes(exits, 0, 1)))


def _check_output(output: Output, batch: int, name: str) -> None:
    shape = output.logits.shape
    require(len(shape) == 2 and shape[0] == batch, _CHECK, f"{name}: logits {shape}, expected ({batch}, classes)")
    _check_finite(f"{name}: logits", output.logits)
    trace = output.trace
    _check_macs("static_macs", trace.static_macs)
    if trace.exits is not None:
        got = trace.exits.shape
        require(len(got) == 3 and got[1:] == shape, _CHECK, f"{name}: exits {got}, expected (exits, *{shape})")
    for number, unit in enumerate(trace.units):
        where = f"{name}: unit {number} {unit.name}"
        got = (unit.score.shape, unit.occupancy.shape)
        fits = got[0] == got[1] and got[0][:1] == (batch,)
        require(fits, _CHECK, f"{where}: score and occupancy {got}, expected equal shapes ({batch}, ...)")
        _check_macs(f"{where}: macs", unit.macs)
        values = [("score", unit.score), ("occupancy", unit.occupancy)]
        if unit.dilated is not None:
            values.append(("dilated occupancy", unit.dilated.occupancy))
            _check_macs(f"{where}: dilated macs", unit.dilated.macs)
            got = unit.dilated.occupancy.shape
            require(got[:1] == (batch,), _CHECK, f"{where}: dilated occupancy {got}, expected ({batch}, ...)")
        for what, value in values:
            _check_finite(f"{where}: {what}", value)
        for what, value in values[1:]:
            low, high = float(jnp.min(value)), float(jnp.max(value))
            require(low >= 0 and high <= 1, _CHECK, f"{where}: {what} in [{low:.6g}, {high:.6g}], expected [0, 1]")


def _check_occupancies(output: Output, how: Occupancy, tolerance: float, name: str) -> None:
    for number, unit in enumerate(output.trace.units):
        what = f"{name}: unit {number} {unit.name}: occupancy and the occupancy function of the score"
        close(_CHECK, what, unit.occupancy, how(unit.score), tolerance)


def _check_finite(what: str, value: jax.Array) -> None:
    bad = int(np.sum(~np.isfinite(np.asarray(value))))
    require(bad == 0, _CHECK, f"{what}: {bad} of {value.size} values are not finite")


def _check_macs(what: str, got: Any) -> None:
    static = isinstance(got, (int, np.integer)) and not isinstance(got, bool)
    require(static and got >= 0, _CHECK, f"{what}: got {got!r} ({type(got).__name__}), expected an integer >= 0")


def _same(promise: str, got: Output, expected: Output, tolerance: float) -> None:
    """Logits, scores and occupancies agree; soft values compare like scores."""
    close(_CHECK, f"{promise}: logits", got.logits, expected.logits, tolerance)
    for number, (a, b) in enumerate(zip(got.trace.units, expected.trace.units)):
        close(_CHECK, f"{promise}: unit {number} {b.name}: score", a.score, b.score, tolerance)
        close(_CHECK, f"{promise}: unit {number} {b.name}: occupancy", a.occupancy, b.occupancy, tolerance)
