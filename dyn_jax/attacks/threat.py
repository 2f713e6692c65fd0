"""Threat sets: which images an attacker may hand in. A ball around the clean image, inside a box of pixel values."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax import _validate

Bounds = tuple[float, float]
TOLERANCE = 1e-6


def safe_norm(x: jax.Array) -> jax.Array:
    """L2 norm per example, [batch, 1, 1, 1], with gradient 0 (not NaN) at 0."""
    square = jnp.sum(x * x, axis=tuple(range(1, x.ndim)), keepdims=True)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


@flax.struct.dataclass
class Linf:
    """``max |x - clean| <= eps`` and x inside `bounds`."""

    eps: jax.typing.ArrayLike
    bounds: Bounds = flax.struct.field(pytree_node=False, default=(0.0, 1.0))

    def project(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """Nearest point of the set."""
        eps = jnp.asarray(self.eps, x.dtype)
        return jnp.clip(jnp.clip(x, clean - eps, clean + eps), *self.bounds)

    def distance(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """The set's norm of ``x - clean``, [batch]."""
        return jnp.max(jnp.abs(x - clean), axis=(1, 2, 3))

    def contains(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """[batch], true where x is in the set up to 1e-6."""
        return (self.distance(x, clean) <= self.eps + TOLERANCE) & _in_box(x, self.bounds)

    def direction(self, gradient: jax.Array) -> jax.Array:
        """Steepest ascent direction of unit length in the set's norm."""
        return jnp.sign(gradient)

    def noise(self, keys: jax.Array, like: jax.Array) -> jax.Array:
        """Uniform in the ball, one key per example."""
        draw = jax.vmap(lambda key: jax.random.uniform(key, like.shape[1:], like.dtype, -1.0, 1.0))
        return jnp.asarray(self.eps, like.dtype) * draw(keys)


@flax.struct.dataclass
class L2:
    """``||x - clean||_2 <= eps`` (over height, width and channels) and x inside `bounds`."""

    eps: jax.typing.ArrayLike
    bounds: Bounds = flax.struct.field(pytree_node=False, default=(0.0, 1.0))

    def project(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """Radial projection into the ball, then clipping to the box (which only shortens the difference)."""
        delta = x - clean
        norm = safe_norm(delta)
        eps = jnp.asarray(self.eps, x.dtype)
        outside = norm > eps
        scale = jnp.where(outside, eps / jnp.where(outside, norm, 1), 1)
        return jnp.clip(clean + delta * scale, *self.bounds)

    def distance(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """The set's norm of ``x - clean``, [batch]."""
        return safe_norm(x - clean)[:, 0, 0, 0]

    def contains(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """[batch], true where x is in the set up to a relative 1e-6."""
        return (self.distance(x, clean) <= self.eps * (1 + TOLERANCE) + TOLERANCE) & _in_box(x, self.bounds)

    def direction(self, gradient: jax.Array) -> jax.Array:
        """Steepest ascent direction of unit length in the set's norm; 0 where the gradient is 0."""
        norm = safe_norm(gradient)
        return gradient / jnp.where(norm > 0, norm, 1)

    def noise(self, keys: jax.Array, like: jax.Array) -> jax.Array:
        """Uniform in the ball, one key per example."""
        size = like[0].size

        def draw(key: jax.Array) -> jax.Array:
            direction_key, radius_key = jax.random.split(key)
            normal = jax.random.normal(direction_key, like.shape[1:], like.dtype)
            radius = jax.random.uniform(radius_key, (), like.dtype) ** (1.0 / size)
            return normal * (radius / jnp.sqrt(jnp.sum(normal * normal)))

        return jnp.asarray(self.eps, like.dtype) * jax.vmap(draw)(keys)


@flax.struct.dataclass
class Box:
    """Any image inside `bounds`: for attacks that minimise the distance instead of bounding it."""

    bounds: Bounds = flax.struct.field(pytree_node=False, default=(0.0, 1.0))

    def project(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """Clipping to the box."""
        del clean
        return jnp.clip(x, *self.bounds)

    def distance(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """L2 norm of ``x - clean``, [batch]."""
        return safe_norm(x - clean)[:, 0, 0, 0]

    def contains(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """[batch], true where x is in the box up to 1e-6."""
        del clean
        return _in_box(x, self.bounds)


Threat = Linf | L2 | Box


def _in_box(x: jax.Array, bounds: Bounds) -> jax.Array:
    inside = (x >= bounds[0] - TOLERANCE) & (x <= bounds[1] + TOLERANCE)
    return jnp.all(inside, axis=(1, 2, 3))


def ball(norm: str, eps: jax.typing.ArrayLike | str, bounds: Bounds = (0.0, 1.0)) -> Linf | L2:
    """The threat set of a norm name.

    Args:
      norm: ``linf`` or ``l2``.
      eps: radius in pixel units of [0, 1] images, at least 0: a number, "8/255", or an array inside a vmap.
      bounds: lowest and highest pixel value.

    Raises:
      ValueError, TypeError: unknown norm; eps negative, not finite or not parseable; bounds not (low, high).
    """
    _validate.choice("norm", norm, ("linf", "l2"))
    eps = _validate.number("eps", eps, minimum=0)
    check_bounds(bounds)
    return Linf(eps, bounds) if norm == "linf" else L2(eps, bounds)


def check_bounds(bounds: Bounds) -> None:
    """Raises ValueError unless `bounds` is (low, high) with low < high."""
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise ValueError(f"bounds: got {bounds}, expected (low, high) with low < high")
