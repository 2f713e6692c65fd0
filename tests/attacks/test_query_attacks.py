"""Square, RayS, SPSA: the released code's random numbers replayed, closed forms, and an energy that is only read."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit
from linear import WEIGHTS, images, linear
from published import resnet20

from dyn_jax import attacks, metrics, occupancy
from dyn_jax.attacks import criteria
from dyn_jax.attacks.square import bump, schedule, windows
from dyn_jax.types import Output, PointCloud, Trace, UnitTrace

IMAGES = images(0.4, 0.6)
KEY = jax.random.key(0)
LABELS = jnp.argmax(linear(IMAGES).logits, 1)


def gated(x, how):
    """One unit, off on all images; the closest image that switches it on is known."""
    score = (x.reshape(-1, 48) - 0.5) @ WEIGHTS[:, 0] - 2.0
    return Output(jnp.stack([score, 1 - score], axis=1), Trace((UnitTrace(score, how(score), 10, name="unit"),), 10))


hard = partial(gated, how=occupancy.hard())
SCORES = np.asarray(hard(IMAGES).trace.units[0].score)


def test_schedule_of_the_release(golden):
    arrays = golden("eval_square_schedule")
    at = arrays["change_at"]
    np.testing.assert_array_equal(schedule(10001)[at], arrays["p"])
    np.testing.assert_array_equal(schedule(10001)[at[1:] - 1], arrays["p"][:-1])
    for norm in ("linf", "l2"):
        np.testing.assert_array_equal(windows(arrays["p"], 32, 32, norm), arrays[f"window_{norm}"])
    np.testing.assert_array_equal(schedule(5000, rescale=True), arrays["p_rescaled_5000"])


def draws_of(arrays):
    """The released code draws one square for all images: an axis of length 1."""
    shared = lambda name: arrays[name][:, None]
    given = {"row": shared("row"), "col": shared("col")}
    if "init_stripes" in arrays:
        signs = arrays["signs"][:, None]
        return attacks.SquareDraws(arrays["init_stripes"].transpose(0, 2, 1), signs=signs, **given)
    given |= {"row2": shared("row2"), "col2": shared("col2"), "turned": shared("transposed")}
    start = {"start_signs": arrays["init_signs"], "start_turned": shared("init_transposed")}
    return attacks.SquareDraws(signs=arrays["signs"], **start, **given)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trace_of_the_release(golden, shared_dir, norm):
    """Every candidate, decision and margin of the stored run, and what it had found on the way."""
    arrays, forward = golden(f"eval_square_{norm}"), resnet20(shared_dir)
    x, labels, draws = jnp.asarray(arrays["x"]), jnp.asarray(arrays["label"]), draws_of(arrays)
    count, seen = len(arrays["row"]), []
    np.testing.assert_allclose(schedule(count), arrays["p"])
    np.testing.assert_array_equal(windows(schedule(count), *x.shape[1:3], norm), arrays["window"])

    def watched(x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return forward(x)

    attack = attacks.square(float(arrays["eps"]), count, norm=norm, draws=draws)
    whole = quick_jit(lambda x: attack(watched, x, labels, key=KEY))(x)
    jax.effects_barrier()
    candidates = seen[1:-1]  # between the clean images and what is returned
    np.testing.assert_allclose(candidates[0], arrays["x_init"], atol=1e-5)
    np.testing.assert_allclose(whole.adversarial, arrays["x_final"], atol=1e-5)
    np.testing.assert_array_equal(whole.success, arrays["margin_min"][-1] <= 0)

    margins, active = -np.asarray(whole.steps.loss).T, arrays["active"]
    np.testing.assert_allclose(margins[0], arrays["margin_init"], atol=1e-4)
    np.testing.assert_allclose(margins[1:][active], arrays["margin"][active], atol=1e-4)
    best, least, lowest = candidates[0].copy(), margins[0], margins[0]
    kept = list(arrays["kept_iterations"])
    for k in range(count):
        accepted = active[k] & ((margins[k + 1] < least) | (margins[k + 1] <= 0))
        clear = active[k] & (np.abs(arrays["margin"][k] - arrays["best_before"][k]) > 1e-4)
        np.testing.assert_array_equal(accepted[clear], arrays["accepted"][k][clear])
        np.testing.assert_allclose(lowest[active[k]], arrays["best_before"][k][active[k]], atol=1e-4)
        least = np.where(accepted, margins[k + 1], least)
        lowest = np.where(accepted, np.minimum(margins[k + 1], lowest), lowest)
        np.testing.assert_allclose(least, arrays["margin_min"][k], atol=1e-4)
        np.testing.assert_allclose(lowest, arrays["loss_min"][k], atol=1e-4)
        if accepted.any():
            best[accepted] = candidates[k + 1][accepted]
        if k in kept:
            np.testing.assert_allclose(best, arrays["x_best"][kept.index(k)], atol=1e-5)
    errs = np.asarray(whole.steps.error)
    np.testing.assert_array_equal(np.where(errs.any(1), errs.argmax(1), count) + 1, arrays["queries"])


def test_bumps_by_hand():
    """Side 3: one row against two; weights 1 in the middle, 1 + 1/4 where two squares overlap."""
    upper = np.array([[0.25, 1.25, 0.25]])
    lower = np.array([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]])
    expected = np.concatenate([upper / np.linalg.norm(upper), -lower / np.linalg.norm(lower)])
    np.testing.assert_allclose(bump(3), expected / np.sqrt(2), rtol=1e-12)
    for side in (3, 5, 8):
        assert abs(np.sum(bump(side) ** 2) - 1) < 1e-12 and bump(side).shape == (side, side)


@pytest.mark.parametrize("norm, eps", [("linf", 0.05), ("l2", 0.3), ("l1", 5.0)])
def test_square_never_loses_and_stays_on_the_surface(norm, eps):
    small = attacks.square(eps / 50, 30, norm=norm)
    run = quick_jit(lambda key: small(linear, IMAGES, LABELS, key=key))
    result = run(KEY)
    best = np.maximum.accumulate(np.asarray(result.steps.loss), axis=1)
    assert np.all(np.asarray(result.loss) >= best[:, -1] - 1e-5) and np.any(best[:, -1] > best[:, 0])
    np.testing.assert_allclose(result.distance, eps / 50, rtol=1e-4)
    assert np.any(run(jax.random.key(1)).adversarial != result.adversarial)


def test_square_finds_computation():
    attack = attacks.square(0.3, 60, criterion=criteria.never(criteria.executed_share))
    result = quick_jit(lambda x: attack(hard, x, key=KEY))(IMAGES)
    assert float(metrics.recovery(result.trace_clean, result.trace_adversarial)) == 1.0


def linf_distances():
    logits, weights = np.asarray(linear(IMAGES).logits), np.asarray(WEIGHTS)
    of = lambda i, y: min((logits[i, y] - logits[i, j]) / np.abs(weights[:, y] - weights[:, j]).sum()
                          for j in range(3) if j != y)  # fmt: skip
    return np.array([of(i, int(y)) for i, y in enumerate(LABELS)])


def test_rays_finds_the_distance_to_a_plane():
    attack = attacks.rays(1.0, 1500, largest=0.4, tolerance=1e-5)
    result = quick_jit(lambda x: attack(linear, x, LABELS))(IMAGES)
    expected, found = linf_distances(), np.asarray(result.record.smallest)
    assert np.all(found >= expected * (1 - 1e-4)) and np.all(found <= expected * 1.05 + 1e-5)
    np.testing.assert_allclose(result.distance, found, rtol=1e-5)
    assert np.all(np.diff(np.minimum.accumulate(np.where(result.record.held, result.record.norm, 9), axis=1)) <= 0)


def test_rays_learns_a_slowdown_from_yes_and_no():
    attack = attacks.rays(1.0, 800, criterion=criteria.recovered(1.0), largest=0.4, tolerance=1e-5)
    found = quick_jit(lambda x: attack(hard, x))(IMAGES).record.smallest
    expected = -SCORES / np.abs(WEIGHTS[:, 0]).sum()
    assert np.all(np.asarray(found) >= expected * (1 - 1e-4)) and np.all(np.asarray(found) <= expected * 1.05)


def test_spsa_steps_along_the_sign_of_the_gradient():
    """Adam's first step has the sign of the estimate; with many samples that is the gradient's, where it is clear."""
    attack = attacks.spsa(0.1, 1, samples=400, learning_rate=0.001)
    result = quick_jit(lambda x: attack(linear, x, LABELS, key=KEY))(IMAGES)
    moved = np.asarray(result.adversarial - IMAGES).reshape(5, 48)
    logits, weights = np.asarray(linear(IMAGES).logits), np.asarray(WEIGHTS)
    other = np.argsort(logits, axis=1)[:, -2]
    gradient = (weights[:, other] - weights[:, np.asarray(LABELS)]).T
    clear = np.abs(gradient) > 1
    assert clear.sum() > 50 and np.mean(np.sign(moved)[clear] == np.sign(gradient)[clear]) > 0.98
    np.testing.assert_allclose(np.abs(moved), 0.001, atol=1e-4)


def test_spsa_from_an_energy_reading():
    """Executed multiply-adds of the hard network: a number, no derivative anywhere."""
    attack = attacks.spsa(
        0.2, 30, samples=16, delta=0.3, learning_rate=0.02, criterion=criteria.never(criteria.executed_share)
    )
    result = quick_jit(lambda x: attack(hard, x, key=KEY))(IMAGES)
    assert float(metrics.recovery(result.trace_clean, result.trace_adversarial)) == 1.0
    gradient = jax.grad(lambda x: jnp.sum(criteria.executed_share(hard(x), LABELS)))(IMAGES)
    assert not gradient.any()


CLOUD = PointCloud(jnp.zeros((6, 3)), jnp.zeros((6, 1)), jnp.ones(6, bool))
of_cloud = lambda cloud: Output(cloud.xyz[:1] + jnp.arange(3.0)[None])
some = attacks.SquareDraws(np.ones((1, 4, 3)), np.zeros((9, 1), int), np.zeros((9, 1), int), np.ones((9, 1, 3)))
BAD = {
    "cloud": (
        lambda: attacks.square(0.1, 5)(of_cloud, CLOUD, jnp.zeros(1, int), key=KEY),
        TypeError,
        "inputs: got a PointCloud, expected images",
    ),
    "no key": (lambda: attacks.square(0.1, 5)(linear, IMAGES, LABELS), ValueError, "key: got None"),
    "queries": (lambda: attacks.square(0.1, 0), ValueError, "queries: got 0"),
    "p": (lambda: attacks.square(0.1, p=1.5), ValueError, "p: got 1.5, expected a share"),
    "draws": (
        lambda: attacks.square(0.1, 5, draws=some)(linear, IMAGES, LABELS, key=KEY),
        ValueError,
        r"draws: got start_signs of 1 rows, expected at least 5",
    ),
    "draws of the other norm": (
        lambda: attacks.square(0.1, 5, norm="l2", draws=some)(linear, IMAGES, LABELS, key=KEY),
        ValueError,
        "draws: got start_signs of shape",
    ),
    "largest": (lambda: attacks.rays(0.1, largest=0.0), ValueError, "largest: got 0.0"),
    "tolerance": (lambda: attacks.rays(0.1, tolerance=-1.0), ValueError, "tolerance: got -1.0"),
    "samples": (lambda: attacks.spsa(0.1, samples=0), ValueError, "samples: got 0"),
    "delta": (lambda: attacks.spsa(0.1, delta=0.0), ValueError, "delta: got 0.0"),
    "spsa norm": (lambda: attacks.spsa(0.1, norm="l0"), ValueError, "norm: got 'l0'"),
    "criterion": (lambda: attacks.rays(0.1, criterion=len), TypeError, "criterion: got builtin"),
}


@pytest.mark.parametrize("name", BAD)
def test_message(name):
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call()
