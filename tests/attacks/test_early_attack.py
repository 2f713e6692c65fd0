"""Early Attack: the loss by hand, the released loop step by step, both forms, bad input."""

from __future__ import annotations

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import traced_once

import weights_convert
from dyn_jax import attacks, networks
from dyn_jax.metrics import exits
from dyn_jax.types import Output, Trace

module = importlib.import_module("dyn_jax.attacks.early_attack")


@functools.cache
def weights():
    rng = np.random.default_rng(3)  # exits that mostly agree
    return (rng.normal(size=(1, 12, 4)) + 0.4 * rng.normal(size=(3, 12, 4))).astype(np.float32)


def forward(x):
    """Three linear exits on 2x2x3 images."""
    every = 4 * jnp.einsum("bp,epc->bec", x.reshape(x.shape[0], 12) - 0.5, jnp.asarray(weights()))
    return Output(every[:, -1], Trace((), 1, every))


def some(batch=6):
    images = jnp.asarray(np.random.default_rng(1).uniform(0.1, 0.9, size=(batch, 2, 2, 3)), jnp.float32)
    return images, jnp.argmax(forward(images).logits, -1), jax.random.key(0)


def test_loss_by_hand():
    probabilities = np.array([[[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]], np.float32)  # two exits, one image
    loss, first = module.early_loss(jnp.log(probabilities), jnp.array([0]), 2.0)
    np.testing.assert_allclose(first, [2 * (0.3 + 0.5)], rtol=1e-5)
    np.testing.assert_allclose(loss, [0.2 - 1.6], rtol=1e-5)
    _, first = module.early_loss(jnp.log(probabilities), jnp.array([1]), 1.0)  # 0.6 > 0.3: only the last counts
    np.testing.assert_allclose(first, [0.2], rtol=1e-5)
    _, first = module.early_loss(jnp.log(probabilities), jnp.array([0]), 1.0, classes=2)
    np.testing.assert_allclose(first, [0.3], rtol=1e-5)


def test_success_by_hand():
    says = lambda *classes: jax.nn.one_hot(jnp.array(classes), 3)[None]
    assert module.fools_early_exits(says(0, 2, 1), jnp.array([1]))[0]
    assert not module.fools_early_exits(says(0, 1, 1), jnp.array([1]))[0]
    assert not module.fools_early_exits(says(0, 2, 2), jnp.array([1]))[0]


FORMS = {"paper": attacks.early_attack, "release": attacks.released.early_attack}


@functools.cache
def searched(form):
    """constant of the loss -> result of 400 steps; one program for all."""
    images, labels, key = some()
    attack = functools.partial(FORMS[form], steps=400, learning_rate=0.05)
    run = jax.jit(lambda constant: attack(constant=constant)(forward, images, labels, key=key))
    return functools.cache(run)


@pytest.mark.parametrize("form", FORMS)
def test_finds_what_it_looks_for(form):
    _, labels, _ = some()
    result = searched(form)(50.0)
    found = exits.early_success(result.trace_clean, result.trace_adversarial)
    by_itself = exits.early_success(result.trace_clean, result.trace_clean)
    assert found.sum() >= 3 + by_itself.sum()
    np.testing.assert_array_equal(found, module.fools_early_exits(result.trace_adversarial.exits, labels))
    assert float(result.adversarial.min()) >= 0 and float(result.adversarial.max()) <= 1
    without = searched(form)(0.0)  # control: nothing but the distance
    assert exits.early_success(without.trace_clean, without.trace_adversarial).sum() < found.sum()


def test_paper_returns_the_first_success_and_release_waits():
    history = {}
    for form in FORMS:
        result = searched(form)(50.0)
        # a finished example's loss stays as it is: the step from which it does is the step it returned at
        moves = np.abs(np.diff(np.asarray(result.steps.loss).T, axis=0)) > 0
        found = np.asarray(exits.early_success(result.trace_clean, result.trace_adversarial))
        history[form] = [int(np.flatnonzero([True, *moves[:, b]]).max()) for b in np.flatnonzero(found)]
        assert len(history[form]) >= 2
    assert min(history["release"]) >= 200 and min(history["paper"]) < 200


def test_examples_do_not_influence_each_other():
    images, labels, key = some()
    attack = attacks.early_attack(steps=60, learning_rate=0.05)
    run = jax.jit(lambda rows: attack(forward, images[rows], labels[rows], key=key, index=rows))
    together, alone = run(jnp.arange(6)), run(jnp.array([4]))
    np.testing.assert_allclose(together.adversarial[4:5], alone.adversarial, atol=1e-4)


def test_alpha_and_constant_are_a_vmap():
    images, labels, key = some(2)

    def run(alpha):
        return attacks.early_attack(alpha=alpha, steps=20)(forward, images, labels, key=key).adversarial

    swept = jax.jit(jax.vmap(run))(jnp.array([0.1, 20.0]))
    np.testing.assert_allclose(swept[0], jax.jit(run)(0.1), atol=1e-4)
    assert float(jnp.abs(swept[0] - swept[1]).max()) > 1e-3


def test_starts_where_it_is_told():
    images, labels, key = some()
    run = jax.jit(lambda **given: attacks.early_attack(steps=1)(forward, images, labels, key=key, **given).adversarial)
    np.testing.assert_allclose(run(start=images), images, atol=1e-5)
    grey = run()
    assert float(grey.min()) >= 0.5 and float(grey.max()) <= 0.881  # (tanh(U[0, 1)) + 1) / 2
    mask = jnp.zeros((2, 2)).at[0, 0].set(1)
    kept = run(mask=mask)
    np.testing.assert_array_equal(kept[:, 1], images[:, 1])


def test_projected_attack_on_the_same_objective():
    images, labels, _ = some()
    attack = attacks.bim(0.3, 0.03, 40, objective=attacks.early_objective(1.0), attack_all=True)
    result = jax.jit(lambda x: attack(forward, x, labels))(images)
    assert (result.loss > attacks.early_objective(1.0)(forward(images), labels)).all()


def test_bad_input():
    images, labels, key = some()
    static = lambda x: Output(forward(x).logits)
    with pytest.raises(ValueError, match="without early exits"):
        attacks.early_attack(steps=2)(static, images, labels, key=key)
    with pytest.raises(ValueError, match="targets"):
        attacks.early_attack(steps=2)(forward, images, labels, key=key, targets=(labels + 1) % 4)
    with pytest.raises(ValueError, match="key"):
        attacks.early_attack(steps=2)(forward, images, labels)
    for fields, word in (
        ({"alpha": -1.0}, "alpha"),
        ({"constant": -1.0}, "constant"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ):
        with pytest.raises(ValueError, match=word):
            attacks.early_attack(**fields)


def test_released_loop_step_by_step(golden):
    trace, net_arrays = golden("attack_early_resnet56_a1"), golden("resnet56_sdn_cifar10")
    state = {key.removeprefix("sd/"): value for key, value in net_arrays.items() if key.startswith("sd/")}
    name = "sdn-resnet56-cifar10"
    network = traced_once(networks.create(name), weights_convert.convert(name, state))
    nhwc = lambda array: jnp.asarray(array.transpose(0, 2, 3, 1))
    images, labels = nhwc(net_arrays["x01"][1:2]), jnp.asarray([int(trace["out_label"])])
    std = jnp.asarray(net_arrays["norm_std"]).reshape(1, 1, 1, 3)
    alpha, constant = float(trace["alpha"]), float(trace["c"])

    @jax.jit
    def released(w):
        def total(w):
            x = (jnp.tanh(w) + 1) / 2
            loss, _ = module.early_loss(network(x).trace.exits, labels, alpha, 10)
            squared = jnp.sum(((x - images) / std) ** 2)
            return squared + constant * loss[0], (loss[0], squared)

        (value, parts), gradient = jax.value_and_grad(total, has_aux=True)(w)
        return jnp.stack([*parts, value]), gradient

    errors = []
    before = [trace["w0"], *trace["w_after"]]
    for i in range(8):  # from the authors' w of every step: losses and gradient
        losses, gradient = released(nhwc(before[i]))
        np.testing.assert_allclose(losses, trace["losses"][i], rtol=1e-5)
        expected = nhwc(trace["grad"][i])
        errors.append(float(jnp.abs(gradient - expected).max() / jnp.abs(expected).max()))
    # where a ReLU's input is within rounding of 0, a step's gradient differs in the pixels that reach it
    assert max(errors) <= 3e-2 and np.median(errors) <= 1e-6

    @jax.jit
    def run(start):
        attack = attacks.released.early_attack(alpha=alpha, constant=constant, steps=40)
        return attack(network, images, labels, key=jax.random.key(0), start=start)

    start = (jnp.tanh(nhwc(trace["w0"])) + 1) / 2
    long = run(start)
    np.testing.assert_allclose(-long.steps.loss[0], trace["long/losses"][:, 2], rtol=1e-4)
    np.testing.assert_array_equal(exits.predictions(long.trace_adversarial)[0], trace["long/preds"])
    assert exits.early_success(long.trace_clean, long.trace_adversarial)[0] == bool(trace["long/success"])
    # our own eighth iterate: Adam's first steps are sign-like, so pixels of tiny gradient may step the other way
    short = jax.jit(
        lambda s: attacks.released.early_attack(alpha=alpha, constant=constant, steps=8)(
            network, images, labels, key=jax.random.key(0), start=s
        )
    )(start)
    mean = jnp.asarray(net_arrays["norm_mean"]).reshape(1, 1, 1, 3)
    error = jnp.abs(short.adversarial - (nhwc(trace["adv_returned"]) * std + mean))
    assert float(jnp.mean(error > 1e-5)) < 0.02 and float(error.max()) < 1e-3
