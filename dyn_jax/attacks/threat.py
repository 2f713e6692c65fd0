"""Threat sets: which values an attacker may hand in. A ball around every clean row, inside a box.

A row is an image [height, width, channel] or a point [3]; points have no box.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax import _validate

Bounds = tuple[float, float]
Number = jax.typing.ArrayLike | str
"""A number, a fraction such as "8/255", or a scalar array inside a vmap."""
NO_BOUNDS: Bounds = (-float("inf"), float("inf"))
TOLERANCE = 1e-6


@partial(jax.jit, inline=True)
def norm(x: jax.Array) -> jax.Array:
    """L2 norm per row, [row, 1, ...]: exact where squares would under- or overflow, with gradient 0 (not NaN) at 0."""
    axes = tuple(range(1, x.ndim))
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
    scaled = x / jnp.where(largest > 0, largest, 1)
    square = jnp.sum(scaled * scaled, axis=axes, keepdims=True)
    return largest * jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def unit(x: jax.Array) -> jax.Array:
    """``x / ||x||`` per row, 0 where x is 0."""
    length = norm(x)
    return x / jnp.where(length > 0, length, 1)


def drawn(sample: Callable[..., jax.Array], keys: jax.Array, like: jax.Array, *given: float) -> jax.Array:
    """One ``sample(key, shape, dtype, *given)`` for every row of `like`."""
    return jax.vmap(lambda key: sample(key, like.shape[1:], like.dtype, *given))(keys)


class _Ball(flax.struct.PyTreeNode):
    """What the balls share where they do not say otherwise: the L2 norm, and noise in the cube."""

    eps: jax.typing.ArrayLike
    bounds: Bounds = flax.struct.field(pytree_node=False, default=(0.0, 1.0))
    slack = 0.0  # of `contains`, relative to eps, beside `TOLERANCE`

    def distance(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """The set's norm of ``x - clean``, [row]."""
        return norm(x - clean).reshape(-1)

    def contains(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """[row], true where x is in the set up to 1e-6, of a sum over many numbers also relative to eps."""
        return (self.distance(x, clean) <= self.eps * (1 + self.slack) + TOLERANCE) & in_box(x, self.bounds)

    def direction(self, gradient: jax.Array) -> jax.Array:
        """Steepest ascent direction of unit length in the set's norm; 0 where the gradient is 0."""
        return unit(gradient)

    def noise(self, keys: jax.Array, like: jax.Array) -> jax.Array:
        """Uniform in the cube of half-width eps, one key per row."""
        return jnp.asarray(self.eps, like.dtype) * drawn(jax.random.uniform, keys, like, -1.0, 1.0)


class Linf(_Ball):
    """``max |x - clean| <= eps`` and x inside `bounds`."""

    def project(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """Nearest point of the set."""
        eps = jnp.asarray(self.eps, x.dtype)
        return jnp.clip(jnp.clip(x, clean - eps, clean + eps), *self.bounds)

    def distance(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """The set's norm of ``x - clean``, [row]."""
        return jnp.max(jnp.abs(x - clean), axis=tuple(range(1, x.ndim)))

    def direction(self, gradient: jax.Array) -> jax.Array:
        """The sign."""
        return jnp.sign(gradient)


class L2(_Ball):
    """``||x - clean||_2 <= eps`` (over a row) and x inside `bounds`."""

    slack = TOLERANCE

    def project(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """Radial projection into the ball, then clipping to the box (which only shortens the difference)."""
        delta = x - clean
        return jnp.clip(clean + _shortened(delta, norm(delta), self.eps), *self.bounds)

    def noise(self, keys: jax.Array, like: jax.Array) -> jax.Array:
        """Uniform in the ball, one key per row."""
        size = like[0].size

        def draw(key: jax.Array) -> jax.Array:
            direction_key, radius_key = jax.random.split(key)
            normal = jax.random.normal(direction_key, like.shape[1:], like.dtype)
            radius = jax.random.uniform(radius_key, (), like.dtype) ** (1.0 / size)
            return normal * (radius / jnp.sqrt(jnp.sum(normal * normal)))

        return jnp.asarray(self.eps, like.dtype) * jax.vmap(draw)(keys)


def _shortened(delta: jax.Array, length: jax.Array, eps: jax.typing.ArrayLike) -> jax.Array:
    eps = jnp.asarray(eps, delta.dtype)
    outside = length > eps
    return delta * jnp.where(outside, eps / jnp.where(outside, length, 1), 1)


def into_l1(delta: jax.Array, room: jax.Array, eps: jax.typing.ArrayLike) -> jax.Array:
    """The nearest point, in L2, of ``{d: sum |d| <= eps, |d| <= room where d has the sign of delta}``, row by row.

    ``d = sign(delta) clip(|delta| - t, 0, room)`` with the smallest t >= 0 that makes it short enough: halving the
    interval finds which numbers are neither 0 nor full, and these give t exactly.

    Args:
      delta: [row, ...].
      room: like delta, how far each number may move in its direction, at least 0; may be infinite.
      eps: a number or [row, 1, ...].

    Source: Croce and Hein 2021, "Mind the box", proposition 2.1.
    """
    axes = tuple(range(1, delta.ndim))
    total = lambda values: jnp.sum(values, axis=axes, keepdims=True)
    size, eps = jnp.abs(delta), jnp.asarray(eps, delta.dtype)
    cut = lambda t: jnp.clip(size - t, 0, room)

    def halve(ends: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        low, high = ends
        middle = (low + high) / 2
        short = total(cut(middle)) <= eps
        return (jnp.where(short, low, middle), jnp.where(short, middle, high)), None

    high = jnp.max(size, axis=axes, keepdims=True)
    (low, high), _ = jax.lax.scan(halve, (jnp.zeros_like(high), high), None, length=30)
    between = (size > high) & (size - low < room)
    full = total(jnp.where(between | (size <= high), 0, jnp.where(jnp.isfinite(room), room, 0)))
    count = total(between.astype(delta.dtype))
    t = (total(jnp.where(between, size, 0)) + full - eps) / jnp.maximum(count, 1)
    t = jnp.where(count > 0, jnp.clip(t, low, high), high)
    return jnp.sign(delta) * jnp.where(total(cut(0)) > eps, cut(t), cut(0))


class L1(_Ball):
    """``sum |x - clean| <= eps`` (over a row) and x inside `bounds`.

    `scaled`: `project` shortens the difference and clips it, as DeepSloth's code does, instead of going to the nearest
    point of ball and box, which is sparser.
    """

    scaled: bool = flax.struct.field(pytree_node=False, default=False)
    slack = 10 * TOLERANCE  # thousands of small differences round

    def project(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """Nearest point of the set; see `scaled`."""
        delta, (low, high) = x - clean, self.bounds
        if self.scaled:
            length = jnp.sum(jnp.abs(delta), axis=tuple(range(1, x.ndim)), keepdims=True)
            return jnp.clip(clean + _shortened(delta, length, self.eps), low, high)
        room = jnp.where(delta < 0, clean - low, high - clean)
        return jnp.clip(clean + into_l1(delta, room, self.eps), low, high)  # rounding: a box value is met exactly

    def distance(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """The set's norm of ``x - clean``, [row]."""
        return jnp.sum(jnp.abs(x - clean), axis=tuple(range(1, x.ndim)))

    def direction(self, gradient: jax.Array) -> jax.Array:
        """Steepest ascent direction of unit length in the set's norm: the number of largest gradient alone."""
        size = jnp.abs(gradient).reshape(len(gradient), -1)
        best = jax.nn.one_hot(jnp.argmax(size, axis=1), size.shape[1], dtype=gradient.dtype)
        return jnp.sign(gradient) * best.reshape(gradient.shape)

    def noise(self, keys: jax.Array, like: jax.Array) -> jax.Array:
        """Laplace noise of a length uniform in [0, eps], one key per row."""

        def draw(key: jax.Array) -> jax.Array:
            direction_key, radius_key = jax.random.split(key)
            laplace = jax.random.laplace(direction_key, like.shape[1:], like.dtype)
            return laplace * (jax.random.uniform(radius_key, (), like.dtype) / jnp.sum(jnp.abs(laplace)))

        return jnp.asarray(self.eps, like.dtype) * jax.vmap(draw)(keys)


class Ray(_Ball):
    """Points on the ray from the sensor, at the origin, through the clean one, up to `eps` metres nearer or farther.

    What a delay of a LiDAR's echo can do: the direction of the beam, and with it the ring, stays, and so does the
    intensity. A point comes no nearer to the sensor than half of its distance. What `project` leaves of the direction,
    the gradient over its length, and of the noise lies on the ray.
    """

    bounds: Bounds = flax.struct.field(pytree_node=False, default=NO_BOUNDS)

    def _along(self, x: jax.Array, clean: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(unit vector of the ray, distance of the clean point, metres that x is farther), [point, 3 or 1]."""
        if clean.ndim != 2:
            raise ValueError(
                f"norm: got 'ray' for shape {clean.shape}, expected points [point, 3]: images have no rays"
            )
        length = norm(clean)
        ray = clean / jnp.where(length > 0, length, 1)
        return ray, length, jnp.sum((x - clean) * ray, axis=1, keepdims=True)

    def project(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """Nearest point of the set."""
        ray, length, farther = self._along(x, clean)
        eps = jnp.asarray(self.eps, x.dtype)
        return clean + jnp.clip(farther, -jnp.minimum(eps, length / 2), eps) * ray

    def contains(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """[point], true where x is in the set up to what its coordinates are rounded to."""
        ray, length, farther = self._along(x, clean)
        beside = norm(x - clean - farther * ray)
        slack = TOLERANCE + 4 * jnp.finfo(x.dtype).eps * length
        return ((beside <= slack) & (jnp.abs(farther) <= self.eps + slack))[:, 0]


class Dropped(flax.struct.PyTreeNode):
    """A cloud without some of its points, at most `points` of each cloud: a beam that gives no return.

    A dropped point lies at the origin, the sensor; `Coordinates` hands the network a cloud in which it is not valid.
    The others stay where they are. How many may go is counted by the domain, which knows the clouds.
    """

    points: int = flax.struct.field(pytree_node=False)
    bounds: Bounds = flax.struct.field(pytree_node=False, default=NO_BOUNDS)

    def project(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """The clean points, or the origin where x is nearer to it."""
        if clean.ndim != 2:
            raise ValueError(f"inputs: got images of shape {clean.shape}, expected a cloud: pixels cannot be dropped")
        return jnp.where(norm(x) < norm(clean) / 2, 0, clean)

    def there(self, x: jax.Array) -> jax.Array:
        """[point] bool, what is not dropped."""
        return jnp.any(x != 0, axis=1)

    def distance(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """1 for a dropped point, [point]."""
        return (self.there(clean) & ~self.there(x)).astype(x.dtype)

    def contains(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """[point], true where the point is dropped or as it was."""
        return ~self.there(x) | jnp.all(x == clean, axis=1)

    def direction(self, gradient: jax.Array) -> jax.Array:
        """The gradient: there are no small steps."""
        return gradient

    def noise(self, keys: jax.Array, like: jax.Array) -> jax.Array:
        """None: random points are dropped by `dyn_jax.attacks.point_drop` with the saliency ``random``."""
        return jnp.zeros_like(like)


class Box(flax.struct.PyTreeNode):
    """Any image inside `bounds`: for attacks that minimise the distance instead of bounding it."""

    bounds: Bounds = flax.struct.field(pytree_node=False, default=(0.0, 1.0))

    def project(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """Clipping to the box."""
        return jnp.clip(x, *self.bounds)

    def distance(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """L2 norm of ``x - clean``, [row]."""
        return norm(x - clean).reshape(-1)

    def contains(self, x: jax.Array, clean: jax.Array) -> jax.Array:
        """[row], true where x is in the box up to 1e-6."""
        return in_box(x, self.bounds)


Ball = Linf | L2 | L1 | Ray
BALLS: dict[str, type[Linf] | type[L2] | type[L1]] = {"linf": Linf, "l2": L2, "l1": L1}
Threat = Ball | Box | Dropped


def in_box(x: jax.Array, bounds: Bounds) -> jax.Array:
    inside = (x >= bounds[0] - TOLERANCE) & (x <= bounds[1] + TOLERANCE)
    return jnp.all(inside, axis=tuple(range(1, x.ndim)))


def ball(name: str, eps: Number, bounds: Bounds = (0.0, 1.0)) -> Ball:
    """The threat set of a norm name.

    Args:
      name: ``linf``, ``l2``, ``l1``, or for points ``ray``, see `Ray`.
      eps, bounds: see `dyn_jax.attacks.bim`.

    Raises:
      ValueError, TypeError: unknown norm; eps negative, not finite or not parseable; bounds not (low, high).
    """
    _validate.choice("norm", name, (*BALLS, "ray"))
    eps = _validate.number("eps", eps, minimum=0)
    check_bounds(bounds)
    return Ray(eps) if name == "ray" else BALLS[name](eps, bounds)


def check_bounds(bounds: Bounds) -> None:
    """Raises ValueError unless `bounds` is (low, high), two numbers with low < high (the same for all channels)."""
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds: got {bounds}, expected (low, high), one number each for all channels") from None
    if not low < high:
        raise ValueError(f"bounds: got {bounds}, expected (low, high) with low < high")


def to_8bit(adversarial: jax.Array, clean: jax.Array) -> jax.Array:
    """Adversarial images as uint8, every pixel rounded towards the clean one: what was inside a ball stays inside.

    (Rounding to nearest ends at 8.5/255 for eps 8/255.)

    Args:
      adversarial, clean: [batch, height, width, channel] in [0, 1]; the clean pixels are multiples of 1/255.

    Raises:
      ValueError, TypeError: different shapes; pixels outside [0, 1], NaN or no floating point; clean pixels that are no
        8-bit values.
    """
    _validate.same_shape("adversarial, clean", adversarial, clean)
    for name, images in (("adversarial", adversarial), ("clean", clean)):
        _validate.within(name, _validate.images(name, images), (0.0, 1.0))
    grid = jnp.round(clean * 255)
    if _validate.is_concrete(clean) and bool(jnp.max(jnp.abs(clean * 255 - grid)) > 1e-3):
        raise ValueError("clean: got pixels that are no multiples of 1/255, expected 8-bit images divided by 255")
    steps = jnp.trunc((adversarial - clean) * 255 + jnp.sign(adversarial - clean) * 1e-3)
    return jnp.clip(grid + steps, 0, 255).astype(jnp.uint8)
