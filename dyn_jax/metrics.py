"""Measures of predictions, traces and images. Pure functions of what a forward pass or an attack returned."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.types import Trace, UnitTrace


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of correct predictions with finite logits.

    Args:
      logits: [batch, class]; a row with a NaN counts as wrong.
      labels: [batch].

    Returns:
      A scalar in [0, 1].
    """
    correct = (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)
    return jnp.mean(correct)


def success_rate(success: jax.Array, attacked: jax.Array) -> jax.Array:
    """Successes among the attacked, ``sum(success & attacked) / sum(attacked)``; NaN where none was attacked.

    LGM's success rate has ``attacked = ~result.clean_success``: (correct before - correct after) / correct before.
    """
    return jnp.sum(success & attacked) / jnp.sum(attacked)


def _hard(occupancy: jax.Array) -> jax.Array:
    return occupancy >= 0.5


def _per_example(values: jax.Array) -> jax.Array:
    return values.reshape(values.shape[0], -1)


def occupancy_rate(trace: Trace) -> jax.Array:
    """[unit], share of elements that are on, over batch and elements."""
    return jnp.stack([jnp.mean(_hard(unit.occupancy)) for unit in trace.units])


def unit_change(before: Trace, after: Trace) -> jax.Array:
    """[unit], share of elements whose hard occupancy differs between two runs of one network, over the batch.

    Raises:
      ValueError: the traces are of different networks, or have no units.
    """
    _check_pair(before, after)
    pairs = zip(before.units, after.units)
    return jnp.stack([jnp.mean(_hard(a.occupancy) != _hard(b.occupancy)) for a, b in pairs])


def architecture_change(
    before: Trace, after: Trace, *, count: str = "units", where: jax.Array | None = None
) -> jax.Array:
    """Changed elements over all changeable elements, of the whole batch (a ratio of sums).

    Args:
      before, after: traces of the clean and the adversarial batch; an element is on where its occupancy >= 1/2.
      count: ``units`` counts the elements of every unit (LGM's rule for SkipNet: gates); ``masks`` also counts the
        elements of the dilated masks (its rule for DynConv: every pixel of both masks of every block).
      where: [batch] bool, the examples to count. LGM counts only the attacked ones for SkipNet
        (``~result.clean_success``) and all of them, untouched ones included, for DynConv.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: the traces are of different networks, or have no units.

    Source: LGM paper section V.B; released code for the two rules.
    """
    _check_pair(before, after)
    _validate.choice("count", count, ("units", "masks"))
    changed, total = jnp.zeros(()), jnp.zeros(())
    for a, b in zip(before.units, after.units):
        pairs = [(a.occupancy, b.occupancy)]
        if count == "masks" and a.dilated is not None:
            pairs.append((a.dilated.occupancy, b.dilated.occupancy))
        for x, y in pairs:
            differs = _per_example(_hard(x) != _hard(y))
            rows = jnp.ones(x.shape[0], bool) if where is None else where
            changed += jnp.sum(jnp.sum(differs, axis=1) * rows)
            total += jnp.sum(rows) * differs.shape[1]
    return changed / total


def executed_macs(trace: Trace) -> jax.Array:
    """[batch], multiply-adds that the trace's occupancies let run: static + sum of occupancy x cost.

    With a soft occupancy, the expected number. What the gates *say*: the dense evaluation here runs every unit.
    """
    total = 0.0
    for unit in trace.units:
        cost = unit.occupancy if unit.repeats is None else unit.occupancy * unit.repeats
        total = total + unit.macs * jnp.sum(_per_example(cost), axis=1)
        if unit.dilated is not None:
            total = total + unit.dilated.macs * jnp.sum(_per_example(unit.dilated.occupancy), axis=1)
    if not trace.units:
        raise ValueError("executed_macs: got a trace without units; a static network runs trace.static_macs")
    return total + trace.static_macs


def dense_macs(trace: Trace) -> int:
    """Multiply-adds of one example with every unit on (a static integer)."""
    return trace.static_macs + sum(dense_unit_macs(unit) for unit in trace.units)


def dense_unit_macs(unit: UnitTrace) -> int:
    """Multiply-adds of one example's unit with every element on, dilated ones too (a static integer).

    Raises:
      ValueError: a voxel unit, whose cost depends on the input.
    """
    if unit.repeats is not None and unit.most_repeats is None:
        raise ValueError(f"dense_macs: got the voxel unit {unit.name!r}, whose cost depends on the input")
    macs = unit.macs * (unit.most_repeats or 1) * (unit.score.size // unit.score.shape[0])
    if unit.dilated is not None:
        macs += unit.dilated.macs * (unit.dilated.occupancy.size // unit.dilated.occupancy.shape[0])
    return macs


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
      ValueError: unknown `count` or `average`; traces of different networks, or without units; voxel units, which have
        no dense cost (see `increase`).

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
    rows = saved > 1e-6 * dense
    if where is not None:
        rows, saved, back = rows & where, jnp.where(where, saved, 0), jnp.where(where, back, 0)
    if average == "ratio":
        total = jnp.sum(saved)
        return jnp.where(total > 0, jnp.sum(back) / jnp.where(total > 0, total, 1), jnp.nan)
    shares = jnp.where(rows, back / jnp.where(rows, saved, 1), 0)
    number = jnp.sum(rows)
    return jnp.where(number > 0, jnp.sum(shares) / jnp.maximum(number, 1), jnp.nan)


def _units_on(trace: Trace) -> jax.Array:
    """[batch], sum over units of the share of elements that are on."""
    return sum(jnp.mean(_per_example(_hard(unit.occupancy)).astype(jnp.float32), axis=1) for unit in trace.units)


def increase(before: Trace, after: Trace) -> jax.Array:
    """[batch], ``executed after / executed before - 1`` in multiply-adds; for voxels too."""
    first = executed_macs(before)
    return executed_macs(after) / first - 1


def accuracy_kept(clean: jax.Array, adversarial: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the correctly classified examples that still are, from logits [batch, class]; NaN where there are none.

    An attack on the energy that shall stay unnoticed keeps it at 1.
    """
    right = jnp.argmax(clean, axis=-1) == labels
    still = right & (jnp.argmax(adversarial, axis=-1) == labels) & jnp.all(jnp.isfinite(adversarial), axis=-1)
    number = jnp.sum(right)
    return jnp.where(number > 0, jnp.sum(still) / jnp.maximum(number, 1), jnp.nan)


def psnr(images: jax.Array, reference: jax.Array, *, peak: float = 1.0) -> jax.Array:
    """Peak signal-to-noise ratio ``10 log10(peak^2 / mean squared difference)`` in dB, [batch]; inf where equal."""
    axes = tuple(range(1, images.ndim))
    error = jnp.mean((images - reference) ** 2, axis=axes)
    safe = jnp.where(error > 0, error, 1.0)
    return jnp.where(error > 0, 10 * jnp.log10(peak**2 / safe), jnp.inf)


def _check_pair(before: Trace, after: Trace) -> None:
    shapes = [[unit.score.shape for unit in trace.units] for trace in (before, after)]
    if not shapes[0]:
        raise ValueError("trace: got one without units, expected an adaptive network's")
    if shapes[0] != shapes[1]:
        raise ValueError(f"traces: got units of shapes {shapes[0]} and {shapes[1]}, expected one network and one batch")


def confusion(predictions: jax.Array, labels: jax.Array, num_classes: int, ignore: int = 255) -> jax.Array:
    """[true class, predicted class] float32 counts of points.

    Labels outside [0, num_classes) and `ignore` do not count. Add the matrices of several clouds before `iou`, as the
    ScanNet and S3DIS benchmarks do.

    Args:
      predictions: [point] integer.
      labels: [point] integer.
      num_classes: classes.
      ignore: a label that does not count.
    """
    counted = (labels >= 0) & (labels < num_classes) & (labels != ignore)
    truth = jax.nn.one_hot(jnp.where(counted, labels, -1), num_classes)
    return truth.T @ jax.nn.one_hot(predictions, num_classes)


def iou(matrix: jax.Array) -> jax.Array:
    """[class], ``intersection / union`` of a `confusion` matrix; NaN for a class that neither occurs nor is predicted.

    Source: ScanNet's benchmark; LGM's release adds 1e-10 to the union, which makes such a class count as 0.
    """
    values, there = _iou(matrix)
    return jnp.where(there, values, jnp.nan)


def _iou(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(IoU [class], 0 where the class is absent; present [class] bool)."""
    intersection = jnp.diagonal(matrix)
    union = jnp.sum(matrix, axis=0) + jnp.sum(matrix, axis=1) - intersection
    there = union > 0
    return jnp.where(there, intersection / jnp.where(there, union, 1), 0), there


def mean_iou(matrix: jax.Array, *, absent: str = "zero") -> jax.Array:
    """Mean of `iou` over the classes.

    Args:
      matrix: [class, class], see `confusion`.
      absent: what a class counts that neither occurs nor is predicted: ``zero`` (LGM's release and its tables) or
        ``skip`` (left out of the mean; 0 if no class is left).

    Raises:
      ValueError: unknown `absent`.
    """
    _validate.choice("absent", absent, ("zero", "skip"))
    values, there = _iou(matrix)
    total = jnp.sum(values)
    return total / (matrix.shape[0] if absent == "zero" else jnp.maximum(jnp.sum(there), 1))
