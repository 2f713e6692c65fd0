"""What an attack moves: the pixels of images, or the coordinates of a point cloud.

A search works on an array ``x`` and on numbers per example; a domain says what x is. Its rows (first axis) are images
or points, its examples images or clouds: a row of pixels is an example, a row of coordinates belongs to one.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate, metrics
from dyn_jax._precision import single
from dyn_jax.attacks.threat import Dropped, Threat, norm
from dyn_jax.types import PointCloud, Trace

_INSIDE_TANH = 0.999999  # keeps arctanh finite at the bounds
_INSIDE_DELTA = 0.99  # tanh's derivative at the darkest and brightest pixels is then 0.02 of the largest, not 0


class Domain(abc.ABC):
    """What a search may ask; where nothing else is said, a row is an example, as of images.

    Attributes:
      clean: the clean value, [row, ...].
      threat: the set x has to stay in.
      free: like `clean`, 1 or 0: what may move; None: everything.
    """

    clean: jax.Array
    threat: Threat
    free: jax.Array | None

    @property
    def examples(self) -> int:
        """How many there are."""
        return self.clean.shape[0]

    @property
    def values(self) -> int | jax.Array:
        """How many numbers an example has: one for all, or [example]."""
        return self.clean[0].size

    def input(self, x: jax.Array) -> Any:
        """The network's input at x."""
        return x

    @abc.abstractmethod
    def project(self, x: jax.Array) -> jax.Array:
        """Nearest allowed value: clean where nothing may move, inside the threat set."""

    def moving(self, values: jax.Array) -> jax.Array:
        """Values like x, 0 where nothing may move."""
        return values if self.free is None else values * self.free

    def unmoved(self, x: jax.Array) -> jax.Array:
        """x, clean where nothing may move."""
        return x if self.free is None else jnp.where(self.free > 0, x, self.clean)

    def split(self, x: jax.Array) -> jax.Array:
        """[example, ...]: every example's own part of an array like x, 0 elsewhere."""
        return x

    def join(self, parts: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        return parts

    def spread(self, values: jax.Array) -> jax.Array:
        """Numbers [example] in a shape that broadcasts to x."""
        return values[:, None, None, None]

    def any_row(self, flags: jax.Array) -> jax.Array:
        """[example] bool, whether a flag [row] is set anywhere in the example."""
        return flags

    def keys(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """One key per row of x; example i's come from ``fold_in(key, index[i])``."""
        return jax.vmap(jax.random.fold_in, (None, 0))(key, index)

    def perturbed(self, delta: jax.Array) -> jax.Array:
        """The change of variable of the energy attacks: clean at delta = 0, to the last bit."""
        return self.clean + delta

    def settled(self, delta: jax.Array) -> jax.Array:
        """The variable of the projected value, where it is a difference (coordinates); else as it is."""
        return delta

    def to_free(self, x: jax.Array) -> jax.Array:
        """The variable, unbounded for pixels, that `from_free` makes x of."""
        return x - self.clean

    def from_free(self, w: jax.Array) -> jax.Array:
        """x of a free variable."""
        return self.clean + w

    def counted(self, labels: jax.Array, classes: int, ignore: int) -> jax.Array:
        """[judged row] bool, the rows of the logits that have a label."""
        return jnp.ones_like(labels, bool)

    def judged(self, x: jax.Array, counted: jax.Array) -> jax.Array:
        """[judged row] bool, the counted rows that are still there at x."""
        return counted

    def mean(self, values: jax.Array, counted: jax.Array) -> jax.Array:
        """[example], the mean over an example's counted rows of the logits; [example] values as they are."""
        return values

    def work(self, trace: Trace) -> dict[str, jax.Array]:
        """What a pass cost, [example] each."""
        return {"macs": metrics.executed_macs(trace).astype(self.clean.dtype)} if trace.units else {}


@dataclasses.dataclass(frozen=True)
class Pixels(Domain):
    """Images [batch, height, width, channel] in a box; `free` is the pixel mask, broadcast."""

    clean: jax.Array
    threat: Threat
    free: jax.Array | None = None

    def project(self, x: jax.Array) -> jax.Array:
        return self.threat.project(self.masked(x), self.clean)

    def perturbed(self, delta: jax.Array) -> jax.Array:
        """``x' = x + (tanh(w + delta) - tanh(w)) / 2`` with ``w = artanh(0.99 (2 x - 1))``, clipped to [0, 1].

        GradAuto's eq. 3 with its start moved. Without the factor 0.99 a pixel at 0 or 1 would have an infinite w and no
        gradient; the clipping it makes necessary is at most 0.005 and passes the gradient. The difference is taken as
        ``tanh(delta) (1 - tanh(w + delta) tanh(w))``, which is 0 at delta = 0 however a compiler rounds either tanh.
        """
        before = _INSIDE_DELTA * (2 * self.clean - 1)
        after = jnp.tanh(jnp.arctanh(before) + delta)
        raw = self.clean + jnp.tanh(delta) * (1 - after * before) / 2
        return self.masked(raw + jax.lax.stop_gradient(jnp.clip(raw, 0.0, 1.0) - raw))

    def masked(self, x: jax.Array) -> jax.Array:
        """x, clean outside the pixel mask; differentiable."""
        return x if self.free is None else self.clean + (x - self.clean) * self.free

    def to_free(self, x: jax.Array) -> jax.Array:
        low, high = self.threat.bounds
        x = jnp.clip(x, low, high)  # a start that is not in the box: arctanh would be NaN, and so every iterate
        return jnp.arctanh((2 * (x - low) / (high - low) - 1) * _INSIDE_TANH)

    def from_free(self, w: jax.Array) -> jax.Array:
        low, high = self.threat.bounds
        return low + (high - low) * (jnp.tanh(w) + 1) / 2


@dataclasses.dataclass(frozen=True)
class Coordinates(Domain):
    """The coordinates [point, 3] of one or several clouds; a ball is around every point, there is no box."""

    cloud: PointCloud
    threat: Threat
    free: jax.Array | None = None

    @property
    def clean(self) -> jax.Array:  # pyright: ignore[reportIncompatibleVariableOverride]: a field of images
        return self.cloud.xyz

    @property
    def examples(self) -> int:
        return self.cloud.clouds

    @property
    def own(self) -> jax.Array:
        """[cloud, point] bool, the valid points of every cloud."""
        if self.cloud.batch is None:
            return self.cloud.valid[None]
        return (self.cloud.batch[None] == jnp.arange(self.examples)[:, None]) & self.cloud.valid[None]

    @property
    def values(self) -> jax.Array:
        return 3 * jnp.sum(self.own, axis=1, dtype=self.clean.dtype)

    def there(self, x: jax.Array) -> jax.Array:
        """[point] bool, the valid points that `Dropped` did not take away; one at the origin all along is there."""
        if not isinstance(self.threat, Dropped):
            return self.cloud.valid
        return self.cloud.valid & (self.threat.there(x) | ~self.threat.there(self.clean))

    def input(self, x: jax.Array) -> PointCloud:
        return self.cloud.replace(xyz=x, valid=self.there(x))

    def project(self, x: jax.Array) -> jax.Array:
        x = self.threat.project(jnp.where(jnp.isfinite(x), x, self.clean), self.clean)
        moves = self.cloud.valid[:, None] if self.free is None else self.cloud.valid[:, None] & (self.free > 0)
        x = jnp.where(moves, x, self.clean)
        if not isinstance(self.threat, Dropped):
            return x
        gone = self.own & jnp.any(x != self.clean, axis=1)[None]
        kept = jnp.any(gone & (jnp.cumsum(gone, axis=1) > self.threat.points), axis=0)
        return jnp.where(kept[:, None], self.clean, x)

    def split(self, x: jax.Array) -> jax.Array:
        return jnp.where(self.own[:, :, None], x[None], 0)

    def join(self, parts: jax.Array) -> jax.Array:
        return jnp.sum(parts, axis=0) if self.examples > 1 else parts[0]

    def spread(self, values: jax.Array) -> jax.Array:
        if self.cloud.batch is None:
            return values[:, None]
        return values[jnp.clip(self.cloud.batch, 0, self.examples - 1)][:, None]

    def any_row(self, flags: jax.Array) -> jax.Array:
        return jnp.any(self.own & flags[None], axis=1)

    def keys(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """A point's key is that of its cloud and its place among the cloud's points."""
        of_cloud = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        places = jnp.cumsum(self.own, axis=1) - 1
        cloud = jnp.argmax(self.own, axis=0)
        place = jnp.take_along_axis(places, cloud[None], axis=0)[0]
        return jax.vmap(jax.random.fold_in)(of_cloud[cloud], place)

    def settled(self, delta: jax.Array) -> jax.Array:
        return self.project(self.clean + delta) - self.clean

    def counted(self, labels: jax.Array, classes: int, ignore: int) -> jax.Array:
        """Rows labelled `ignore` do not count, nor clouds without points, nor what jit cannot refuse: labels that are
        no class."""
        return self._judged((labels != ignore) & (labels >= 0) & (labels < classes), self.cloud.valid)

    def judged(self, x: jax.Array, counted: jax.Array) -> jax.Array:
        return self._judged(counted, self.there(x))

    def _judged(self, counted: jax.Array, there: jax.Array) -> jax.Array:
        return counted & (there if len(counted) == len(there) else self.any_row(there))

    def mean(self, values: jax.Array, counted: jax.Array) -> jax.Array:
        if len(values) == self.examples:
            return jnp.where(counted, values, 0) if len(counted) == self.examples else values
        rows = self.own & counted[None]
        return jnp.sum(jnp.where(rows, values[None], 0), axis=1) / jnp.maximum(jnp.sum(rows, axis=1), 1)

    def work(self, trace: Trace) -> dict[str, jax.Array]:
        """``voxels``: sites of the largest level that took part, units of points (they tell their ``cell``) aside;
        ``macs``: multiply-adds of the pass over all."""
        if not trace.units:
            return {}
        flat = lambda values: jnp.reshape(values, (self.examples, -1))
        voxels = [jnp.sum(flat(unit.occupancy > 0), axis=1) for unit in trace.units if "cell" not in unit.extras]
        macs = [jnp.sum(flat(jnp.broadcast_to(unit.macs, unit.score.shape)), axis=1) for unit in trace.units]
        work = sum((m.astype(jnp.float32) for m in macs), start=jnp.float32(0))
        return {"voxels": jnp.max(jnp.stack(voxels), axis=0), "macs": work}


def pixels_of(domain: Domain, why: str = "") -> Pixels:
    """`domain`; raises TypeError unless it is of images."""
    if not isinstance(domain, Pixels):
        raise TypeError(f"inputs: got a PointCloud, expected images{why and f': {why}'}")
    return domain


def domain_of(inputs: Any, threat: Threat, mask: Any = None) -> Pixels | Coordinates:
    """Images or a cloud, checked, with what an attack may do to them.

    Args:
      inputs: images [batch, height, width, channel], or a `PointCloud`.
      threat: of the attack; its box counts for pixels only.
      mask: what may change, 1 or 0: [height, width] or broadcastable to the images; [point] for a cloud.

    Raises:
      TypeError, ValueError: neither; wrong rank or dtype; pixels outside the box, NaN; a mask that does not fit.
    """
    if isinstance(inputs, PointCloud):
        return _coordinates(inputs, threat, mask)
    if not hasattr(inputs, "ndim"):
        raise TypeError(
            f"inputs: got {type(inputs).__name__}, expected images [batch, height, width, channel] or a PointCloud"
        )
    images = _validate.images("images", inputs)
    _validate.within("images", images, threat.bounds)
    images = single(images)  # half precision cannot say where a ball of 1/255 ends
    if mask is not None:
        check_binary(mask)
        mask = jnp.asarray(mask)
        mask = mask[None, :, :, None] if mask.ndim == 2 else mask
        if mask.ndim != 4 or any(m not in (1, n) for m, n in zip(mask.shape, images.shape)):
            raise ValueError(
                f"mask: got shape {mask.shape}, expected [height, width] or broadcastable to {images.shape}"
            )
        mask = jnp.broadcast_to(mask > 0, images.shape).astype(images.dtype)
    return Pixels(images, threat, mask)


def _coordinates(cloud: PointCloud, threat: Threat, mask: Any) -> Coordinates:
    if jnp.ndim(cloud.xyz) != 2 or cloud.xyz.shape[1] != 3 or not jnp.issubdtype(cloud.xyz.dtype, jnp.floating):
        raise ValueError(f"xyz: got {cloud.xyz.dtype}{jnp.shape(cloud.xyz)}, expected floats [point, 3], metres")
    count = cloud.xyz.shape[0]
    _validate.cloud_rows(cloud)
    if _validate.is_concrete(cloud.xyz, cloud.valid):
        points = np.asarray(cloud.xyz)[np.asarray(cloud.valid)]
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        if bad:
            raise ValueError(f"xyz: got {bad} points with NaN or infinite values, expected finite ones")
        held = single(jnp.zeros((), jax.dtypes.canonicalize_dtype(cloud.xyz.dtype))).dtype
        _validate.unrounded("xyz", float(np.abs(points).max(initial=0)), held)
    if mask is not None:
        check_binary(mask)
        if jnp.shape(mask) != (count,):
            raise ValueError(f"mask: got shape {jnp.shape(mask)}, expected ({count},): which points may move")
        mask = (jnp.asarray(mask) > 0).astype(jnp.float32)[:, None]
    cloud = cloud.replace(xyz=single(jnp.asarray(cloud.xyz)), valid=jnp.asarray(cloud.valid))
    return Coordinates(cloud, threat.replace(bounds=(-np.inf, np.inf)), mask)


def check_binary(mask: Any) -> None:
    """ValueError for other values than 0 and 1, where they are concrete; inside jit, what is above 0 counts as 1."""
    if _validate.is_concrete(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
        raise ValueError("mask: got values other than 0 and 1")


def l2(domain: Domain, x: jax.Array) -> jax.Array:
    """``||x - clean||_2`` of every example, [example]."""
    return norm(domain.split(x - domain.clean)).reshape(-1)


def squares(domain: Domain, x: jax.Array) -> jax.Array:
    """``sum (x - clean)^2`` of every example, [example]."""
    difference = domain.split(x - domain.clean)
    return jnp.sum(difference**2, axis=tuple(range(1, difference.ndim)))
