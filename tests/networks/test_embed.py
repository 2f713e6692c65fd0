"""A static network inside the adaptive ones: the same logits with all units on, and clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import networks
from dyn_jax.networks import dynconv, manidp, resnet, sact, sdn_resnet, skipnet

SIZES = {"depths": (2, 2), "widths": (4, 8), "num_classes": 5}
SAME = {**SIZES, "normalization": None}
FAMILIES = {
    "skipnet": skipnet.SkipNet(**SAME, image_size=16, gate="rnn"),
    "skipnet-ff": skipnet.SkipNet(**SAME, image_size=16, gate="ff1"),
    "dynconv": dynconv.DynConv(**SAME),
    "manidp": manidp.ManiDP(**SAME),
    "manidp-norm": manidp.ManiDP(**SAME, shortcut_norm=True),
    "sact": sact.SACT(**SAME, stem="resnet"),
    "act": sact.SACT(**SAME, stem="resnet", mode="act"),
    "sdn": sdn_resnet.resnet56(**SAME, image_size=16, exit_after=(1,)),
}
ones = lambda score: jnp.ones_like(score)


def random_like(net, x, seed=0):
    """Every leaf drawn, variances positive."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    draw = lambda path, leaf: (
        rng.uniform(0.5, 2, leaf.shape) if path[-1].key in ("var", "scale") else rng.normal(0, 0.3, leaf.shape)
    ).astype(np.float32)
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def static():
    x = np.random.default_rng(1).random((6, 16, 16, 3), np.float32)
    net = resnet.ResNet(**SAME)
    variables = random_like(net, x)
    return x, variables, jax.jit(net.apply)(variables, x).logits


def without_halting(variables):
    """h = sigmoid(-40) for every unit: no state but a block's last one has weight."""

    def change(path, leaf):
        names = [part.key for part in path]
        if not any(name.endswith("_halting") for name in names) or names[0] != "params":
            return leaf
        return np.full_like(leaf, -40) if names[-2:] in (["local_conv", "bias"], ["global_conv", "bias"]) else 0 * leaf

    return jax.tree_util.tree_map_with_path(change, variables)


MEASURED = {"skipnet", "dynconv", "manidp-norm"}


@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_units_on_it_is_the_static_network(static, family):
    x, variables, logits = static
    net = FAMILIES[family]
    inside = networks.embed(net, variables, images=x if family in MEASURED else None)
    if family in ("sact", "act"):
        inside = without_halting(inside)
    output = jax.jit(lambda v, x: net.apply(v, x, occupancy=ones))(inside, x)
    got = output.logits if output.trace.exits is None else output.trace.exits[:, -1]
    np.testing.assert_allclose(got, logits, atol=1e-5 * float(jnp.abs(logits).max()))
    if family.startswith("manidp"):
        assert all((unit.extras["value"] == 1).all() for unit in output.trace.units)


def test_measured_shortcuts_do_nothing_in_training_either(static):
    """What goes through the shortcut's norm has the mean and variance that the norm has, and takes away and adds."""
    x, variables, _ = static
    net = FAMILIES["dynconv"]
    inside = networks.embed(net, variables, images=x)
    _, seen = net.apply(inside, x, occupancy=ones, capture_intermediates=True, mutable=["intermediates"])
    y = np.asarray(seen["intermediates"]["layer2_0_downsample"]["conv"]["__call__"][0])
    stats = inside["batch_stats"]["layer2_0_downsample"]["bn"]
    layer = inside["params"]["layer2_0_downsample"]["bn"]
    np.testing.assert_allclose(stats["mean"], y.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], y.var((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(layer["bias"], stats["mean"])
    np.testing.assert_allclose(layer["scale"], np.sqrt(stats["var"] + 1e-5), rtol=1e-6)
    assert stats["var"][:2].max() == stats["var"][-2:].max() == 0 < stats["var"][2:-2].min()  # new channels


def test_bad_input(static):
    x, variables, _ = static
    with pytest.raises(TypeError, match="net: got ResNet, expected one of SkipNet, DynConv"):
        networks.embed(resnet.ResNet(**SAME), variables)
    with pytest.raises(ValueError, match=r"depths \(2, 2\) and widths \(4, 8\), expected \(3, 2\) and \(4, 8\)"):
        networks.embed(dynconv.DynConv(**{**SAME, "depths": (3, 2)}), variables)
    with pytest.raises(ValueError, match="widths"):
        networks.embed(dynconv.DynConv(**{**SAME, "widths": (4, 16)}), variables)
    with pytest.raises(ValueError, match="fc/kernel"):
        networks.embed(dynconv.DynConv(**{**SAME, "num_classes": 7}), variables)
    projected = resnet.ResNet(**SAME, shortcut="B")
    for other in ({}, {"params": {}}, {"params": 3}, None, random_like(projected, x)):
        with pytest.raises(ValueError, match="static: got no variables of a ResNet with option-A"):
            networks.embed(FAMILIES["dynconv"], other)
    broken = {**variables, "params": {**variables["params"], "layer1_1": {}}}
    infinite = {"bias": np.full(4, np.inf, np.float32), "scale": np.ones(4, np.float32)}
    with pytest.raises(ValueError, match="missing params/layer1_1/"):
        networks.embed(FAMILIES["dynconv"], broken)
    with pytest.raises(ValueError, match="static: got 4 NaN or infinite values at params/bn1/bias"):
        networks.embed(FAMILIES["dynconv"], {**variables, "params": {**variables["params"], "bn1": infinite}})
    net = dynconv.DynConv(**SIZES)
    for images, message in (
        (255 * x, r"expected \[0.0, 1.0\]"),
        (np.nan * x, "4608 NaN or infinite"),
        (x[0], "rank 4"),
    ):
        with jax.debug_nans(False), pytest.raises(ValueError, match=f"images: got .*{message}"):
            networks.embed(net, variables, images=images)
    for seed, kind in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(kind, match="seed: got"):
            networks.embed(net, variables, seed=seed)
