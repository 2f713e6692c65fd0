"""Measures of traces: what ran, what changed, what it cost. An element is on where its occupancy is at least 1/2."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax._precision import single
from dyn_jax.types import Trace, UnitTrace


def _per_example(values: jax.Array) -> jax.Array:
    return values.reshape(values.shape[0], -1)


def example_shares(trace: Trace) -> jax.Array:
    """[batch, unit], share of an example's elements that are on."""
    _check_units("example_shares", trace)
    return jnp.stack([jnp.mean(_per_example(unit.on), axis=1) for unit in trace.units], axis=1)


def occupancy_rate(trace: Trace) -> jax.Array:
    """[unit], share of elements that are on, over batch and elements."""
    _check_units("occupancy_rate", trace)
    return jnp.stack([jnp.mean(unit.on) for unit in trace.units])


def unit_change(before: Trace, after: Trace) -> jax.Array:
    """[unit], share of elements whose hard occupancy differs between two runs of one network, over the batch."""
    _check_pair(before, after)
    return jnp.stack([jnp.mean(a.on != b.on) for a, b in zip(before.units, after.units)])


def architecture_change(
    before: Trace, after: Trace, *, count: str = "units", where: jax.Array | None = None
) -> jax.Array:
    """Changed elements over all changeable elements, of the whole batch (a ratio of sums).

    Args:
      before, after: traces of the clean and the adversarial batch.
      count: ``units`` counts the elements of every unit (LGM's rule for SkipNet: gates); ``masks`` also counts the
        elements of the dilated masks (its rule for DynConv: every pixel of both masks of every block).
      where: [batch] bool, the examples to count. LGM counts only the attacked ones for SkipNet
        (``~result.clean_success``) and all of them, untouched ones included, for DynConv.

    Returns:
      A scalar in [0, 1].

    Source: LGM paper section V.B; released code for the two rules.
    """
    _check_pair(before, after)
    _validate.choice("count", count, ("units", "masks"))
    batch = before.units[0].score.shape[0]
    rows = jnp.ones(batch, bool) if where is None else _validate.rows("where", where, batch)
    changed, total = jnp.zeros(()), jnp.zeros(())
    for a, b in zip(before.units, after.units):
        pairs = [(a.on, b.on)]
        if count == "masks" and "dilated" in a.extras:
            pairs.append((a.extras["dilated"] >= 0.5, b.extras["dilated"] >= 0.5))
        for x, y in pairs:
            differs = _per_example(x != y)
            # in floating point: numbers of all images pass 2^31
            changed += jnp.sum(jnp.where(rows, jnp.sum(differs, axis=1, dtype=changed.dtype), 0))
            total += jnp.sum(rows, dtype=total.dtype) * differs.shape[1]
    return changed / total


def executed_unit_macs(unit: UnitTrace) -> jax.Array:
    """[batch], multiply-adds that a unit's occupancies let run; with a soft occupancy, the expected number."""
    occupancy = single(unit.occupancy)
    if isinstance(unit.macs, int):
        return float(unit.macs) * jnp.sum(_per_example(occupancy), axis=1)
    return jnp.sum(_per_example(occupancy * jnp.broadcast_to(unit.macs, unit.score.shape)), axis=1)


def executed_macs(trace: Trace) -> jax.Array:
    """[batch], multiply-adds that the trace's occupancies let run: static + sum of occupancy x cost.

    A float: counts above 2^31 do not wrap. With a soft occupancy, the expected number. What the gates *say*: the dense
    evaluation here runs every unit.
    """
    _check_units("executed_macs", trace)
    return sum((executed_unit_macs(unit) for unit in trace.units), start=jnp.int32(0)) + float(trace.static_macs)


def dense_macs(trace: Trace) -> int:
    """Multiply-adds of one example with every unit on (a static integer of any size); as `dense_unit_macs`."""
    return trace.static_macs + sum(dense_unit_macs(unit) for unit in trace.units)


def dense_unit_macs(unit: UnitTrace) -> int:
    """Multiply-adds of one example's unit with every element on (a static integer).

    Raises:
      ValueError: a unit without a dense cost (voxels).
    """
    if unit.dense_macs is None:
        raise ValueError(f"dense_macs: got the unit {unit.name!r}, whose cost depends on the input (voxels)")
    return unit.dense_macs * unit.elements


def recovery(
    before: Trace, after: Trace, *, count: str = "macs", average: str = "images", where: jax.Array | None = None
) -> jax.Array:
    """Share of the saved computation that an attack brought back, ``(after - before) / (dense - before)``.

    Args:
      before, after: traces of the clean and the adversarial batch.
      count: ``macs``: executed multiply-adds; ``units``: every unit counts the same, by its share of elements that are
        on (GradAuto's release, where a unit is a block).
      average: ``images``: mean over the images of each one's share (the paper's metric); images that save nothing to
        begin with are left out, NaN where all do. ``ratio``: sum of what came back over sum of what was saved (the
        release).
      where: [batch] bool, the examples to count; default all.

    Returns:
      A scalar, 1 where everything came back; negative where the attack saved computation.

    Raises:
      ValueError: voxel units, which have no dense cost (see `increase`).

    Source: GradAuto section 5 ("Metric"); its released code for ``units`` with ``ratio``.
    """
    _check_pair(before, after)
    _validate.choice("count", count, ("macs", "units"))
    _validate.choice("average", average, ("images", "ratio"))
    if count == "macs":
        first, last, dense = executed_macs(before), executed_macs(after), float(dense_macs(before))
    else:
        first, last, dense = _units_on(before), _units_on(after), float(len(before.units))
    saved, back = dense - first, last - first
    rows = ~(saved <= 1e-6 * dense)  # an image of NaN is not left out: nothing is known of the mean
    if where is not None:
        where = _validate.rows("where", where, len(saved))
        rows, saved, back = rows & where, jnp.where(where, saved, 0), jnp.where(where, back, 0)
    if average == "ratio":
        total = jnp.sum(saved)
        return jnp.where(total > 0, jnp.sum(back) / jnp.where(total > 0, total, 1), jnp.nan)
    shares = jnp.where(rows, back / jnp.where(rows, saved, 1), 0)
    number = jnp.sum(rows)
    return jnp.where(number > 0, jnp.sum(shares) / jnp.maximum(number, 1), jnp.nan)


def _units_on(trace: Trace) -> jax.Array:
    """[batch], sum over units of the share of elements that are on."""
    shares = (jnp.mean(_per_example(unit.on).astype(jnp.float32), axis=1) for unit in trace.units)
    return sum(shares, start=jnp.float32(0))


def increase(before: Trace, after: Trace) -> jax.Array:
    """[batch], ``executed after / executed before - 1`` in multiply-adds; for voxels too."""
    first, last = executed_macs(before), executed_macs(after)
    _validate.same_shape("before, after", first, last)
    return last / first - 1


def _check_units(name: str, trace: Trace) -> None:
    if not trace.units:
        raise ValueError(f"{name}: got a trace without units; a static network runs trace.static_macs")


def _check_pair(before: Trace, after: Trace) -> None:
    _check_units("trace", before)
    same_units(before.units, after.units)


def same_units(*units: Sequence[UnitTrace]) -> None:
    """ValueError where the units of two traces are of different networks or batches."""
    shapes = [[unit.score.shape for unit in each] for each in units]
    if shapes[0] != shapes[1]:
        raise ValueError(f"traces: got units of shapes {shapes[0]} and {shapes[1]}, expected one network and one batch")
