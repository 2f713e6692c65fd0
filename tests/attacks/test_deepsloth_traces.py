"""DeepSloth against the authors' arrays, on RDI-ResNet-38 and an SDN: steps, end states, exits, baselines."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit
from published import copied, early_exits, nhwc, nudged

from dyn_jax import attacks, metrics

KEY = jax.random.key(0)
NORMS = ("linf", "l2", "l1")
LAST = {"linf": 30, "l2": 550, "l1": 249}


def floats(array):
    return jnp.asarray(array, jnp.float32) / 255


def off(got, expected, by=1e-4):
    """Share of the numbers that are off: a gradient near 0 can have the other sign."""
    return float(jnp.mean(jnp.abs(got - expected) > by))


@pytest.fixture(scope="module")
def network(golden, shared_dir):
    return functools.cache(lambda name: early_exits(name, golden, shared_dir))


@pytest.fixture(scope="module")
def compiled(network):
    """name -> the same, compiled, the threshold an argument."""
    return functools.cache(lambda name: quick_jit(lambda x, limit: network(name)(x, threshold=limit)))


def exits_at(forward, arrays, name, images):
    """Exits of images [8, ...] at every threshold of the file, by the end of the file's keys."""
    limits = {"T": arrays["T"][:6]} if name == "rdi" else {str(t): np.full(6, t) for t in arrays["thresholds"]}
    return {
        key: np.asarray(metrics.exits.exit_index(forward(images, jnp.asarray(limit, jnp.float32)).trace))
        for key, limit in limits.items()
    }


@pytest.mark.parametrize("name", ["rdi", "sdn"])
def test_logits_and_exits_of_all_stored_images(compiled, golden, name):
    """Before and after every attack of the files, and the images that universal perturbations were put on."""
    forward, seen = compiled(name), 0
    for norm in NORMS:
        arrays = golden(f"deepsloth_{norm}_persample")
        images = {"before": floats(arrays["x_uint8"]), "after": nhwc(arrays[f"{name}/step{LAST[norm]}"])}
        for when, x in images.items():
            count = len(x)
            x = jnp.concatenate([x] * (8 // count))
            logits = np.moveaxis(arrays[f"{name}/logits_{when}"], 0, 1)
            limit = jnp.full(6, 0.5, jnp.float32)
            np.testing.assert_allclose(forward(x, limit).trace.exits[:count], logits, atol=2e-5)
            for key, got in exits_at(forward, arrays, name, x).items():
                np.testing.assert_array_equal(got[:count], arrays[f"{name}/exit_{when}_{key}"])
                seen += 1
        arrays = golden(f"deepsloth_{norm}_universal")
        for kind, others in (("univ", "apply_uint8"), ("class", "class_apply_uint8")):
            clean, delta = floats(arrays[others]), nhwc(arrays[f"{name}/{kind}/last"])[None]
            moved = attacks.SlothUniversal(delta, delta, delta).apply(clean)
            np.testing.assert_allclose(moved, nhwc(arrays[f"{name}/{kind}/applied"]), atol=1e-6)
            for when, x in (("before", clean), ("after", moved)):
                for key, got in exits_at(forward, arrays, name, x).items():
                    np.testing.assert_array_equal(got, arrays[f"{name}/{kind}/exit_{when}_{key}"])
    assert seen == (6 if name == "rdi" else 12)


def one_step(forward, norm):
    """(images, where the step begins) -> after it, and the sum of the unsure exits' losses before it."""
    attack = attacks.deepsloth(norm, steps=1)
    run = quick_jit(lambda x, s: attack(forward, x, key=KEY, start=s))
    return lambda x, s: (lambda found: (found.adversarial, -float(found.steps.loss.mean())))(run(x, s))


@pytest.mark.parametrize("name, steps", [("rdi", 5), ("sdn", LAST["linf"] + 1)])
def test_linf_steps_of_every_image(network, compiled, golden, name, steps):
    arrays, forward = golden("deepsloth_linf_persample"), network(name)
    images, x = floats(arrays["x_uint8"]), nhwc(arrays[f"{name}/start"])
    step, losses = one_step(forward, "linf"), []
    for number in range(1, steps + 1):
        before, (x, loss) = x, step(images, x)
        losses.append(loss)
        if number <= 5:
            assert off(x, nhwc(arrays[f"{name}/step{number}"])) <= (1e-3 if number == 1 else 0.03)
    np.testing.assert_allclose(losses, arrays[f"{name}/loss"][:steps], rtol=1e-3)
    if steps > LAST["linf"]:
        assert off(before, nhwc(arrays[f"{name}/step30"])) <= 0.15
        for key, got in exits_at(compiled(name), arrays, name, before).items():
            assert np.sum(got == arrays[f"{name}/exit_after_{key}"]) >= 7


@pytest.mark.parametrize("name", ["rdi", "sdn"])
def test_l1_steps_of_every_image(network, compiled, golden, name):
    """Every step from the stored one before it; then one of the images to the end, by its own loss."""
    arrays, forward = golden("deepsloth_l1_persample"), network(name)
    images, step = floats(arrays["x_uint8"]), one_step(forward, "l1")
    states = [nhwc(arrays[f"{name}/{key}"]) for key in ("start", "step1", "step2", "step3", "step4", "step5")]
    for number, (before, after) in enumerate(zip(states, states[1:])):
        got, loss = step(images, before)
        assert off(got, after) <= 1e-4
        np.testing.assert_allclose(loss, arrays[f"{name}/loss"][number], rtol=1e-5)
    if name == "sdn":
        return
    attack = attacks.deepsloth("l1", steps=LAST["l1"])
    run = quick_jit(lambda x, s: attack(forward, x, key=KEY, start=s).adversarial)
    last = run(images[:1], states[0][:1])
    distance = jnp.sum(jnp.abs(last - images[:1]), (1, 2, 3))
    np.testing.assert_allclose(
        distance, jnp.sum(jnp.abs(nhwc(arrays["rdi/step249"]) - images), (1, 2, 3))[:1], rtol=0.02
    )
    unsure = lambda logits: -np.sum(np.mean(np.asarray(jax.nn.log_softmax(logits)), -1)[:, :-1], 1)
    exits = compiled(name)(jnp.concatenate([last] * 8), jnp.full(6, 0.5, jnp.float32)).trace.exits
    expected = unsure(np.moveaxis(arrays["rdi/logits_after"], 0, 1))[:1]
    np.testing.assert_allclose(unsure(exits)[:1], expected, rtol=0.01)
    assert (unsure(np.moveaxis(arrays["rdi/logits_before"], 0, 1))[:1] > 1.2 * expected).all()  # control


@pytest.mark.parametrize("name, steps", [("sdn", 5), ("rdi", 61)])
def test_l2_steps_of_every_image(network, golden, name, steps):
    """Five steps to the digit; beyond the first smaller ball (step 51) by loss and norm: the iterates are chaotic."""
    arrays, forward = golden("deepsloth_l2_persample"), network(name)
    images, start = floats(arrays["x_uint8"]), nhwc(arrays[f"{name}/delta_start"])
    attack = attacks.deepsloth("l2", steps=steps, batch=len(images))
    result = quick_jit(lambda x, s: attack(forward, x, key=KEY, start=s))(images, images + start)
    losses, stored = -np.asarray(result.steps.loss).mean(0), arrays[f"{name}/loss_steps"]
    for loss, number in zip(arrays[f"{name}/loss"], stored):
        if number < steps:
            np.testing.assert_allclose(losses[number], loss, rtol=1e-4 if number < 5 else 0.02)
    length = np.linalg.norm(np.asarray(result.adversarial - images).reshape(len(images), -1), axis=1)
    if steps == 5:
        assert off(result.adversarial, nhwc(arrays[f"{name}/step5"])) <= 1e-3
    else:
        stored = np.asarray(nhwc(arrays[f"{name}/step60"]) - images).reshape(len(images), -1)
        np.testing.assert_allclose(length, np.linalg.norm(stored, axis=1), rtol=0.05)
    final = attacks.SlothL2().threat().eps
    np.testing.assert_allclose(final, 0.9**10, rtol=1e-6)
    shown = jnp.clip(images + start * final, 0, 1)  # the released "noise": the start in the last ball
    np.testing.assert_allclose(shown, nhwc(arrays[f"{name}/noise"]), atol=1e-6)


UNIVERSAL = [("linf", "rdi", "univ"), ("linf", "sdn", "class"), ("l1", "rdi", "univ"), ("l1", "sdn", "class")]


@pytest.mark.parametrize("norm, name, kind", UNIVERSAL)
def test_all_steps_of_a_universal_perturbation(network, compiled, golden, norm, name, kind):
    """An epoch of one step keeps every iterate; at the end, where signs have flipped, loss and exits are compared."""
    arrays, forward = golden(f"deepsloth_{norm}_universal"), network(name)
    images, head = floats(arrays["x_uint8" if kind == "univ" else "class_uint8"]), f"{name}/{kind}"
    last = int(arrays["max_iter"]) if norm == "linf" else 5
    search = attacks.deepsloth_universal(norm, steps=1, batches=1, epochs=last + 1)
    found = quick_jit(lambda x, s: search(forward, x, start=s))(images, nhwc(arrays[f"{head}/start"])[None])
    for number in range(1, 6):
        assert off(found.epochs[number - 1, 0], nhwc(arrays[f"{head}/step{number}"]), 1e-6) <= 3e-3
    np.testing.assert_allclose(found.loss[:6], arrays[f"{head}/loss"][:6], rtol=1e-5)
    if last > 5:
        np.testing.assert_allclose(found.loss[last], arrays[f"{head}/loss"][6], rtol=1e-3)
        others = floats(arrays["apply_uint8" if kind == "univ" else "class_apply_uint8"])
        moved = attacks.SlothUniversal(found.epochs[last - 1], found.epochs, found.loss).apply(others)
        for key, got in exits_at(compiled(name), arrays, name, moved).items():
            assert np.sum(got == arrays[f"{head}/exit_after_{key}"]) >= 7


@pytest.mark.parametrize("name, kind", [("rdi", "class"), ("sdn", "univ")])
def test_universal_l2_by_epoch(network, golden, name, kind):
    """On one network every step of the first epoch, on the other the vector after all three."""
    arrays, forward = golden("deepsloth_l2_universal"), network(name)
    images, head = floats(arrays["x_uint8" if kind == "univ" else "class_uint8"]), f"{name}/{kind}"
    steps, epochs = (1, 5) if name == "rdi" else (int(arrays["max_iter"]), int(arrays["max_epoch"]))
    shrink = 1.0 if name == "rdi" else 1 - float(arrays["gamma"])
    search = attacks.deepsloth_universal("l2", steps=steps, batches=1, epochs=epochs, shrink=shrink)
    run = quick_jit(lambda x, s: search(forward, x, start=s))
    start, copies = nhwc(arrays[f"{head}/start"])[None], 12
    found = run(images, start)
    if name == "rdi":
        for number, got in enumerate(found.epochs[:, 0], start=1):
            np.testing.assert_allclose(got, nhwc(arrays[f"{head}/step{number}"]), atol=3e-4)
    else:  # thirty steps: where a ReLU's input is within rounding of 0, one of the roundings leads to the stored vector
        last = nhwc(arrays[f"{head}/last"])
        moved = nudged(lambda x: x, images, copies)(*copied(copies, images)).reshape(copies, *images.shape)
        assert any(np.abs(run(x, start).delta[0] - last).max() <= 3e-4 for x in moved)
        for stored in arrays[f"{head}/epochs"]:  # the release keeps one array three times
            np.testing.assert_array_equal(nhwc(stored), last)
    np.testing.assert_allclose(found.loss[:5], arrays[f"{head}/loss"][:5], rtol=1e-5)


# --- what it is compared with


@pytest.mark.parametrize("norm, kind", [("linf", "PGD"), ("l2", "PGD"), ("l1", "PGD"), ("l2", "PGD_avg")])
def test_baseline_steps(network, golden, norm, kind):
    """Every step from the stored one before it, all of them in one batch."""
    arrays, forward = golden("deepsloth_pgds"), network("rdi")
    make = {"PGD": attacks.released.deepsloth.pgd, "PGD_avg": attacks.released.deepsloth.pgd_average}[kind]
    states = [nhwc(arrays[f"{norm}/{kind}/{key}"]) for key in ("start", "step1", "step2", "step3", "step4", "step5")]
    images, labels = jnp.tile(floats(arrays["x_uint8"]), (5, 1, 1, 1)), jnp.tile(jnp.asarray(arrays["labels"]), 5)
    attack = make(norm, float(arrays[f"{norm}/eps"]), float(arrays[f"{norm}/gamma"]), 1)
    run = quick_jit(lambda x, y, s: attack(forward, x, y, key=KEY, start=s).adversarial)
    assert off(run(images, labels, jnp.concatenate(states[:5])), jnp.concatenate(states[1:])) <= 1e-3


def test_the_worst_exit_starts_from_raised_contrast(golden):
    arrays = golden("deepsloth_pgds")
    images = floats(arrays["x_uint8"])
    for norm in NORMS:
        start = attacks.released.deepsloth._contrast(images, KEY, jnp.float32(arrays[f"{norm}/eps"]))
        np.testing.assert_allclose(start, nhwc(arrays[f"{norm}/PGD_max/start"]), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_worst_exit(network, golden, norm):
    arrays, forward = golden("deepsloth_pgds"), network("rdi")
    images, labels = floats(arrays["x_uint8"]), jnp.asarray(arrays["labels"], jnp.int32)
    attack = attacks.released.deepsloth.pgd_max(norm, float(arrays[f"{norm}/eps"]), float(arrays[f"{norm}/gamma"]), 5)
    result = quick_jit(lambda x: attack(forward, x, labels, key=KEY))(images)
    assert off(result.adversarial, nhwc(arrays[f"{norm}/PGD_max/step5"])) <= 0.03
    sums = arrays[f"{norm}/PGD_max/sum_loss"]
    np.testing.assert_allclose(result.loss, sums[np.arange(4), arrays[f"{norm}/PGD_max/chosen"]], rtol=1e-2)
