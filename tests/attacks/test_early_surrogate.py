"""Black-box attacks: queries, transfer by hand, classes that differ."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks
from dyn_jax.types import Output


def linear(seed, classes=3):
    weights = jnp.asarray(np.random.default_rng(seed).normal(size=(12, classes)), jnp.float32)
    return lambda x: Output((x.reshape(x.shape[0], 12) - 0.5) @ weights)


def some(count=20):
    return np.random.default_rng(9).uniform(0.2, 0.8, size=(count, 2, 2, 3)).astype(np.float32)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_queries_are_the_predictions(batch_size):
    target, images = linear(0), some()
    got = attacks.query(target, images, batch_size=batch_size)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, np.argmax(target(jnp.asarray(images)).logits, -1))
    np.testing.assert_array_equal(got, attacks.query(lambda x: target(x).logits, images, batch_size=batch_size))


def test_transfer_by_hand():
    surrogate, target, images = linear(0), linear(1), jnp.asarray(some())
    labels = jnp.argmax(surrogate(images).logits, -1)
    attack = attacks.bim(0.2, 0.05, 8)
    result = jax.jit(lambda x: attacks.transfer(attack, surrogate, target, x, labels))(images)
    made = attack(surrogate, images, labels)
    np.testing.assert_allclose(result.source.adversarial, made.adversarial, atol=1e-6)
    np.testing.assert_array_equal(result.generated, jnp.argmax(surrogate(made.adversarial).logits, -1) != labels)
    np.testing.assert_array_equal(result.fooled, jnp.argmax(target(made.adversarial).logits, -1) != labels)
    same = attacks.transfer(attack, surrogate, surrogate, images, labels)
    np.testing.assert_array_equal(same.fooled, same.generated)  # the perfect surrogate
    assert (result.fooled != same.fooled).any()  # and one that is not


def test_examples_that_were_wrong_before_are_not_generated():
    surrogate, images = linear(0), jnp.asarray(some())
    labels = (jnp.argmax(surrogate(images).logits, -1) + 1) % 3
    result = attacks.transfer(attacks.fgsm(0.1), surrogate, surrogate, images, labels)
    assert not result.generated.any() and result.fooled.all()


def test_bad_input():
    images, labels = jnp.asarray(some()), jnp.zeros(20, jnp.int32)
    with pytest.raises(ValueError, match="got 3 and 4 classes"):
        attacks.transfer(attacks.fgsm(0.1), linear(0), linear(0, classes=4), images, labels)
    with pytest.raises(ValueError, match="batch_size"):
        attacks.query(linear(0), some(), batch_size=0)
    with pytest.raises(ValueError, match="empty batch"):
        attacks.query(linear(0), some()[:0])
    with pytest.raises(ValueError, match=r"images: got values in .* expected \[0"):
        attacks.query(linear(0), some() * 255)
    with pytest.raises(ValueError, match="target: got NaN or infinite logits for 20 images"), jax.debug_nans(False):
        attacks.query(lambda x: linear(0)(x).logits * jnp.nan, some())
