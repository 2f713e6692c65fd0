"""The shared properties over every attack."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ALL_ATTACKS, GRID, attack_case, domain_problem, tiny_forward, tiny_problem, tiny_victim
from compiled import quick_jit
from jax.sharding import Mesh, PartitionSpec

from dyn_jax import attacks, metrics
from dyn_jax.testing import check_attack
from dyn_jax.types import Output, PointCloud

KEY = jax.random.key(0)
INDEPENDENT = (
    *("fgsm", "bim l2 margin", "pgd restarts", "pgd release", "mi_fgsm l2", "apgd dlr", "apgd_t", "carlini_wagner"),
    *("early_attack", "grad_auto", "ilfo", "grad_mdm", "lgm_carlini_wagner"),
    *("fab_t", "fmn l2", "ddn", "square l2", "rays", "spsa"),
)
# One of each kind of search, where a property does not depend on norm or objective.
KINDS = ("fgsm", "pgd restarts", "mi_fgsm l2", "apgd dlr", "lgm_carlini_wagner", "lgm_auto_step")
# One of each kind of loop is also run eagerly.
EAGER = ("fgsm", "pgd", "apgd ce", "carlini_wagner", "early_attack", "grad_auto", "point_bim release")


def attack_all(attack):
    return dataclasses.replace(attack, attack_all=True)


@pytest.mark.parametrize("name, domain", GRID)
def test_contract(name, domain):
    """`check_attack`, and it is an attack: over the attacked examples the objective rises."""
    case = attack_case(name)
    forward, victim, inputs, labels, _ = domain_problem(domain, 16)
    given = {"factory": case.make if case.bounded else None}
    given |= {"victim": victim} if name in EAGER else {"differing": None}
    attack = case.make(case.eps)
    result = check_attack(attack, forward, inputs, labels, KEY, **given)
    if name == "point_noise":  # the baseline: it moves, and that is all
        assert float(result.distance.max()) > 0.9 * case.eps
        return
    judge = given.get("victim", forward)
    clean = attack.objective(judge(inputs), labels, None)
    attacked = ~result.clean_success
    assert int(attacked.sum()) >= 4 and float(result.distance.max()) > 0
    assert float(jnp.where(attacked, result.loss - clean, 0).sum()) > 0.05


def some_mask(domain):
    if domain == "pixels":
        return jnp.asarray(np.arange(16).reshape(4, 4) % 3 > 0, jnp.float32)
    return jnp.arange(40) % 3 > 0


@pytest.mark.parametrize("domain", ["pixels", "coordinates"])
@pytest.mark.parametrize("name", [*KINDS, "carlini_wagner", "pgd release"])
def test_contract_with_targets_and_mask(name, domain):
    case = ALL_ATTACKS[name]
    forward, victim, inputs, labels, targets = domain_problem(domain)
    mask = some_mask(domain)
    given = {"victim": victim, "targets": targets, "mask": mask, "differing": None}
    check_attack(case.make(case.eps), forward, inputs, labels, KEY, **given)


@pytest.fixture
def float64():
    """Batched and single runs round differently, and an attack amplifies that: in float64 it stays invisible."""
    with jax.enable_x64(True):
        yield


def double_problem():
    with jax.enable_x64(False):  # the problem is cached: other tests get the same arrays
        images, labels, _ = tiny_problem()
    return images.astype(jnp.float64), labels


@functools.cache
def keyed(name):
    """attack(eps, images, labels, numbers of the examples), jitted, eps traced."""
    make = ALL_ATTACKS[name].make
    return quick_jit(lambda e, x, y, i: make(e)(tiny_forward, x, y, key=KEY, victim=tiny_victim, index=i))


@pytest.mark.parametrize("name", INDEPENDENT)
def test_an_example_does_not_see_the_others(name, float64):
    case = ALL_ATTACKS[name]
    images, labels = double_problem()
    run, number = keyed(name), jnp.arange(4)
    eps = jnp.float64(case.eps)
    whole = run(eps, images, labels, number)
    order = np.array([2, 0, 3, 1])
    moved = run(eps, images[order], labels[order], number[order])
    np.testing.assert_allclose(moved.adversarial, whole.adversarial[order], atol=1e-9)
    np.testing.assert_array_equal(moved.success, whole.success[order])
    np.testing.assert_allclose(moved.steps.loss, whole.steps.loss[order], atol=1e-7)
    others = np.array([1, 1, 2, 0])  # the last one, which is misclassified to begin with, among others
    among = run(eps, images[others].at[3].set(images[3]), labels[others].at[3].set(labels[3]), number)
    np.testing.assert_allclose(among.adversarial[3], whole.adversarial[3], atol=1e-9)
    np.testing.assert_allclose(among.steps.loss[3], whole.steps.loss[3], atol=1e-7)
    if name in KINDS:
        alone = run(eps, images[:1], labels[:1], number[:1])
        np.testing.assert_allclose(alone.adversarial[0], whole.adversarial[0], atol=1e-9)
        np.testing.assert_allclose(alone.steps.loss[0], whole.steps.loss[0], atol=1e-7)


def test_control_the_coupled_ones_do_see_the_others():
    """The property above, where it does not hold: LGM's released step rule has one loss for the whole batch."""
    case = ALL_ATTACKS["lgm_auto_step release"]
    images, labels, _ = tiny_problem(16)
    run = quick_jit(lambda x, y: attack_all(case.make(case.eps))(tiny_forward, x, y))
    whole = run(images, labels).adversarial
    alone = jnp.concatenate([run(images[i : i + 1], labels[i : i + 1]).adversarial for i in range(16)])
    assert np.abs(whole - alone).max() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_eps_is_a_leaf(name, float64):
    """vmap over eps = loop over eps, and a new eps compiles nothing new."""
    case = ALL_ATTACKS[name]
    images, labels = double_problem()
    run, number = keyed(name), jnp.arange(4)
    radii = jnp.asarray([0.0, case.eps / 2, case.eps])
    loop, programs = [run(radii[0], images, labels, number)], run._cache_size()
    loop += [run(e, images, labels, number) for e in radii[1:]]
    assert run._cache_size() == programs
    swept = jax.vmap(run, (0, None, None, None))(radii, images, labels, number)
    stacked = jnp.stack([r.adversarial for r in loop])
    np.testing.assert_allclose(swept.adversarial, stacked, atol=1e-9)
    np.testing.assert_array_equal(stacked[0], images)


@pytest.mark.parametrize("name, domain", GRID)
def test_what_a_loop_begins_with_is_what_it_goes_on_with(name, domain):
    """Under x64 what a search makes of integers and numbers is float64, under shard_map (of images) what begins as a
    constant is the same on every device: its state must be neither."""
    case, rows = attack_case(name), PartitionSpec("device")
    forward, victim, inputs, labels, _ = domain_problem(domain)

    def run(x, y, i):
        result = case.make(case.eps)(forward, x, y, key=KEY, victim=victim, index=i)
        return result.adversarial, result.loss

    if domain == "pixels":
        mesh = Mesh(np.array(jax.devices()[:1]), ("device",))
        run = jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=rows)
    with jax.enable_x64(True):
        adversarial, loss = jax.eval_shape(run, inputs, labels, jnp.arange(4))
    assert adversarial.dtype == loss.dtype == jnp.float32
    assert adversarial.shape == (inputs if domain == "pixels" else inputs.xyz).shape


@pytest.mark.parametrize("name", [*KINDS, "apgd_t", "carlini_wagner", "fab_t", "fmn", "square", "rays"])
def test_nan_logits_are_no_success(name):
    """A network that answers every changed image with NaN: argmax would call it class 0."""
    case = ALL_ATTACKS[name]
    images, labels, _ = tiny_problem()
    labels = jnp.where(labels == 0, 1, labels)

    def results(attack, always):
        """NaN for every changed image, and from the network that is differentiated for all of them if `always`."""

        def broken(x):
            output = tiny_victim(x)
            changed = jnp.any(x != images, axis=(1, 2, 3)) | always
            return Output(jnp.where(changed[:, None], jnp.nan, output.logits), output.trace)

        forward = lambda x: Output(tiny_forward(x).logits * jnp.where(always, jnp.nan, 1))
        return attack(forward, images, labels, key=KEY, victim=broken)

    moved = lambda problem, keys, start: attacks.Found(problem.domain.clean + 0.01)
    attack = case.make(case.eps)
    with jax.debug_nans(False):
        run = quick_jit(functools.partial(results, attack))
        everywhere = run(True)
        results = [run(False), quick_jit(functools.partial(results, dataclasses.replace(attack, search=moved)))(False)]
    for result in results:  # the second moves whatever the attack itself does
        changed = np.asarray(jnp.any(result.adversarial != images, axis=(1, 2, 3)))
        assert not np.asarray(result.success)[changed].any() and np.asarray(result.invalid)[changed].all()
        assert np.isfinite(result.adversarial).all()
    assert changed.any()
    assert not everywhere.success.any() and not everywhere.clean_success.any()
    assert everywhere.invalid.all() and float(metrics.robust_accuracy(everywhere)) == 0  # silence is not robustness
    np.testing.assert_allclose(everywhere.adversarial, np.clip(everywhere.adversarial, *attack.threat.bounds))
    assert np.isfinite(everywhere.adversarial).all()
    assert everywhere.steps.nonfinite.any(axis=1).all()


@pytest.mark.parametrize("name", ["pgd restarts", "apgd l2", "carlini_wagner", "grad_auto", "knn_pert", "fmn", "rays"])
def test_a_cloud_does_not_see_the_others(name, float64):
    """Several clouds side by side are attacked as each alone, with the same key and number."""
    case = attack_case(name)
    with jax.enable_x64(False):
        forward, victim, cloud, labels, _ = domain_problem("coordinates")
    cloud = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, cloud)
    run = quick_jit(lambda c, y, i: case.make(case.eps)(forward, c, y, key=KEY, victim=victim, index=i))
    whole = run(cloud, labels, jnp.arange(4))
    for number in (0, 2):
        rows = slice(10 * number, 10 * number + 10)
        alone = PointCloud(cloud.xyz[rows], cloud.features[rows], cloud.valid[rows])
        result = run(alone, labels[number : number + 1], jnp.array([number]))
        np.testing.assert_allclose(result.adversarial, whole.adversarial[rows], atol=1e-9)
        np.testing.assert_array_equal(result.success, whole.success[number : number + 1])


HALF = [("fgsm", "float16"), ("grad_auto", "float16"), ("fab_t", "bfloat16"), ("square", "bfloat16")]


@pytest.mark.parametrize("name, dtype", [*HALF, ("fgsm", "bfloat16")])
def test_half_precision_is_attacked_in_single(name, dtype):
    """Half precision cannot say where a ball of 1/255 ends: what comes back is single precision, inside the ball."""
    images, labels, _ = tiny_problem()
    images = images.astype(dtype)
    case = ALL_ATTACKS[name]
    eps = 1 / 255 if case.bounded else None
    result = quick_jit(lambda x: case.make(eps)(tiny_forward, x, labels, key=KEY))(images)
    assert result.adversarial.dtype == jnp.float32
    if case.bounded:
        assert float(result.distance.max()) <= 1 / 255 + 1e-6


def test_what_only_run_time_can_see_is_flagged():
    images, labels, _ = tiny_problem()
    run = quick_jit(lambda x, y: attacks.fgsm(0.1)(tiny_forward, x, y))
    good = run(images, labels)
    assert not good.invalid.any()
    bright = run(images.at[1].multiply(255), labels)
    np.testing.assert_array_equal(bright.invalid, [False, True, False, False])
    unknown = run(images, labels.at[0].set(17).at[2].set(-1))
    np.testing.assert_array_equal(unknown.invalid, [True, False, True, False])
    for result in (bright, unknown):
        assert not result.success[result.invalid].any()
        assert float(metrics.robust_accuracy(result)) <= float(jnp.mean(~result.invalid & ~result.success)) + 1e-6


@pytest.mark.parametrize("mark", [255, -1, -100])
def test_unlabelled_points_never_count_also_under_jit(mark):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    cloud = PointCloud(jnp.asarray(rng.uniform(size=(20, 3)), jnp.float32), jnp.zeros((20, 1)), jnp.ones(20, bool))
    forward = lambda c: Output(c.xyz @ weights)
    labels = jnp.argmax(forward(cloud).logits, axis=1).at[:5].set(mark)
    result = quick_jit(lambda c, y: attacks.point_bim(1e-7, 1e-7, 2)(forward, c, y))(cloud, labels)
    assert int(result.counted.sum()) == 15 and not result.success.any() and not result.clean_success.any()
    assert np.isfinite(result.steps.loss).all() and float(metrics.robust_accuracy(result)) == 1


def test_options_may_be_traced_in_a_factory_inside_jit():
    images, labels, _ = tiny_problem()

    def run(rate, k):
        attack = attacks.grad_auto(k, steps=2, learning_rate=rate, tau=0.3 + 0 * k)
        return attack(tiny_forward, images).adversarial, attacks.carlini_wagner(
            steps=2, search_steps=1, learning_rate=rate, initial_constant=k
        )(tiny_forward, images, labels).adversarial

    quick_jit(run)(0.1, 1.0)
    quick_jit(jax.vmap(run))(jnp.array([0.1, 0.2]), jnp.array([1.0, 2.0]))


def test_eight_bits_stay_inside_the_ball():
    clean = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3)) / 255, jnp.float32)
    for norm, eps in (("linf", 8 / 255), ("l2", 0.3)):
        threat = attacks.ball(norm, eps)
        draw = lambda x, threat=threat: threat.project(x + threat.noise(jax.random.split(KEY, 4), x) * 1.2, x)
        x = quick_jit(draw)(clean)
        stored = attacks.to_8bit(x, clean)
        assert stored.dtype == jnp.uint8
        assert threat.contains(stored.astype(jnp.float32) / 255, clean).all()
        assert float(jnp.abs(stored / 255.0 - x).max()) <= 1 / 255 + 1e-5
    with pytest.raises(ValueError, match="no multiples of 1/255"):
        attacks.to_8bit(clean, 0.999 * clean)
    for images, words in ((clean * 255, r"expected \[0"), (clean * jnp.nan, "NaN"), (np.uint8(clean * 255), "uint8")):
        with pytest.raises((ValueError, TypeError), match=words):
            attacks.to_8bit(images, images)
