"""Point-cloud attacks on functions whose answer is known; the networks come in tests/networks and test_demo_points."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks, metrics
from dyn_jax.attacks.knn_pert import KNNDistance, chamfer_distance, knn_distance
from dyn_jax.attacks.point_bim import direction_of
from dyn_jax.attacks.released import lgm_outdoor
from dyn_jax.objectives import cross_entropy
from dyn_jax.types import Output, PointCloud, Trace, UnitTrace

POINTS, CLASSES = 12, 3
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(3, CLASSES)), jnp.float32)


def segmenter(cloud):
    """A score per point, linear in its own coordinates."""
    return Output(cloud.xyz @ WEIGHTS)


def classifier(cloud):
    """One row: linear in the mean of the valid points."""
    mean = jnp.sum(jnp.where(cloud.valid[:, None], cloud.xyz, 0), axis=0) / jnp.sum(cloud.valid)
    return Output((mean @ WEIGHTS)[None])


def a_cloud(seed=1, valid=POINTS):
    rng = np.random.default_rng(seed)
    xyz = jnp.asarray(rng.normal(size=(POINTS, 3)), jnp.float32)
    return PointCloud(xyz, jnp.zeros((POINTS, 1)), jnp.arange(POINTS) < valid)


def labels_of(cloud):
    return jnp.argmax(segmenter(cloud).logits, axis=1)


def by_hand(xyz, labels, eps, step, steps, direction):
    """Point-BIM in a plain loop, for `segmenter` and mean cross-entropy."""
    weights = np.asarray(WEIGHTS, np.float64)
    clean = xyz = np.asarray(xyz, np.float64)
    for _ in range(steps):
        z = xyz @ weights
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(p)), labels] -= 1
        g = p @ weights.T / len(p)
        if direction == "sign":
            d = np.sign(g)
        elif direction == "linf":
            d = g / (np.abs(g).max(1, keepdims=True) + 1e-8)
        else:
            d = g / (np.sqrt((g * g).sum(1, keepdims=True)) + 1e-8)
        xyz = np.clip(xyz + step * d, clean - eps, clean + eps)
    return xyz


@pytest.mark.parametrize("direction", ["linf", "sign", "l2"])
def test_bim_against_a_plain_loop(direction):
    cloud = a_cloud()
    labels = labels_of(cloud)
    result = attacks.point_bim(0.3, 0.1, 5, direction=direction)(segmenter, cloud, labels)
    expected = by_hand(cloud.xyz, np.asarray(labels), 0.3, 0.1, 5, direction)
    np.testing.assert_allclose(result.adversarial, expected, atol=2e-5)
    assert result.steps.loss.shape == (1, 5)
    assert np.all(np.diff(result.steps.loss) > 0)
    np.testing.assert_allclose(result.distance, np.abs(expected - np.asarray(cloud.xyz)).max(1), atol=2e-5)


def test_release_makes_one_step_less_and_keeps_the_worst():
    cloud = a_cloud()
    labels = labels_of(cloud)
    release = attacks.lgm.point_bim(0.3, 0.1, 5)(segmenter, cloud, labels)
    expected = by_hand(cloud.xyz, np.asarray(labels), 0.3, 0.1, 4, "linf")
    np.testing.assert_allclose(release.adversarial, expected, atol=2e-5)

    def trap(cloud):
        """Errs only near the clean cloud's first step; the last iterate is right again."""
        moved = jnp.max(jnp.abs(cloud.xyz - a_cloud().xyz))
        wrong = (moved > 0.05) & (moved < 0.15)
        z = 10 * jax.nn.one_hot(labels, CLASSES)
        return Output(jnp.where(wrong, jnp.roll(z, 1, axis=1), z))

    last = attacks.point_bim(0.3, 0.1, 4)(segmenter, cloud, labels, victim=trap)
    worst = attacks.lgm.point_bim(0.3, 0.1, 4)(segmenter, cloud, labels, victim=trap)
    assert not last.success.any() and worst.success.all()
    np.testing.assert_allclose(worst.distance, 0.1, atol=1e-6)


@pytest.mark.parametrize(
    "make", [attacks.lgm.point_bim, lambda *given: lgm_outdoor.scan_bim(0.01, 4, objective=cross_entropy)]
)
def test_the_worst_is_kept_of_every_cloud(make):
    """The second errs at its first step only, the first at its last: neither keeps the other's iterate."""
    xyz = jnp.concatenate([a_cloud(1).xyz, a_cloud(2).xyz])
    batch = jnp.repeat(jnp.arange(2, dtype=jnp.int32), POINTS)
    both = PointCloud(xyz, jnp.zeros((2 * POINTS, 1)), jnp.ones(2 * POINTS, bool), batch, 2)
    labels = 1 + jnp.arange(2 * POINTS) % 2
    leave = lambda cloud: jnp.max(jnp.abs(cloud.xyz - xyz), axis=1)

    def trap(cloud):
        moved, right = leave(cloud), 10 * jax.nn.one_hot(labels, CLASSES)
        wrong = jnp.where(batch == 0, moved > 0.009, (moved > 0.001) & (moved < 0.009))
        return Output(jnp.where(wrong[:, None], jnp.roll(right, 1, axis=1), right))

    result = make(0.01, 0.005, 4)(segmenter, both, labels, victim=trap)
    assert result.success.all()
    np.testing.assert_allclose(result.distance, np.where(batch == 0, 0.01, 0.005), atol=1e-5)


def test_direction_of_zero_is_zero():
    gradient = jnp.array([[0.0, 0, 0], [3.0, -4, 0]])
    np.testing.assert_allclose(direction_of(gradient, "linf"), [[0, 0, 0], [0.75, -1, 0]], atol=1e-6)
    np.testing.assert_allclose(direction_of(gradient, "sign"), [[0, 0, 0], [1, -1, 0]])
    np.testing.assert_allclose(direction_of(gradient, "l2"), [[0, 0, 0], [0.6, -0.8, 0]], atol=1e-6)


def test_ignored_and_unused_points():
    cloud = a_cloud(valid=9)
    labels = labels_of(cloud).at[2].set(255)
    result = attacks.point_bim(0.3, 0.1, 3)(segmenter, cloud, labels)
    assert not result.counted[2] and not result.counted[9:].any() and result.counted.sum() == 8
    np.testing.assert_array_equal(result.adversarial[9:], cloud.xyz[9:])
    # an ignored point has no loss here, so its gradient is 0; elsewhere the result is that of the rest alone
    np.testing.assert_array_equal(result.adversarial[2], cloud.xyz[2])
    assert not result.success[2]


def test_targeted():
    cloud = a_cloud()
    labels = labels_of(cloud)
    targets = (labels + 1) % CLASSES
    result = attacks.point_bim(3.0, 0.2, 30)(segmenter, cloud, labels, targets=targets)
    np.testing.assert_array_equal(np.argmax(result.logits_adversarial, 1), targets)
    assert result.success.all()


@pytest.mark.parametrize(
    "make",
    [
        lambda eps: attacks.point_bim(eps, 0.05, 3),
        lambda eps: attacks.lgm.point_bim(eps, 0.05, 3),
        attacks.point_noise,
        lambda eps: attacks.point_pert(eps, 4, learning_rate=0.05),
        lambda eps: attacks.knn_pert(eps, 4, learning_rate=0.05, distance=KNNDistance(3)),
    ],
    ids=["bim", "bim release", "noise", "pert", "knn"],
)
class TestEveryAttack:
    def run(self, make, eps, cloud, **options):
        labels = jnp.argmax(classifier(cloud).logits, axis=1)
        return make(eps)(classifier, cloud, labels, key=jax.random.key(0), **options)

    def test_stays_in_the_cube(self, make):
        cloud = a_cloud(valid=10)
        result = self.run(make, 0.07, cloud)
        assert float(result.distance.max()) <= 0.07 + 1e-6
        assert float(result.distance[:10].min()) > 0
        np.testing.assert_array_equal(result.adversarial[10:], cloud.xyz[10:])
        assert result.adversarial.dtype == cloud.xyz.dtype

    def test_eps_zero_changes_nothing(self, make):
        cloud = a_cloud()
        np.testing.assert_array_equal(self.run(make, 0.0, cloud).adversarial, cloud.xyz)

    def test_jit_and_vmap_agree_with_the_loop(self, make):
        clouds = [a_cloud(seed) for seed in (1, 2, 3)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clouds)

        chex.clear_trace_counter()

        @chex.assert_max_traces(n=1)
        def batched(stacked):
            return jax.vmap(lambda cloud: self.run(make, 0.07, cloud).adversarial)(stacked)

        run = jax.jit(batched)
        together = run(stacked)
        run(stacked)
        alone = jnp.stack([jax.jit(lambda c: self.run(make, 0.07, c).adversarial)(c) for c in clouds])
        np.testing.assert_allclose(together, alone, atol=2e-6)
        np.testing.assert_array_equal(run(stacked), together)

    def test_errors(self, make):
        cloud, attack = a_cloud(), make(0.1)
        good = jnp.zeros(1, jnp.int32)
        call = partial(attack, classifier, key=jax.random.key(0))
        with pytest.raises(ValueError, match="images: got shape .* expected rank 4"):
            call(cloud.xyz, good)
        with pytest.raises(ValueError, match=r"mask: got shape \(3,\), expected \(12,\): which points"):
            call(cloud, good, mask=jnp.ones(3))
        with pytest.raises(ValueError, match=r"labels: got shape \(2,\), expected \(1,\)"):
            call(cloud, jnp.zeros(2, jnp.int32))
        with pytest.raises(TypeError, match="expected integer class"):
            call(cloud, jnp.zeros(1))
        with pytest.raises(ValueError, match=r"got \[7\], expected classes in \[0, 2\] or 255"):
            call(cloud, good + 7)
        with pytest.raises(ValueError, match="no row with another label than 255"):
            call(cloud, good + 255)
        with pytest.raises(ValueError, match="1 equal to their label"):
            call(cloud, good, targets=good)
        with pytest.raises(ValueError, match="expected at least 0"):
            make(-0.1)
        with pytest.raises(ValueError, match="finite"):
            make(float("nan"))


def test_random_attacks_need_a_key():
    cloud = a_cloud()
    for attack in (attacks.point_noise(0.1), attacks.point_pert(0.1, 2), attacks.knn_pert(0.1, 2)):
        with pytest.raises(ValueError, match="key: got None"):
            attack(classifier, cloud, jnp.zeros(1, jnp.int32))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: {"xyz": c.xyz + np.float32(5e6)}, r"xyz: got coordinates up to .* rounds by up to 0.25 m"),
        (lambda c: {"batch": np.full(POINTS, 3), "clouds": 2}, r"batch: got indices in \[3, 3\], expected \[0, 1\]"),
        (lambda c: {"batch": np.full(POINTS, 2**32)}, r"batch: got indices in \[4294967296, 4294967296\]"),
        (lambda c: {"batch": np.zeros(POINTS), "clouds": 2}, r"batch: got float64\[12\], expected integers"),
        (lambda c: {"batch": np.zeros(3, int), "clouds": 2}, r"batch: got int64\[3\], expected integers"),
        (lambda c: {"valid": np.ones(POINTS)}, "valid: got dtype float.., expected bool"),
    ],
)
def test_clouds_that_no_step_could_move_or_no_one_owns(change, words):
    """Any network may be attacked: the door does not wait for it to look."""
    cloud = a_cloud()
    with pytest.raises((ValueError, TypeError), match=words):
        attacks.bim(0.01, 0.01, 1)(segmenter, cloud.replace(**change(cloud)), labels_of(cloud))


def test_noise_is_uniform_in_the_cube():
    cloud = PointCloud(jnp.zeros((4000, 3)), jnp.zeros((4000, 1)), jnp.ones(4000, bool))
    result = attacks.point_noise(0.2)(classifier, cloud, jnp.zeros(1, jnp.int32), key=jax.random.key(3))
    moves = np.asarray(result.adversarial)
    assert abs(moves.mean()) < 0.005 and abs(moves.std() - 0.2 / np.sqrt(3)) < 0.003
    assert np.abs(moves).max() <= 0.2 and np.abs(moves).max() > 0.199
    other = attacks.point_noise(0.2)(classifier, cloud, jnp.zeros(1, jnp.int32), key=jax.random.key(4))
    assert not np.array_equal(other.adversarial, moves)


def test_point_pert_finds_the_nearest_boundary():
    """A linear classifier of the mean: the smallest change moves all points alike, by margin / |w| (C&W's distance)."""
    cloud = a_cloud()
    logits = classifier(cloud).logits[0]
    label = int(jnp.argmax(logits))
    weights = np.asarray(WEIGHTS)
    gaps = [
        float(logits[label] - logits[j]) / np.linalg.norm(weights[:, label] - weights[:, j])
        for j in range(CLASSES)
        if j != label
    ]
    shortest = min(gaps) ** 2 * POINTS  # sum of squares over the points
    attack = attacks.point_pert(10.0, 150, learning_rate=0.02, constant=1.0, search_steps=8)
    run = jax.jit(lambda cloud: attack(classifier, cloud, jnp.array([label]), key=jax.random.key(0)))
    result = run(cloud)
    assert result.success.all()
    found = float(jnp.sum((result.adversarial - cloud.xyz) ** 2))
    assert shortest * 0.999 <= found <= shortest * 1.15
    once = attacks.point_pert(10.0, 150, learning_rate=0.02, constant=1000.0)
    far = jax.jit(lambda cloud: once(classifier, cloud, jnp.array([label]), key=jax.random.key(0)))(cloud)
    assert far.success.all() and float(jnp.sum((far.adversarial - cloud.xyz) ** 2)) > found


def test_knn_and_chamfer_distances_by_brute_force():
    rng = np.random.default_rng(5)
    xyz, valid = rng.normal(size=(15, 3)), np.arange(15) < 13
    xyz[3] += 20  # an outlier
    clean = xyz + 0.1 * rng.normal(size=xyz.shape)
    nearest, to_clean = [], []
    for i in range(13):
        squares = sorted(np.sum((xyz[i] - xyz[j]) ** 2) for j in range(13) if j != i)
        nearest.append(np.mean(squares[:4]))
        to_clean.append(min(np.sum((xyz[i] - clean[j]) ** 2) for j in range(13)))
    nearest = np.array(nearest)
    limit = nearest.mean() + 1.05 * nearest.std()
    expected = nearest[nearest > limit].sum() / 13
    assert (nearest > limit).sum() == 1
    got = knn_distance(jnp.asarray(xyz, jnp.float32), jnp.asarray(valid), 4)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    got = chamfer_distance(jnp.asarray(xyz, jnp.float32), jnp.asarray(clean, jnp.float32), jnp.asarray(valid))
    np.testing.assert_allclose(got, np.mean(to_clean), rtol=1e-4)
    pull = jax.grad(lambda x: knn_distance(x, jnp.asarray(valid), 4))(jnp.asarray(xyz, jnp.float32))
    assert np.abs(pull[3]).max() > 0 and np.all(np.isfinite(pull))


def test_fewer_points_than_neighbours():
    """Points that only fill up are nobody's neighbours."""
    cloud = a_cloud(valid=4)
    alone = np.asarray(knn_distance(cloud.xyz[:4], jnp.ones(4, bool), 3, 0.1))
    assert alone > 0
    for k in (3, 5, 50):
        np.testing.assert_allclose(knn_distance(cloud.xyz, cloud.valid, k, 0.1), alone, rtol=1e-6)


def test_nonfinite_gradients_are_flagged_and_taken_as_zero():
    def broken(cloud):
        z = segmenter(cloud).logits
        return Output(z.at[0].multiply(jnp.where(cloud.xyz[0, 0] > -1e9, jnp.sqrt(cloud.xyz[0, 0] * 0), 1)))

    cloud = a_cloud()
    with jax.debug_nans(False):
        result = attacks.point_bim(0.3, 0.1, 2)(broken, cloud, jnp.zeros(POINTS, jnp.int32))
    assert result.steps.nonfinite.all()
    np.testing.assert_array_equal(result.adversarial[0], cloud.xyz[0])
    assert np.isfinite(result.adversarial).all()


def test_nan_logits_are_no_success():
    cloud = a_cloud()
    labels = labels_of(cloud)
    row = int(jnp.argmax(labels > 0))  # argmax of NaN is class 0: a row of another class would count as a success
    assert int(labels[row]) > 0

    def broken(cloud):
        return Output(segmenter(cloud).logits.at[row].set(jnp.nan))

    with jax.debug_nans(False):
        result = attacks.point_bim(0.0, 0.1, 1)(segmenter, cloud, labels, victim=broken)
    assert not result.success[row] and result.invalid[row]


def test_overflow_is_reported():
    def overflowing(cloud):
        unit = UnitTrace(jnp.ones((1, 2)), jnp.ones((1, 2)), 5 * jnp.array([[3.0, 4.0]]))
        ones = jnp.ones((1, POINTS))
        points = UnitTrace(ones, ones, 0 * ones, None, "points", {"cell": ones})  # points are no voxels
        return Output(
            segmenter(cloud).logits, Trace((points, unit), overflow=cloud.xyz[0, 0] > a_cloud().xyz[0, 0] + 0.05)
        )

    cloud = a_cloud()
    labels = labels_of(cloud)
    result = attacks.point_bim(0.3, 0.1, 4, direction="sign")(overflowing, cloud, labels)
    np.testing.assert_array_equal(result.steps.work["macs"], [[35.0] * 4])
    np.testing.assert_array_equal(result.steps.work["voxels"], [[2] * 4])
    assert bool(result.overflow) == bool(result.adversarial[0, 0] > cloud.xyz[0, 0] + 0.05)
    calm = attacks.point_bim(0.01, 0.1, 4)(overflowing, cloud, labels)
    assert not bool(calm.overflow)


def test_mean_iou_by_hand():
    predictions = jnp.array([0, 0, 1, 1, 2, 0])
    labels = jnp.array([0, 1, 1, 1, 255, 0])
    matrix = metrics.confusion(predictions, labels, 4)
    np.testing.assert_array_equal(matrix[:2, :2], [[2, 0], [1, 2]])
    with jax.debug_nans(False):
        values = np.asarray(metrics.iou(matrix))
    np.testing.assert_allclose(values[:2], [2 / 3, 2 / 3], rtol=1e-6)
    assert np.isnan(values[2:]).all()
    np.testing.assert_allclose(metrics.mean_iou(matrix), (2 / 3 + 2 / 3) / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics.mean_iou(matrix, absent="skip"), 2 / 3, rtol=1e-6)
    with pytest.raises(ValueError, match="absent"):
        metrics.mean_iou(matrix, absent="one")


def rising(cloud):
    """One voxel a point, at height z; it exists where z >= 0, softly for the gradient; the second costs three times."""
    score = cloud.xyz[None, :, 2]
    soft = jax.nn.sigmoid(4 * score)
    exists = (score >= 0).astype(score.dtype)
    repeats = jnp.ones_like(score).at[0, 1].set(3.0)
    o = exists + soft - jax.lax.stop_gradient(soft)
    return Output(cloud.xyz @ WEIGHTS, Trace((UnitTrace(soft - 0.5, o, 2 * repeats),), 0))


@pytest.mark.parametrize("make", [attacks.grad_auto, attacks.ilfo])
def test_energy_attack_raises_what_is_executed(make):
    cloud = a_cloud(valid=9)
    attack = make(eps=0.5, steps=20, learning_rate=0.05)
    result = jax.jit(lambda cloud, labels: attack(rising, cloud, labels))(cloud, labels_of(cloud))
    z, lifted = np.asarray(cloud.xyz)[:, 2], np.asarray(result.adversarial)[:, 2]
    reachable = (z < -0.01) & (z > -0.49) & (np.arange(POINTS) < 9)
    assert reachable.any() and (lifted[reachable] >= 0).all()
    np.testing.assert_array_equal(result.adversarial[9:], cloud.xyz[9:])
    assert float(result.distance.max()) <= 0.5 + 1e-6
    before, after = metrics.executed_macs(result.trace_clean), metrics.executed_macs(result.trace_adversarial)
    np.testing.assert_allclose(metrics.increase(result.trace_clean, result.trace_adversarial), after / before - 1)
    assert float(after[0]) > float(before[0])
    assert result.steps.loss.shape == (1, 20) and float(result.steps.loss[0, -1]) > float(result.steps.loss[0, 0])
