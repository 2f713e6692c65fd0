"""Early-exit networks: a single-image twin, the authors' arrays, key lists."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import weights_convert
from dyn_jax import macs, metrics, networks
from dyn_jax.gates import early_exit
from dyn_jax.metrics import exits
from dyn_jax.networks import sdn_mobilenet, sdn_resnet, sdn_vgg
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


def test_fields_and_sizes_that_are_refused():
    net, key = SMALL["resnet"], jax.random.key(0)
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
