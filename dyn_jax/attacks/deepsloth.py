"""DeepSloth (Hong et al., ICLR 2021): every exit but the last is made unsure, so that none of them fires.

`deepsloth` moves every image by itself, `deepsloth_universal` one perturbation for all images or for all of a class.
How they move in a norm is a record with a step of its own: `SlothLinf`, `SlothL2`, `SlothL1`, `SlothUniversalL2`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax import _validate, objectives
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.domains import Pixels, domain_of, pixels_of
from dyn_jax.attacks.forward import Network, as_forward
from dyn_jax.attacks.threat import L1, L2, Ball, Box, Linf, Number, drawn
from dyn_jax.objectives import exits_of
from dyn_jax.objectives.answers import untargeted

_GUARD = 1e-7  # of the released shrinking: ``bound / (norm + 1e-7)``


def _length(x: jax.Array, order: int) -> jax.Array:
    size = jnp.sum(jnp.abs(x) ** order, axis=tuple(range(1, x.ndim)), keepdims=True)
    return size if order == 1 else jnp.sqrt(size)


def shrunk(x: jax.Array, bound: jax.typing.ArrayLike, order: int) -> jax.Array:
    """Rows of x scaled to an Lp norm of `bound` where theirs is larger, as PyTorch's ``renorm``."""
    size = _length(x, order)
    return x * jnp.where(size > bound, bound / (size + _GUARD), 1).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _Moves:
    """What all four have: checks, one start, and how the images of a universal one take turns."""

    eps: Number
    steps: int
    batches: int = 1
    epochs: int = 1
    clips = True  # the gradient is that at clip(clean + d), through the clipping
    settles = True  # the d of one image is cut to what the box leaves of it
    order, sample = 2, staticmethod(jax.random.normal)  # of the ball's norm, and of the start

    def __post_init__(self) -> None:
        settings = {field.name for field in dataclasses.fields(self)}
        for name in settings & {"eps", "step_size", "start", "learning_rate", "last_rate"}:
            self.number(name)
        for name in settings & {"steps", "batches", "epochs", "stage", "period", "batch"}:
            _validate.positive_int(name, getattr(self, name))
        if "shrink" in settings:
            shrink = _validate.positive("shrink", self.shrink)  # pyright: ignore[reportAttributeAccessIssue]
            if _validate.is_concrete(shrink) and shrink > 1:
                raise ValueError(f"shrink: got {shrink}, expected at most 1: a ball that grows is none")
        if "sparsity" in settings:
            _validate.share("sparsity", self.sparsity)  # pyright: ignore[reportAttributeAccessIssue]

    def number(self, name: str) -> Any:
        return _validate.number(name, getattr(self, name), minimum=0)

    def begin(self, keys: jax.Array, like: jax.Array) -> jax.Array:
        """A draw of length eps."""
        draw = drawn(self.sample, keys, like)
        return draw * jnp.asarray(self.number("eps"), like.dtype) / _length(draw, self.order)


@dataclasses.dataclass(frozen=True)
class SlothLinf(_Moves):
    """``d <- clip(d + step_size sign(g), -eps, eps)``, g at clean + d, outside the box too.

    Attributes:
      eps, step_size, start: radius, length of a step, radius of the uniform start: pixel units, numbers or "8/255".
      steps: on each of `batches` equal parts of the images of a universal one, `epochs` times.
    """

    eps: Number = 8 / 256
    steps: int = 30
    step_size: Number = 0.002
    start: Number = 0.002
    clips = False

    def threat(self) -> Ball:
        return Linf(self.number("eps"))

    def begin(self, keys: jax.Array, like: jax.Array) -> jax.Array:
        return drawn(jax.random.uniform, keys, like, -1.0, 1.0) * jnp.asarray(self.number("start"), like.dtype)

    def move(self, d: jax.Array, gradient: jax.Array, number: jax.Array) -> jax.Array:
        return d + jnp.asarray(self.number("step_size"), d.dtype) * jnp.sign(gradient)

    def bounded(self, d: jax.Array, number: jax.Array) -> jax.Array:
        eps = jnp.asarray(self.number("eps"), d.dtype)
        return jnp.clip(d, -eps, eps)


@dataclasses.dataclass(frozen=True)
class SlothL2(_Moves):
    """``d <- shrink(d + rate g)``, g shrunk to length 1 but never enlarged; the ball gets smaller as it goes.

    Attributes:
      eps, shrink, stage: first radius, multiplied by `shrink` after every `stage` steps.
      learning_rate, last_rate, period: a half cosine from the first to the second within `period` steps.
      batch: g is divided by it. The released loss is the mean over a batch, and as small gradients stay small, a step's
        length depends on the size of that batch; here it is this number, whatever the batch.
    """

    eps: Number = 1.0
    steps: int = 550
    shrink: float = 0.9
    stage: int = 50
    learning_rate: float = 1.0
    last_rate: float = 0.01
    period: int = 550
    batch: int = 250
    settles = False

    def threat(self) -> Ball:
        return L2(self.number("eps") * self.shrink ** ((self.steps - 1) // self.stage))

    def move(self, d: jax.Array, gradient: jax.Array, number: jax.Array) -> jax.Array:
        turn = (1 + jnp.cos(jnp.pi * number / self.period)) / 2
        rate = self.last_rate + (self.learning_rate - self.last_rate) * turn
        return d + rate.astype(d.dtype) * shrunk(gradient / self.batch, 1.0, 2)

    def bounded(self, d: jax.Array, number: jax.Array) -> jax.Array:
        return shrunk(d, self.number("eps") * jnp.asarray(self.shrink, d.dtype) ** (number // self.stage), 2)


@dataclasses.dataclass(frozen=True)
class SlothUniversalL2(_Moves):
    """``d <- shrink(d + rate g)`` for one d, g shrunk to length 1; every epoch has a smaller rate and ball.

    Attributes:
      eps, learning_rate: of the first epoch, multiplied by `shrink` after every one.
      steps, batches, epochs: as of `SlothLinf`.
    """

    eps: Number = 1.0
    steps: int = 50
    batches: int = 5
    epochs: int = 11
    shrink: float = 0.9
    learning_rate: float = 0.1

    def _scale(self, number: jax.Array, dtype: Any) -> jax.Array:
        return jnp.asarray(self.shrink, dtype) ** (number // (self.steps * self.batches))

    def move(self, d: jax.Array, gradient: jax.Array, number: jax.Array) -> jax.Array:
        return d + self.learning_rate * self._scale(number, d.dtype) * shrunk(gradient, 1.0, 2)

    def bounded(self, d: jax.Array, number: jax.Array) -> jax.Array:
        return shrunk(d, self.number("eps") * self._scale(number, d.dtype), 2)


@dataclasses.dataclass(frozen=True)
class SlothL1(_Moves):
    """``d <- shrink(d + step_size sign(g) / k)`` on the k numbers whose ``|g|`` is not below the quantile.

    Attributes:
      eps, step_size: L1 norms.
      sparsity: share of an image's numbers that a step leaves alone, in (0, 1).
      steps, batches, epochs: as of `SlothLinf`.
    """

    eps: Number = 8.0
    steps: int = 250
    step_size: Number = 0.5
    sparsity: float = 0.99
    order, sample = 1, staticmethod(jax.random.laplace)

    def threat(self) -> Ball:
        return L1(self.number("eps"), scaled=True)

    def move(self, d: jax.Array, gradient: jax.Array, number: jax.Array) -> jax.Array:
        size = jnp.abs(gradient).reshape(len(gradient), -1)
        rank = max(int(_validate.share("sparsity", self.sparsity) * size.shape[1]), 1) - 1
        least = jnp.sort(size, axis=1)[:, rank].reshape(-1, *(1,) * (d.ndim - 1))
        chosen = (jnp.abs(gradient) >= least).astype(d.dtype)
        return d + self.number("step_size") * jnp.sign(gradient) * chosen / _length(chosen, 1)

    def bounded(self, d: jax.Array, number: jax.Array) -> jax.Array:
        return shrunk(d, self.number("eps"), 1)


Moves = SlothLinf | SlothL2 | SlothL1
UniversalMoves = SlothLinf | SlothUniversalL2 | SlothL1
EACH: dict[str, Moves] = {"linf": SlothLinf(), "l2": SlothL2(), "l1": SlothL1()}
UNIVERSAL: dict[str, UniversalMoves] = {
    "linf": SlothLinf(steps=20, step_size=0.005, start=8 / 256),
    "l2": SlothUniversalL2(),
    "l1": SlothL1(steps=100, batches=10, sparsity=0.9),
}
"""The released settings by norm: of one image's perturbation, and of a universal one."""


def _chosen(norm: Any, known: dict[str, Any], settings: dict[str, Any]) -> Any:
    moves = norm if isinstance(norm, _Moves) else known[_validate.choice("norm", norm, known)]
    names = {field.name for field in dataclasses.fields(moves)}
    if unknown := sorted(set(settings) - names):
        raise TypeError(f"deepsloth: got {', '.join(unknown)}, expected settings among {', '.join(sorted(names))}")
    return dataclasses.replace(moves, **settings)


def _into(box: tuple[float, float], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x clipped to the box, and where the clipping passes a gradient: at the bounds too, as PyTorch's does."""
    return jnp.clip(x, *box), (x >= box[0]) & (x <= box[1])


def deepsloth(norm: str | Moves = "linf", **settings: Any) -> Attack:
    """Lowers ``L = sum_{i < last} H(uniform, softmax_i)`` of every image: no exit but the last stays sure.

    Nothing keeps the answer, no threshold takes part, and the last iterate is returned: what it did to the network's
    speed is `dyn_jax.metrics.exits.efficacy` of the result's traces. ``start`` may lie outside the box.

    Args:
      norm: ``linf``, ``l2`` or ``l1`` with the released settings, or one of `SlothLinf`, `SlothL2`, `SlothL1`.
      **settings: fields of that record to change: ``eps``, ``steps``, ``step_size``, ...

    Raises:
      ValueError, TypeError: unknown norm or setting, a number out of range; when called, a network without early exits,
        targets, point clouds.

    Source: Hong et al. 2021, section 4 (eq. 1) and its released code. (It counts 250 steps in L1 and loses the last.)
    """
    moves = _chosen(norm, EACH, settings)

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        untargeted(problem.targets, "DeepSloth has no target class")
        domain = pixels_of(problem.domain)
        exits_of(problem.clean.trace)
        clean, box = domain.clean, domain.threat.bounds
        d = moves.begin(keys, clean) if start is None else start - clean

        def step(d: jax.Array, number: jax.Array) -> tuple[jax.Array, Any]:
            x, inside = _into(box, clean + d)
            gradient, record = problem.gradient(x if moves.clips else clean + d)
            d = moves.move(d, jnp.where(inside, gradient, 0) if moves.clips else gradient, number)
            d = _into(box, clean + d)[0] - clean if moves.settles else d
            return moves.bounded(d, number), record

        d, record = jax.lax.scan(step, domain.moving(d), jnp.arange(moves.steps))
        return Found(_into(box, clean + d)[0], record)

    return Attack(search, moves.threat(), objectives.unsure_exits(), random=True, attack_all=True)


class SlothUniversal(flax.struct.PyTreeNode):
    """What `deepsloth_universal` found.

    Attributes:
      delta: [group, height, width, channel]: one for all images, or one a class.
      epochs: [epoch, group, ...], what it was after each epoch.
      loss: [step], L before each step, mean over the images that took part.
    """

    delta: jax.Array
    epochs: jax.Array
    loss: jax.Array

    def apply(self, images: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """Images [batch, height, width, channel] in [0, 1] with the perturbation (of their class, if they have one).

        Raises:
          ValueError, TypeError: labels where there is one for all, none where there is one a class; a wrong size.
        """
        images = _validate.images("images", images)
        _validate.same_shape("images, delta", images[0], self.delta[0])
        if (labels is None) == (len(self.delta) > 1):
            raise ValueError(f"labels: got {'None' if labels is None else 'some'} for {len(self.delta)} perturbations")
        own = 0 if labels is None else _validate.labels("labels", labels, len(images), len(self.delta))
        return jnp.clip(images + jnp.broadcast_to(self.delta[own], images.shape), 0, 1)


def deepsloth_universal(norm: str | UniversalMoves = "linf", **settings: Any) -> Callable[..., SlothUniversal]:
    """One perturbation for every image, or for every image of a class.

    The returned function takes ``(forward, images, *, key, classes=None, start=None)``: images to make it on, in parts
    that take turns; with `classes` [batch] one perturbation for each class of the network (or of the start), all of
    them at once; ``start`` [group, height, width, channel]. It gives a `SlothUniversal`, whose ``apply`` moves others.

    Args:
      norm: ``linf``, ``l2`` or ``l1`` with the released settings, or `SlothLinf`, `SlothUniversalL2`, `SlothL1`.
      **settings: fields of that record to change.

    Raises as `deepsloth`; when called, images that do not divide into the parts. Source: Hong et al. 2021, section 5.2
    and its released code.
    """
    moves = _chosen(norm, UNIVERSAL, settings)
    unsure = objectives.unsure_exits()

    def search(
        forward: Network,
        images: jax.Array,
        *,
        key: jax.Array | None = None,
        classes: jax.Array | None = None,
        start: jax.Array | None = None,
    ) -> SlothUniversal:
        domain = domain_of(images, Box())
        if not isinstance(domain, Pixels):
            raise TypeError("images: got a PointCloud, expected images")
        images, network = domain.clean, as_forward(forward)
        if len(images) % moves.batches:
            raise ValueError(f"images: got {len(images)}, expected a multiple of batches={moves.batches}")
        groups = jnp.zeros(len(images), jnp.int32) if classes is None else jnp.asarray(classes)
        if start is None:
            if key is None:
                raise ValueError("key: got None, expected a typed PRNG key such as jax.random.key(0), or a start")
            count = 1 if classes is None else network(images[:1]).logits.shape[1]
            like = jnp.zeros((count, *images.shape[1:]), images.dtype)
            d = moves.begin(jax.random.split(key, count), like)
        else:
            d = jnp.asarray(start, images.dtype)
        if d.ndim != 4 or d.shape[1:] != images.shape[1:]:
            raise ValueError(f"start: got shape {d.shape}, expected [group, {', '.join(map(str, images.shape[1:]))}]")
        groups = _validate.labels("classes", groups, len(images), len(d))
        parts = lambda x: x.reshape(moves.batches, -1, *x.shape[1:])
        images, groups = parts(images), parts(groups)

        def step(d: jax.Array, number: jax.Array) -> tuple[jax.Array, tuple]:
            part = number // moves.steps % moves.batches
            x, own = images[part], groups[part]
            size = jnp.zeros(len(d), x.dtype).at[own].add(1)

            def total(d: jax.Array) -> tuple[jax.Array, jax.Array]:
                seen = x + d[own]
                if moves.clips:
                    clipped, inside = _into((0.0, 1.0), jax.lax.stop_gradient(seen))
                    seen = clipped + jnp.where(inside, seen - jax.lax.stop_gradient(seen), 0)
                values = unsure(network(seen), own, None)
                return jnp.sum(values / size[own]), -jnp.mean(values)

            gradient, loss = jax.grad(total, has_aux=True)(d)
            d = moves.bounded(moves.move(d, gradient, number), number)
            return d, loss

        def epoch(d: jax.Array, number: jax.Array) -> tuple[jax.Array, tuple]:
            length = moves.steps * moves.batches
            d, losses = jax.lax.scan(step, d, number * length + jnp.arange(length))
            return d, (d, losses)

        d, (epochs, losses) = jax.lax.scan(epoch, d, jnp.arange(moves.epochs))
        return SlothUniversal(d, epochs, losses.reshape(-1))

    return search
