"""The shared properties over every attack."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ALL_ATTACKS, tiny_forward, tiny_problem, tiny_victim

from dyn_jax.testing import check_attack
from dyn_jax.types import Output

KEY = jax.random.key(0)
INDEPENDENT = {name: case for name, case in ALL_ATTACKS.items() if not case.coupled}
# One of each kind of search, where a property does not depend on norm or objective.
KINDS = ("fgsm", "pgd restarts", "mi_fgsm l2", "apgd dlr", "lgm_carlini_wagner", "lgm_auto_step")


def attack_all(attack):
    return dataclasses.replace(attack, attack_all=True)


@pytest.mark.parametrize("name", ALL_ATTACKS)
def test_contract(name):
    case = ALL_ATTACKS[name]
    images, labels, _ = tiny_problem()
    factory = case.make if case.bounded else None
    check_attack(case.make(case.eps), tiny_forward, images, labels, KEY, victim=tiny_victim, factory=factory)


@pytest.mark.parametrize("name", [*KINDS, "carlini_wagner", "pgd release"])
def test_contract_with_targets_and_mask(name):
    case = ALL_ATTACKS[name]
    images, labels, targets = tiny_problem()
    mask = jnp.asarray(np.arange(16).reshape(4, 4) % 3 > 0, jnp.float32)
    check_attack(case.make(case.eps), tiny_forward, images, labels, KEY, victim=tiny_victim, targets=targets, mask=mask)


@pytest.mark.parametrize("name", ALL_ATTACKS)
def test_raises_the_objective(name):
    """It is an attack: over all attacked examples the objective is higher than on the clean images."""
    case = ALL_ATTACKS[name]
    images, labels, _ = tiny_problem(16)
    attack = case.make(2 * case.eps)
    result = jax.jit(lambda: attack(tiny_forward, images, labels, key=KEY))()
    clean = attack.objective(tiny_forward(images), labels, None)
    attacked = ~result.clean_success
    assert int(attacked.sum()) >= 4
    assert float(jnp.where(attacked, result.loss - clean, 0).sum()) > 0.1
    assert (result.distance[attacked] > 0).any()


@pytest.fixture
def float64():
    """Batched and single runs round differently, and an attack amplifies that: in float64 it stays invisible."""
    with jax.enable_x64(True):
        yield


def double_problem():
    with jax.enable_x64(False):  # the problem is cached: other tests get the same arrays
        images, labels, _ = tiny_problem()
    return images.astype(jnp.float64), labels


def keyed(case):
    """attack(eps, images, labels, numbers of the examples), jitted, eps traced."""
    return jax.jit(lambda e, x, y, i: case.make(e)(tiny_forward, x, y, key=KEY, victim=tiny_victim, index=i))


@pytest.mark.parametrize("name", INDEPENDENT)
def test_an_example_does_not_see_the_others(name, float64):
    case = INDEPENDENT[name]
    images, labels = double_problem()
    run, number = keyed(case), jnp.arange(4)
    whole = run(case.eps, images, labels, number)
    order = np.array([2, 0, 3, 1])
    moved = run(case.eps, images[order], labels[order], number[order])
    np.testing.assert_allclose(moved.adversarial, whole.adversarial[order], atol=1e-9)
    np.testing.assert_array_equal(moved.success, whole.success[order])
    np.testing.assert_allclose(moved.loss_history, whole.loss_history[:, order], atol=1e-7)
    for i in (0, 3):
        alone = run(case.eps, images[i : i + 1], labels[i : i + 1], number[i : i + 1])
        np.testing.assert_allclose(alone.adversarial[0], whole.adversarial[i], atol=1e-9)
        np.testing.assert_allclose(alone.loss_history[:, 0], whole.loss_history[:, i], atol=1e-7)


def test_control_the_coupled_ones_do_see_the_others():
    """The property above, where it does not hold: LGM's released step rule has one loss for the whole batch."""
    case = ALL_ATTACKS["lgm_auto_step release"]
    images, labels, _ = tiny_problem(16)
    run = jax.jit(lambda x, y: attack_all(case.make(case.eps))(tiny_forward, x, y))
    whole = run(images, labels).adversarial
    alone = jnp.concatenate([run(images[i : i + 1], labels[i : i + 1]).adversarial for i in range(16)])
    assert np.abs(whole - alone).max() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_eps_is_a_leaf(name, float64):
    """vmap over eps = loop over eps, and a new eps compiles nothing new."""
    case = ALL_ATTACKS[name]
    images, labels = double_problem()
    run, number = keyed(case), jnp.arange(4)
    radii = jnp.asarray([0.0, case.eps / 2, case.eps])
    loop = [run(e, images, labels, number) for e in radii]
    assert run._cache_size() == 1
    swept = jax.vmap(run, (0, None, None, None))(radii, images, labels, number)
    stacked = jnp.stack([r.adversarial for r in loop])
    np.testing.assert_allclose(swept.adversarial, stacked, atol=1e-9)
    np.testing.assert_array_equal(stacked[0], images)


@pytest.mark.parametrize("name", [*KINDS, "apgd_t", "carlini_wagner"])
def test_nan_logits_are_no_success(name):
    """A network that answers every changed image with NaN: argmax would call it class 0."""
    case = ALL_ATTACKS[name]
    images, labels, _ = tiny_problem()
    labels = jnp.where(labels == 0, 1, labels)

    def broken(x):
        output = tiny_victim(x)
        changed = jnp.any(x != images, axis=(1, 2, 3))
        return Output(jnp.where(changed[:, None], jnp.nan, output.logits), output.trace)

    with jax.debug_nans(False):
        run = jax.jit(lambda: case.make(case.eps)(tiny_forward, images, labels, key=KEY, victim=broken))
        result = run()
        everywhere = jax.jit(
            lambda: case.make(case.eps)(lambda x: Output(tiny_forward(x).logits * jnp.nan), images, labels, key=KEY)
        )()
    changed = np.asarray(jnp.any(result.adversarial != images, axis=(1, 2, 3)))
    assert not np.asarray(result.success)[changed].any()
    assert np.isfinite(result.adversarial).all()
    assert not everywhere.success.any() and not everywhere.clean_success.any()
    np.testing.assert_allclose(everywhere.adversarial, np.clip(everywhere.adversarial, *case.make(0.1).threat.bounds))
    assert np.isfinite(everywhere.adversarial).all()
    assert (everywhere.nonfinite_gradients > 0).all()
