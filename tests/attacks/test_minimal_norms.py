"""FAB-T, FMN, DDN: closed forms on linear networks, the released codes' projections, steps and norms."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import exact_jit, quick_jit
from linear import WEIGHTS, images, linear
from published import early_exits, resnet20

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
    result = exact_jit(lambda x: make()(linear, x, LABELS))(IMAGES)
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


def watched(attack, targets=None):
    """The attack, recording x after every step (of FAB, before its step back) beside its own record."""

    def search(problem, keys, start):
        if isinstance(attack.search, attacks.fab_t(1.0).search.__class__):
            aimed = dataclasses.replace(problem, targets=targets, objective=class_difference)

            def step(x, _):
                moved, record = attack.search.step(aimed, x)
                logits = problem.victim(moved).logits
                held = problem.succeeds(logits)
                back = problem.pick(held, problem.domain.clean + 0.9 * (moved - problem.domain.clean), moved)
                return back, (moved, back, record.loss, jnp.argmax(logits, axis=1))

            _, xs = jax.lax.scan(step, problem.domain.clean if start is None else start, None, length=10)
            return attacks.Found(problem.domain.clean, None, xs)

        def step(state, number):
            state, (_, record) = attack.search.step(problem, state, number)
            return state, (record, state.x)

        state, record = jax.lax.scan(step, attack.search.begin(problem, start), jnp.arange(attack.search.steps))
        return attacks.Found(state.best[0], None, record)

    return dataclasses.replace(attack, search=search, attack_all=True)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_steps_of_the_release(golden, shared_dir, norm):
    arrays, forward = golden(f"eval_fab_{norm}"), resnet20(shared_dir)
    x, labels, targets = (jnp.asarray(arrays[name]) for name in ("x", "label", "target"))
    attack = attacks.fab_t(float(arrays["eps"]), int(arrays["n_iter"]), target_classes=1, norm=norm)
    run = quick_jit(lambda start: watched(attack, targets)(forward, x, labels, start=start).record)
    moved, _, gap, said = (np.asarray(leaf).swapaxes(0, 1) for leaf in run(x))
    assert all(follows(moved, arrays["clean/step"], arrays["clean/stable_steps"]))
    for i, stable in enumerate(arrays["clean/stable_steps"]):
        np.testing.assert_allclose(gap[: stable + 1, i], arrays["clean/df"][:10][: stable + 1, i], atol=1e-3)
        np.testing.assert_array_equal(said[:stable, i], arrays["clean/pred"][:stable, i])
    moved, back, gap, said = (np.asarray(leaf).swapaxes(0, 1) for leaf in run(jnp.asarray(arrays["random/start"])))
    np.testing.assert_allclose(gap[0], arrays["random/df"][0], atol=1e-4)
    near = [  # no stable steps are known
        np.abs(got[0] - arrays[name][0]).max(axis=(1, 2, 3)) < 1e-5
        for got, name in ((moved, "random/step"), (back, "random/after_backward"))
    ]
    assert all(one.sum() >= len(x) - 1 for one in near)
    np.testing.assert_array_equal(said[0][near[0]], arrays["random/pred"][0][near[0]])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_norms_of_the_release(golden, shared_dir, norm):
    arrays, forward = golden(f"eval_fab_{norm}"), resnet20(shared_dir)
    attack = attacks.fab_t(float(arrays["eps"]), int(arrays["n_iter"]), target_classes=1, norm=norm)
    run = quick_jit(lambda x, y, start: attack(forward, x, y, start=start))
    x, said = jnp.asarray(arrays["x"]), classes_of(forward)
    for kind in ("clean", "random"):
        result = run(x, *(jnp.asarray(arrays[name]) for name in ("label", f"{kind}/start")))
        np.testing.assert_allclose(result.record.smallest, arrays[f"{kind}/norm"], rtol=0.01)
        np.testing.assert_array_equal(result.success, arrays[f"{kind}/fooled"])
        adversarial, found = jnp.asarray(arrays[f"{kind}/adv"]), arrays[f"{kind}/fooled"]
        space = attacks.ball(norm, float(arrays["eps"]))
        np.testing.assert_allclose(space.distance(adversarial, x)[found], arrays[f"{kind}/norm"][found], rtol=1e-5)
        assert np.all((said(adversarial) != arrays["label"])[found])
    assert {name: float(arrays[name]) for name in ("alpha_max", "eta", "beta")} == {
        name: getattr(attack.search, name) for name in ("alpha_max", "eta", "beta")
    }


def classes_of(forward):
    """images -> the classes that the network says."""
    said = quick_jit(lambda x: jnp.argmax(forward(x).logits, axis=1))
    return lambda images: np.asarray(said(jnp.asarray(images)))


def follows(x, stored, stable):
    """Images that stay on the stored path for as long as the released code itself does under another rounding."""
    differs = np.abs(x - stored).max(axis=(2, 3, 4)) > 1e-4
    return [not differs[: stable[i], i].any() for i in range(len(stable))]


TRACES = {
    "fmn_linf": (lambda steps: attacks.fmn(steps), 0.05),
    "fmn_l2": (lambda steps: attacks.fmn(steps, norm="l2"), 0.05),
    "ddn": (lambda steps: attacks.ddn(steps), 0.01),
    "ddn_256": (lambda steps: attacks.ddn(steps, levels=256), 0.05),
}


@pytest.mark.parametrize("name", TRACES)
def test_steps_and_norms_of_the_release(golden, shared_dir, name):
    """Images leave a path where rounding flips a ReLU, so the network runs under up to three roundings: each image
    follows in one of them (three of four in the first)."""
    make, slack = TRACES[name]
    arrays = golden(f"eval_{name}_trace")
    x, labels = jnp.asarray(arrays["x"]), jnp.asarray(arrays["label"])
    followed = np.zeros(len(x), bool)
    roundings = [(quick_jit, False), (exact_jit, False), (quick_jit, True)]
    for compiler, winograd in roundings[1:] if name == "ddn" else roundings:
        forward = resnet20(shared_dir, winograd=winograd)
        result = compiler(lambda f=forward: watched(make(int(arrays["steps"])))(f, x, labels))()
        record, xs = result.record
        xs = np.asarray(xs).swapaxes(0, 1)[:10]
        on_path = np.array(follows(xs, arrays["step"], arrays["stable_steps"]))
        followed |= on_path
        np.testing.assert_allclose(record.smallest, arrays["best_norm"], rtol=slack)
        right = arrays["best_norm"] > 0  # the others are not attacked here
        np.testing.assert_allclose(np.asarray(record.norm)[right, :3].T, arrays["norm_history"][:3, right], rtol=1e-4)
        erred = arrays["pred"] != arrays["label"]
        for i in np.flatnonzero(
            on_path & right
        ):  # norms and verdicts before every step of the path, the first included
            path = slice(0, arrays["stable_steps"][i] + 1)
            np.testing.assert_allclose(record.norm[i, path], arrays["norm_history"][path, i], rtol=1e-3)
            np.testing.assert_array_equal(record.held[i, path], erred[path, i])
        assert followed.sum() >= 3
        if followed.all():
            break
    assert followed.all()
    said, (steps, count) = classes_of(forward), arrays["step"].shape[:2]
    stored = said(arrays["step"].reshape(-1, *x.shape[1:])).reshape(steps, count)
    np.testing.assert_array_equal(stored[:-1], arrays["pred"][1:steps])
    space = attacks.ball("linf" if name == "fmn_linf" else "l2", 1.0)
    np.testing.assert_allclose(space.distance(arrays["adv"], x), arrays["best_norm"], rtol=1e-5, atol=1e-7)
    assert np.all(said(arrays["adv"]) != arrays["label"])


def main_exit(golden, shared_dir):
    """RDI-ResNet-38's trunk: its last exit."""
    every = early_exits("rdi", golden, shared_dir)
    return lambda x: Output(every(x).trace.exits[:, -1])


MANY = {
    "resnet20 fmn_linf": lambda golden, shared_dir: resnet20(shared_dir),
    "resnet20 fmn_l2": lambda golden, shared_dir: resnet20(shared_dir),
    "rdi38 fmn_linf": main_exit,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_norms_of_many_images(golden, shared_dir, name):
    """The released code's norms of 12 images, in the mean: single ones move by a few per cent with the rounding."""
    network, attack = name.split()
    arrays, forward = golden(f"eval_minimal_norm_{network}"), MANY[name](golden, shared_dir)
    with np.load(shared_dir / "data" / "cifar10_lossless_test.npz") as data:
        images = jnp.asarray(data["image"][arrays["index"][:12]], jnp.float32) / 255
    fmn = attacks.fmn(int(arrays["steps"]), norm=attack.removeprefix("fmn_"))
    found = quick_jit(lambda x, y: fmn(forward, x, y).record.smallest)(images, arrays["label"][:12])
    stored = arrays[f"{attack}/norm"][:12]
    np.testing.assert_array_equal(found == 0, ~arrays["clean_correct"][:12])
    np.testing.assert_array_equal(np.isfinite(found), arrays[f"{attack}/fooled"][:12])
    np.testing.assert_allclose(found, stored, rtol=0.05)
    np.testing.assert_allclose(np.median(found[stored > 0]), np.median(stored[stored > 0]), rtol=0.03)


@pytest.mark.slow
def test_ddn_norms_of_many_images(golden, shared_dir):
    """DDN's norms lie on a grid of factors 0.95 and 1.05, and rounding decides which of two points an image gets: a
    median may jump by a whole step where few images lie (that of all 64 does in PyTorch itself, with and without batch
    norm folded into the kernels), so the images themselves and their mean are compared."""
    arrays, forward = golden("eval_minimal_norm_resnet20"), resnet20(shared_dir)
    with np.load(shared_dir / "data" / "cifar10_lossless_test.npz") as data:
        images = jnp.asarray(data["image"][arrays["index"][:12]], jnp.float32) / 255
    found = exact_jit(lambda x, y: attacks.ddn(100)(forward, x, y).record.smallest)(images, arrays["label"][:12])
    stored, right = arrays["ddn/norm"][:12], arrays["clean_correct"][:12]
    np.testing.assert_array_equal(found == 0, ~right)
    ratio = np.asarray(found)[right] / stored[right]
    assert np.mean(np.abs(ratio - 1) < 0.01) > 0.8
    np.testing.assert_allclose(np.exp(np.mean(np.log(ratio))), 1, atol=0.015)
