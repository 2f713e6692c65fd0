"""Early-exit networks: hand-made values, a single-image twin, the authors' arrays, key lists, bad input."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import weights_convert
from dyn_jax import exits, macs, metrics, networks, occupancy
from dyn_jax.gates import early_exit
from dyn_jax.networks import sdn
from dyn_jax.networks.sdn_mobilenet import SDNMobileNet, depthwise_conv3x3
from dyn_jax.networks.sdn_resnet import SDNResNet
from dyn_jax.networks.sdn_vgg import SDNVgg

SMALL = {
    "vgg": SDNVgg(widths=(4,) * 13, dense_widths=(6, 5), num_classes=5, threshold=0.3),
    "resnet": SDNResNet(depths=(2, 2), widths=(4, 8), exit_after=(0, 2), image_size=8, num_classes=5, threshold=0.4),
    "mobilenet": SDNMobileNet(
        stem_width=4, widths=(4, 8, 8), strides=(1, 2, 1), exit_after=(0, 1), image_size=8, num_classes=5, threshold=0.4
    ),
}


def variables_of(net, seed=0):
    """Random variables with O(1) activations from the shapes alone."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, net.image_size, net.image_size, 3)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind, noise = path[-1].key, rng.normal(size=leaf.shape)
        if kind in ("scale", "var"):
            value = 1 + 0.1 * np.abs(noise)
        elif kind == "alpha":
            value = rng.random(leaf.shape)
        elif kind in ("bias", "mean"):
            value = 0.1 * noise
        else:
            value = noise * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def images_of(net, batch=3, seed=1):
    shape = (batch, net.image_size, net.image_size, 3)
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


def logits_with(confidences, classes=3):
    """[exit, 1, class] logits whose class 0 has exactly these softmax probabilities, the others sharing the rest."""
    rows = [[math.log(p)] + [math.log((1 - p) / (classes - 1))] * (classes - 1) for p in confidences]
    return jnp.asarray(rows, jnp.float32)[:, None, :]


# --- the gate, by hand


def test_confidence_scores_by_hand():
    first, second = early_exit.confidence_scores(list(logits_with([0.6, 0.5])), 0.8)
    np.testing.assert_allclose([first[0], second[0]], [0.2, 0.2], atol=1e-6)  # the highest so far, not the newest


def test_an_exit_fires_at_its_threshold_inclusive():
    logits = jnp.zeros((1, 4))  # confidence exactly 1/4
    at, above = (early_exit.confidence_scores([logits], t)[0][0] for t in (0.25, np.float32(0.25) * (1 + 1e-6)))
    assert at < 0 <= above


def test_entropy_scores_by_hand():
    (score,) = early_exit.entropy_scores([jnp.zeros((1, 4))], 0.75)  # uniform: relative entropy 1
    np.testing.assert_allclose(score, [0.25], atol=1e-6)


def test_patience_scores_by_hand():
    says = [0, 1, 1, 1, 2]
    logits = [jax.nn.one_hot(jnp.array([c]), 3) for c in says]
    scores = [float(s[0]) for s in early_exit.patience_scores(logits, 2)]
    assert scores == [1.5, 1.5, 0.5, -0.5, -0.5]  # runs 0 0 1 2 0, longest so far 0 0 1 2 2


@pytest.mark.parametrize("kind", ["hard", "sigmoid", "straight_through"])
def test_weights_are_shares(kind):
    how = {"hard": occupancy.hard(), "sigmoid": occupancy.sigmoid(3.0)}.get(kind, occupancy.straight_through(3.0))
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(4, 50)), jnp.float32)
    weights = jnp.stack(early_exit.exit_weights([how(s) for s in scores], scores[0]))
    assert weights.shape == (5, 50) and float(weights.min()) >= 0
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
    if kind != "sigmoid":
        assert set(np.unique(np.asarray(weights))) <= {0.0, 1.0}


def test_who_answers_when_nobody_is_sure():
    logits = logits_with([0.6, 0.7, 0.5])
    weights = [jnp.zeros(1), jnp.zeros(1), jnp.ones(1)]
    np.testing.assert_array_equal(early_exit.answer(logits, weights, "last"), logits[2])
    np.testing.assert_array_equal(early_exit.answer(logits, weights, "most_confident"), logits[1])


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0001, float("nan")])
def test_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match="threshold"):
        early_exit.check_threshold(threshold)
    with pytest.raises(ValueError, match="threshold"):
        jax.eval_shape(SMALL["resnet"].clone(threshold=threshold).init, jax.random.key(0), images_of(SMALL["resnet"]))


def test_other_bad_input():
    net = SMALL["resnet"]
    with pytest.raises(ValueError, match="patience"):
        early_exit.check_threshold(0.5, "patience")
    with pytest.raises(ValueError, match="rule"):
        early_exit.check_threshold(0.5, "confidense")
    for fields, word in (({"exit_after": (0, 4)}, "exit_after"), ({"answer": "first"}, "answer")):
        with pytest.raises(ValueError, match=word):
            jax.eval_shape(net.clone(**fields).init, jax.random.key(0), images_of(net))
    with pytest.raises(ValueError, match="expected 8x8"):
        net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match="expected 13"):
        SDNVgg(widths=(4, 4)).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


# --- layers


def test_mixed_pool_by_hand():
    x = jnp.asarray([[1.0, 2.0], [3.0, 6.0]]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(sdn.mixed_pool(x, jnp.array([0.25]), 2), [[[[0.25 * 6 + 0.75 * 3]]]])


def test_max_pool_gives_ties_to_the_first():
    x = jnp.asarray([[1.0, 5.0], [5.0, 5.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: jnp.sum(sdn.max_pool(x, 2)))(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])


@pytest.mark.parametrize("size,stride", [(6, 1), (6, 2), (5, 2)])
def test_depthwise_convolution_against_xla(size, stride):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, size, size, 3), (3, 3, 1, 3)))

    def twin(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        pad = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), pad, dimension_numbers=names, feature_group_count=3
        )

    got, got_vjp = jax.vjp(lambda x, k: depthwise_conv3x3(x, k, stride), x, kernel)
    expected, expected_vjp = jax.vjp(twin, x, kernel)
    cotangent = jnp.asarray(rng.normal(size=got.shape), jnp.float32)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    for a, b in zip(got_vjp(cotangent), expected_vjp(cotangent)):
        np.testing.assert_allclose(a, b, atol=1e-4)


# --- networks


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("how", early_exit.ANSWERS)
def test_hard_network_is_the_single_image_loop(name, how):
    """Leaves at the first sure exit, one image at a time; thresholds are one vmap."""
    net = SMALL[name].clone(answer=how)
    variables, images = variables_of(net), images_of(net, batch=6)
    thresholds = np.array([0.25, 0.3, 0.35, 0.45, 0.6, 0.99], np.float32)
    out = jax.jit(jax.vmap(lambda t: net.apply(variables, images, threshold=t)))(thresholds)
    every = np.asarray(net.apply(variables, images).trace.exits)
    probability = np.asarray(jax.nn.softmax(every)).max(-1)
    stages = set()
    for number, threshold in enumerate(thresholds):
        trace = jax.tree.map(lambda leaf, n=number: leaf[n], out.trace)
        decision = exits.decide(jnp.asarray(every), threshold, answer=how)
        for b in range(6):
            chosen, stage = None, len(every) - 1
            for i in range(len(every) - 1):
                if probability[i, b] >= threshold:
                    chosen = stage = i
                    break
            early = chosen is not None
            if not early:
                chosen = int(probability[:, b].argmax()) if how == "most_confident" else len(every) - 1
            np.testing.assert_allclose(out.logits[number, b], every[chosen, b], atol=1e-5)
            assert (decision.exit[b], decision.early[b], decision.stage[b]) == (chosen, early, stage)
            assert decision.prediction[b] == every[chosen, b].argmax()
            assert exits.exit_index(trace)[b] == stage
            stages.add(stage)
    assert len(stages) > 1  # a control: the thresholds matter


def test_gradient_by_hand_through_soft_exits():
    """d logits / d exit-2 logits is e_2 for the last rule: soft occupancies let the gradient into every exit."""
    logits = logits_with([0.5, 0.6, 0.7])

    def total(how, delta):
        moved = logits.at[1].add(delta)
        out = sdn.early_exit_output(
            list(moved), [1, 1, 1], occupancy=how, threshold=0.8, rule="confidence", how="last", make_key=None
        )
        return jnp.sum(out.logits[0])

    zero = jnp.zeros((1, 3))
    assert float(jnp.abs(jax.grad(total, 1)(occupancy.hard(), zero)).max()) == 0
    for how in (occupancy.sigmoid(5.0), occupancy.straight_through(5.0)):
        assert float(jnp.abs(jax.grad(total, 1)(how, zero)).max()) > 0.01


@pytest.mark.parametrize("name", SMALL)
def test_multiply_adds(name):
    """Dense work is what the jaxpr contracts."""
    net = SMALL[name]
    variables, images = variables_of(net), images_of(net)
    out = net.apply(variables, images)
    counted = macs.of_function(lambda x: net.apply(variables, x).logits, images) // 3
    assert metrics.dense_macs(out.trace) == counted
    alone = net.clone(exit_after=()).apply(
        {"params": variables["params"], "batch_stats": variables["batch_stats"]}, images
    )
    assert alone.trace.exits is None and alone.trace.units == ()
    np.testing.assert_allclose(alone.logits, out.trace.exits[-1], atol=1e-5)
    assert alone.trace.static_macs < metrics.dense_macs(out.trace)


def test_exits_of_the_full_networks_are_at_the_published_shares():
    """Cumulative cost before each exit, of the whole: about 15, 30, 45, 60, 75, 90 %."""
    for name, shares in (
        ("vgg16", (0.15, 0.30, 0.45, 0.60, 0.75, 0.90)),
        ("resnet56", (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)),
    ):
        net = networks.create(f"sdn-{name}-cifar10")
        variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        trace = jax.eval_shape(net.apply, variables, jnp.zeros((1, 32, 32, 3))).trace
        costs = np.cumsum([trace.static_macs, *(unit.macs for unit in trace.units)])
        np.testing.assert_allclose(costs[:-1] / costs[-1], shares, atol=0.04)


@pytest.mark.parametrize("dataset,classes,size", [("cifar100", 100, 32), ("tinyimagenet", 200, 64), ("digits", 10, 32)])
@pytest.mark.parametrize("variant", ["vgg16", "resnet56", "mobilenet"])
def test_registered_networks(variant, dataset, classes, size):
    net, twin = networks.create(f"sdn-{variant}-{dataset}"), networks.create(f"cnn-{variant}-{dataset}")
    x = jnp.zeros((2, size, size, 3))
    variables, plain = (jax.eval_shape(n.init, jax.random.key(0), x) for n in (net, twin))
    out = jax.eval_shape(net.apply, variables, x)
    assert out.trace.exits.shape == (6 if variant == "mobilenet" else 7, 2, classes)
    with_exits, without = traverse_util.flatten_dict(variables), traverse_util.flatten_dict(plain)
    assert set(without) == {path for path in with_exits if not path[1].endswith("_output")}


@pytest.mark.parametrize(
    "name,file",
    [
        ("sdn-vgg16-cifar10", "keys_vgg16_sdn_cifar10_full_recipe"),
        ("sdn-resnet56-cifar10", "keys_resnet56_sdn_cifar10"),
        ("sdn-mobilenet-cifar10", "keys_mobilenet_sdn_cifar10"),
    ],
)
def test_every_published_key_has_its_place(shared_dir, name, file):
    state = {}
    rng = np.random.default_rng(0)
    for line in (shared_dir / "reference" / "keys_early" / f"{file}.txt").read_text().splitlines():
        key, _, shape = line.partition(" ")
        state[key] = rng.random([int(n) for n in shape.strip("[]").split(",") if n.strip()], np.float32)
    variables = weights_convert.convert(name, state)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == sum(
        value.size for key, value in state.items() if not key.endswith("num_batches_tracked")
    )
    twin = {key: value for key, value in state.items() if ".output." not in key}
    weights_convert.convert(name.replace("sdn-", "cnn-"), twin)
    with pytest.raises(weights_convert.ConversionError, match="missing"):
        weights_convert.convert(name, twin)


QUARTER = {"widths": tuple(w // 4 for w in SDNVgg().widths), "dense_widths": (128, 128)}


@pytest.mark.parametrize(
    "name,file,fields",
    [
        ("sdn-resnet56-cifar10", "resnet56_sdn_cifar10", {}),
        ("sdn-vgg16-cifar10", "vgg16_sdn_cifar10_quarter", QUARTER),
    ],
)
def test_parity_with_the_authors_code(golden, name, file, fields):
    arrays = golden(file)
    state = {key.removeprefix("sd/"): value for key, value in arrays.items() if key.startswith("sd/")}
    net, variables = networks.create(name, **fields), weights_convert.convert(name, state, **fields)
    images, labels = jnp.asarray(arrays["x01"].transpose(0, 2, 3, 1)), jnp.asarray(arrays["labels"])

    @jax.jit
    def run(x):
        def losses(x):
            every = net.apply(variables, x).trace.exits
            chosen = jnp.take_along_axis(jax.nn.log_softmax(every), labels[None, :, None], axis=2)
            each = -jnp.mean(chosen[..., 0], axis=1)
            return jnp.stack([each[-1], jnp.sum(each)]), every

        values, back, every = jax.vjp(losses, x, has_aux=True)
        return values, every, [back(jnp.eye(2)[i])[0] for i in range(2)]

    values, every, gradients = run(images)
    scale = np.abs(arrays["logits"]).max()
    assert np.abs(every - arrays["logits"]).max() <= 2e-5 * scale
    np.testing.assert_allclose(exits.early_exit.confidence(every), arrays["confidence"], atol=1e-5)
    np.testing.assert_allclose(values, [arrays["loss/last"], arrays["loss/sum"]], rtol=1e-5)
    for gradient, kind in zip(gradients, ("last", "sum")):
        expected = arrays[f"grad/{kind}"].transpose(0, 2, 3, 1)
        assert np.abs(np.asarray(gradient) * arrays["norm_std"] - expected).max() <= 1e-4 * np.abs(expected).max()
    for threshold in (0.5, 0.8):
        decision = exits.decide(every, threshold)
        expected = arrays[f"dec{threshold}"]
        np.testing.assert_array_equal(decision.exit, expected[:, 0])
        np.testing.assert_array_equal(decision.prediction, expected[:, 1])
        np.testing.assert_array_equal(decision.early, expected[:, 2] == 1)
        logits = net.apply(variables, images, threshold=threshold).logits
        np.testing.assert_array_equal(jnp.argmax(logits, -1), expected[:, 1])
