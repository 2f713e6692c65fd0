"""FAB-T, FMN, DDN: closed forms on linear networks, the released codes' projections."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import exact_jit, quick_jit
from linear import WEIGHTS, images, linear

from dyn_jax import attacks, metrics, objectives, occupancy
from dyn_jax.attacks import criteria, hyperplane
from dyn_jax.attacks.fab_t import class_difference
from dyn_jax.types import Output, PointCloud, Trace, UnitTrace

IMAGES = images(0.4, 0.6)
KEY = jax.random.key(0)
LABELS = jnp.argmax(linear(IMAGES).logits, 1).at[4].add(1) % 3  # the last one is misclassified


def distances(norm):
    """The distance to the nearest class boundary: margin over the dual norm of the weights' difference."""
    logits, weights = np.asarray(linear(IMAGES).logits), np.asarray(WEIGHTS)
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    of = lambda i, y: min(
        max(logits[i, y] - logits[i, j], 0) / np.linalg.norm(weights[:, y] - weights[:, j], dual)
        for j in range(3)
        if j != y
    )
    return np.array([of(i, int(y)) for i, y in enumerate(LABELS)])


MARGIN = criteria.misclassified()  # DDN's own cross-entropy does not point at the nearest of three classes
CLOSED = {
    "fab_t linf": (lambda: attacks.fab_t(1.0, 20, target_classes=2), "linf", 0.01),
    "fab_t l2": (lambda: attacks.fab_t(10.0, 20, target_classes=2, norm="l2"), "l2", 0.01),
    "fab_t l1": (lambda: attacks.fab_t(10.0, 40, target_classes=2, norm="l1"), "l1", 0.02),
    "fab linf": (lambda: attacks.fab(1.0, 20), "linf", 0.01),
    "fab l2": (lambda: attacks.fab(10.0, 20, norm="l2"), "l2", 0.01),
    "fab l1": (lambda: attacks.fab(10.0, 40, norm="l1"), "l1", 0.02),
    "fmn linf": (lambda: attacks.fmn(60), "linf", 0.02),
    "fmn l1": (lambda: attacks.fmn(100, norm="l1"), "l1", 0.05),
    "fmn l2": (lambda: attacks.fmn(60, norm="l2"), "l2", 0.02),
    "ddn": (lambda: attacks.ddn(80, criterion=MARGIN, init_norm=0.05), "l2", 0.06),
}


@pytest.mark.parametrize("name", CLOSED)
def test_the_distance_to_a_plane(name):
    make, norm, slack = CLOSED[name]
    jit = exact_jit if norm == "l1" else quick_jit  # how far the last step of L1 lands is rounding
    result = jit(lambda x: make()(linear, x, LABELS))(IMAGES)
    expected, found = distances(norm), np.asarray(result.record.smallest)
    assert expected[4] == found[4] == 0
    assert np.all(found[:4] >= expected[:4] * (1 - 1e-4)) and np.all(found[:4] <= expected[:4] * (1 + slack))
    np.testing.assert_allclose(result.distance, found, rtol=1e-5)
    assert result.success.all()
    curve = metrics.robust_accuracy_at(result.record.smallest, np.array([0.0, 1e-6, *np.sort(found)[1:]]))
    np.testing.assert_allclose(curve, [0.8, 0.8, 0.6, 0.4, 0.2, 0.0], atol=1e-6)


def test_eps_decides_at_the_end_only():
    """AutoAttack's rule: within eps, or the clean value; the smallest norm is readable either way."""
    run = quick_jit(lambda eps: attacks.fab_t(eps, 10, target_classes=2)(linear, IMAGES, LABELS))
    norms = np.asarray(run(1.0).record.smallest)
    eps = float(np.median(norms[:4]))
    result = run(eps)
    np.testing.assert_array_equal(result.record.smallest, norms)
    np.testing.assert_array_equal(result.success, norms <= eps)
    np.testing.assert_array_equal(np.asarray(result.distance) == 0, ~(norms <= eps) | (norms == 0))


@pytest.mark.parametrize("norm, eps", [("linf", 0.02), ("l2", 0.1), ("l1", 1.0)])
def test_restarts_of_fab(norm, eps):
    """The first walk is that of one restart, the others begin at half of eps, or of what was found, and never lose."""
    run = lambda count, x: attacks.fab(eps, 3, restarts=count, norm=norm)(linear, x, LABELS, key=KEY).record
    one, three = quick_jit(lambda x: [run(count, x) for count in (1, 3)])(IMAGES)
    np.testing.assert_allclose(three.norm[:, :3], one.norm, rtol=1e-5, atol=1e-7)
    assert np.all(np.asarray(three.smallest) <= np.asarray(one.smallest) * (1 + 1e-6))
    assert np.all(np.abs(np.asarray(three.norm[:4, 3] - three.norm[:4, 0])) > 1e-6)
    seen = []

    def search(problem, keys, start):
        reach = jnp.linspace(0.1, 0.7, 5)
        seen.append(attacks.fab(eps, norm=norm, restarts=2).search.started(problem, keys, reach))
        return attacks.Found(seen[0])

    dataclasses.replace(attacks.fab(9.0, norm=norm, restarts=2), search=search)(linear, IMAGES, LABELS, key=KEY)
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    moved = np.linalg.norm(np.asarray(seen[0] - IMAGES).reshape(5, -1), order, axis=1)
    np.testing.assert_allclose(moved, np.linspace(0.05, 0.35, 5), rtol=1e-3)


def test_a_bounding_box_is_respected_on_the_way():
    """Pixels at the bounds cannot move outwards: the others have to make up for it."""
    images = jnp.where(jnp.arange(48).reshape(4, 4, 3) % 2 == 0, 0.0, IMAGES)
    labels = jnp.argmax(linear(images).logits, 1)
    found = quick_jit(lambda x: attacks.fab_t(1.0, 20, target_classes=2)(linear, x, labels))(images).record.smallest
    logits, weights = np.asarray(linear(images).logits), np.asarray(WEIGHTS, np.float64)

    def nearest(i, y, j):
        w = weights[:, j] - weights[:, y]
        flat = np.asarray(images[i], np.float64).reshape(-1)
        room = np.where(w > 0, 1 - flat, flat)
        low, high = 0.0, 1.0
        for _ in range(60):
            mid = (low + high) / 2
            enough = np.sum(np.abs(w) * np.minimum(mid, room)) >= logits[i, y] - logits[i, j]
            low, high = (low, mid) if enough else (mid, high)
        return high

    expected = [min(nearest(i, int(y), j) for j in range(3) if j != int(y)) for i, y in enumerate(labels)]
    np.testing.assert_allclose(found, expected, rtol=0.01)
    assert np.all(np.asarray(found) >= np.array(expected) * (1 - 1e-4))


def gated(x, how):
    """One unit whose score is linear: it is off, and the closest image that switches it on is known."""
    score = (x.reshape(-1, 48) - 0.5) @ WEIGHTS[:, 0] - 2.0
    return Output(jnp.stack([score, 1 - score], axis=1), Trace((UnitTrace(score, how(score), 10, name="unit"),), 10))


CRITERIA = {
    "recovered": criteria.recovered(1.0),
    "increased": criteria.increased(0.9),
    "energy": criteria.recovered(0.5, objectives.energy(tau=None)),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_smallest_perturbation_for_a_slowdown(name):
    soft, hard = partial(gated, how=occupancy.sigmoid(1.0)), partial(gated, how=occupancy.hard())
    attack = attacks.fmn(80, norm="l2", criterion=CRITERIA[name])
    result = quick_jit(lambda x: attack(soft, x, victim=hard))(IMAGES)
    scores = np.asarray(gated(IMAGES, occupancy.hard()).trace.units[0].score)
    assert (scores < 0).all()
    expected = -scores / np.linalg.norm(WEIGHTS[:, 0])
    np.testing.assert_allclose(result.record.smallest, expected, rtol=0.03)
    assert np.all(np.asarray(result.record.smallest) >= expected * (1 - 1e-4))
    assert np.all(np.asarray(result.trace_adversarial.units[0].score) > -1e-5)  # on the boundary rounding decides


def test_nothing_found_is_infinite_and_robust():
    still = lambda x: Output(jnp.stack([1.0 + 0 * x.mean((1, 2, 3)), 0 * x.mean((1, 2, 3))], axis=1))
    for attack in (attacks.fab_t(1.0, 3, target_classes=1), attacks.fmn(3), attacks.ddn(3)):
        result = quick_jit(lambda x, a=attack: a(still, x, jnp.zeros(5, int)))(IMAGES)
        assert np.isinf(result.record.smallest).all() and not result.success.any()
        np.testing.assert_array_equal(result.adversarial, IMAGES)
        np.testing.assert_array_equal(metrics.robust_accuracy_at(result.record.smallest, 0.3), 1.0)


def test_masked_and_targeted():
    mask = jnp.asarray(np.arange(16).reshape(4, 4) % 2, jnp.float32)
    targets = (LABELS + 1) % 3
    result = quick_jit(lambda x: attacks.fmn(60, norm="l2")(linear, x, LABELS, targets=targets, mask=mask))(IMAGES)
    assert result.success.all()
    np.testing.assert_array_equal(jnp.argmax(linear(result.adversarial).logits, 1), targets)
    np.testing.assert_array_equal(np.asarray(result.adversarial)[:, mask == 0], np.asarray(IMAGES)[:, mask == 0])


def test_rounded_iterates_are_8_bit():
    images = jnp.round(IMAGES * 255) / 255
    adversarial = quick_jit(lambda x: attacks.ddn(30, levels=256)(linear, x, LABELS))(images).adversarial
    np.testing.assert_allclose(adversarial * 255, np.round(adversarial * 255), atol=1e-3)


def test_classes_of_a_difference():
    output, label = Output(jnp.array([[1.0, 4.0, 2.5]])), jnp.array([1])
    np.testing.assert_allclose(class_difference(output, label, jnp.array([2])), [-1.5])
    with pytest.raises(ValueError, match="targets: got None"):
        class_difference(output, label)


def test_a_curve_by_hand():
    norms = jnp.array([0.0, 0.1, 0.2, jnp.inf])
    np.testing.assert_allclose(
        metrics.robust_accuracy_at(norms, jnp.array([0.0, 0.1, 0.15, 9.0])), [0.75, 0.5, 0.5, 0.25]
    )
    np.testing.assert_allclose(metrics.robust_accuracy_at(norms, 0.1, where=jnp.array([True, True, False, False])), 0)
    with pytest.raises(ValueError, match=r"norms: got shape \(4, 1\)"):
        metrics.robust_accuracy_at(norms[:, None], 0.1)
    with pytest.raises(ValueError, match="where: got shape"):
        metrics.robust_accuracy_at(norms, 0.1, where=jnp.array([True]))


CLOUD = PointCloud(jnp.zeros((6, 3)), jnp.zeros((6, 1)), jnp.ones(6, bool))
segmented = lambda cloud: Output(cloud.xyz @ jnp.eye(3))
BAD = {
    "classes": (lambda: attacks.fab_t(0.1, 2)(linear, IMAGES, LABELS), ValueError, "target_classes: got 9 of 3"),
    "targets": (
        lambda: attacks.fab_t(0.1, 2, target_classes=1)(linear, IMAGES, LABELS, targets=(LABELS + 1) % 3),
        ValueError,
        "targets: got targets, expected None: fab_t",
    ),
    "segmented": (
        lambda: attacks.fab_t(0.1, 2, target_classes=1)(segmented, CLOUD, jnp.zeros(6, int)),
        ValueError,
        "inputs: got a segmented cloud",
    ),
    "norm": (lambda: attacks.fmn(5, norm="l3"), ValueError, "norm: got 'l3'"),
    "criterion": (lambda: attacks.fmn(5, criterion="energy"), TypeError, "criterion: got str"),
    "schedule": (lambda: attacks.fmn(5, gamma=0.05), ValueError, r"gamma: got 0.05, expected \(first, last\)"),
    "negative schedule": (lambda: attacks.fmn(5, step_size=(-1.0, 0.1)), ValueError, "step_size: got -1.0"),
    "share": (lambda: criteria.recovered(0.0), ValueError, "share: got 0.0"),
    "increase": (lambda: criteria.increased(-0.1), ValueError, "by: got -0.1"),
    "no units": (
        lambda: attacks.fmn(5, criterion=criteria.recovered(0.5))(linear, IMAGES, LABELS),
        ValueError,
        "without units",
    ),
    "energy of a class": (
        lambda: attacks.fmn(5, criterion=CRITERIA["recovered"])(
            partial(gated, how=occupancy.hard()), IMAGES, LABELS % 2, targets=1 - LABELS % 2
        ),
        ValueError,
        "targets: got some, expected None: an attack on the energy",
    ),
    "levels": (lambda: attacks.ddn(5, levels=1), ValueError, "levels: got 1, expected at least 2"),
    "levels of points": (
        lambda: attacks.ddn(5, levels=256)(lambda c: Output(c.xyz[:1] * 1.0), CLOUD, jnp.zeros(1, int)),
        ValueError,
        "levels: got some for a point cloud",
    ),
    "plane": (
        lambda: hyperplane.project(jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.zeros(2)),
        ValueError,
        "points, w: got shapes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_message(name):
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projections_of_the_release(golden, norm):
    arrays = golden("eval_fab_projections")
    project = quick_jit(partial(hyperplane.project, norm=norm))
    got = project(*(jnp.asarray(arrays[name]) for name in ("points", "w", "b")))
    np.testing.assert_allclose(got - arrays["points"], arrays[f"delta_{norm}"], atol=2e-6)


def test_projection_brute_force():
    """In two dimensions: no point of the plane inside the box is nearer."""
    x, w, b = np.array([[0.2, 0.7]]), np.array([[1.0, -0.5]]), np.array([0.4])
    line = np.stack([np.linspace(0, 1, 4001), (np.linspace(0, 1, 4001) - b[0]) / 0.5], axis=1)
    line = line[(line[:, 1] >= 0) & (line[:, 1] <= 1)]
    for norm, order in (("linf", np.inf), ("l2", 2), ("l1", 1)):
        z = np.asarray(hyperplane.project(*map(jnp.asarray, (x, w, b)), norm=norm))
        assert abs(z @ w[0] - b) < 1e-6
        nearest = np.linalg.norm(line - x, order, axis=1).min()
        assert abs(np.linalg.norm((z - x)[0], order) - nearest) < 1e-3


@pytest.mark.parametrize("make", [attacks.fab, partial(attacks.fab_t, target_classes=1)])
def test_numbers_of_fab_may_be_fractions(make):
    written, numbers = make(1.0, alpha_max="1/10", eta="21/20", beta="9/10"), make(1.0)
    assert dataclasses.astuple(written.search) == dataclasses.astuple(numbers.search)
