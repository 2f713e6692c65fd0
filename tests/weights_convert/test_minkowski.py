"""MinkowskiEngine's state dicts: names, layouts, kernel orders, and what does not fit."""

import jax
import numpy as np
import pytest

import dyn_jax
import weights_convert
from dyn_jax.networks.minkfcnn import MinkowskiFCNN
from dyn_jax.networks.minkunet import MinkUNet
from dyn_jax.sparse3d import offsets
from weights_convert import ConversionError

PLANES = {
    "minkunet-14a-scannet": (32, 64, 128, 256, 128, 128, 96, 96),
    "minkunet-18a-scannet": (32, 64, 128, 256, 128, 128, 96, 96),
    "minkunet-34c-scannet": (32, 64, 128, 256, 256, 128, 96, 96),
    "minkunet-34-s3dis": (32, 64, 128, 256, 256, 256, 256, 256),
}
LAYERS = {"14a": (1,) * 8, "18a": (2,) * 8, "34c": (2, 3, 4, 6, 2, 2, 2, 2), "34": (2, 3, 4, 6, 2, 2, 2, 2)}
PARAMETERS = {
    "minkunet-14a-scannet": 8_024_500,
    "minkunet-18a-scannet": 15_493_172,
    "minkunet-34c-scannet": 37_856_052,
    "minkunet-34-s3dis": 57_164_941,
}
SMALL = {"planes": (4, 4, 6, 6, 6, 4, 4, 4), "layers": (1, 2, 1, 1, 1, 1, 1, 1), "stem_features": 4, "num_classes": 3}
FCNN = {"channels": (2, 3, 4, 5, 6), "embedding": 8, "hidden": 7, "num_classes": 3}


def norm(name, features):
    vectors = {f"{name}.bn.{leaf}": (features,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {**vectors, f"{name}.bn.num_batches_tracked": ()}


def unet_shapes(planes, layers, inputs=3, classes=20, stem=32, stem_size=5):
    """MinkUNet's torch keys and shapes, from its plan."""
    shapes = {"conv0p1s1.kernel": (stem_size**3, inputs, stem), **norm("bn0", stem)}
    strided = ("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")
    transposed = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")
    width = stem
    for number, name in enumerate(strided + transposed):
        out = width if number < 4 else planes[number]
        shapes |= {f"{name}.kernel": (8, width, out), **norm(f"bn{number + 1}" if number < 4 else f"bntr{number}", out)}
        width = out if number < 4 else out + (planes[2], planes[1], planes[0], stem)[number - 4]
        for index in range(layers[number]):
            block, out = f"block{number + 1}.{index}", planes[number]
            shapes |= {f"{block}.conv1.kernel": (27, width, out), f"{block}.conv2.kernel": (27, out, out)}
            shapes |= {**norm(f"{block}.norm1", out), **norm(f"{block}.norm2", out)}
            if width != out:
                shapes |= {f"{block}.downsample.0.kernel": (width, out), **norm(f"{block}.downsample.1", out)}
            width = out
    return {**shapes, "final.kernel": (width, classes), "final.bias": (1, classes)}


def fcnn_shapes(channels=(32, 48, 64, 96, 128), embedding=1024, hidden=512, classes=40):
    """MinkowskiFCNN's torch keys and shapes, from its plan."""
    shapes = {"mlp1.0.linear.weight": (channels[0], 3), **norm("mlp1.1", channels[0])}
    for number, (a, b) in enumerate(zip(channels, channels[1:]), start=1):
        shapes |= {f"conv{number}.0.kernel": (27, a, b), **norm(f"conv{number}.1", b)}
    wide = (sum(channels[1:]), embedding // 4, embedding // 2, embedding)
    for number, (a, b) in enumerate(zip(wide, wide[1:])):
        shapes |= {f"conv5.{number}.0.kernel": (27, a, b), **norm(f"conv5.{number}.1", b)}
    for number, a in ((0, 2 * embedding), (2, hidden)):
        shapes |= {f"final.{number}.0.linear.weight": (hidden, a), **norm(f"final.{number}.1", hidden)}
    return {**shapes, "final.3.linear.weight": (classes, hidden), "final.3.linear.bias": (classes,)}


def drawn(shapes):
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def small_unet():
    module = MinkUNet(**SMALL)
    return module, drawn(unet_shapes(module.planes, module.layers, classes=3, stem=4))


def small_fcnn():
    module = MinkowskiFCNN(**FCNN)
    return module, drawn(fcnn_shapes(module.channels, 8, 7, 3))


@pytest.mark.parametrize("name", sorted(PLANES))
def test_released_sizes(name):
    """Every key of the plan has its leaf, and the sizes are those that were counted."""
    shapes = unet_shapes(
        PLANES[name], LAYERS[name.split("-")[1]], *((6, 13) if name.endswith("s3dis") else (3, 20))
    )  # fmt: skip
    empty = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    counted = sum(int(np.prod(s)) for key, s in shapes.items() if not key.endswith(("mean", "var", "tracked")))
    assert counted == PARAMETERS[name]
    variables = weights_convert.convert(name, empty)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


def test_released_fcnn():
    empty = {key: np.broadcast_to(np.float32(0), shape) for key, shape in fcnn_shapes().items()}
    variables = weights_convert.convert(dyn_jax.networks.minkfcnn.modelnet40(), empty)
    assert variables["params"]["conv5_2_0"]["kernel"].shape == (27, 512, 1024)
    assert variables["params"]["final_0_0"]["kernel"].shape == (2048, 512)


def test_every_leaf_of_a_unet():
    module, state = small_unet()
    got = weights_convert.convert(module, state)
    expected = jax.tree.map(np.shape, jax.eval_shape(module.init, jax.random.key(0), module.example_input()))
    assert jax.tree.map(np.shape, got) == expected
    params, stats = got["params"], got["batch_stats"]
    np.testing.assert_array_equal(params["conv1p1s2"]["kernel"], state["conv1p1s2.kernel"])
    np.testing.assert_array_equal(params["convtr7p2s2"]["kernel"], state["convtr7p2s2.kernel"])
    np.testing.assert_array_equal(params["block2_1"]["conv2"]["kernel"], state["block2.1.conv2.kernel"])
    # square, so that its shape could not tell a transposed one
    assert state["final.kernel"].shape != state["block3.0.downsample.0.kernel"].shape == (4, 6)
    np.testing.assert_array_equal(params["block3_0"]["downsample_0"]["kernel"], state["block3.0.downsample.0.kernel"])
    np.testing.assert_array_equal(params["final"]["kernel"], state["final.kernel"])
    np.testing.assert_array_equal(params["final"]["bias"], state["final.bias"][0])
    np.testing.assert_array_equal(params["bntr4"]["scale"], state["bntr4.bn.weight"])
    np.testing.assert_array_equal(stats["block1_0"]["norm2"]["var"], state["block1.0.norm2.bn.running_var"])
    np.testing.assert_array_equal(
        stats["block3_0"]["downsample_1"]["mean"], state["block3.0.downsample.1.bn.running_mean"]
    )


def test_every_leaf_of_an_fcnn():
    module, state = small_fcnn()
    got = weights_convert.convert(module, state)
    expected = jax.tree.map(np.shape, jax.eval_shape(module.init, jax.random.key(0), module.example_input()))
    assert jax.tree.map(np.shape, got) == expected
    np.testing.assert_array_equal(got["params"]["mlp1_0"]["kernel"], state["mlp1.0.linear.weight"].T)
    np.testing.assert_array_equal(got["params"]["final_2_0"]["kernel"], state["final.2.0.linear.weight"].T)
    np.testing.assert_array_equal(got["params"]["final_3"]["bias"], state["final.3.linear.bias"])
    np.testing.assert_array_equal(got["params"]["conv5_1_0"]["kernel"], state["conv5.1.0.kernel"])
    np.testing.assert_array_equal(got["batch_stats"]["conv4_1"]["mean"], state["conv4.1.bn.running_mean"])


def test_hybrid_order_moves_block_kernels_only():
    module, state = small_unet()
    hybrid, cube = (list(map(tuple, offsets(3, region))) for region in ("hybrid", "cube"))
    in_hybrid = {
        key: value[[cube.index(site) for site in hybrid]]
        if key.startswith("block") and value.shape[:1] == (27,)
        else value
        for key, value in state.items()
    }
    expected = weights_convert.convert(module, state)
    got = weights_convert.convert(module, in_hybrid, kernel_order="hybrid")
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    unmoved = weights_convert.convert(module, in_hybrid)
    same = jax.tree.map(np.array_equal, unmoved["params"], expected["params"])
    different = {
        (*map(lambda k: k.key, path),) for path, equal in jax.tree_util.tree_leaves_with_path(same) if not equal
    }
    assert different == {
        (f"block{stage + 1}_{index}", conv, "kernel")
        for stage, count in enumerate(SMALL["layers"])
        for index in range(count)
        for conv in ("conv1", "conv2")
    }


@pytest.mark.parametrize("network", ["resnet-20-cifar10", MinkowskiFCNN(**FCNN)], ids=["ResNet", "MinkowskiFCNN"])
def test_hybrid_order_of_another_family_is_refused(network):
    with pytest.raises(ValueError, match="kernel_order: got 'hybrid' for a (ResNet|MinkowskiFCNN), expected 'cube'"):
        weights_convert.convert(network, {}, kernel_order="hybrid")


def test_unknown_kernel_order():
    module, state = small_unet()
    with pytest.raises(
        ValueError, match="kernel_order: got 'cubic', expected one of cube, hybrid; did you mean 'cube'"
    ):
        weights_convert.convert(module, state, kernel_order="cubic")


def test_every_misfit_is_listed_at_once():
    module, state = small_unet()
    state["block2.1.conv9.kernel"] = state.pop("block2.1.conv1.kernel")
    state["final.bias"] = state["final.bias"][0]
    state["conv0p1s1.weight"] = state.pop("conv0p1s1.kernel")
    state["block3.0.downsample.0.kernel"] = state["block3.0.downsample.0.kernel"].T
    state["bn0.weight"] = state.pop("bn0.bn.weight")
    state["bn4.bn.running_var"] = np.full(6, np.inf, np.float32)
    with pytest.raises(ConversionError) as error:
        weights_convert.convert(module, state)
    for line in (
        "unexpected key block2.1.conv9.kernel (27, 4, 4)",
        "missing params/block2_1/conv1/kernel (27, 4, 4)",
        "wrong shape final.bias: got (3,), expected (1, 3)",
        "unexpected key conv0p1s1.weight (125, 3, 4)",
        "missing params/conv0p1s1/kernel (125, 3, 4)",
        "wrong shape block3.0.downsample.0.kernel: got (6, 4), expected (4, 6)",
        "unexpected key bn0.weight (4,)",
        "missing params/bn0/scale (4,)",
        "not finite bn4.bn.running_var",
    ):
        assert f"\n  {line}" in str(error.value)
    module, state = small_fcnn()
    state["final.0.0.linear.weight"] = state["final.0.0.linear.weight"].T
    with pytest.raises(
        ConversionError, match=r"1 of .*\n  wrong shape final.0.0.linear.weight: got \(16, 7\), expected \(7, 16\)"
    ):
        weights_convert.convert(module, state)


def test_a_checkpoint_file(tmp_path):
    """As STS writes it: the state dict under ``state_dict``, beside other entries."""
    torch = pytest.importorskip("torch")
    from weights_convert.torch_io import read_state_dict

    module, state = small_unet()
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}
    torch.save({"iteration": 3, "state_dict": tensors, "arch": "Res16UNet34C"}, tmp_path / "net.pth")
    got = weights_convert.convert(module, read_state_dict(tmp_path / "net.pth"), kernel_order="hybrid")
    jax.tree.map(np.testing.assert_array_equal, got, weights_convert.convert(module, state, kernel_order="hybrid"))
