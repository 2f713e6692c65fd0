"""FAB-T, FMN, DDN beside the released codes: their steps and the norms that they end at."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import exact_jit, quick_jit
from published import copied, nudged, resnet20

from dyn_jax import attacks
from dyn_jax.attacks.fab_t import class_difference

KEY = jax.random.key(0)


ROUNDS, COPIES = 8, 6


def watched(attack, steps, targets=None):
    """The attack's first `steps` steps, recording x after each (of FAB, before its step back) beside its own record."""

    def search(problem, keys, start):
        if isinstance(attack.search, attacks.fab_t(1.0).search.__class__):
            aimed = dataclasses.replace(problem, targets=targets, objective=class_difference)

            def step(x, _):
                moved, record = attack.search.step(aimed, x)
                logits = problem.victim(moved).logits
                held = problem.succeeds(logits)
                back = problem.pick(held, problem.domain.clean + 0.9 * (moved - problem.domain.clean), moved)
                return back, (moved, back, record.loss, jnp.argmax(logits, axis=1))

            _, xs = jax.lax.scan(step, problem.domain.clean if start is None else start, None, length=steps)
            return attacks.Found(problem.domain.clean, None, xs)

        def step(state, number):
            state, (_, record) = attack.search.step(problem, state, number)
            return state, (state.x, record)

        state, record = jax.lax.scan(step, attack.search.begin(problem, start), jnp.arange(steps))
        return attacks.Found(state.best[0], None, record)

    return dataclasses.replace(attack, search=search, attack_all=True)


def by_copy(leaf):
    """A record [copy x image, step, ...] as [copy, step, image, ...]."""
    leaf = np.asarray(leaf)
    return leaf.reshape(COPIES, -1, *leaf.shape[1:]).swapaxes(1, 2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_steps_of_the_release(golden, shared_dir, norm):
    """Every image follows the stored path under one of the roundings: from the clean start for as long as the released
    code itself does under another one, from the random start for all of the ten steps."""
    arrays = golden(f"eval_fab_{norm}")
    x, labels, targets = copied(COPIES, arrays["x"], arrays["label"], arrays["target"])
    images, network = jnp.asarray(arrays["x"]), resnet20(shared_dir)
    attack = watched(
        attacks.fab_t(float(arrays["eps"]), int(arrays["n_iter"]), target_classes=1, norm=norm), 10, targets
    )

    @quick_jit
    def run(seed, start):
        return attack(nudged(network, images, COPIES, seed=seed), x, labels, start=start).record

    for kind in ("clean", "random"):
        (start,) = copied(COPIES, arrays[f"{kind}/start"])
        steps = arrays["clean/stable_steps"] if kind == "clean" else [10] * len(images)
        first, paths = follow(functools.partial(run, start=start), arrays[f"{kind}/step"], steps)
        np.testing.assert_allclose(first[2][0, 0], arrays[f"{kind}/df"][0], atol=1e-4)
        for i, (_, back, gap, said) in enumerate(paths):
            path = slice(0, steps[i])
            np.testing.assert_allclose(gap[path], arrays[f"{kind}/df"][path, i], atol=1e-3)
            np.testing.assert_array_equal(said[path], arrays[f"{kind}/pred"][path, i])
            if kind == "random":  # held for that one alone
                np.testing.assert_allclose(back[path], arrays["random/after_backward"][path, i], atol=1e-4)


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


def follow(run, stored, stable):
    """What copies of `run(seed)` leave behind: all of the first round, and of each image the first one that stays on
    the stored path for so many steps; one has to."""
    paths, first = {}, None
    for seed in range(ROUNDS):
        record = jax.tree.map(by_copy, run(seed))
        first = record if first is None else first
        off = np.abs(record[0][:, : len(stored)] - stored).max(axis=(3, 4, 5)) > 1e-4
        for i in set(range(len(stable))) - set(paths):
            for copy in np.flatnonzero(~off[:, : stable[i], i].any(axis=1))[:1]:
                paths[i] = jax.tree.map(lambda leaf, copy=copy, i=i: leaf[copy, :, i], record)
        if len(paths) == len(stable):
            return first, [paths[i] for i in range(len(stable))]
    raise AssertionError(f"copies follow images {sorted(paths)} alone")


TRACES = {
    "fmn_linf": (lambda steps: attacks.fmn(steps), 0.05),
    "fmn_l2": (lambda steps: attacks.fmn(steps, norm="l2"), 0.05),
    "ddn": (lambda steps: attacks.ddn(steps), 0.01),
    "ddn_256": (lambda steps: attacks.ddn(steps, levels=256), 0.05),
}


@pytest.mark.parametrize("name", TRACES)
def test_steps_of_the_release(golden, shared_dir, name):
    """Every image follows the stored path under one of the roundings, for as long as the released code itself does
    under another one: images, norms and verdicts before every step, and the first behind them."""
    make, _ = TRACES[name]
    arrays = golden(f"eval_{name}_trace")
    x, labels = copied(COPIES, arrays["x"], arrays["label"])
    images, network = jnp.asarray(arrays["x"]), resnet20(shared_dir)
    attack = watched(make(int(arrays["steps"])), 11)
    run = quick_jit(lambda seed: attack(nudged(network, images, COPIES, seed=seed), x, labels).record)
    right, erred = arrays["best_norm"] > 0, arrays["pred"] != arrays["label"]  # the others are not attacked here
    (_, first), paths = follow(run, arrays["step"], arrays["stable_steps"])
    np.testing.assert_allclose(first.norm[0, :3, right].T, arrays["norm_history"][:3, right], rtol=1e-4)
    for i in np.flatnonzero(right):
        path, record = slice(0, arrays["stable_steps"][i] + 1), paths[i][1]
        np.testing.assert_allclose(record.norm[path], arrays["norm_history"][path, i], rtol=1e-3)
        np.testing.assert_array_equal(record.held[path], erred[path, i])


@pytest.mark.parametrize("name", TRACES)
def test_norms_of_the_release(golden, shared_dir, name):
    """In float64, where every machine finds the same; the stored points and verdicts too."""
    make, slack = TRACES[name]
    arrays = golden(f"eval_{name}_trace")
    with jax.enable_x64(True):
        x, labels = jnp.asarray(arrays["x"], jnp.float64), jnp.asarray(arrays["label"])
        double = resnet20(shared_dir, dtype=jnp.float64)
        record = quick_jit(lambda x, y: make(int(arrays["steps"]))(double, x, y).record)(x, labels)
        np.testing.assert_allclose(record.smallest, arrays["best_norm"], rtol=slack)
    said, (steps, count) = classes_of(resnet20(shared_dir)), arrays["step"].shape[:2]
    stored = said(arrays["step"].reshape(-1, *arrays["x"].shape[1:])).reshape(steps, count)
    np.testing.assert_array_equal(stored[:-1], arrays["pred"][1:steps])
    space = attacks.ball("linf" if name == "fmn_linf" else "l2", 1.0)
    distance = space.distance(jnp.asarray(arrays["adv"]), jnp.asarray(arrays["x"]))
    np.testing.assert_allclose(distance, arrays["best_norm"], rtol=1e-5, atol=1e-7)
    assert np.all(said(arrays["adv"]) != arrays["label"])


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
