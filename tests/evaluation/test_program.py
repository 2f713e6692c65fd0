"""Questions about a traced program, on programs whose answers are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from dyn_jax import attacks, occupancy
from dyn_jax.evaluation import program as programs
from dyn_jax.nn.layers import add_relu, relu
from dyn_jax.types import Output, Trace, UnitTrace

X = jnp.linspace(0.0, 1.0, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
WEIGHTS = np.random.default_rng(0).normal(size=(192, 5)).astype(np.float32)


def head(x):
    return x.reshape(len(x), -1) @ WEIGHTS


def traced(fun, key=None):
    def run(x, *key):
        output = attacks.as_forward(lambda x: fun(x, *key))(x)
        return output.logits, tuple(unit.score for unit in output.trace.units)

    return programs.trace(run, X, key)[1]


def gated(how, score=None):
    """An image-wise gate in front of the head."""

    def model(x):
        s = jnp.mean(x, axis=(1, 2, 3)) - 0.4 if score is None else score(x)
        o = how(s)
        return Output(o[:, None] * head(x), Trace((UnitTrace(s, o, 7),)))

    return model


PASSES = {
    "linear": head,
    "jax.nn.relu": lambda x: head(jax.nn.relu(x)),
    "our relu": lambda x: head(add_relu(x, relu(x))),
    "relu by where": lambda x: head(jnp.where(x > 0.5, x, 0.1 * x)),
    "masked by itself": lambda x: head(x * (x > 0.5)),
    "elu": lambda x: head(jax.nn.elu(x - 0.5)),
    "clip": lambda x: head(jnp.clip(x, 0.2, 0.8)),
    "a series near zero": lambda x: head(jnp.where(jnp.abs(x) < 1e-3, x, jnp.sin(x))),
    "max pool": lambda x: head(jnp.tile(jnp.max(x, axis=(1, 2), keepdims=True), (1, 8, 8, 1))),
    "log softmax": lambda x: jax.nn.log_softmax(head(x)),
    "logsumexp": lambda x: head(x) - jax.nn.logsumexp(head(x), axis=1, keepdims=True),
    "standardised": lambda x: head((x - x.mean()) / jnp.sqrt(x.var() + 1e-5)),
    "guarded against NaN": lambda x: head(jnp.where(jnp.isfinite(x), x, 0)),
    "straight-through rounding": lambda x: head(x + jax.lax.stop_gradient(jnp.round(15 * x) / 15 - x)),
    "jit and remat": jax.jit(jax.checkpoint(lambda x: head(jax.nn.relu(x)))),
    "scan": lambda x: head(jax.lax.scan(lambda c, _: (jnp.tanh(c), None), x, None, length=3)[0]),
    "fori loop": lambda x: head(jax.lax.fori_loop(0, 3, lambda _, c: jnp.tanh(c), x)),
    "branches": lambda x: jax.lax.cond(True, head, lambda x: 2 * head(x), x),
    "soft gate": gated(occupancy.sigmoid(10.0)),
    "straight-through gate": gated(occupancy.straight_through(10.0)),
}


@pytest.mark.parametrize("name", PASSES)
def test_nothing_is_found_where_gradients_pass(name):
    program = traced(PASSES[name])
    assert programs.reaches_logits(program)
    assert programs.hard_operations(program) == programs.hard_gates(program) == []
    assert programs.random_draws(program) == ([], []) and programs.noise_constants(program) == []
    assert programs.gradients_inside(program) == (0, False)


LOSES = {
    "round": lambda x: head(x) + head(jnp.round(3 * x)),
    "sign": lambda x: head(x) + head(jnp.sign(x - 0.5)),
    "floor in jit": lambda x: head(x) + jax.jit(lambda x: head(jnp.floor(3 * x)))(x),
    "integers": lambda x: head(x) + head((3 * x).astype(jnp.int32).astype(x.dtype)),
    "comparison": lambda x: head(x) * (jnp.mean(x, axis=(1, 2, 3)) > 0.4)[:, None],
    "selection": lambda x: jnp.where((jnp.mean(x, axis=(1, 2, 3)) > 0.4)[:, None], head(x), -head(x)),
    "argmax": lambda x: head(x) + jax.nn.one_hot(jnp.argmax(jnp.tanh(x).reshape(2, -1)[:, :5], axis=1), 5),
    "branch": lambda x: jax.lax.cond(jnp.mean(x) > 0.4, head, lambda x: -head(x), x),
    "in a scan": lambda x: head(x) + head(jax.lax.scan(lambda c, _: (jnp.round(2 * c), None), x, None, length=2)[0]),
    "cut off afterwards": lambda x: (
        head(x) + head(jax.lax.stop_gradient(jnp.round(jnp.mean(x, axis=3, keepdims=True))) + 0 * x)
    ),
}


@pytest.mark.parametrize("name", LOSES)
def test_operations_without_derivative_are_found(name):
    program = traced(LOSES[name])
    assert programs.hard_operations(program) and programs.reaches_logits(program)


def test_whether_any_gradient_path_is_left():
    assert not programs.reaches_logits(traced(lambda x: head(jnp.round(x))))
    assert not programs.reaches_logits(traced(lambda x: head(jax.lax.stop_gradient(x))))
    assert programs.reaches_logits(traced(lambda x: head(jax.lax.stop_gradient(x)) + 0 * jnp.sum(x)))


@jax.custom_jvp
def step(score):
    return (score >= 0).astype(score.dtype)


step.defjvp(lambda primals, tangents: (step(*primals), jnp.zeros_like(primals[0])))


@jax.custom_vjp
def led_step(score):
    return (score >= 0).astype(score.dtype)


led_step.defvjp(lambda s: (led_step(s), s), lambda s, g: (g * jnp.exp(-(s**2)),))


@pytest.mark.parametrize(
    "model, gates",
    [
        (gated(occupancy.hard()), [0]),
        (gated(lambda s: jax.lax.stop_gradient(jax.nn.sigmoid(s))), [0]),
        (gated(lambda s: (s > 0).astype(s.dtype)), [0]),
        (gated(lambda s: 1 + 0 * s), []),
        (gated(step), [0]),
        (gated(led_step), []),
        (gated(occupancy.hard(), lambda x: jnp.zeros(len(x))), []),  # depends on no image
    ],
)
def test_gates_whose_score_has_no_gradient_path(model, gates):
    program = traced(model)
    assert programs.hard_gates(program) == gates and programs.hard_operations(program) == []


def test_random_draws_by_where_their_key_comes_from():
    noisy = lambda x, key: head(x + jax.random.normal(key, x.shape))
    bound = traced(lambda x: noisy(x, jax.random.key(0)))
    assert [len(names) for names in programs.random_draws(bound)] == [1, 0]
    legacy = jax.random.PRNGKey(3)
    assert programs.random_draws(traced(lambda x: noisy(x, jax.random.fold_in(legacy, 7))))[0]
    of_image = traced(lambda x: noisy(x, jax.random.key(jnp.sum(x).astype(jnp.int32))))
    assert [len(names) for names in programs.random_draws(of_image)] == [0, 1]
    assert programs.random_draws(traced(noisy, jax.random.key(0))) == ([], [])
    both = traced(lambda x, key: noisy(x, key) + noisy(x, jax.random.key(0)), jax.random.key(0))
    assert programs.random_draws(both)[0]
    unused = traced(
        lambda x: Output(head(x), Trace((UnitTrace(jax.random.normal(jax.random.key(0), (2,)), X[:, 0, 0, 0], 1),)))
    )
    assert programs.random_draws(unused) == ([], [])


def test_a_network_with_its_key_bound():
    """It answers the same each time: only the program shows that it is one draw of many."""
    draws, _ = programs.random_draws(traced(zoo.frozen_gates()))
    assert draws
    assert programs.random_draws(traced(lambda x, key: zoo.frozen_gates(key)(x), jax.random.key(1))) == ([], [])


def test_noise_kept_as_a_constant():
    stream = np.random.default_rng(0)
    noise = stream.normal(size=(8, 8, 3)).astype(np.float32)
    assert programs.noise_constants(traced(lambda x: head(x + noise[None])))
    assert programs.noise_constants(traced(lambda x: head(x * (1 + noise[None]))))
    smooth = np.broadcast_to(np.linspace(0, 1, 8, dtype=np.float32)[:, None, None], (1, 8, 8, 3))
    assert programs.noise_constants(traced(lambda x: head((x - smooth) / np.float32([[[[0.2, 0.3, 0.4]]]])))) == []


def test_gradients_inside_the_network():
    step = lambda x: x - 0.1 * jax.grad(lambda x: jnp.sum(jnp.tanh(head(x))))(x)
    assert programs.gradients_inside(traced(lambda x: head(step(x))))[0] > 0
    loop = lambda x: head(jax.lax.scan(lambda c, _: (step(c), None), x, None, length=2)[0])
    assert programs.gradients_inside(traced(loop))[1]
    assert programs.gradients_inside(traced(jax.jit(loop)))[1]


def test_an_attack_that_came_before_leaves_no_trace():
    """AutoAttack's counter is never reset: after one hit every later model is flagged."""
    model = jax.jit(lambda x: head(jax.nn.relu(jnp.sin(x))))
    jax.grad(lambda x: jnp.sum(model(x)))(X)
    assert programs.gradients_inside(traced(model)) == (0, False)
