"""Strict both ways: a state dict fits exactly, or every misfit is listed and nothing comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import dyn_jax
import weights_convert
from weights_convert import ConversionError

SMALL = {"depths": (1, 1), "widths": (4, 8), "num_classes": 3}
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def small(name="skipnet-sp-rnn-38-cifar10"):
    return dyn_jax.networks.create(name, **SMALL)


def torch_state(module):
    """The state dict that the authors' code would write, from the shapes of the Flax variables."""
    rng = np.random.default_rng(0)
    state = {}
    for path, leaf in weights_convert.target_shapes(module).items():
        *layers, kind = path[1:]
        value = rng.normal(size=leaf.shape).astype(np.float32)
        layer = layers[-1]
        if layers[0].startswith("group") and "_ds" in layers[0]:
            prefix = f"{layers[0]}.{0 if layer == 'conv' else 1}"
        elif layers[0].startswith("group") and "_gate" in layers[0]:
            prefix = f"{layers[0]}.1"
        else:
            prefix = ".".join(layers)
        if layer.startswith("bn"):
            state[f"{prefix}.{NORM[kind]}"] = value
        elif kind.startswith(("weight_", "bias_")):
            state[f"{prefix}.{kind}_l0"] = value.T
        elif kind == "kernel" and "_gate" in layers[0]:
            state[f"{prefix}.weight"] = value.T[:, :, None, None]
        elif kind == "kernel":
            state[f"{prefix}.weight"] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        else:
            state[f"{prefix}.{kind}"] = value
    for key in list(state):
        if "_ds" in key:  # the released network lists the projection twice
            state[key.replace("_ds", "_layer").replace(".", ".downsample.", 1)] = state[key]
    return state


def test_every_leaf_arrives_in_flax_order():
    state = torch_state(small())
    got = weights_convert.convert(small(), state)
    expected = jax.tree.map(np.shape, jax.eval_shape(small().init, jax.random.key(0), np.zeros((1, 32, 32, 3), "f4")))
    assert jax.tree.map(np.shape, got) == expected
    kernel = got["params"]["group1_layer0"]["conv1"]["kernel"]
    assert kernel[2, 1, 3, 0] == state["group1_layer0.conv1.weight"][0, 3, 2, 1]
    assert got["params"]["fc"]["kernel"][5, 1] == state["fc.weight"][1, 5]
    assert got["params"]["control"]["rnn"]["weight_ih"][3, 17] == state["control.rnn.weight_ih_l0"][17, 3]
    assert got["batch_stats"]["group2_ds0"]["bn"]["var"][2] == state["group2_ds0.1.running_var"][2]


@pytest.mark.parametrize("change", ["module. prefix", "num_batches_tracked", "both"])
def test_prefix_and_step_counters_change_nothing(change):
    state = torch_state(small())
    changed = dict(state)
    if change != "module. prefix":
        changed["bn1.num_batches_tracked"] = np.int64(7)
    if change != "num_batches_tracked":
        changed = {f"module.{key}": value for key, value in changed.items()}
    a, b = weights_convert.convert(small(), state), weights_convert.convert(small(), changed)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_half_precision_and_byte_orders():
    state = torch_state(small())
    halved = {key: jnp.asarray(value, jnp.bfloat16) for key, value in state.items()}
    got = weights_convert.convert(small(), halved)
    expected = weights_convert.convert(small(), {key: value.astype(np.float32) for key, value in halved.items()})
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
    turned = weights_convert.convert(small(), {key: value.astype(">f4") for key, value in state.items()})
    jax.tree.map(np.testing.assert_array_equal, turned, weights_convert.convert(small(), state))
    assert all(leaf.dtype.isnative for leaf in jax.tree.leaves(turned))


def test_every_problem_is_listed_at_once():
    state = torch_state(small())
    del state["fc.bias"]
    state["fc.weights"] = np.zeros((3, 8), np.float32)
    state["conv1.weight"] = np.zeros((4, 3, 5, 5), np.float32)
    state["bn1.bias"] = np.full(4, 1e60)  # finite as it comes, infinite as the network has it
    state["group2_layer0.downsample.0.weight"] = state["group2_ds0.0.weight"] + 1
    state["group1_layer0.conv1.weight"] = np.ones((4, 4, 3, 3), np.int8)  # quantised
    with pytest.raises(ConversionError) as error:
        weights_convert.convert(small(), state)
    text = str(error.value)
    assert "missing params/fc/bias (3,)" in text
    assert "unexpected key fc.weights (3, 8)" in text
    assert "wrong shape conv1.weight: got (4, 3, 5, 5), expected (4, 3, 3, 3)" in text
    assert "not finite bn1.bias" in text
    assert "group2_ds0.0.weight and group2_layer0.downsample.0.weight are one layer" in text
    assert "integers group1_layer0.conv1.weight: got int8, expected floats" in text
    assert "6 of " in text


def test_running_statistics_of_a_convolution_are_unexpected():
    state = torch_state(small())
    state["conv1.running_mean"] = np.zeros(4, np.float32)
    with pytest.raises(ConversionError, match=r"unexpected key conv1.running_mean"):
        weights_convert.convert(small(), state)


def test_another_network_is_refused_and_named():
    with pytest.raises(ConversionError, match=r"^dynconv-8-cifar10: .*unexpected key group1_layer0"):
        try:
            weights_convert.convert("dynconv-8-cifar10", torch_state(small()))
        except ConversionError as error:
            raise ConversionError(str(error).replace("\n", " ")) from None


@pytest.mark.parametrize(
    "state, kind, words",
    [([1, 2], TypeError, "list"), ({"conv1.weight": "x"}, TypeError, "str"), ({}, ConversionError, "missing")],
)
def test_what_is_no_state_dict(state, kind, words):
    with pytest.raises(kind, match=words):
        weights_convert.convert(small(), state)


def test_networks_that_are_none_and_fields_that_would_be_lost():
    for network, fields, words in (
        (type(small()), {}, "got <type>, expected a name"),
        (small(), {"num_classes": 5}, "num_classes, expected a"),
    ):
        with pytest.raises(TypeError, match=f"network: .*{words}"):
            weights_convert.convert(network, torch_state(small()), **fields)
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"state_dict\['fc.bias'\]: .*requires grad"):
        weights_convert.convert(small(), {"fc.bias": torch.nn.Parameter(torch.zeros(3))})


def test_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match="resnet-32-cifar10"):
        weights_convert.convert("resnet-32-cifar", {})


@pytest.mark.torch
@pytest.mark.parametrize(
    "file, claimed", [("resnet20-12fca82f", 91.7), ("resnet32-d509ac18", 92.6), ("resnet56-4bfd9763", 93.4)]
)
def test_published_weights_reach_their_clean_accuracy(shared_dir, file, claimed):
    """On 500 original test images, within three binomial standard errors."""
    pytest.importorskip("torch")
    from weights_convert.torch_io import read_state_dict

    name = f"resnet-{file[6:8]}-cifar10"
    variables = weights_convert.convert(name, read_state_dict(shared_dir / "data" / "checkpoints" / f"{file}.th"))
    with np.load(shared_dir / "data" / "cifar10_lossless_test.npz") as data:
        images, labels = data["image"].astype(np.float32) / 255, data["label"]
    logits = jax.jit(dyn_jax.networks.create(name).apply)(variables, images).logits
    accuracy = 100 * float(np.mean(np.argmax(logits, -1) == labels))
    print(f"{name}: {accuracy:.1f} % of {len(labels)} (claimed {claimed})")
    assert abs(accuracy - claimed) < 300 * (claimed / 100 * (1 - claimed / 100) / len(labels)) ** 0.5


def test_flat_paths_are_what_the_network_has():
    flat = traverse_util.flatten_dict(weights_convert.convert(small(), torch_state(small())))
    assert set(flat) == set(weights_convert.target_shapes(small()))
