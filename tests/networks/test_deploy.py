"""Deployed execution: the batched network's answers, and what is off is not computed."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest
from catalogue import ALL_NETWORKS, image_size, some_images, variables_for
from compiled import USERS, exact_jit
from flax import traverse_util

import dyn_jax
from dyn_jax import metrics, occupancy
from dyn_jax.deployed import Deployed
from dyn_jax.types import Output

IMAGES = 6


class Case(NamedTuple):
    """A network of the catalogue and a seed for its weights; a layer and a bias that keeps it off; other fields."""

    name: str
    seed: int
    layer: str
    bias: tuple[str, float] | None = None
    fields: Mapping[str, Any] = MappingProxyType({})


CASES = (  # by these seeds some images have the layer on and some off
    Case("skipnet rnn sp", 6, "group2_layer1"),
    Case("dynconv", 1, "layer2_1", ("layer2_1_masker/fc/bias", -1e3)),
    Case("dynconv bottleneck", 1, "layer1_0", ("layer1_0_masker/fc/bias", -1e3)),
    Case("sact", 1, "block1_unit2", ("block1_unit1_halting/local_conv/bias", 1e3)),
    Case("act", 1, "block1_unit2", ("block1_unit1_halting/global_conv/bias", 1e3)),
    Case("sdn resnet", 3, "fc"),
    Case("rdi", 4, "fc", None, {"threshold": 0.43}),
)


class Made(NamedTuple):
    case: Case
    variables: Any
    images: jax.Array
    batched: Any  # variables -> Output of all images
    output: Output
    deployed: Deployed


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def made(request):
    case = request.param
    net = ALL_NETWORKS[case.name].clone(**case.fields)
    size = image_size(net)
    variables, images = variables_for(net, size, case.seed), some_images(size, IMAGES)
    batched = exact_jit(lambda variables: net.apply(variables, images, occupancy=occupancy.hard()))
    deployed = dyn_jax.deploy(net, variables, image_size=size, compiler_options=USERS)
    return Made(case, variables, images, batched, batched(variables), deployed)


def changed(variables, where: str, value: float):
    """Variables with `value` in every parameter at or below the path `where`."""
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    hit = {path: np.full_like(leaf, value) for path, leaf in flat.items() if f"{path}/".startswith(f"{where}/")}
    assert hit
    return {**variables, "params": traverse_util.unflatten_dict({**flat, **hit}, sep="/")}


def off_images(case: Case, output: Output) -> np.ndarray:
    """Images for which the case's layer is off: the unit of that name, or the last stage."""
    if output.trace.exits is not None:
        return np.flatnonzero(metrics.exits.exit_index(output.trace) < output.trace.exits.shape[1] - 1)
    unit = next(unit for unit in output.trace.units if unit.name == case.layer)
    return np.flatnonzero(~np.asarray(unit.on).reshape(IMAGES, -1).any(1))


def test_answers_of_the_batched_network(made):
    answers = [made.deployed(image) for image in made.images]
    logits = np.asarray(made.output.logits)
    np.testing.assert_allclose([a.logits for a in answers], logits, rtol=1e-6, atol=1e-6 * np.abs(logits).max())
    np.testing.assert_array_equal([a.macs for a in answers], metrics.executed_macs(made.output.trace))
    if made.output.trace.exits is None:
        assert answers[0].exit is None
    else:
        np.testing.assert_array_equal([a.exit for a in answers], metrics.exits.exit_index(made.output.trace))
        assert len({int(a.exit) for a in answers}) > 1


def test_what_is_off_is_not_computed(made):
    assert "conditional(" in made.deployed.compiled.as_text()
    case, variables = made.case, made.variables
    if case.bias is not None:
        variables = changed(variables, *case.bias)
    output, poisoned = made.batched(variables), changed(variables, case.layer, np.nan)
    off = off_images(case, output)
    assert len(off)
    with jax.debug_nans(False):
        for i in off[:2]:
            answer = made.deployed.compiled(poisoned, made.images[i])
            np.testing.assert_allclose(
                answer.logits, output.logits[i], rtol=1e-6, atol=1e-6 * np.abs(output.logits).max()
            )
        assert not np.isfinite(made.batched(poisoned).logits[off]).any()  # NaN times 0: there it is computed
        for i in set(range(IMAGES)) - set(off.tolist()):
            assert not np.isfinite(made.deployed.compiled(poisoned, made.images[i]).logits).all()


@pytest.fixture(scope="module")
def small():
    net = ALL_NETWORKS["sdn resnet"]
    return net, variables_for(net, net.image_size)


def test_other_occupancies_and_training_evaluate_everything(small):
    net, variables = small
    images = some_images(net.image_size)

    def primitives(net, **arguments) -> str:
        return str(jax.make_jaxpr(lambda x: net.apply(variables, x, mutable=["batch_stats"], **arguments))(images))

    conditional = net.clone(execution="conditional")
    assert " cond[" in primitives(conditional, occupancy=occupancy.hard())
    assert " cond[" not in primitives(conditional, occupancy=occupancy.sigmoid(10.0))
    assert " cond[" not in primitives(conditional, occupancy=occupancy.hard(), train=True)
    assert " cond[" not in primitives(net, occupancy=occupancy.hard())
    shapes = [jax.eval_shape(each.init, jax.random.key(0), images) for each in (net, conditional)]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])


@pytest.mark.parametrize(
    "image, error, message",
    [
        (np.zeros((1, 16, 16, 3), np.float32), ValueError, r"image: got a batch \(1, 16, 16, 3\), expected one image"),
        (np.zeros((16, 8, 3), np.float32), ValueError, r"image: got shape \(16, 8, 3\), expected \(16, 16, 3\)"),
        (np.zeros((16, 16, 3), np.uint8), TypeError, "image: got dtype uint8"),
        ([[0.0]], TypeError, "image: got list"),
        (np.full((16, 16, 3), 9.0), ValueError, r"image: got values in \[9, 9\], expected \[0"),
    ],
)
def test_images_that_do_not_fit(small, image, error, message):
    deployed = Deployed(small[0], small[1], (16, 16, 3), None)
    with pytest.raises(error, match=message):
        deployed(image)
    with pytest.raises(TypeError, match="image: got a traced array"):
        jax.eval_shape(deployed, np.zeros((16, 16, 3), np.float32))


def test_networks_that_cannot_be_deployed(small):
    net, variables = small
    unsupported: Any = ((ALL_NETWORKS["manidp"], "ManiDP"), (nn.Dense(3), "Dense"), (dict, "dict"))
    for wrong, name in unsupported:
        with pytest.raises(ValueError, match=f"net: got {name}, expected a SkipNet, SDN, DynConv or SACT"):
            dyn_jax.deploy(wrong, {})
    with pytest.raises(ValueError, match="image_size: got 32, expected the network's own, 16"):
        dyn_jax.deploy(net, variables, image_size=32)
    with pytest.raises(ValueError, match="image_size: got None, expected height and width: a DynConv takes any"):
        dyn_jax.deploy(ALL_NETWORKS["dynconv"], {})
    with pytest.raises(ValueError, match="variables: .* leaves do not fit the SDN: missing"):
        dyn_jax.deploy(net, {"params": {}})
    with pytest.raises(TypeError, match="variables: got NoneType, expected a mapping"):
        dyn_jax.deploy(net, None)
    with pytest.raises(ValueError, match="execution: got 'lazy', expected one of conditional, dense"):
        jax.eval_shape(net.clone(execution="lazy").apply, variables, some_images(16))
