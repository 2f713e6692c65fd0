"""ManiDP: the gate by hand, parity with the authors' code, multiply-adds by loops, conversion strict both ways."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import some_images, variables_for

import weights_convert
from dyn_jax import macs, metrics, occupancy
from dyn_jax.gates.channel import ChannelGate
from dyn_jax.networks import manidp

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = {"depths": (1, 1), "widths": (4, 8), "num_classes": 5}


def with_thresholds(variables, value):
    """Every gate's threshold set to `value`, or multiplied where `value` is a function."""
    change = value if callable(value) else lambda leaf: jnp.full_like(leaf, value)
    is_threshold = lambda path: path[-1].key == "thre"
    return jax.tree_util.tree_map_with_path(lambda path, leaf: change(leaf) if is_threshold(path) else leaf, variables)


# --- the gate


def gate_case(threshold):
    """Means 2 and -1 -> inner 2 and 0 -> saliencies (2, 0, 1/2, 1000) and (0, 0, 1/2, 0)."""
    params = {
        "fc1": {"kernel": jnp.array([[1.0]])},
        "fc2": {"kernel": jnp.array([[1.0, -1.0, 0.0, 1000.0]]), "bias": jnp.array([0.0, 0.0, 0.5, 0.0])},
    }
    stats = {"thre": jnp.array([threshold]), "mask_sum": jnp.ones(4)}
    x = jnp.array([[1.0, 2.0, 2.0, 3.0], [-1.0, -1.0, -1.0, -1.0]]).reshape(2, 2, 2, 1)
    return ChannelGate(features=4, hidden=1), {"params": params, "batch_stats": stats}, x


SALIENCY = [[2, 0, 0.5, 1000], [0, 0, 0.5, 0]]


@pytest.mark.parametrize(
    "threshold, on",
    [
        (-10000.0, [[1, 0, 1, 1], [0, 0, 1, 0]]),  # not set yet: a mask > 0 counts as on
        (0.0, [[1, 0, 1, 1], [0, 0, 1, 0]]),
        (0.5, [[1, 0, 1, 1], [0, 0, 1, 0]]),  # reached is enough
        (0.75, [[1, 0, 0, 1], [0, 0, 0, 0]]),
    ],
)
def test_gate_by_hand(threshold, on):
    gate, variables, x = gate_case(threshold)
    saliency, score = gate.apply(variables, x)
    np.testing.assert_array_equal(saliency, SALIENCY)
    np.testing.assert_array_equal(occupancy.hard()(score), on)
    if threshold > 0:
        np.testing.assert_array_equal(score, np.array(SALIENCY) - threshold)


def test_gradient_of_the_gate_by_hand():
    """Only channel 0 of the first image: 1 is rectified, 2 constant, 3 clamped; the second's inner layer is off."""
    gate, variables, x = gate_case(0.75)
    gradient = jax.grad(lambda x: jnp.sum(gate.apply(variables, x).score))(x)
    np.testing.assert_array_equal(gradient, np.array([0.25, 0.0])[:, None, None, None] * np.ones((2, 2, 2, 1)))


def test_training_sums_saliencies():
    gate, variables, x = gate_case(0.75)
    _, updated = gate.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(updated["batch_stats"]["mask_sum"], [3, 1, 2, 1001])
    np.testing.assert_array_equal(updated["batch_stats"]["thre"], [0.75])
    fresh = gate.init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(fresh["batch_stats"]["mask_sum"], np.zeros(4))
    np.testing.assert_array_equal(fresh["batch_stats"]["thre"], [-10000])
    np.testing.assert_array_equal(fresh["params"]["fc2"]["bias"], np.ones(4))
    tenth = gate.clone(init_scale=0.1).init(jax.random.key(0), x)
    np.testing.assert_allclose(tenth["params"]["fc2"]["kernel"], 0.1 * fresh["params"]["fc2"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(tenth["params"]["fc1"]["kernel"], fresh["params"]["fc1"]["kernel"])
    assert gate.macs(1) == 1 + 4


# --- parity with the authors' code

NET = manidp.cifar(20)
FIELDS = ("grad/ce", "grad/gate_neg", "grad/gate_pos")


def losses(output, labels):
    """Mean cross-entropy; the energy attacks' two sums over gates that are off, and minus those that are on."""
    log_probability = jax.nn.log_softmax(output.logits)
    cross_entropy = -jnp.mean(jnp.take_along_axis(log_probability, labels[:, None], 1))
    off = sum(jnp.sum(jax.nn.relu(-unit.score)) for unit in output.trace.units)
    on = sum(jnp.sum(jax.nn.relu(unit.score)) for unit in output.trace.units)
    return jnp.stack([cross_entropy, off, -on])


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("manidp_resnet20_cifar10")


@functools.cache
def compiled(x64):
    """run(variables, images, labels, which) -> (input gradient of loss `which`, (losses, output)); one compilation."""
    del x64

    def run(variables, images, labels, which):
        def loss(images):
            output = NET.apply(variables, images)
            values = losses(output, labels)
            return values @ which, (values, output)

        return jax.grad(loss, has_aux=True)(images)

    return quick(run)


def state_dict(arrays, dtype=np.float32):
    state = {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}
    return {key: value.astype(dtype) if value.dtype == np.float32 else value for key, value in state.items()}


def golden_run(arrays, which, x64=False, variables=None):
    dtype = np.float64 if x64 else np.float32
    variables = weights_convert.convert(NET, state_dict(arrays, dtype)) if variables is None else variables
    images = arrays["x"].transpose(0, 2, 3, 1).astype(np.float64) * arrays["norm_std"] + arrays["norm_mean"]
    labels = jnp.asarray(arrays["labels"], jnp.int32)
    return compiled(x64)(variables, jnp.asarray(images, dtype), labels, jnp.asarray(which, dtype))


def relative(got, expected):
    return np.max(np.abs(np.asarray(got, np.float64) - expected)) / np.max(np.abs(expected))


def as_input_gradient(gradient, arrays):
    """The files hold gradients by normalised images, NCHW."""
    return (np.asarray(gradient, np.float64) * arrays["norm_std"]).transpose(0, 3, 1, 2)


def test_forward_as_released(arrays):
    _, (values, output) = golden_run(arrays, [1, 0, 0])
    assert relative(output.logits, arrays["logits"]) < 5e-6
    expected = [arrays["loss/ce"], arrays["gate/neg_loss"], arrays["gate/pos_loss"]]
    np.testing.assert_allclose(values, expected, rtol=2e-6)
    assert [unit.name for unit in output.trace.units] == [n.replace(".", "_") for n in arrays["gate_names"]]
    for number, unit in enumerate(output.trace.units):
        at = f"{number:02d}"
        value, pooled = unit.extras["value"], unit.extras["pooled"]
        assert relative(unit.occupancy * value, arrays[f"mask/{at}"]) < 5e-6
        assert relative(value, arrays[f"mask_before/{at}"]) < 5e-6
        assert relative(pooled, arrays[f"avg_fea/{at}"][:, :, 0, 0]) < 5e-6
        np.testing.assert_array_equal(unit.occupancy, arrays[f"gate_on/{at}"])
    np.testing.assert_allclose(metrics.occupancy_rate(output.trace), arrays["on_fraction"], atol=1e-6)


@pytest.mark.parametrize("number", range(3))
def test_input_gradients_as_released(arrays, number):
    gradient, _ = golden_run(arrays, np.eye(3)[number])
    assert relative(as_input_gradient(gradient, arrays), arrays[FIELDS[number]]) < 1e-5


def test_parity_in_float64(arrays):
    """One gradient of the three losses, each scaled to 1."""
    parts = [arrays[f"f64/{field}"] for field in FIELDS]
    scales = [1 / np.max(np.abs(part)) for part in parts]
    with jax.enable_x64(True):
        gradient, (_, output) = golden_run(arrays, scales, x64=True)
    assert relative(as_input_gradient(gradient, arrays), sum(s * part for s, part in zip(scales, parts))) < 1e-6
    assert relative(output.logits, arrays["f64/logits"]) < 1e-6


def test_another_threshold_is_noticed(arrays):
    """Control."""
    variables = with_thresholds(weights_convert.convert(NET, state_dict(arrays)), lambda thre: 1.05 * thre)
    gradient, (_, output) = golden_run(arrays, [1, 0, 0], variables=variables)
    assert relative(output.logits, arrays["logits"]) > 1e-2
    assert relative(as_input_gradient(gradient, arrays), arrays["grad/ce"]) > 1e-2


# --- forms, multiply-adds


@functools.cache
def small():
    """(net, variables, images) with channels on and off."""
    net = manidp.ManiDP(**SMALL)
    return net, with_thresholds(variables_for(net, 16, seed=2), 0.1), some_images(16)


@functools.cache
def run_small(how):
    """(variables) -> output of the small network under the occupancy `how`."""
    net, _, images = small()
    return quick(lambda variables: net.apply(variables, images, occupancy=how))


def test_multiply_adds_by_loops():
    _, variables, images = small()
    output = run_small(occupancy.hard())(variables)
    on = [np.asarray(unit.occupancy) for unit in output.trace.units]
    assert all(0 < o.mean() < 1 for o in on[:2])
    executed = []
    for image in range(len(images)):
        total = 9 * 3 * 4 * 256 + 8 * 5  # stem and classifier
        total += 2 * (4 * 4 + 4 * 4) + (4 * 8 + 8 * 8) + 2 * 8 * 8  # gates
        total += 4 * 8 * 64  # shortcut
        for block, (into, positions) in enumerate([(4, 256), (4, 64)]):
            inner, outer = on[2 * block][image], on[2 * block + 1][image]
            for out in range(len(inner)):
                total += sum(9 * positions for _ in range(into) if inner[out])
                total += sum(9 * positions for source in range(len(inner)) if inner[source] and outer[out])
        executed.append(total)
    assert len(set(executed)) > 1
    np.testing.assert_array_equal(metrics.executed_macs(output.trace), executed)


@pytest.mark.parametrize("net, size", [(manidp.cifar(20), 32), (manidp.imagenet(18), 64)])
def test_formula_equals_the_walk_over_the_jaxpr(net, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    output = jax.eval_shape(net.apply, variables, images)
    assert macs.of_function(lambda v, x: net.apply(v, x).logits, variables, images) == metrics.dense_macs(output.trace)


def test_inner_layers_of_the_gates():
    """Rate 2: halved below 80 channels, whole above."""
    shapes = weights_convert.target_shapes(manidp.imagenet(18))
    inner = {s: shapes["params", f"stage_{s}_1", "mb2", "fc1", "kernel"].shape for s in (1, 2, 3, 4)}
    assert inner == {1: (64, 64), 2: (128, 64), 3: (256, 128), 4: (512, 256)}
    assert shapes["params", "stage_2_0", "mb1", "fc1", "kernel"].shape == (64, 64)


def test_occupancies_multiply_the_saliency():
    """Ones everywhere are thresholds below every saliency; a soft one is in the trace and in the costs."""
    _, variables, _ = small()
    below = run_small(occupancy.hard())(with_thresholds(variables, -1.0))
    np.testing.assert_allclose(run_small(jnp.ones_like)(variables).logits, below.logits, rtol=1e-5, atol=1e-6)
    soft = run_small(occupancy.sigmoid(3.0))(variables)
    for unit in soft.trace.units:
        np.testing.assert_allclose(unit.occupancy, 1 / (1 + np.exp(-3 * (unit.extras["value"] - 0.1))), rtol=1e-5)
    first, second = soft.trace.units[:2]
    np.testing.assert_allclose(second.macs[:, 0], 9 * 256 * np.sum(first.occupancy, axis=1), rtol=1e-6)
    assert second.dense_macs == 9 * 256 * 4 and first.macs == 9 * 256 * 4


# --- conversion


def deeper(arrays, blocks):
    """The state dict of a deeper network of the family: block 1 of each stage repeated."""
    state = state_dict(arrays)
    for stage in (1, 2, 3):
        for key in [key for key in state if key.startswith(f"stage_{stage}.1.")]:
            for block in range(3, blocks):
                state[key.replace(f"stage_{stage}.1.", f"stage_{stage}.{block}.")] = state[key]
    return state


def test_every_key_of_resnet56_is_used(arrays):
    state = {f"module.{key}": value for key, value in deeper(arrays, 9).items()}
    assert len(state) == 208 + 3 * 6 * 22
    variables = weights_convert.convert(manidp.cifar(56), state)
    block = variables["batch_stats"]["stage_3_8"]
    np.testing.assert_array_equal(block["mb2"]["thre"], state["module.stage_3.1.mb2.thre"])
    np.testing.assert_array_equal(block["mb1"]["mask_sum"], state["module.stage_3.1.mb1.mask_sum"])
    kernel = variables["params"]["stage_2_0"]["mb1"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel, state["module.stage_2.0.mb1.fc1.weight"].T)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("stage_1.0.mb1.thre"), "missing batch_stats/stage_1_0/mb1/thre"),
        (lambda s: s.update({"bn_1.thre": np.zeros(1)}), r"unexpected key bn_1.thre"),
        (lambda s: s.update({"conv_1_3x3.mask_sum": np.zeros(16)}), "unexpected key conv_1_3x3.mask_sum"),
        (lambda s: s.update({"stage_1.0.mb1.mask_sum": np.zeros(8)}), "wrong shape stage_1.0.mb1.mask_sum"),
        (lambda s: s.update({"stage_1.0.mb1.running_mean": np.zeros(16)}), "unexpected key stage_1.0.mb1.running_mean"),
    ],
)
def test_misfits_are_listed(arrays, change, message):
    state = state_dict(arrays)
    change(state)
    with pytest.raises(weights_convert.ConversionError, match=message):
        weights_convert.convert(NET, state)


def test_imagenet_names():
    net = manidp.ManiDP(**SMALL, stem="imagenet", shortcut_norm=True)
    rng = np.random.default_rng(0)
    state, draw = {}, lambda name, *shape: state.update({name: rng.normal(size=shape).astype(np.float32)})
    norm = lambda name, c: [draw(f"{name}.{leaf}", c) for leaf in ("weight", "bias", "running_mean", "running_var")]
    draw("conv1_7x7.weight", 4, 3, 7, 7)
    norm("bn1", 4)
    for layer, into, out in (("layer1.0", 4, 4), ("layer2.0", 4, 8)):
        for number, source in ((1, into), (2, out)):
            draw(f"{layer}.conv{number}.weight", out, source, 3, 3)
            norm(f"{layer}.bn{number}", out)
            draw(f"{layer}.mb{number}.mask_sum", out)
            draw(f"{layer}.mb{number}.thre", 1)
            draw(f"{layer}.mb{number}.fc1.weight", out, source)
            draw(f"{layer}.mb{number}.fc2.weight", out, out)
            draw(f"{layer}.mb{number}.fc2.bias", out)
    draw("layer2.0.downsample.0.weight", 8, 4, 1, 1)
    norm("layer2.0.downsample.1", 8)
    draw("fc.weight", 5, 8)
    draw("fc.bias", 5)
    variables = weights_convert.convert(net, state)
    block = variables["params"]["stage_2_0"]
    np.testing.assert_array_equal(block["conv_b"]["kernel"][1, 2, 3, 4], state["layer2.0.conv2.weight"][4, 3, 1, 2])
    np.testing.assert_array_equal(block["downsample"]["bn"]["scale"], state["layer2.0.downsample.1.weight"])
    count = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(variables))
    assert count == sum(value.size for value in state.values())


def test_bad_fields():
    with pytest.raises(ValueError, match="depth: got 50, expected 18 or 34"):
        manidp.imagenet(50)
    with pytest.raises(ValueError, match="depth: got 21"):
        manidp.cifar(21)
    with pytest.raises(ValueError, match="squeeze: got 0"):
        jax.eval_shape(manidp.ManiDP(**SMALL, squeeze=0).init, jax.random.key(0), some_images(16))
