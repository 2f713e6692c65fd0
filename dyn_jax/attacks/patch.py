"""Adversarial patch (Brown et al. 2017): one small picture for all images, at a given or at random places."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.domains import pixels_of
from dyn_jax.attacks.threat import Bounds, Box, Number, check_bounds
from dyn_jax.objectives import Objective, resolve


class Patch(flax.struct.PyTreeNode):
    """The record, [example, 1, ...].

    Attributes:
      values: [height, width, channel] each, the patch: the same one for all.
      row, col: where its upper left corner lies in the image.
    """

    values: jax.Array
    row: jax.Array
    col: jax.Array


def paste(images: jax.Array, values: jax.Array, row: jax.Array, col: jax.Array, shape: jax.Array) -> jax.Array:
    """Images with the patch on them, linear in `values`.

    Args:
      images: [batch, height, width, channel].
      values: [height, width, channel] of the patch.
      row, col: [batch] integers, upper left corners; what lies outside the image is cut off.
      shape: [height, width] of the patch, 1 or 0: its outline.
    """
    places = []
    for size, length, at in zip(images.shape[1:3], values.shape[:2], (row, col)):
        inside = jnp.arange(size)[None, :] - at[:, None]
        places.append((jnp.clip(inside, 0, length - 1), (inside >= 0) & (inside < length)))
    (rows, in_rows), (cols, in_cols) = places
    at = (rows[:, :, None], cols[:, None, :])
    covered = in_rows[:, :, None] & in_cols[:, None, :] & (shape[at] > 0)
    return jnp.where(covered[..., None], values[at], images)


def patch(
    size: tuple[int, int],
    step_size: Number,
    steps: int,
    *,
    place: tuple[int, int] | None = None,
    shape: jax.typing.ArrayLike | None = None,
    values: jax.typing.ArrayLike | None = None,
    objective: str | Objective = "ce",
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """One patch for all images: ``values <- clip(values + step_size * sign(sum of the images' gradients))``.

    The values with the largest sum of objectives are kept (at random places: over those drawn in that step). They, and
    where they lie, are ``result.record``, see `Patch`; `paste` puts them on other images. Attacks all images, also
    misclassified ones; by nature the result depends on the batch.

    Args:
      size: (height, width) of the patch in pixels.
      step_size: of the values, in pixel units.
      steps: gradient steps; one more evaluation is of the last values.
      place: (row, column) of its upper left corner; None: drawn for every image and step, by the image's key, so that
        the patch works anywhere.
      shape: [height, width] of 1 and 0, the outline; default the whole rectangle.
      values: where to begin, [height, width, channel]; default half way between the bounds.
      objective: ``ce``, ``margin``, ``dlr`` or a callable, e.g. `dyn_jax.objectives.energy()`. With ``targets`` given
        to the attack, the patch says one class everywhere.
      bounds: lowest and highest pixel value.

    Raises:
      ValueError, TypeError: a size, place, shape or values that do not fit; a ``start``; a point cloud.

    The result lies anywhere in the box. Needs a ``key`` where `place` is None. Source: Brown et al. 2017, over places
    only (no rotation or scaling).
    """
    check_bounds(bounds)
    size = _pair("size", size, 1)
    place = None if place is None else _pair("place", place, 0)
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)
    outline = np.ones(size) if shape is None else np.asarray(shape)
    if outline.shape != size or not np.isin(outline, (0, 1)).all() or not outline.any():
        raise ValueError(f"shape: got an array of shape {outline.shape}, expected {size} of 1 and 0, not all 0")

    def corners(problem: Problem, keys: jax.Array | None, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of step `number`, [example] each."""
        height, width = problem.domain.clean.shape[1:3]
        room = (height - size[0], width - size[1])
        if min(room) < 0:
            raise ValueError(f"size: got {size}, expected at most the images' ({height}, {width})")
        if place is not None:
            if not all(0 <= at <= most for at, most in zip(place, room)):
                raise ValueError(f"place: got {place}, expected (row, column) of at most {room}")
            row, col = (jnp.full_like(problem.labels, at) for at in place)
            return row, col

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            pair = jax.random.split(jax.random.fold_in(key, number))
            row, col = (jax.random.randint(k, (), 0, most + 1) for k, most in zip(pair, room))
            return row, col

        return jax.vmap(draw)(jnp.asarray(keys))

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        domain = pixels_of(problem.domain, "a patch is a region of an image")
        if start is not None:
            raise ValueError("start: got some, expected None: a patch starts at `values`")
        low, high = domain.threat.bounds
        shown = jnp.asarray(outline)

        def step(state: tuple, number: jax.Array) -> tuple[tuple, Steps]:
            patch, best, value = state
            row, col = corners(problem, keys, number)
            x, pull = jax.vjp(lambda patch: paste(domain.clean, patch, row, col, shown), patch)
            gradient, record = problem.gradient(problem.project(x))
            now = jnp.sum(jnp.where(problem.attacked & jnp.isfinite(record.loss), record.loss, 0))
            best, value = jnp.where(now > value, patch, best), jnp.maximum(now, value)
            patch = jnp.clip(patch + step_size * jnp.sign(pull(gradient)[0]), low, high)
            return (patch, best, value), record

        first = jnp.zeros_like(domain.clean[0, : size[0], : size[1]]) + (low + high) / 2
        if values is not None:
            _validate.within("values", values, (low, high))
            first = jnp.clip(_validate.finite("values", values, first), low, high)
        corners(problem, keys, jnp.int32(0))  # a size or place that does not fit is met here
        worst = jnp.full_like(jnp.sum(problem.losses(problem.clean)), -jnp.inf)
        (_, best, _), steps_of = jax.lax.scan(step, (first, first, worst), jnp.arange(steps + 1))
        row, col = corners(problem, keys, jnp.int32(steps + 1))
        every = jnp.broadcast_to(best, (1, domain.examples, *best.shape))
        return Found(paste(domain.clean, best, row, col, shown), steps_of, Patch(every, row[None], col[None]))

    return Attack(search, Box(bounds), resolve(objective), random=place is None, attack_all=True)


def _pair(name: str, got: tuple[int, int], minimum: int) -> tuple[int, int]:
    try:
        first, second = got
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got {got!r}, expected two integers") from None
    return _validate.positive_int(name, first, minimum), _validate.positive_int(name, second, minimum)
