"""Models that mislead attacks, each around a healthy network f: images -> logits; and one that needs no file."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import networks, occupancy
from dyn_jax.datasets import digits

Model = Callable[[jax.Array], jax.Array]
NOISE = 16 / 255


@functools.cache
def digits_data(count: int = 12, size: int = 8) -> tuple[jax.Array, np.ndarray]:
    """The first test digits."""
    data = digits("test", size=size)
    return jnp.asarray(data.images[:count]), data.labels[:count]


@functools.cache
def digits_model() -> Model:
    """Random ReLU features of 8 x 8 digits under a ridge regression: about 95 % right, and nothing hidden."""
    train = digits("train", size=8)
    weights = np.random.default_rng(0).normal(0, 0.3, (192, 256)).astype(np.float32)
    features = lambda x, module: module.maximum(module.matmul(x.reshape(len(x), -1) - 0.3, weights), 0)
    hidden = features(train.images, np)
    target = 10 * np.eye(10)[train.labels]
    head = np.linalg.solve(hidden.T @ hidden + 10 * np.eye(256), hidden.T @ target).astype(np.float32)
    return lambda x: features(x, jnp) @ head


def blur(x: jax.Array) -> jax.Array:
    """Mean over 3 x 3 neighbours, zeros outside."""
    return nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)), count_include_pad=True)


def detached_zero_gradient(f: Model) -> Model:
    return lambda x: f(jax.lax.stop_gradient(x)) + 0 * jnp.sum(x)


def detached_no_graph(f: Model) -> Model:
    return lambda x: f(jax.lax.stop_gradient(x))


def quantised(f: Model) -> Model:
    return lambda x: f(jnp.round(15 * x) / 15)


def softmax_output(f: Model) -> Model:
    return lambda x: jax.nn.softmax(f(x))


def fixed_key_noise(f: Model) -> Model:
    return lambda x: f(x + NOISE * jax.random.normal(jax.random.key(0), (1, *x.shape[1:])))


def fixed_noise_array(f: Model) -> Model:
    """As the reference has it: numpy's RandomState(0), channels first."""

    def model(x: jax.Array) -> jax.Array:
        noise = np.random.RandomState(0).normal(0, NOISE, (x.shape[3], *x.shape[1:3]))
        return f(x + np.broadcast_to(noise.transpose(1, 2, 0), x.shape).astype(np.float32))

    return model


def fresh_noise(f: Model) -> Model:
    """Draws from the host at every call; under jit that is once."""
    stream = np.random.default_rng(0)
    return lambda x: f(x + stream.normal(0, NOISE, x.shape).astype(np.float32))


def fresh_noise_in_a_jit(f: Model) -> Model:
    """The same, where the network calls a compiled function that it makes at every call."""
    noisy = fresh_noise(f)
    return lambda x: jax.jit(lambda x: noisy(x))(x)


def callback_noise(f: Model) -> Model:
    """Fresh noise that jit cannot freeze."""
    stream = np.random.default_rng(0)

    def draw(like: jax.Array) -> np.ndarray:
        return stream.normal(0, NOISE, like.shape).astype(np.float32)

    return lambda x: f(x + jax.pure_callback(draw, jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.stop_gradient(x)))


def seeded_by_input(f: Model) -> Model:
    def model(x: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), jnp.sum(255 * x).astype(jnp.int32))
        return f(x + NOISE * jax.random.normal(key, x.shape))

    return model


@jax.custom_vjp
def _reverse(x: jax.Array) -> jax.Array:
    return x


_reverse.defvjp(lambda x: (x, None), lambda _, cotangent: (-cotangent,))


def reversed_gradient(f: Model) -> Model:
    return lambda x: f(_reverse(x))


def logits_x1000(f: Model) -> Model:
    return lambda x: 1000 * f(x)


def nan_bright_images(f: Model, bright: float = 0.5) -> Model:
    return lambda x: jnp.where(jnp.mean(x, axis=(1, 2, 3))[:, None] > bright, jnp.nan, f(x))


def hard_gate_blur(f: Model, threshold: float = 0.035) -> Model:
    def model(x: jax.Array) -> jax.Array:
        rough = jnp.mean(jnp.abs(x - blur(x)), axis=(1, 2, 3))[:, None]
        g = (rough > threshold).astype(x.dtype)
        return g * f(x) + (1 - g) * f(blur(x))

    return model


def hard_gate_select(f: Model, threshold: float = 0.035) -> Model:
    """The same as a selection."""

    def model(x: jax.Array) -> jax.Array:
        rough = jnp.mean(jnp.abs(x - blur(x)), axis=(1, 2, 3))[:, None]
        return jnp.where(rough > threshold, f(x), f(blur(x)))

    return model


def thresholded_input(f: Model) -> Model:
    return lambda x: f((x > 0.5).astype(x.dtype))


def gradient_in_forward(f: Model) -> Model:
    """Purifies its input by a step against the gradient of its own label's cross-entropy."""

    def model(x: jax.Array) -> jax.Array:
        label = jnp.argmax(f(x), axis=1)

        def loss(x: jax.Array) -> jax.Array:
            return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(f(x)), label[:, None], axis=1))

        return f(x - 0.01 * jnp.sign(jax.grad(loss)(x)))

    return model


def optimises_in_a_loop(f: Model) -> Model:
    """A few descent steps on the entropy of the answer, in a scan."""

    def model(x: jax.Array) -> jax.Array:
        def entropy(x: jax.Array) -> jax.Array:
            return -jnp.sum(jax.nn.softmax(f(x)) * jax.nn.log_softmax(f(x)))

        step = lambda x, _: (x - 0.01 * jax.grad(entropy)(x), None)
        return f(jax.lax.scan(step, x, None, length=2)[0])

    return model


def waits_in_a_while_loop(f: Model) -> Model:
    """Blurs until the image is smooth enough: reverse mode cannot follow."""

    def model(x: jax.Array) -> jax.Array:
        return f(jax.lax.while_loop(lambda x: jnp.mean(jnp.abs(x - blur(x))) > 0.02, blur, x))

    return model


def cast_to_integers(f: Model) -> Model:
    return lambda x: f((15 * x).astype(jnp.int32) / 15)


def partly_quantised(f: Model) -> Model:
    """The gradient is not zero: half of the answer is left."""
    return lambda x: 0.5 * f(x) + 0.5 * f(jnp.floor(4 * x) / 4)


def straight_through_quantised(f: Model) -> Model:
    """How the remedy for `quantised` is written; healthy."""
    return lambda x: f(x + jax.lax.stop_gradient(jnp.round(15 * x) / 15 - x))


def frozen_gates(key: jax.Array | None = None) -> Callable:
    """A network that samples its gates, with the key bound: attack and verdict see one draw."""
    net, variables = networks.pretrained("dynconv-digits")
    rngs = {"gate": jax.random.key(0) if key is None else key}
    return functools.partial(net.apply, variables, occupancy=occupancy.gumbel_sigmoid(1.0), rngs=rngs)


BROKEN: dict[str, tuple[Callable[..., Model], set[str]]] = {
    "detached, zero gradient": (detached_zero_gradient, {"zero_gradient"}),
    "detached, no graph": (detached_no_graph, {"no_gradient", "zero_gradient"}),
    "quantised input": (quantised, {"zero_gradient", "hard_operation"}),
    "softmax output": (softmax_output, {"probabilities"}),
    "fixed-key noise": (fixed_key_noise, {"frozen_randomness"}),
    "fixed noise as an array": (fixed_noise_array, {"frozen_randomness"}),
    "fresh noise": (fresh_noise, {"randomised"}),
    "fresh noise in a jit of its own": (fresh_noise_in_a_jit, {"randomised"}),
    "fresh noise of a callback": (callback_noise, {"randomised"}),
    "noise seeded by the input": (seeded_by_input, {"seeded_by_input"}),
    "reversed gradient": (reversed_gradient, {"reversed_gradient"}),
    "logits x 1000": (logits_x1000, {"saturated_loss"}),
    "NaN on bright images": (nan_bright_images, {"nonfinite_logits"}),
    "hard gate": (hard_gate_blur, {"hard_operation"}),
    "hard gate, selected": (hard_gate_select, {"hard_operation"}),
    "thresholded input": (thresholded_input, {"zero_gradient", "hard_operation"}),
    "gradient in forward": (gradient_in_forward, {"gradient_in_forward"}),
    "optimises in a loop": (optimises_in_a_loop, {"gradient_in_forward"}),
    "while loop": (waits_in_a_while_loop, {"no_gradient"}),
    "cast to integers": (cast_to_integers, {"zero_gradient", "hard_operation"}),
    "partly quantised": (partly_quantised, {"hard_operation"}),
}
"""Name -> (what makes it, codes that must be among the findings)."""
