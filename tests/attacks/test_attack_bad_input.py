"""Bad input is met at the door: the kind of error, and a message with name, what was got and what was expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks, networks, objectives
from dyn_jax.types import Output

IMAGES = jnp.full((2, 4, 4, 3), 0.5)
LABELS = jnp.array([0, 1])
forward = lambda x: Output(x.reshape(x.shape[0], -1)[:, :5])
fgsm = attacks.fgsm(0.1)

CALLS = {
    "rank": (lambda: fgsm(forward, IMAGES[0], LABELS), ValueError, "images: got shape .* expected rank 4"),
    "dtype": (lambda: fgsm(forward, jnp.ones((2, 4, 4, 3), jnp.uint8), LABELS), TypeError, "images: got dtype uint8"),
    "no array": (lambda: fgsm(forward, [[0.5]], LABELS), TypeError, "inputs: got list, expected images"),
    "empty": (lambda: fgsm(forward, IMAGES[:0], LABELS[:0]), ValueError, "images: got an empty batch"),
    "above": (lambda: fgsm(forward, IMAGES + 1, LABELS), ValueError, r"images: got values in .* expected \[0"),
    "below": (lambda: fgsm(forward, IMAGES - 1, LABELS), ValueError, r"images: got values in .* expected \[0"),
    "NaN": (lambda: fgsm(forward, np.full((2, 4, 4, 3), np.nan, "f4"), LABELS), ValueError, "images: got 96 NaN"),
    "label range": (lambda: fgsm(forward, IMAGES, LABELS + 5), ValueError, r"labels: got .* classes in \[0, 4\]"),
    "negative label": (lambda: fgsm(forward, IMAGES, LABELS - 1), ValueError, r"labels: got .* classes in \[0, 4\]"),
    "label column": (lambda: fgsm(forward, IMAGES, LABELS[:, None]), ValueError, r"labels: got shape \(2, 1\)"),
    "integer key": (lambda: attacks.pgd(0.1, 0.1, 2)(forward, IMAGES, LABELS, key=0), ValueError, "key: got int"),
    "many keys": (
        lambda: attacks.pgd(0.1, 0.1, 2)(forward, IMAGES, LABELS, key=jax.random.split(jax.random.key(0))),
        ValueError,
        "expected one typed PRNG key",
    ),
    "one eps an image": (lambda: attacks.fgsm(np.array([0.1, 0.2])), ValueError, r"eps: got an array of shape \(2,\)"),
    "one step an image": (lambda: attacks.bim(0.1, np.ones(3), 2), ValueError, "step_size: got an array"),
    "one K an image": (lambda: attacks.grad_auto(np.ones(2)), ValueError, "lipschitz: got an array"),
    "huge eps": (lambda: attacks.fgsm(1e40, norm="l2"), ValueError, "eps: got 1e.40, expected finite"),
    "bounds per channel": (
        lambda: attacks.fgsm(0.1, bounds=((0, 0, 0), (1, 1, 1))),
        ValueError,
        "bounds: got .* one number each for all channels",
    ),
    "logits without classes": (lambda: fgsm(lambda x: x.sum((1, 2, 3)), IMAGES, LABELS), ValueError, r"shape \(2,\)"),
    "logits of a map": (
        lambda: fgsm(lambda x: x[:, :1, :1], IMAGES, LABELS),
        ValueError,
        r"shape \(2, 1, 1, 3\), expected \[batch, class\]; squeeze",
    ),
    "a dict": (lambda: fgsm(lambda x: {"out": x}, IMAGES, LABELS), TypeError, "forward: returned dict"),
    "rows": (lambda: fgsm(lambda x: x.reshape(-1, 3), IMAGES, LABELS), ValueError, "logits of 32 rows, expected 2"),
    "label dtype": (lambda: fgsm(forward, IMAGES, LABELS * 1.0), TypeError, "labels: got dtype float"),
    "label count": (
        lambda: fgsm(forward, IMAGES, LABELS[:1]),
        ValueError,
        r"labels: got shape \(1,\), expected \(2,\)",
    ),
    "target": (lambda: fgsm(forward, IMAGES, LABELS, targets=jnp.array([0, 2])), ValueError, "targets: got 1 equal"),
    "negative eps": (lambda: attacks.fgsm(-0.1), ValueError, "eps: got -0.1, expected at least 0"),
    "eps text": (
        lambda: attacks.bim("8/zero", 0.1, 2),
        ValueError,
        "eps: got '8/zero', expected a number or a fraction",
    ),
    "eps zero division": (lambda: attacks.bim("8/0", 0.1, 2), ValueError, "eps: got '8/0'"),
    "eps NaN": (lambda: attacks.pgd(float("nan"), 0.1, 2), ValueError, "eps: got nan, expected finite"),
    "eps kind": (lambda: attacks.apgd(None), TypeError, "eps: got None"),
    "steps": (lambda: attacks.bim(0.1, 0.1, 0), ValueError, "steps: got 0, expected at least 1"),
    "steps kind": (lambda: attacks.bim(0.1, 0.1, 2.5), TypeError, "steps: got 2.5"),
    "norm": (lambda: attacks.bim(0.1, 0.1, 2, norm="linff"), ValueError, "norm: got 'linff', .* did you mean 'linf'"),
    "objective": (
        lambda: attacks.apgd(0.1, objective="dlrr"),
        ValueError,
        "objective: got 'dlrr', .* did you mean 'dlr'",
    ),
    "bounds": (lambda: attacks.fgsm(0.1, bounds=(1, 0)), ValueError, r"bounds: got \(1, 0\)"),
    "no key": (lambda: attacks.pgd(0.1, 0.1, 2)(forward, IMAGES, LABELS), ValueError, "key: got None"),
    "mask shape": (lambda: fgsm(forward, IMAGES, LABELS, mask=jnp.ones((3, 3))), ValueError, "mask: got shape"),
    "mask values": (lambda: fgsm(forward, IMAGES, LABELS, mask=jnp.full((4, 4), 0.5)), ValueError, "mask: got values"),
    "start": (lambda: fgsm(forward, IMAGES, LABELS, start=IMAGES[:1]), ValueError, "start: got shape"),
    "start NaN": (lambda: fgsm(forward, IMAGES, LABELS, start=IMAGES * np.nan), ValueError, "start: got 96 NaN"),
    "delta NaN": (
        lambda: attacks.universal(0.1, 0.1, 1, delta=IMAGES[0] * np.nan)(forward, IMAGES, LABELS),
        ValueError,
        "delta: got 48 NaN",
    ),
    "patch in 255": (
        lambda: attacks.patch((2, 2), 0.1, 1, place=(0, 0), values=np.full((2, 2, 3), 99.0))(forward, IMAGES, LABELS),
        ValueError,
        r"values: got values in \[99, 99\], expected \[0",
    ),
    "no deviation": (
        lambda: attacks.slowformer((2, 2), 1, mean_std=((0.5, 0.5, 0.5), (0.2, 0.0, 0.2))),
        ValueError,
        "mean_std: got 0.0, expected a positive",
    ),
    "one output": (
        lambda: fgsm(lambda x: x[:, 0, 0, :1], IMAGES, LABELS),
        ValueError,
        r"got 1 output.* make two of one: \[0, logit\]",
    ),
    "label beyond 32 bits": (lambda: fgsm(forward, IMAGES, np.array([2**32, 1])), ValueError, r"labels: got labels in"),
    "target beyond 32 bits": (
        lambda: fgsm(forward, IMAGES, LABELS, targets=np.array([2**32 + 1, 0])),
        ValueError,
        "targets: got labels in",
    ),
    "index": (
        lambda: attacks.pgd(0.1, 0.1, 2)(forward, IMAGES, LABELS, key=jax.random.key(0), index=np.ones(2)),
        TypeError,
        "index: got dtype float64, expected integers",
    ),
    "index beyond 32 bits": (
        lambda: attacks.pgd(0.1, 0.1, 2)(forward, IMAGES, LABELS, key=jax.random.key(0), index=np.array([0, 2**32])),
        ValueError,
        "index: got values in",
    ),
    "eps bool": (lambda: attacks.fgsm(np.bool_(True)), TypeError, "eps: got dtype bool"),
    "eps complex": (lambda: attacks.fgsm(np.complex64(1)), TypeError, "eps: got dtype complex64"),
    "rate": (lambda: attacks.random_pixels(jax.random.key(0), 4, 4, 1.5), ValueError, "rate: got 1.5"),
    "not callable": (lambda: fgsm(None, IMAGES, LABELS), TypeError, "forward: got NoneType"),
    "tuple": (lambda: fgsm(lambda x: (x, x), IMAGES, LABELS), TypeError, "forward: returned a tuple"),
    "dlr classes": (lambda: objectives.dlr(Output(jnp.ones((2, 2))), LABELS), ValueError, "dlr: got 2 classes"),
    "confidence": (lambda: objectives.hinge_margin(-1.0), ValueError, "confidence: got -1.0"),
    "cw rate": (lambda: attacks.carlini_wagner(learning_rate=0.0), ValueError, "learning_rate: got 0.0"),
    "recovery": (lambda: attacks.criteria.recovered(2.0), ValueError, "share: got 2.0, expected at most 1"),
    "network name": (
        lambda: networks.create("skipnet-rl-rnn-39-cifar10"),
        ValueError,
        "did you mean 'skipnet-rl-rnn-38",
    ),
    "network field": (lambda: networks.create("resnet-20-cifar10", depth=3), TypeError, "got depth, expected fields"),
    "no classes": (lambda: networks.create("resnet-20-cifar10", num_classes=0), ValueError, "num_classes: got 0"),
    "flat normalisation": (
        lambda: networks.create("resnet-20-cifar10", normalize=((0.5,) * 3, (0.0,) * 3)),
        ValueError,
        "normalize: got 0.0, expected a positive",
    ),
    "normalize": (lambda: networks.create("resnet-20-cifar10", normalize=(0.5, 0.5)), TypeError, "normalize: got"),
    "batch size": (lambda: attacks.Batched(fgsm, forward, batch_size=0), ValueError, "batch_size"),
    "batched mask": (
        lambda: attacks.Batched(fgsm, forward)(IMAGES, LABELS, mask=np.full((4, 4), 0.5)),
        ValueError,
        "mask: got values",
    ),
    "masks of a batch": (
        lambda: attacks.Batched(fgsm, forward, batch_size=2)(IMAGES, LABELS, mask=np.ones((7, 4, 4, 1))),
        ValueError,
        "expected one for all or for each of",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_message(name):
    call, kind, words = CALLS[name]
    with pytest.raises(kind, match=words), jax.debug_nans(False):
        call()


@pytest.mark.parametrize(
    "name, shape, kind, words",
    [
        ("resnet-20-cifar10", (2, 32, 32), ValueError, "expected rank 4"),
        ("dynconv-8-cifar10", (2, 3, 32, 32), ValueError, "32 channels .* expected 3; the layout is NHWC"),
        ("skipnet-rl-rnn-38-cifar10", (2, 64, 64, 3), ValueError, "got a 64x64 map for a 32x32 window"),
        ("skipnet-rl-rnn-18-imagenet", (2, 160, 160, 3), ValueError, "got a 40x40 map for a 56x56 window"),
    ],
)
def test_networks_refuse_images_that_do_not_fit(name, shape, kind, words):
    net = networks.create(name)
    with pytest.raises(kind, match=words):
        jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    with pytest.raises(TypeError, match="got dtype int32"):
        jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.int32))


def test_an_occupancy_that_changes_shape_is_named():
    net = networks.create("dynconv-8-cifar10")
    with pytest.raises(ValueError, match="occupancy: got values of shape"):
        jax.eval_shape(
            lambda x: net.init(jax.random.key(0), x, occupancy=jnp.mean),
            jax.ShapeDtypeStruct((2, 32, 32, 3), "float32"),
        )


def test_targets_that_jit_cannot_refuse_are_invalid():
    def attacked(targets, mask):
        return fgsm(forward, IMAGES, LABELS, targets=targets, mask=mask)

    for targets in (np.array(LABELS), np.full(2, 9), np.full(2, -1)):  # equal to the label, no class
        result = jax.jit(attacked)(targets, np.ones((4, 4)))
        assert result.invalid.all() and not result.success.any()
    half, whole = (jax.jit(attacked)(np.array([2, 0]), np.full((4, 4), share)) for share in (0.5, 1.0))
    np.testing.assert_array_equal(half.adversarial, whole.adversarial)  # not half of the ball


def test_a_half_precision_number_is_no_overflow():
    assert attacks.fgsm(np.float16(0.125)).threat.eps == 0.125  # warnings are errors
