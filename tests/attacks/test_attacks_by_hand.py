"""Attacks on networks whose gradient is known, against written-out loops and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks, objectives
from dyn_jax.attacks.apgd import checkpoints
from dyn_jax.types import Output

rng = np.random.default_rng(0)
WEIGHTS = jnp.asarray(rng.normal(size=(48, 3)), jnp.float32)
IMAGES = jnp.asarray(rng.uniform(0.3, 0.7, size=(5, 4, 4, 3)), jnp.float32)


def linear(x):
    return Output((x.reshape(-1, 48) - 0.5) @ WEIGHTS.astype(x.dtype))


def curved(x):
    z = (x.reshape(-1, 48) - 0.5) @ WEIGHTS.astype(x.dtype)
    return Output(3 * jnp.sin(2 * z))


LABELS = jnp.argmax(linear(IMAGES).logits, 1)


def numpy_gradient(forward, x, labels, targets=None):
    """Gradient of the summed cross-entropy, larger is more adversarial."""
    loss = lambda x: jnp.sum(objectives.cross_entropy(forward(x), labels, targets))
    return np.asarray(jax.grad(loss)(jnp.asarray(x)))


def test_fgsm_is_one_signed_step():
    result = attacks.fgsm("8/255", attack_all=True)(linear, IMAGES, LABELS)
    expected = IMAGES + 8 / 255 * np.sign(numpy_gradient(linear, IMAGES, LABELS))
    np.testing.assert_allclose(result.adversarial, np.clip(expected, 0, 1), atol=1e-6)
    np.testing.assert_allclose(result.distance, 8 / 255, rtol=1e-5)


def test_bim_written_out():
    eps, step, x = 0.1, 0.03, np.asarray(IMAGES)
    for _ in range(5):
        x = x + step * np.sign(numpy_gradient(curved, x, LABELS))
        x = np.clip(np.clip(x, np.asarray(IMAGES) - eps, np.asarray(IMAGES) + eps), 0, 1)
    result = attacks.bim(eps, step, 5, attack_all=True)(curved, IMAGES, LABELS)
    np.testing.assert_allclose(result.adversarial, x, atol=1e-6)
    assert result.steps.loss.shape == (5, 5)


def test_targeted_bim_reaches_the_target():
    targets = (LABELS + 1) % 3
    result = attacks.bim(0.4, 0.05, 20)(linear, IMAGES, LABELS, targets=targets)
    np.testing.assert_array_equal(jnp.argmax(linear(result.adversarial).logits, 1), targets)
    assert result.success.all()


def test_l2_bim_written_out():
    eps, step, x = 0.5, 0.2, np.asarray(IMAGES)
    for _ in range(4):
        gradient = numpy_gradient(curved, x, LABELS)
        x = x + step * gradient / np.sqrt((gradient**2).sum((1, 2, 3), keepdims=True))
        delta = x - np.asarray(IMAGES)
        norm = np.sqrt((delta**2).sum((1, 2, 3), keepdims=True))
        x = np.clip(np.asarray(IMAGES) + delta * np.minimum(1, eps / norm), 0, 1)
    result = attacks.bim(eps, step, 4, norm="l2", attack_all=True)(curved, IMAGES, LABELS)
    np.testing.assert_allclose(result.adversarial, x, atol=1e-5)


@pytest.mark.parametrize("form", ["paper", "release"])
def test_momentum_written_out(form):
    eps, step, decay, x = 0.1, 0.03, 0.7, np.asarray(IMAGES)
    momentum = np.zeros_like(x)
    low = -1 if form == "release" else 0
    for _ in range(4):
        gradient = numpy_gradient(curved, x, LABELS)
        scale = np.abs(gradient).mean() if form == "release" else np.abs(gradient).sum((1, 2, 3), keepdims=True)
        momentum = decay * momentum + gradient / scale
        x = x + step * np.sign(momentum)
        x = np.clip(np.clip(x, np.asarray(IMAGES) - eps, np.asarray(IMAGES) + eps), low, 1)
    factory = attacks.mi_fgsm if form == "paper" else attacks.lgm.mi_fgsm
    attack = dataclasses.replace(factory(eps, step, 4, decay=decay), attack_all=True)
    np.testing.assert_allclose(attack(curved, IMAGES, LABELS).adversarial, x, atol=1e-6)


def apgd_in_numpy(forward, images, labels, eps, steps, start):
    """Algorithm 1 of Croce and Hein, one example at a time."""
    best_all = []
    for n in range(len(images)):
        clean, label = np.asarray(images[n : n + 1]), labels[n : n + 1]
        project = lambda x: np.clip(np.clip(x, clean - eps, clean + eps), 0, 1)  # noqa: B023
        loss = lambda x: float(objectives.cross_entropy(forward(jnp.asarray(x)), label)[0])  # noqa: B023
        marks, widths = [], []
        width, shorter, least = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
        at = width
        while at <= steps:
            marks.append(at)
            widths.append(width)
            width = max(width - shorter, least)
            at += width
        x, previous, size = np.asarray(start[n : n + 1]), np.asarray(start[n : n + 1]), 2 * eps
        values = [loss(x)]
        best, best_loss, checked, halved, increases = x, values[0], values[0], True, 0
        gradient = numpy_gradient(forward, x, label)
        best_gradient = gradient
        for k in range(1, steps + 1):
            z = project(x + size * np.sign(gradient))
            alpha = 1.0 if k == 1 else 0.75
            new = project(x + alpha * (z - x) + (1 - alpha) * (x - previous))
            previous, x = x, new
            values.append(loss(x))
            gradient = numpy_gradient(forward, x, label)
            increases += values[-1] > values[-2]
            if values[-1] > best_loss:
                best, best_loss, best_gradient = x, values[-1], gradient
            if k in marks:
                first = increases < 0.75 * widths[marks.index(k)]
                second = not halved and checked >= best_loss
                halved, checked, increases = first or second, best_loss, 0
                if halved:
                    size, x, gradient = size / 2, best, best_gradient
        best_all.append(best)
    return np.concatenate(best_all)


def test_apgd_against_a_plain_loop():
    eps, steps = 0.08, 20
    start = jnp.clip(IMAGES + 0.05 * jnp.asarray(rng.choice([-1, 1], IMAGES.shape), jnp.float32), 0, 1)
    attack = attacks.apgd(eps, steps, attack_all=True)
    result = jax.jit(lambda x: attack(curved, x, LABELS, key=jax.random.key(0), start=start))(IMAGES)
    expected = apgd_in_numpy(curved, IMAGES, LABELS, eps, steps, start)
    np.testing.assert_allclose(result.adversarial, expected, atol=2e-5)
    assert result.steps.loss.shape == (5, steps + 1)


def test_apgd_checkpoints_of_the_paper():
    """p_1 = 0.22, then p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), for 100 steps."""
    np.testing.assert_array_equal(checkpoints(100), [22, 41, 57, 70, 80, 87, 93, 99])


CURVED_LABELS = jnp.argmax(curved(IMAGES).logits, 1)


def test_restarts_never_lose():
    run = lambda restarts: attacks.pgd(0.015, 0.01, 2, restarts=restarts)(
        curved, IMAGES, CURVED_LABELS, key=jax.random.key(1)
    )
    one, many = run(1), run(4)
    assert not one.success.all()  # something is left to win
    assert np.all(many.success | ~one.success)
    same = many.success == one.success
    gain = np.asarray(many.loss - one.loss)
    assert np.all(gain[same] >= -1e-6) and gain.max() > 1e-3


def test_more_targets_never_lose():
    run = lambda count: attacks.apgd_t(0.004, 6, objective="margin", target_classes=count)(
        curved, IMAGES, CURVED_LABELS, key=jax.random.key(0)
    )
    few, more = run(1), run(2)
    assert not few.success.all()
    assert np.all(more.success | ~few.success)
    clean = np.asarray(objectives.margin(curved(IMAGES), CURVED_LABELS))
    assert np.all(np.asarray(more.loss) >= np.asarray(few.loss) - 1e-6) and np.all(np.asarray(few.loss) > clean)
    with pytest.raises(ValueError, match="target_classes: got 3 of 3"):
        run(3)


def test_carlini_wagner_finds_the_distance_to_a_plane():
    """Two classes, linear: the smallest perturbation has length margin / ||w_1 - w_0||."""
    weights = WEIGHTS[:, :2]
    forward = lambda x: Output((x.reshape(-1, 48) - 0.5) @ weights)
    logits = np.asarray(forward(IMAGES).logits)
    labels = jnp.argmax(logits, 1)
    expected = np.abs(logits[:, 0] - logits[:, 1]) / np.linalg.norm(weights[:, 0] - weights[:, 1])
    attack = attacks.carlini_wagner(steps=300, search_steps=8, initial_constant=0.01)
    result = jax.jit(lambda x: attack(forward, x, labels))(IMAGES)
    assert result.success.all()
    np.testing.assert_allclose(result.distance, expected, rtol=0.05)
    assert np.all(np.asarray(result.distance) >= expected * (1 - 1e-4))


def test_dlr_and_margin_by_hand():
    output = Output(jnp.array([[4.0, 1.0, 3.0, 0.0], [0.0, 5.0, 1.0, 2.0]]))
    labels = jnp.array([0, 2])
    np.testing.assert_allclose(objectives.margin(output, labels), [-1.0, 4.0])
    np.testing.assert_allclose(objectives.dlr(output, labels), [-1 / 3, 4 / 4], rtol=1e-6)
    targets = jnp.array([1, 3])
    np.testing.assert_allclose(objectives.dlr(output, labels, targets), [-3 / 3.5, 1 / 4.5], rtol=1e-6)
    np.testing.assert_allclose(objectives.margin(output, labels, targets), [-3.0, -3.0])
    np.testing.assert_allclose(objectives.cross_entropy(output, labels), [0.36185, 4.07217], rtol=1e-4)


def test_hinge_margin_and_the_released_slot():
    output = Output(jnp.array([[-1.0, -3.0, -2.0]]))
    label = jnp.array([0])
    np.testing.assert_allclose(objectives.hinge_margin(0.5)(output, label, None), [-1.0])
    np.testing.assert_allclose(objectives.hinge_margin(0.0, objectives.released_margin)(output, label, None), [0.0])
    np.testing.assert_allclose(objectives.hinge_margin(0.5)(output, jnp.array([1]), None), [0.5])


def test_misclassified_images_are_left_alone_and_reported():
    labels = LABELS.at[0].set((LABELS[0] + 1) % 3)
    result = attacks.bim(0.05, 0.02, 3)(linear, IMAGES, labels)
    assert result.clean_success[0] and result.success[0]
    np.testing.assert_array_equal(result.adversarial[0], IMAGES[0])
    assert np.any(result.adversarial[1] != IMAGES[1])
    moved = attacks.bim(0.05, 0.02, 3, attack_all=True)(linear, IMAGES, labels)
    assert np.any(moved.adversarial[0] != IMAGES[0])


def test_a_nan_gradient_is_counted_and_the_image_kept():
    def sometimes_nan(x):
        z = (x.reshape(-1, 48) - 0.5) @ WEIGHTS
        return Output(z * jnp.sqrt(jnp.where(jnp.arange(5) == 2, 0.0 * x[:, 0, 0, 0], 1.0))[:, None])

    with jax.debug_nans(False):
        result = attacks.bim(0.05, 0.02, 3, attack_all=True)(sometimes_nan, IMAGES, LABELS)
    np.testing.assert_array_equal(result.steps.nonfinite.sum(1), [0, 0, 3, 0, 0])
    np.testing.assert_array_equal(result.adversarial[2], IMAGES[2])


def test_nan_logits_are_no_success():
    bad = lambda x: Output(jnp.full((5, 3), jnp.nan) + 0 * x.sum())
    with jax.debug_nans(False):
        result = attacks.fgsm(0.1)(linear, IMAGES, LABELS, victim=bad)
    assert not result.success.any()


def test_pixel_mask_is_kept():
    mask = attacks.random_pixels(jax.random.key(0), 4, 4, 0.3)
    assert mask.sum() == 4
    result = attacks.pgd(0.1, 0.05, 3)(linear, IMAGES, LABELS, mask=mask, key=jax.random.key(1))
    changed = np.any(np.asarray(result.adversarial != IMAGES), axis=(0, 3))
    assert np.all(changed <= (np.asarray(mask) == 1)) and changed.any()


def test_batched_does_not_depend_on_the_batch_size_and_compiles_once():
    attack = attacks.pgd(0.1, 0.04, 3, restarts=2)
    key = jax.random.key(5)
    whole = attacks.Batched(attack, curved, batch_size=5)(IMAGES, LABELS, key=key)
    run = attacks.Batched(attack, curved, batch_size=2)
    parts = run(IMAGES, LABELS, key=key)
    np.testing.assert_allclose(whole.adversarial, parts.adversarial, atol=1e-6)
    assert parts.steps.loss.shape == whole.steps.loss.shape == (5, 3)
    np.testing.assert_array_equal(whole.success, parts.success)
    assert parts.trace_clean is None
    run(IMAGES[:3], LABELS[:3], key=key)
    assert run._run._cache_size() == 1
    kept = attacks.Batched(attack, curved, batch_size=2, keep=lambda r: r.distance)(IMAGES, LABELS, key=key)
    np.testing.assert_array_equal(kept, parts.distance)


def test_batched_takes_a_mask_for_each_image():
    mask = np.zeros((5, 4, 4, 1))
    mask[1::2, 0] = 1  # of a whole batch of two, and its second image alone
    attack = attacks.fgsm(0.1, attack_all=True)
    whole = attack(curved, jnp.asarray(IMAGES), jnp.asarray(LABELS), mask=mask)
    parts = attacks.Batched(attack, curved, batch_size=2)(IMAGES, LABELS, mask=mask)
    np.testing.assert_allclose(parts.adversarial, whole.adversarial, atol=1e-6)
    assert np.any(parts.adversarial[1] != IMAGES[1]) and np.all(parts.adversarial[0] == IMAGES[0])


def test_an_interrupted_batched_run_keeps_what_was_done():
    run = attacks.Batched(attacks.fgsm(0.1), curved, batch_size=2)
    batches = run.batches

    def interrupted(*given, **options):
        parts = batches(*given, **options)
        yield next(parts)
        yield next(parts)
        raise KeyboardInterrupt

    run.batches = interrupted
    with pytest.raises(attacks.Interrupted) as caught:
        run(IMAGES, LABELS)
    assert caught.value.result.success.shape == (4,)


def test_sweep_over_eps_is_a_vmap():
    eps = jnp.array([0.0, 0.02, 0.05])
    swept = jax.vmap(lambda e: attacks.bim(e, e / 2, 3)(curved, IMAGES, LABELS).adversarial)(eps)
    np.testing.assert_array_equal(swept[0], IMAGES)
    single = attacks.bim(0.05, 0.025, 3)(curved, IMAGES, LABELS).adversarial
    np.testing.assert_allclose(swept[2], single, atol=1e-6)
