"""Early-exit networks: hand-made values, a single-image twin, the authors' arrays, key lists, bad input."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import weights_convert
from dyn_jax import macs, metrics, networks, nn, occupancy
from dyn_jax.gates import early_exit
from dyn_jax.metrics import exits
from dyn_jax.networks import sdn, sdn_mobilenet, sdn_resnet, sdn_vgg
from dyn_jax.testing._compare import quick_jit

SMALL = {
    "vgg": sdn_vgg.vgg16(widths=(4,) * 13, dense_widths=(6, 5), num_classes=5, threshold=0.3),
    "resnet": sdn_resnet.resnet56(
        depths=(2, 2), widths=(4, 8), exit_after=(0, 2), image_size=8, num_classes=5, threshold=0.4
    ),
    "mobilenet": sdn_mobilenet.mobilenet(
        stem_width=4, widths=(4, 8, 8), strides=(1, 2, 1), exit_after=(0, 1), image_size=8, num_classes=5, threshold=0.4
    ),
}
THRESHOLDS = np.array([0.25, 0.3, 0.35, 0.45, 0.6, 0.99], np.float32)


@dataclasses.dataclass(frozen=True)
class ToyTrunk(sdn.Trunk):
    """Says what it is shown: row k of the image, at column 0, is the logits of exit k; three stages, no weights."""

    def layers(self, x, train):
        for _ in range(2):
            yield sdn.Layer(x, x, 10)

    def exit(self, x, layer, num_classes, init, train):
        return x[:, layer, 0], 1

    def head(self, x, num_classes, init, train):
        return x[:, 2, 0], 5


TOY = sdn.SDN(ToyTrunk(), (0, 1), image_size=3, num_classes=3, normalization=None)


def toy(logits, net=TOY, **how):
    """`net` on the image of logits [batch, 3, 3]."""
    return net.apply({}, jnp.pad(logits[:, :, None], ((0, 0), (0, 0), (0, 2), (0, 0))), **how)


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


def images_of(net, batch=6, seed=1):
    shape = (batch, net.image_size, net.image_size, 3)
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


@functools.cache
def swept(name):
    """The small network in one compilation: {answer: output at each of THRESHOLDS}, the static twin's output."""
    net = SMALL[name]

    def run(variables, images):
        def at(how):
            return jax.vmap(lambda t: net.clone(answer=how).apply(variables, images, threshold=t))(THRESHOLDS)

        return {how: at(how) for how in early_exit.ANSWERS}, net.clone(exit_after=()).apply(variables, images)

    return quick_jit(run)(variables_of(net), images_of(net))


def logits_with(confidences, classes=3):
    """[1, exit, class] logits whose class 0 has exactly these softmax probabilities, the others sharing the rest."""
    rows = [[np.log(p)] + [np.log((1 - p) / (classes - 1))] * (classes - 1) for p in confidences]
    return jnp.asarray(rows, jnp.float32)[None]


# --- the gate, by hand


def test_confidence_scores_by_hand():
    scores = early_exit.exit_scores(logits_with([0.6, 0.5]), 0.8)
    np.testing.assert_allclose(scores, [[0.2, 0.2]], atol=1e-6)  # the highest so far, not the newest


def test_an_exit_fires_at_its_threshold_inclusive():
    logits = jnp.zeros((1, 1, 4))  # confidence exactly 1/4
    at, above = (early_exit.exit_scores(logits, t)[0, 0] for t in (0.25, np.float32(0.25) * (1 + 1e-6)))
    assert at < 0 <= above


def test_entropy_scores_by_hand():
    scores = early_exit.exit_scores(jnp.zeros((1, 1, 4)), 0.75, "entropy")  # uniform: relative entropy 1
    np.testing.assert_allclose(scores, [[0.25]], atol=1e-6)


def test_patience_scores_by_hand():
    logits = jax.nn.one_hot(jnp.array([[0, 1, 1, 1, 2]]), 3)
    scores = early_exit.exit_scores(logits, 2, "patience")
    np.testing.assert_array_equal(scores, [[1.5, 1.5, 0.5, -0.5, -0.5]])  # runs 0 0 1 2 0, longest so far 0 0 1 2 2
    each = early_exit.exit_scores(logits, (9, 9, 1, 9, 9), "patience")
    np.testing.assert_array_equal(each, [[8.5, 8.5, -0.5, -0.5, -0.5]])  # the second run of 1 meets its own patience


@pytest.mark.parametrize("kind", ["hard", "sigmoid", "straight_through"])
def test_weights_are_shares(kind):
    how = {"hard": occupancy.hard(), "sigmoid": occupancy.sigmoid(3.0)}.get(kind, occupancy.straight_through(3.0))
    occupancies = how(jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)), jnp.float32))
    weights = early_exit.exit_weights(occupancies)
    assert weights.shape == (50, 5) and float(weights.min()) >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    o = np.asarray(occupancies)
    np.testing.assert_allclose(weights[:, 2], o[:, 0] * o[:, 1] * (1 - o[:, 2]), atol=1e-6)
    if kind != "sigmoid":
        assert set(np.unique(np.asarray(weights))) <= {0.0, 1.0}


def test_who_answers_when_nobody_is_sure():
    logits, limits = logits_with([0.6, 0.7, 0.5]), jnp.full(2, 0.8)
    np.testing.assert_array_equal(early_exit.answers(logits, limits, "last"), logits)
    best = early_exit.answers(logits, limits, "most_confident")
    np.testing.assert_array_equal(best, logits[:, jnp.array([0, 1, 1])])


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0001, float("nan"), (0.5, 0.0), np.array([0.5, np.nan])])
def test_threshold_out_of_range(threshold):
    for rule in ("confidence", "entropy"):
        with pytest.raises(ValueError, match="threshold"):
            early_exit.check_thresholds(threshold, rule, 2)
    with pytest.raises(ValueError, match="threshold"):
        toy(logits_with([0.5] * 3), threshold=threshold)


def test_other_bad_input():
    net, key, logits = SMALL["resnet"], jax.random.key(0), logits_with([0.5] * 3)
    for patience in (0, 0.5, 1.5):
        with pytest.raises(ValueError, match="patience"):
            early_exit.check_thresholds(patience, "patience", 2)
    for several in ((0.5, 0.5, 0.5), np.full(3, 0.5), (), [0.5]):
        with pytest.raises(ValueError, match="numbers, expected one, or 2: one for every exit but the last"):
            toy(logits, threshold=several)
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        toy(logits, threshold=np.full((2, 1), 0.5))
    with pytest.raises(TypeError, match="threshold"):
        toy(logits, threshold=(0.5, None))
    for fields, word in (
        ({"exit_after": (0, 2)}, "exit_after"),
        ({"exit_after": (1, 0)}, "exit_after"),
        ({"answer": "first"}, "answer"),
        ({"rule": "confidense"}, "rule"),
        ({"linear_init": "big"}, "linear_init"),
    ):
        with pytest.raises(ValueError, match=word):
            toy(logits, TOY.clone(**fields))
    with pytest.raises(ValueError, match="expected 8x8"):
        net.init(key, jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match="expected 13"):
        SMALL["vgg"].clone(widths=(4, 4)).init(key, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="expected as many"):
        SMALL["mobilenet"].clone(strides=(1,)).init(key, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="dataset"):
        sdn_vgg.vgg16("cifar")
    with pytest.raises(TypeError, match="got depths, expected"):
        networks.create("sdn-vgg16-cifar10", depths=(1,))


# --- stages, on a network that says what it is shown


def test_gradient_by_hand_through_soft_exits():
    """LGM's gradient on exits is that of ``sum_i e_i logits_i`` written out; FGM's sees the answering exit only."""
    logits = logits_with([0.5, 0.6, 0.7])

    def by_hand(logits):
        sure = jnp.max(jax.nn.softmax(logits), axis=-1)
        first, second = jax.nn.sigmoid(5 * (0.8 - sure[:, 0])), jax.nn.sigmoid(5 * (0.8 - sure[:, 1]))
        shares = jnp.stack([1 - first, first * (1 - second), first * second], axis=1)
        return jnp.sum(shares[:, :, None] * logits, axis=1)[0, 0]

    def ours(logits, how):
        return toy(logits, TOY.clone(answer="last"), occupancy=how).logits[0, 0]

    hows = (occupancy.sigmoid(5.0), occupancy.hard(), occupancy.straight_through(5.0))
    run = quick_jit(lambda z: (jax.grad(by_hand)(z), [jax.grad(ours)(z, how) for how in hows]))
    expected, (soft, hard, straight) = jax.tree.map(np.asarray, run(logits))
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    np.testing.assert_array_equal(hard[0], [[0, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert np.abs(soft[0, 1]).max() > 0.01 and np.abs(straight[0, 1]).max() > 0.01


def test_a_threshold_for_each_exit():
    logits = logits_with([0.6, 0.5, 0.5]).at[0, :, 2].add(jnp.array([0.0, 0.01, 0.02]))  # so that exits differ
    for threshold, stage in ((0.45, 0), ((0.9, 0.45), 1), ((0.9, 0.9), 2)):
        out = toy(logits, TOY.clone(answer="last", threshold=threshold))
        np.testing.assert_allclose(out.logits, logits[:, stage], atol=1e-6)
        assert sum(int(unit.on[0]) for unit in out.trace.units) == stage
    sweep = jnp.array([[0.45, 0.45], [0.9, 0.45], [0.9, 0.9]])

    def stages(t):
        return exits.exit_index(toy(logits, threshold=t).trace), exits.decide(logits, t).stage

    for stage in quick_jit(jax.vmap(stages))(sweep):
        np.testing.assert_array_equal(stage[:, 0], [0, 1, 2])


def test_rule_and_answer_are_values():
    """RDI-Nets' entropies in nats against a threshold each, and the sum of the exits so far, by these thresholds."""

    def nats(exits, thresholds):
        p = jax.nn.softmax(exits)
        return -jnp.sum(p * jnp.log(p + 1e-5), axis=-1) - thresholds[None]

    def ensemble(exits, thresholds):
        p = jax.nn.softmax(exits)
        so_far = jnp.cumsum(p[:, :-1] * thresholds[None, :, None], axis=1)
        return jnp.concatenate([so_far, jnp.sum(p, axis=1, keepdims=True)], axis=1)

    rule = early_exit.Rule(nats, lambda t: t > 0, "positive")
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3, 3)), jnp.float32) * 2
    limits = (0.5, 0.8)
    net = TOY.clone(rule=rule, answer=ensemble, threshold=limits)
    out, decision = jax.device_get(
        quick_jit(lambda z: (toy(z, net), exits.decide(z, limits, rule=rule, answer=ensemble)))(logits)
    )
    p = np.asarray(jax.nn.softmax(logits))
    stages = set()
    for b in range(20):
        entropies = [-(p[b, k] * np.log(p[b, k] + 1e-5)).sum() for k in range(2)]
        stage = next((k for k in range(2) if entropies[k] < limits[k]), 2)
        says = sum(limits[j] * p[b, j] for j in range(stage + 1)) if stage < 2 else p[b].sum(0)
        np.testing.assert_allclose(out.logits[b], says, atol=1e-6)
        assert (decision.stage[b], decision.exit[b], decision.prediction[b]) == (stage, stage, says.argmax())
        stages.add(stage)
    assert stages == {0, 1, 2}
    assert out.trace.static_macs == 11 and [unit.macs for unit in out.trace.units] == [11, 5]
    with pytest.raises(ValueError, match="expected positive"):
        exits.decide(logits, -1.0, rule=rule)


# --- layers


def test_mixed_pool_by_hand():
    x = jnp.asarray([[1.0, 2.0], [3.0, 6.0]]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(nn.mixed_pool(x, jnp.array([0.25]), 2), [[[[0.25 * 6 + 0.75 * 3]]]])


def test_max_pool_gives_ties_to_the_first():
    x = jnp.asarray([[1.0, 5.0], [5.0, 5.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: jnp.sum(nn.max_pool(x, 2)))(x)
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

    @quick_jit
    def run(x, kernel, cotangent):
        got, got_vjp = jax.vjp(lambda x, k: nn.depthwise_conv3x3(x, k, stride), x, kernel)
        expected, expected_vjp = jax.vjp(twin, x, kernel)
        return (got, *got_vjp(cotangent)), (expected, *expected_vjp(cotangent))

    cotangent = jnp.asarray(rng.normal(size=jax.eval_shape(twin, x, kernel).shape), jnp.float32)
    for got, expected in zip(*run(x, kernel, cotangent)):
        np.testing.assert_allclose(got, expected, atol=1e-4)
    np.testing.assert_allclose(run(x, kernel, cotangent)[0][0], twin(x, kernel), atol=1e-5)


# --- networks


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("how", early_exit.ANSWERS)
def test_hard_network_is_the_single_image_loop(name, how):
    """Leaves at the first sure exit, one image at a time; thresholds are one vmap."""
    out = swept(name)[0][how]
    every = np.asarray(out.trace.exits[0])
    images, last = every.shape[0], every.shape[1] - 1
    probability = np.asarray(jax.nn.softmax(every)).max(-1)
    decisions, ran = quick_jit(
        jax.vmap(lambda t, trace: (exits.decide(trace.exits, t, answer=how), exits.exit_index(trace)))
    )(THRESHOLDS, out.trace)
    stages = set()
    for number, threshold in enumerate(THRESHOLDS):
        decision = jax.tree.map(lambda leaf, n=number: np.asarray(leaf[n]), decisions)
        for b in range(images):
            stage = next((i for i in range(last) if probability[b, i] >= threshold), last)
            early = stage < last
            chosen = stage if early or how == "last" else int(probability[b].argmax())
            np.testing.assert_allclose(out.logits[number, b], every[b, chosen], atol=1e-5)
            assert (decision.exit[b], decision.early[b], decision.stage[b]) == (chosen, early, stage)
            assert decision.prediction[b] == every[b, chosen].argmax()
            assert ran[number, b] == stage
            stages.add(stage)
    assert len(stages) > 1  # a control: the thresholds matter


@pytest.mark.parametrize("name", SMALL)
def test_static_twin_and_multiply_adds(name):
    """Dense work is what the jaxpr contracts; without exits the trunk is the same."""
    net = SMALL[name]
    outputs, alone = swept(name)
    trace = outputs["last"].trace
    assert alone.trace.exits is None and alone.trace.units == ()
    np.testing.assert_allclose(alone.logits, trace.exits[0, :, -1], atol=1e-5)
    dense = metrics.dense_macs(jax.tree.map(lambda leaf: leaf[0], trace))
    variables = variables_of(net)
    counted = macs.of_function(lambda x: net.apply(variables, x).logits, images_of(net, batch=1))
    assert dense == counted and alone.trace.static_macs < dense


@functools.cache
def shapes_of(name):
    """(output, variables) of a registered network on two images, as shapes."""
    net = networks.create(name)
    return jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, net.image_size, net.image_size, 3)))


@pytest.mark.parametrize("variant", ["vgg16", "resnet56"])
def test_exits_of_the_full_networks_are_at_the_published_shares(variant):
    """Cumulative cost before each exit, of the whole: about 15, 30, 45, 60, 75, 90 %."""
    trace = shapes_of(f"sdn-{variant}-cifar10")[0].trace
    costs = np.cumsum([trace.static_macs, *(unit.macs for unit in trace.units)])
    np.testing.assert_allclose(costs[:-1] / costs[-1], (0.15, 0.30, 0.45, 0.60, 0.75, 0.90), atol=0.04)


@pytest.mark.parametrize("dataset,classes", [("cifar100", 100), ("tinyimagenet", 200), ("digits", 10)])
@pytest.mark.parametrize("variant", ["vgg16", "resnet56", "mobilenet"])
def test_registered_networks(variant, dataset, classes):
    (out, variables), (_, plain) = (shapes_of(f"{family}-{variant}-{dataset}") for family in ("sdn", "cnn"))
    assert out.trace.exits.shape == (2, 6 if variant == "mobilenet" else 7, classes)
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


QUARTER = {"widths": tuple(w // 4 for w in sdn_vgg.WIDTHS), "dense_widths": (128, 128)}


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

    thresholds = jnp.array([0.5, 0.8])

    @quick_jit
    def run(x):
        def losses(x):
            out = jax.vmap(lambda t: net.apply(variables, x, threshold=t))(thresholds)
            every = out.trace.exits[0]
            chosen = jnp.take_along_axis(jax.nn.log_softmax(every), labels[:, None, None], axis=2)
            each = -jnp.mean(chosen[..., 0], axis=0)
            return jnp.stack([each[-1], jnp.sum(each)]), (every, out.logits)

        values, back, aux = jax.vjp(losses, x, has_aux=True)
        return values, aux, jax.vmap(back)(jnp.eye(2))[0]

    values, (every, answers), gradients = run(images)
    expected = np.swapaxes(arrays["logits"], 0, 1)
    assert np.abs(every - expected).max() <= 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(early_exit.confidence(every), arrays["confidence"].T, atol=1e-5)
    np.testing.assert_allclose(values, [arrays["loss/last"], arrays["loss/sum"]], rtol=1e-5)
    for gradient, kind in zip(gradients, ("last", "sum")):
        expected = arrays[f"grad/{kind}"].transpose(0, 2, 3, 1)
        assert np.abs(np.asarray(gradient) * arrays["norm_std"] - expected).max() <= 1e-4 * np.abs(expected).max()
    decisions = quick_jit(jax.vmap(lambda t: exits.decide(every, t)))(thresholds)
    expected = np.stack([arrays["dec0.5"], arrays["dec0.8"]])
    np.testing.assert_array_equal(decisions.exit, expected[..., 0])
    np.testing.assert_array_equal(decisions.prediction, expected[..., 1])
    np.testing.assert_array_equal(decisions.early, expected[..., 2] == 1)
    np.testing.assert_array_equal(jnp.argmax(answers, -1), expected[..., 1])
