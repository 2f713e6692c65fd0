"""The runner of the point-cloud attacks: checks the cloud, runs the search, and judges what it returns.

A search is ``search(problem, key) -> Found``. All of it is pure: one ``jax.jit`` holds voxelisation, network, gradient
and step of every iteration, with no round trip to the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate, metrics
from dyn_jax.attacks.base import as_forward
from dyn_jax.objectives import Objective
from dyn_jax.types import Output, PointCloud, Reach, Trace

IGNORE = 255
TOLERANCE = 1e-6


@flax.struct.dataclass
class Steps:
    """What every evaluation of `forward` in a search recorded, [step].

    Attributes:
      loss: the objective, mean over the rows that count.
      voxels: sites that took part in the gradient (existing and near ones); 0 without a trace.
      macs: multiply-adds of one forward pass over them; 0 without a trace.
      nonfinite: bool, the gradient was not finite somewhere (and was taken as 0 there).
      overflow: bool, see `Trace.overflow`.
    """

    loss: jax.Array
    voxels: jax.Array
    macs: jax.Array
    nonfinite: jax.Array
    overflow: jax.Array


@flax.struct.dataclass
class PointAttackResult:
    """What a point-cloud attack returns.

    Attributes:
      adversarial: [point, 3], inside the cube around the clean coordinates; unused rows as they were.
      success: [row] bool, the victim errs on the row (targeted: says the target) with finite logits; False for
        ignored rows. A row is a point (segmentation) or a cloud (classification).
      clean_success: [row] bool, it already did so on the clean cloud.
      counted: [row] bool, rows with a label.
      mean_iou_clean, mean_iou: scalars, of the victim, absent classes counting 0; for rows of points.
      distance: [point], largest coordinate difference, metres.
      steps: `Steps` of the search.
      overflow: scalar bool: some pass overflowed, so that the numbers cannot be trusted.
      logits_clean, logits_adversarial: [row, class] of the victim.
      trace_clean, trace_adversarial: the victim's traces.
    """

    adversarial: jax.Array
    success: jax.Array
    clean_success: jax.Array
    counted: jax.Array
    mean_iou_clean: jax.Array
    mean_iou: jax.Array
    distance: jax.Array
    steps: Steps
    overflow: jax.Array
    logits_clean: jax.Array
    logits_adversarial: jax.Array
    trace_clean: Trace
    trace_adversarial: Trace


@dataclasses.dataclass(frozen=True)
class PointProblem:
    """What a search sees."""

    forward: Callable[[PointCloud], Output]
    victim: Callable[[PointCloud], Output]
    cloud: PointCloud
    labels: jax.Array
    targets: jax.Array | None
    counted: jax.Array
    ignore: int
    eps: jax.typing.ArrayLike
    objective: Objective

    def at(self, xyz: jax.Array, reach: Reach | None = None) -> PointCloud:
        """The cloud with other coordinates."""
        return self.cloud.replace(xyz=xyz, reach=reach)

    def project(self, xyz: jax.Array) -> jax.Array:
        """Into the cube of half-width eps around every clean point."""
        clean = self.cloud.xyz
        eps = jnp.asarray(self.eps, clean.dtype)
        moved = jnp.clip(jnp.where(jnp.isfinite(xyz), xyz, clean), clean - eps, clean + eps)
        return jnp.where(self.cloud.valid[:, None], moved, clean)

    def mean_loss(self, output: Output) -> jax.Array:
        """The objective, mean over the rows that count."""
        safe = jnp.where(self.counted, self.labels, 0)
        losses = self.objective(output, safe, self.targets)
        return jnp.sum(jnp.where(self.counted, losses, 0)) / jnp.maximum(jnp.sum(self.counted), 1)

    def mean_iou(self, logits: jax.Array) -> jax.Array:
        """Of one prediction, absent classes counting 0."""
        return metrics.mean_iou(
            metrics.confusion(jnp.argmax(logits, axis=1), self.labels, logits.shape[1], self.ignore)
        )

    def gradient(
        self,
        xyz: jax.Array,
        reach: Reach | None,
        penalty: Callable[[jax.Array], jax.Array] | None = None,
        weight: jax.typing.ArrayLike = 1.0,
    ) -> tuple[jax.Array, Steps, Output]:
        """(gradient of ``weight * objective - penalty`` [point, 3], record, output): 0 where it is not finite."""

        def total(xyz: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Output]]:
            output = self.forward(self.at(xyz, reach))
            loss = self.mean_loss(output)
            return weight * loss - (0 if penalty is None else penalty(xyz)), (loss, output)

        gradient, (loss, output) = jax.grad(total, has_aux=True)(xyz)
        finite = jnp.all(jnp.isfinite(gradient), axis=1, keepdims=True)
        units = output.trace.units
        voxels = jnp.max(jnp.stack([jnp.sum(u.occupancy > 0) for u in units])) if units else jnp.int32(0)
        macs = jnp.sum(jnp.stack([_all_macs(u) for u in units])) if units else jnp.float32(0)
        overflow = output.trace.overflow
        record = Steps(loss, voxels, macs, ~jnp.all(finite), jnp.zeros((), bool) if overflow is None else overflow)
        return jnp.where(finite & self.cloud.valid[:, None], gradient, 0), record, output


def _all_macs(unit: object) -> jax.Array:
    """Multiply-adds of a unit with every element evaluated, as the gradient's pass does."""
    repeats = jnp.ones_like(unit.occupancy) if unit.repeats is None else unit.repeats
    return jnp.sum(repeats, dtype=jnp.float32) * unit.macs


@flax.struct.dataclass
class Found:
    """What a search returns: coordinates [point, 3] and its `Steps`."""

    xyz: jax.Array
    steps: Steps


@dataclasses.dataclass(frozen=True)
class PointAttack:
    """``attack(forward, cloud, labels, ...) -> PointAttackResult``: pure, works under jit and vmap.

    Attributes:
      search: see the module.
      eps: half-width of the cube around every point, metres.
      objective: what is ascended, per row.
      random: whether a ``key`` is needed.
    """

    search: Callable[[PointProblem, jax.Array | None], Found]
    eps: jax.typing.ArrayLike
    objective: Objective
    random: bool = False

    def __call__(
        self,
        forward: Callable[[PointCloud], Output],
        cloud: PointCloud,
        labels: jax.Array,
        *,
        key: jax.Array | None = None,
        victim: Callable[[PointCloud], Output] | None = None,
        targets: jax.Array | None = None,
        ignore: int = IGNORE,
    ) -> PointAttackResult:
        """Attacks one cloud (``jax.vmap`` over clouds of one size attacks many).

        Args:
          forward: cloud -> `Output`, differentiated at every step, e.g. ``functools.partial(net.apply, variables,
            occupancy=dyn_jax.occupancy.voxel.lgm())``.
          cloud: the clean points; all valid ones may move, also those whose label is `ignore`.
          labels: [row] integers, one a point (segmentation) or one a cloud (classification), or `ignore`.
          key: typed PRNG key, for attacks with randomness.
          victim: cloud -> `Output` that success is judged on; default `forward`. For LGM: the hard network.
          targets: like labels: classes to reach, a targeted attack.
          ignore: the label of rows that do not count.

        Raises:
          TypeError, ValueError: wrong shapes or dtypes; labels out of range; no row that counts; a target equal to the
            label; no key for a random attack. (Inside jit only shapes and dtypes are checked.)
        """
        if not isinstance(cloud, PointCloud):
            raise TypeError(f"cloud: got {type(cloud).__name__}, expected a PointCloud")
        forward = as_forward(forward)
        victim = forward if victim is None else as_forward(victim)
        if self.random and key is None:
            raise ValueError("key: got None, expected a PRNG key such as jax.random.key(0)")
        cloud = cloud.replace(reach=None)
        clean = victim(cloud)
        rows, classes = clean.logits.shape
        labels = _labels("labels", labels, rows, classes, ignore)
        counted = labels != ignore
        if rows == cloud.valid.shape[0]:
            counted = counted & cloud.valid
        if _validate.is_concrete(counted) and not np.asarray(counted).any():
            raise ValueError(f"labels: got no row with another label than {ignore}, expected at least one")
        if targets is not None:
            targets = _labels("targets", targets, rows, classes, None)
            if _validate.is_concrete(targets, labels, counted):
                equal = int(np.sum((np.asarray(targets) == np.asarray(labels)) & np.asarray(counted)))
                if equal:
                    raise ValueError(f"targets: got {equal} equal to their label, expected none")
        problem = PointProblem(forward, victim, cloud, labels, targets, counted, ignore, self.eps, self.objective)
        found = self.search(problem, key)
        xyz = jax.lax.stop_gradient(problem.project(found.xyz))
        adversarial = victim(cloud.replace(xyz=xyz))
        flags = [t.overflow for t in (clean.trace, adversarial.trace) if t.overflow is not None]
        overflow = jnp.any(found.steps.overflow) | (jnp.any(jnp.stack(flags)) if flags else False)
        return PointAttackResult(
            adversarial=xyz,
            success=_hit(adversarial.logits, labels, targets) & counted,
            clean_success=_hit(clean.logits, labels, targets) & counted,
            counted=counted,
            mean_iou_clean=problem.mean_iou(clean.logits),
            mean_iou=problem.mean_iou(adversarial.logits),
            distance=jnp.max(jnp.abs(xyz - cloud.xyz), axis=1),
            steps=found.steps,
            overflow=overflow,
            logits_clean=clean.logits,
            logits_adversarial=adversarial.logits,
            trace_clean=clean.trace,
            trace_adversarial=adversarial.trace,
        )


def _hit(logits: jax.Array, labels: jax.Array, targets: jax.Array | None) -> jax.Array:
    prediction = jnp.argmax(logits, axis=1)
    hit = prediction != labels if targets is None else prediction == targets
    return hit & jnp.all(jnp.isfinite(logits), axis=1)


def _labels(name: str, got: jax.Array, rows: int, classes: int, ignore: int | None) -> jax.Array:
    got = got if hasattr(got, "ndim") else np.asarray(got)
    if not jnp.issubdtype(got.dtype, jnp.integer):
        raise TypeError(f"{name}: got dtype {got.dtype}, expected integer classes")
    if got.shape != (rows,):
        raise ValueError(f"{name}: got shape {got.shape}, expected ({rows},), one for every row of the logits")
    if _validate.is_concrete(got):
        host = np.asarray(got)
        wrong = host[(host < 0) | (host >= classes)]
        wrong = wrong if ignore is None else wrong[wrong != ignore]
        if len(wrong):
            also = "" if ignore is None else f" or {ignore} (ignored)"
            raise ValueError(
                f"{name}: got {sorted(set(wrong.tolist()))[:5]}, expected classes in [0, {classes - 1}]{also}"
            )
    return jnp.asarray(got)


def check_eps(eps: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """eps in metres: a number of at least 0, or an array inside a vmap.

    Raises:
      ValueError, TypeError: negative, not finite, not a number.
    """
    return _validate.number("eps", eps, minimum=0)
