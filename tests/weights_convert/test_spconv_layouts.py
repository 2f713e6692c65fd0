"""Cylinder3D's state dicts in both layouts of spconv, and what does not fit."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

import dyn_jax
import weights_convert
from dyn_jax.networks.checkpoint import target_shapes
from dyn_jax.sparse3d import Cylinder
from weights_convert import ConversionError
from weights_convert.tables import cylinder3d

SMALL = {"cylinder": Cylinder(grid=(48, 36, 32)), "features": 2, "cell_features": 4, "num_classes": 5}
ASYMMETRIC = {"conv1": (3, 1, 3), "conv1_2": (1, 3, 3), "conv2": (1, 3, 3), "conv3": (3, 1, 3)}
UP = {"trans_dilao": (3, 3, 3), "conv1": (1, 3, 3), "conv2": (3, 1, 3), "conv3": (3, 3, 3), "up_subm": (3, 3, 3)}
RECON = {"conv1": (3, 1, 1), "conv1_2": (1, 3, 1), "conv1_3": (1, 1, 3)}


def shapes_of(features=32, cells=16, classes=20):
    """The keys and shapes of the authors' checkpoint, from its plan."""
    shapes = {}

    def norm(name, width):
        shapes.update({f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def linear(name, a, b):
        shapes.update({f"{name}.weight": (b, a), f"{name}.bias": (b,)})

    widths, generator = (9, 64, 128, 256, 256), "cylinder_3d_generator"
    norm(f"{generator}.PPmodel.0", 9)
    for number, (a, b) in enumerate(zip(widths, widths[1:])):
        linear(f"{generator}.PPmodel.{3 * number + 1}", a, b)
        if number < 3:
            norm(f"{generator}.PPmodel.{3 * number + 2}", b)
    linear(f"{generator}.fea_compression.0", 256, cells)

    def block(name, kernels, norms, first, width, wide_input):
        place = f"cylinder_3d_spconv_seg.{name}"
        for conv, size in kernels.items():
            shapes[f"{place}.{conv}.weight"] = (*size, first if conv in wide_input else width, width)
        for one in norms:
            norm(f"{place}.{one}", width)

    turned = {name: size[1::-1] + size[2:] for name, size in ASYMMETRIC.items()}
    norms = ("bn0", "bn0_2", "bn1", "bn2")
    block("downCntx", turned, norms, cells, features, ("conv1", "conv2"))
    width = features
    for number in range(2, 6):
        block(f"resBlock{number}", {**ASYMMETRIC, "pool": (3, 3, 3)}, norms, width, 2 * width, ("conv1", "conv2"))
        width *= 2
    first = width
    for number in range(4):
        block(f"upBlock{number}", UP, ("trans_bn", "bn1", "bn2", "bn3"), first, width, ("trans_dilao",))
        first, width = width, width // 2
    block("ReconNet", RECON, ("bn0", "bn0_2", "bn0_3"), first, first, ())
    shapes["cylinder_3d_spconv_seg.logits.weight"] = (3, 3, 3, 2 * first, classes)
    shapes["cylinder_3d_spconv_seg.logits.bias"] = (classes,)
    return shapes


def small_state():
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes_of(2, 4, 5).items()}


def second_layout(state):
    """What LGM's release keeps: [out, x, y, z, in], and of conv3 the first slice along x."""
    cut = {key: value[:1] if re.search(r"upBlock\d\.conv3\.weight", key) else value for key, value in state.items()}
    return {key: np.moveaxis(value, 4, 0) if value.ndim == 5 else value for key, value in cut.items()}


def test_keys_and_shapes_are_the_authors(shared_dir):
    lines = (shared_dir / "reference" / "keys_cylinder3d.txt").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("cylinder_3d")]
    first = {key: tuple(int(n) for n in re.findall(r"\d+", shape)) for key, shape, _ in rows}
    second = {key: tuple(int(n) for n in re.findall(r"\d+", shape)) for key, _, shape in rows}
    assert first == shapes_of()
    zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape in first.items()}
    assert second == {key: value.shape for key, value in second_layout(zeros).items()}


@pytest.mark.parametrize("name, classes", [("semantickitti", 20), ("nuscenes", 17)])
def test_every_leaf_has_a_key(name, classes):
    net = dyn_jax.networks.create(f"cylinder3d-{name}")
    expected = target_shapes(net)
    shapes = {key: shape for key, shape in shapes_of(classes=classes).items() if not key.endswith("tracked")}
    assert len(expected) == len(shapes)
    assert (
        sum(int(np.prod(leaf.shape)) for path, leaf in expected.items() if path[0] == "params")
        == {
            "semantickitti": 49_586_486,
            "nuscenes": 49_586_486 - 3 * (27 * 128 + 1),
        }[name]
    )


def test_both_layouts_give_the_same():
    net, state = dyn_jax.networks.create("cylinder3d-semantickitti", **SMALL), small_state()
    first = weights_convert.convert(net, state)
    second = weights_convert.convert(net, {f"module.{key}": value for key, value in second_layout(state).items()})
    jax.tree.map(np.testing.assert_array_equal, first, second)
    kernel = state["cylinder_3d_spconv_seg.upBlock1.conv3.weight"]
    np.testing.assert_array_equal(first["params"]["upBlock1"]["conv3"]["kernel"], kernel[0].reshape(9, 16, 16))
    own = weights_convert.convert(net.clone(neighbourhoods="own"), state)
    np.testing.assert_array_equal(own["params"]["upBlock1"]["conv3"]["kernel"], kernel.reshape(27, 16, 16))


def test_unused_slices_are_named():
    state = small_state()
    assert cylinder3d.unused_slices(state) == {
        f"cylinder_3d_spconv_seg.upBlock{number}.conv3.weight": 18 for number in range(4)
    }
    assert cylinder3d.unused_slices(second_layout(state)) == {}


def test_what_does_not_fit():
    net, state = dyn_jax.networks.create("cylinder3d-semantickitti", **SMALL), small_state()
    other = second_layout(state)
    with pytest.raises(ConversionError, match=r"upBlock0.conv3.weight: got \(9, 32, 32\), expected \(27, 32, 32\)"):
        weights_convert.convert(net.clone(neighbourhoods="own"), other)
    key = "cylinder_3d_spconv_seg.resBlock5.pool.weight"
    with pytest.raises(ValueError, match=r"in the layout of spconv 1.2 .* and 1 in that of 2.x .*resBlock5.pool"):
        weights_convert.convert(net, {**state, key: other[key]})
    with pytest.raises(ValueError, match=r"resBlock5.pool.weight: got shape \(5, 5, 5, 32, 32\), expected"):
        weights_convert.convert(net, {**state, key: np.zeros((5, 5, 5, 32, 32), np.float32)})
    del state[key]
    with pytest.raises(ConversionError, match="missing params/resBlock5/pool/kernel"):
        weights_convert.convert(net, state)
