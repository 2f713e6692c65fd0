"""What the figures of LGM measure, by hand: success along an attack, and the variance between classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Gated

from dyn_jax import attacks, occupancy
from experiments.cifar_fgm_lgm import FGM, LGM
from experiments.lgm_figure7_layers import Seen, between, plane, rates
from experiments.lgm_figure9_steps import along, at_the_exit, judged, row_of

SIZE = 12


@pytest.fixture(scope="module")
def toy():
    """Network, variables, images and labels, which it answers rightly half of the time."""
    net, rng = Gated(), np.random.default_rng(0)
    images = rng.uniform(0.2, 0.8, (SIZE, 32, 32, 3)).astype(np.float32)
    variables = net.init(jax.random.key(0), images)
    labels = np.argmax(net.apply(variables, images, occupancy=occupancy.hard()).logits, axis=1)
    return net, variables, images, np.where(np.arange(SIZE) % 2, labels, (labels + 1) % 10)


@pytest.mark.parametrize("name, attack", [("BIM", attacks.bim(0.2, 0.02, 4)), ("APGD", attacks.apgd(0.2, 4))])
@pytest.mark.parametrize("gate", [FGM, LGM["LGM soft"](0.5)])
def test_the_last_step_is_what_the_attack_returns(toy, name, attack, gate):
    """And the attack is the usual one: forward leaded, victim deployed."""
    net, variables, images, labels = toy
    key = jax.random.key(1)
    found = at_the_exit(attack)(judged(net, variables, gate), images, labels, key=key)
    fooled = np.asarray(along(found, name == "APGD"))
    assert fooled.shape == (SIZE, 5)
    np.testing.assert_array_equal(fooled[:, -1], found.success)
    np.testing.assert_array_equal(fooled[::2], True)  # answered wrongly to begin with
    assert not fooled[1::2, 0].any() or name == "APGD"
    of = lambda o: lambda x: net.apply(variables, x, occupancy=o)
    usual = attack(of(gate), images, labels, key=key, victim=of(occupancy.hard()))
    np.testing.assert_allclose(found.adversarial, usual.adversarial, atol=1e-6)
    np.testing.assert_array_equal(found.success, usual.success)


def test_apgd_keeps_the_largest_loss():
    """Loss 1, 3, 2, 4 with errors 0, 1, 0, 0: what is kept errs after the second evaluation alone."""
    steps = attacks.base.Steps(
        jnp.array([[1.0, 3.0, 2.0, 4.0]]), None, None, jnp.array([[False, True, False, False]]), {}
    )
    result = type("Result", (), {"steps": steps, "clean_success": jnp.array([False]), "success": jnp.array([False])})
    np.testing.assert_array_equal(along(result, True), [[False, True, True, False]])
    np.testing.assert_array_equal(along(result, False), [[False, True, False, False, False]])


def test_a_lead():
    fgm = np.zeros((4, 6), bool)
    lgm = fgm.copy()
    lgm[:2, 1], lgm[0, 3:] = True, True
    row = row_of(lgm, fgm)
    assert row["success %"] == [0, 50, 0, 25, 25, 25] and row["lead at"] == [1, 5] and row["lead"] == [50, 25]
    assert row["ahead for good from step"] == 3 and row["steps ahead %"] == 80 and row["mean lead"] == 25
    assert row_of(fgm, fgm)["ahead for good from step"] is None


def test_variance_between_classes():
    classes = np.repeat(np.arange(10), 20)
    rng = np.random.default_rng(0)
    knows = (classes[:, None] >> np.arange(4)) & 1
    assert between(knows, classes) == pytest.approx(1)
    noise = rng.integers(0, 2, (200, 4))
    assert abs(between(noise, classes)) < 0.05
    assert between(noise, classes) > between(noise, classes, np.ones(200)) - 1e-12  # counts of one change nothing
    twice = between(np.concatenate([knows, noise], 1), classes, np.tile([2.0, 0.0], 100))
    half = between(np.concatenate([knows, noise], 1)[::2], classes[::2], np.full(100, 2.0))
    assert twice == pytest.approx(half)  # images that do not occur do not count
    assert np.isnan(between(np.ones((200, 4)), classes)) and np.isnan(between(noise[::20], classes[::20]))


def test_rates_and_plane():
    gates = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    got = rates(gates, np.array([3, 3, 5]))
    np.testing.assert_array_equal(got[[3, 5]], [[1, 0.5, 0], [0, 0, 0]])
    assert np.isnan(got[[0, 1, 2, 4]]).all()
    points, share = plane([Seen(gates, np.zeros(3, int))] * 2)
    assert share == pytest.approx(1) and len(points) == 2
    apart = lambda p: np.linalg.norm(p[:, None] - p[None], axis=-1)
    np.testing.assert_allclose(apart(points[0]), apart(gates.astype(float)), atol=1e-6)
