"""One perturbation or one patch for many images: closed forms on linear networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit

from dyn_jax import attacks, metrics, objectives, occupancy
from dyn_jax.types import Output, PointCloud, Trace, UnitTrace

rng = np.random.default_rng(0)
WEIGHTS = jnp.asarray(rng.normal(size=(48, 2)), jnp.float32)
IMAGES = jnp.asarray(rng.uniform(0.4, 0.6, size=(6, 4, 4, 3)), jnp.float32)
LABELS = jnp.array([0, 0, 1, 0, 1, 1])
KEY = jax.random.key(0)
AWAY = np.sign(np.asarray(WEIGHTS[:, 1] - WEIGHTS[:, 0])).reshape(4, 4, 3)  # from class 0


def linear(x):
    return Output((x.reshape(-1, 48) - 0.5) @ WEIGHTS)


def slow(x):
    """One unit whose score is linear and whose gate is soft."""
    score = (x.reshape(-1, 48) - 0.5) @ WEIGHTS[:, 0] - 1.0
    unit = UnitTrace(score, occupancy.sigmoid(1.0)(score), 10, name="unit")
    return Output(jnp.stack([score, -score], axis=1), Trace((unit,), 10))


def test_one_delta_for_all_is_a_sign_times_eps():
    zeros = jnp.zeros(6, int)
    attack = attacks.universal(0.05, 0.02, 4, objective="margin")
    result = quick_jit(lambda x: attack(linear, x, zeros))(IMAGES)
    np.testing.assert_allclose(result.adversarial, np.asarray(IMAGES) + 0.05 * AWAY, atol=1e-6)
    np.testing.assert_allclose(result.record.delta[:, 0], np.broadcast_to(0.05 * AWAY, IMAGES.shape), atol=1e-7)
    assert result.steps.loss.shape == (6, 5)
    onward = attacks.universal(0.05, 0.02, 1, objective="margin", delta=result.record.delta[0, 0])
    again = quick_jit(lambda x: onward(linear, x, zeros))(IMAGES)
    np.testing.assert_allclose(again.adversarial, result.adversarial, atol=1e-6)


def test_one_delta_a_class():
    attack = attacks.class_universal(0.4, 0.2, 4, objective="margin", norm="l2")
    result = quick_jit(lambda x: attack(linear, x, LABELS))(IMAGES)
    delta = np.asarray(result.record.delta[:, 0])
    np.testing.assert_allclose(np.sqrt((delta**2).sum((1, 2, 3))), 0.4, rtol=1e-4)
    gradient = np.asarray(WEIGHTS[:, 1] - WEIGHTS[:, 0]).reshape(4, 4, 3)
    for sign, of in ((1, 0), (-1, 1)):
        expected = sign * 0.4 * gradient / np.linalg.norm(gradient)
        np.testing.assert_allclose(delta[np.asarray(LABELS) == of], np.broadcast_to(expected, (3, 4, 4, 3)), atol=1e-5)
    table = jnp.zeros((2, 4, 4, 3)).at[LABELS].set(result.record.delta[:, 0])
    assert table[0].any() and table[1].any()


def test_of_two_classes_pulling_apart_one_delta_gets_less_than_two():
    """Control: what helps class 0 hurts class 1, so that one delta for all breaks fewer."""
    one = quick_jit(lambda x: attacks.universal(0.1, 0.05, 4, objective="margin")(linear, x, LABELS))(IMAGES)
    two = quick_jit(lambda x: attacks.class_universal(0.1, 0.05, 4, objective="margin")(linear, x, LABELS))(IMAGES)
    assert float(two.loss.sum()) > float(one.loss.sum()) + 1


def test_universal_slowdown():
    attack = attacks.universal(0.2, 0.05, 6, objective=objectives.energy(tau=None))
    result = quick_jit(lambda x: attack(slow, x))(IMAGES)
    before, after = metrics.executed_macs(result.trace_clean), metrics.executed_macs(result.trace_adversarial)
    assert np.all(np.asarray(after) > np.asarray(before))
    assert len(np.unique(np.asarray(result.record.delta), axis=0)) == 1


def test_a_patch_by_hand():
    """The gradient is the weight: the patch is white or black by its sign, where its outline is."""
    outline = np.array([[1, 1], [1, 0]])
    attack = attacks.patch((2, 2), 0.3, 4, place=(1, 2), shape=outline, objective="margin")
    result = quick_jit(lambda x: attack(linear, x, jnp.zeros(6, int)))(IMAGES)
    expected = np.array(IMAGES)
    for i, j in ((0, 0), (0, 1), (1, 0)):
        expected[:, 1 + i, 2 + j] = AWAY[1 + i, 2 + j] > 0
    np.testing.assert_allclose(result.adversarial, expected, atol=1e-6)
    record = result.record
    pasted = attacks.paste(IMAGES, record.values[0, 0], record.row[:, 0], record.col[:, 0], jnp.asarray(outline))
    np.testing.assert_array_equal(pasted, result.adversarial)


def test_a_patch_at_random_places():
    attack = attacks.patch((2, 3), 0.2, 8, objective="margin")
    result = quick_jit(lambda x: attack(linear, x, LABELS, key=KEY))(IMAGES)
    places = np.stack([result.record.row[:, 0], result.record.col[:, 0]], axis=1)
    assert len(np.unique(places, axis=0)) > 1
    for i, (row, col) in enumerate(places):
        changed = np.any(np.asarray(result.adversarial[i] != IMAGES[i]), axis=-1)
        inside = np.zeros((4, 4), bool)
        inside[row : row + 2, col : col + 3] = True
        np.testing.assert_array_equal(changed, inside)
        np.testing.assert_array_equal(result.adversarial[i, row : row + 2, col : col + 3], result.record.values[i, 0])
    np.testing.assert_array_equal(result.record.values[0], result.record.values[-1])


def test_a_targeted_patch_and_a_mask():
    labels, targets = jnp.zeros(6, int), jnp.ones(6, int)
    attack = attacks.patch((4, 4), 0.3, 4, place=(0, 0), objective="margin")
    result = quick_jit(lambda x: attack(linear, x, labels, targets=targets, mask=jnp.ones((4, 4)).at[0].set(0)))(IMAGES)
    assert result.success.all()
    np.testing.assert_array_equal(result.adversarial[:, 0], IMAGES[:, 0])


def test_a_patch_against_the_energy():
    attack = attacks.patch((3, 3), 0.3, 4, place=(0, 1), objective=objectives.energy(tau=None))
    result = quick_jit(lambda x: attack(slow, x))(IMAGES)
    before, after = metrics.executed_macs(result.trace_clean), metrics.executed_macs(result.trace_adversarial)
    assert np.all(np.asarray(after) > np.asarray(before))


CLOUD = PointCloud(jnp.zeros((6, 3)), jnp.zeros((6, 1)), jnp.ones(6, bool))
of_cloud = lambda cloud: Output(cloud.xyz[:1] + jnp.arange(3.0)[None])
patch = lambda size=(2, 2), **given: attacks.patch(size, 0.1, 2, **given)
BAD = {
    "universal of clouds": (
        lambda: attacks.universal(0.1, 0.1, 2)(of_cloud, CLOUD, jnp.zeros(1, int)),
        TypeError,
        "inputs: got a PointCloud, expected images: points",
    ),
    "start": (
        lambda: attacks.universal(0.1, 0.1, 2)(linear, IMAGES, LABELS, start=IMAGES),
        ValueError,
        "start: got some",
    ),
    "delta": (
        lambda: attacks.class_universal(0.1, 0.1, 2, delta=np.zeros((3, 4, 4, 3)))(linear, IMAGES, LABELS),
        ValueError,
        r"delta: got shape \(3, 4, 4, 3\), expected \(2, 4, 4, 3\)",
    ),
    "patch of clouds": (
        lambda: patch(place=(0, 0))(of_cloud, CLOUD, jnp.zeros(1, int)),
        TypeError,
        "inputs: got a PointCloud, expected images: a patch",
    ),
    "patch size": (lambda: patch((2, 0)), ValueError, "size: got 0, expected at least 1"),
    "patch pair": (lambda: patch(3), ValueError, "size: got 3, expected two integers"),
    "too large": (
        lambda: patch((5, 2), place=(0, 0))(linear, IMAGES, LABELS),
        ValueError,
        r"size: got \(5, 2\), expected at most the images' \(4, 4\)",
    ),
    "place": (
        lambda: patch(place=(3, 0))(linear, IMAGES, LABELS),
        ValueError,
        r"place: got \(3, 0\), expected \(row, column\) of at most \(2, 2\)",
    ),
    "outline": (lambda: patch(shape=np.ones((3, 2))), ValueError, r"shape: got an array of shape \(3, 2\)"),
    "empty outline": (lambda: patch(shape=np.zeros((2, 2))), ValueError, "not all 0"),
    "values": (
        lambda: patch(place=(0, 0), values=np.zeros((2, 2)))(linear, IMAGES, LABELS),
        ValueError,
        r"values: got shape \(2, 2\), expected \(2, 2, 3\)",
    ),
    "no key": (lambda: patch()(linear, IMAGES, LABELS), ValueError, "key: got None"),
}


@pytest.mark.parametrize("name", BAD)
def test_message(name):
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call()
