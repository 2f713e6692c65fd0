"""FAB-T, FMN, DDN beside the released codes: their steps and the norms that they end at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import exact_jit, quick_jit
from published import early_exits, resnet20

from dyn_jax import attacks
from dyn_jax.attacks.fab_t import class_difference
from dyn_jax.types import Output

KEY = jax.random.key(0)


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
