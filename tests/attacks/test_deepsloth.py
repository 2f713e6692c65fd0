"""DeepSloth: its steps by hand, universal ones against the authors' arrays, its curve, bad input."""

from __future__ import annotations

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import some_images, tiny_forward
from compiled import quick_jit
from published import early_exits, nhwc, nudged

from dyn_jax import attacks, metrics, objectives, occupancy
from dyn_jax.attacks.deepsloth import shrunk
from dyn_jax.attacks.threat import L1
from dyn_jax.types import Output

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def network(golden, shared_dir):
    return functools.cache(lambda name: early_exits(name, golden, shared_dir))


@pytest.mark.parametrize("norm", ["linf", "l1", "l2"])
def test_five_steps_of_a_universal_perturbation(network, golden, norm):
    arrays, forward = golden(f"deepsloth_{norm}_universal"), network("rdi")
    search = attacks.deepsloth_universal(norm, steps=5, batches=1, epochs=1)
    run = quick_jit(lambda x, s: search(forward, x, start=s))
    for kind, prefix in (("univ", "x"), ("class", "class")):
        images = jnp.asarray(arrays[f"{prefix}_uint8"], jnp.float32) / 255
        found = run(images, nhwc(arrays[f"rdi/{kind}/start"])[None])
        error = jnp.abs(found.delta[0] - nhwc(arrays[f"rdi/{kind}/step5"]))
        assert float(jnp.mean(error > (3e-4 if norm == "l2" else 1e-6))) <= 3e-3
        np.testing.assert_allclose(found.loss, arrays[f"rdi/{kind}/loss"][:5], rtol=1e-5)
        last = attacks.SlothUniversal(nhwc(arrays[f"rdi/{kind}/last"])[None], found.epochs, found.loss)
        others = jnp.asarray(arrays["apply_uint8" if kind == "univ" else "class_apply_uint8"], jnp.float32) / 255
        np.testing.assert_allclose(last.apply(others), nhwc(arrays[f"rdi/{kind}/applied"]), atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_baseline_climbs_inside_its_ball(golden, norm):
    arrays, released = golden("deepsloth_pgds"), attacks.released.deepsloth
    images, labels = jnp.asarray(arrays["x_uint8"], jnp.float32) / 255, jnp.asarray(arrays["labels"], jnp.int32) % 5
    eps, step = float(arrays[f"{norm}/eps"]), float(arrays[f"{norm}/gamma"])
    small = jax.image.resize(images, (4, 4, 4, 3), "linear")
    result = quick_jit(lambda x: released.pgd(norm, eps, step, 3)(tiny_forward, x, labels, key=KEY))(small)
    assert (result.distance <= eps * (1 + 1e-5)).all()
    assert float(result.loss.sum()) > float(released.pgd(norm).objective(tiny_forward(small), labels, None).sum())


def test_every_visit_of_the_universal_deepfool(network, golden):
    """From the stored perturbation before it. Where a ReLU's input is within rounding of 0 its gradient is one of two:
    one of the copies, moved by no more than the layers round, takes the stored visit's steps."""
    arrays, forward, copies = golden("deepsloth_uap"), network("rdi"), 32
    images = jnp.asarray(arrays["x_uint8"], jnp.float32) / 255
    logits = lambda x: forward(x).trace.exits[:, -1]
    most, overshoot = int(arrays["max_diter"]), float(arrays["overshoot"])
    run = quick_jit(lambda image: attacks.released.deepsloth.deepfool(logits, image, overshoot, most))
    said = np.asarray(jnp.argmax(logits(images), axis=1))
    radius, before = float(arrays["max_norm"]), jnp.zeros_like(images[0])
    for (image, count, old, new), delta, after in zip(arrays["visits"], arrays["deepfool"], arrays["uap_after"]):
        assert said[image] == old
        start = (images[image] + before)[None]
        takes = (
            (found.iterations, found.label) == (count, new) and np.allclose(found.delta, nhwc(delta), rtol=0, atol=1e-5)
            for found in map(run, nudged(lambda x: x, start, copies, 1e-6)(start))
        )
        assert any(takes)
        np.testing.assert_allclose(jnp.clip(before + nhwc(delta), -radius, radius), nhwc(after), atol=1e-6)
        before = nhwc(after)
    np.testing.assert_array_equal(arrays["uap"], arrays["uap_after"][-1])
    moved = jnp.argmax(logits(images + before[None]), 1) != jnp.argmax(logits(images), 1)
    assert float(jnp.mean(moved)) == arrays["fool_rate"]


def test_universal_deepfool_of_a_small_network():
    images = some_images(4, 6, seed=4)
    run = quick_jit(lambda x: attacks.released.deepsloth.uap(tiny_forward, x, eps=0.3, passes=2, fooled=0.5))
    found = run(images)
    clean, moved = (jnp.argmax(tiny_forward(x).trace.exits[:, -1], 1) for x in (images, images + found.delta[None]))
    assert float(found.rate) == float(jnp.mean(clean != moved)) >= 0.5
    assert float(jnp.abs(found.delta).max()) <= 0.3 + 1e-6
    assert (found.visits[6:, 1] == -1).all()  # the second pass is not needed


def test_the_objective_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1], [1.0 - 1e-6, 1e-6]]]))
    trace = tiny_forward(some_images(4, 1)).trace.replace(exits=logits)
    got = objectives.unsure_exits()(Output(logits[:, -1], trace), jnp.array([0]))
    expected = np.mean(np.log([0.5, 0.5])) + np.mean(np.log([0.9, 0.1]))  # the last exit has no part
    np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_steps_by_hand():
    gradient = jnp.array([[3.0, -0.1, 0.2, -4.0]])
    d = jnp.zeros((1, 4))
    linf = attacks.SlothLinf(eps=0.01, step_size=0.02)
    np.testing.assert_allclose(linf.bounded(linf.move(d, gradient, 0), 0), [[0.01, -0.01, 0.01, -0.01]], rtol=1e-6)
    l1 = attacks.SlothL1(eps=0.4, step_size=0.5, sparsity=0.5)
    moved = l1.move(d, gradient, 0)  # int(.5 x 4) = the second smallest is the least that moves: three of four
    np.testing.assert_allclose(moved, [[0.5 / 3, 0, 0.5 / 3, -0.5 / 3]], rtol=1e-6)
    np.testing.assert_allclose(l1.bounded(moved, 0), moved * 0.4 / 0.5, rtol=1e-6)
    l2 = attacks.SlothL2(batch=1, stage=2)
    np.testing.assert_allclose(jnp.linalg.norm(l2.move(d, gradient, jnp.int32(0))), 1, rtol=1e-6)
    small = jnp.array([[0.3, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(l2.move(d, small, jnp.int32(0)), small, rtol=1e-6)  # never enlarged
    np.testing.assert_allclose(jnp.linalg.norm(l2.bounded(5 * gradient, jnp.int32(4))), 0.81, rtol=1e-6)
    np.testing.assert_allclose(float(l2.threat().eps), 0.9 ** (549 // 2), rtol=1e-6)
    np.testing.assert_array_equal(shrunk(small, 0.5, 2), small)


def test_the_l1_ball():
    clean = some_images(4, 3)
    ball = L1(0.5, scaled=True)
    moved = clean + ball.noise(jax.random.split(KEY, 3), clean) * 30
    inside = ball.project(moved, clean)
    assert (ball.distance(moved, clean) > 0.5).all() and ball.contains(inside, clean).all()
    assert not ball.contains(moved, clean).any()
    best = ball.direction(clean - 0.5)
    assert (jnp.sum(best != 0, axis=(1, 2, 3)) == 1).all()
    np.testing.assert_allclose(
        jnp.sum(best * (clean - 0.5), (1, 2, 3)), jnp.max(jnp.abs(clean - 0.5), (1, 2, 3)), rtol=1e-6
    )


def test_one_perturbation_for_all_of_a_class_is_that_of_its_images_alone():
    images, classes = some_images(4, 6), jnp.array([0, 1, 0, 1, 0, 1])
    search = attacks.deepsloth_universal("linf", steps=4, eps=0.1, step_size=0.03)
    start = jnp.zeros((2, 4, 4, 3))
    both = quick_jit(lambda x, s, c: search(tiny_forward, x, start=s, classes=c))(images, start, classes)
    for number in (0, 1):
        alone = search(tiny_forward, images[classes == number], start=start[:1])
        np.testing.assert_allclose(both.delta[number], alone.delta[0], atol=1e-6)
    moved = both.apply(images, classes)
    np.testing.assert_allclose(moved[1], jnp.clip(images[1] + both.delta[1], 0, 1), atol=1e-7)
    assert both.loss[-1] < both.loss[0]


def test_it_slows_soft_exits_too():
    """Under soft occupancies the trace has the expected curve."""
    images = some_images(4, 6)
    for how in (occupancy.hard(), occupancy.sigmoid(5.0)):
        forward = partial(tiny_forward, how=how)
        attack = attacks.deepsloth("linf", eps=0.2, step_size=0.05, start=0.01, steps=8)
        result = quick_jit(lambda x, f=forward, a=attack: a(f, x, key=KEY))(images)
        shares = metrics.exits.exit_shares(result.trace_adversarial)
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
        assert 0 < float(metrics.exits.efficacy(result.trace_adversarial)) < 1
        assert float(result.loss.sum()) > float(attack.objective(forward(images), None).sum()) + 0.05


def test_the_curve_and_its_area(golden):
    arrays = golden("deepsloth_efficacy")
    for net in ("sdn", "rdi"):
        for name in ("first", "none", "mixed", "real"):
            shares = arrays[f"hist/{name}"] / arrays[f"total/{name}"]
            curve = metrics.exits.exit_curve(shares, arrays[f"cost/{net}"])
            np.testing.assert_allclose(curve.cost, arrays[f"curve_x/{net}/{name}"], atol=1e-6)
            np.testing.assert_allclose(curve.left, arrays[f"curve_y/{net}/{name}"], atol=1e-6)
            np.testing.assert_allclose(curve.area, arrays[f"efficacy/{net}/{name}"], atol=1e-6)
    sweep = [arrays[f"rad/vgg16bn/{key}"] for key in ("thresholds", "accuracy", "lateness")]
    for percent in (5, 15):
        best = metrics.exits.rad_threshold(*sweep, arrays["rad/vgg16bn/exit_accuracy"][-1], percent / 100)
        np.testing.assert_allclose([values[best] for values in sweep], arrays[f"rad/vgg16bn/chosen_{percent}"])


def test_the_curve_by_hand():
    curve = metrics.exits.exit_curve(jnp.array([[1.0, 0.0], [0.0, 1.0]]), [30.0, 120.0])
    np.testing.assert_allclose(curve.area, 0.25 * 0.25 + 0.75 * 0.75)  # (0, 0), (1/4, 1/2), (1, 1)
    trace = tiny_forward(some_images(4, 3), occupancy.hard()).trace
    np.testing.assert_allclose(metrics.exits.exit_costs(trace), [trace.static_macs, trace.static_macs + 36])


static = lambda x: Output(tiny_forward(x).logits)
SOME = some_images(4, 4)
SWEEP = ([0.1], [0.5], [1.0])
BAD = {
    "norm": (lambda: attacks.deepsloth("l3"), ValueError, "norm: got 'l3'"),
    "setting": (lambda: attacks.deepsloth("linf", sparsity=0.5), TypeError, "got sparsity, expected settings among"),
    "eps": (lambda: attacks.deepsloth(eps=-1.0), ValueError, "eps: got -1.0"),
    "steps": (lambda: attacks.deepsloth(steps=0), ValueError, "steps: got 0"),
    "no exits": (lambda: attacks.deepsloth(steps=1)(static, SOME, key=KEY), ValueError, "without early exits"),
    "no key": (lambda: attacks.deepsloth(steps=1)(tiny_forward, SOME), ValueError, "key: got None"),
    "targets": (
        lambda: attacks.deepsloth(steps=1)(tiny_forward, SOME, key=KEY, targets=jnp.argmin(static(SOME).logits, 1)),
        ValueError,
        "targets",
    ),
    "parts": (
        lambda: attacks.deepsloth_universal(batches=3)(tiny_forward, SOME, key=KEY),
        ValueError,
        "expected a multiple of batches=3",
    ),
    "no start": (lambda: attacks.deepsloth_universal()(tiny_forward, SOME), ValueError, "key: got None"),
    "labels": (
        lambda: attacks.SlothUniversal(jnp.zeros((2, 4, 4, 3)), jnp.zeros(0), jnp.zeros(0)).apply(SOME),
        ValueError,
        "labels: got None for 2 perturbations",
    ),
    "stage": (lambda: attacks.deepsloth("l2", stage=0), ValueError, "stage: got 0"),
    "shrink": (lambda: attacks.deepsloth("l2", shrink=float("nan")), ValueError, "shrink: got nan"),
    "growing": (
        lambda: attacks.deepsloth_universal("l2", shrink=2.0),
        ValueError,
        "shrink: got 2.0, expected at most 1",
    ),
    "rate": (lambda: attacks.deepsloth("l2", learning_rate=float("nan")), ValueError, "learning_rate: got nan"),
    "step": (lambda: attacks.deepsloth(step_size=-1.0), ValueError, "step_size: got -1.0"),
    "sparsity": (lambda: attacks.deepsloth("l1", sparsity=1.0), ValueError, "sparsity: got 1.0"),
    "costs": (lambda: metrics.exits.exit_curve(jnp.ones(3) / 3, [1.0, 2.0]), ValueError, "costs: got shape"),
    "order": (lambda: metrics.exits.exit_curve(jnp.ones(2) / 2, [2.0, 1.0]), ValueError, "positive ones that ascend"),
    "drop": (lambda: metrics.exits.rad_threshold(*SWEEP, 0.9, 0.1), ValueError, "drop: got 0.1"),
    "lengths": (lambda: metrics.exits.rad_threshold([0.1, 0.2], [0.5], [1.0], 0.9, 0.1), ValueError, "got 2, 1, 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call()
