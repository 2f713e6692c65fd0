"""Equal blocks in one loop: the same answers, traces and gradients as one after the other, and smaller programs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import networks, occupancy
from dyn_jax.evaluation import check
from dyn_jax.networks import resnet, skipnet

SMALL = {"widths": (4, 8, 8), "num_classes": 3}
NETWORKS = {
    "resnet": lambda n, **f: resnet.ResNet(depths=(n, n, n), **SMALL, **f),
    "resnet-b": lambda n, **f: resnet.ResNet(depths=(n, n, n), shortcut="B", block="bottleneck", **SMALL, **f),
    "skipnet": lambda n, **f: skipnet.SkipNet(depths=(n, n, n), image_size=8, **SMALL, **f),
}
SIZE = {"resnet": 8, "resnet-b": 8, "skipnet": 8}


def made(name, blocks, **fields):
    images = np.random.default_rng(0).random((2, SIZE[name], SIZE[name], 3), np.float32)
    plain, looped = NETWORKS[name](blocks, scan_from=None), NETWORKS[name](blocks, scan_from=2, **fields)
    shapes = jax.eval_shape(plain.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    draw = lambda leaf: np.abs(0.5 + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
    signed = lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
    variables = {kind: jax.tree.map(draw if kind == "batch_stats" else signed, tree) for kind, tree in shapes.items()}
    return plain, looped, variables, images


HOW = (("skipnet", occupancy.hard(), False), ("skipnet", occupancy.sigmoid(3.0), True))  # without gates: either


@pytest.mark.parametrize("name, how, remat", [*HOW, ("resnet", None, False), ("resnet-b", None, True)])
def test_looped_equals_unrolled(name, how, remat):
    plain, looped, variables, images = made(name, 4, remat=remat)

    def of(net):
        def total(x):
            output = net.apply(variables, x, occupancy=how)
            scores = sum((jnp.sum(unit.occupancy * unit.macs) for unit in output.trace.units), start=0.0)
            return jnp.sum(output.logits[:, 0]) + 1e-4 * scores, output

        return jax.jit(jax.grad(total, has_aux=True))(images)

    (g, a), (h, b) = of(plain), of(looped)
    assert jax.tree.structure(a) == jax.tree.structure(b)  # names, static multiply-adds, dense prices
    for one, other in zip(jax.tree.leaves((g, a)), jax.tree.leaves((h, b))):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(one).max())))
    assert float(np.abs(g).max()) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_variables_know_nothing_of_the_loop(name):
    plain, looped, _, images = made(name, 3)
    shapes = [jax.eval_shape(net.init, jax.random.key(0), images) for net in (plain, looped)]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])


def convolutions(net, variables, images):
    program = jax.jit(lambda v, x: net.apply(v, x).logits).lower(variables, images).as_text(debug_info=False)
    return program.count("stablehlo.convolution") + program.count("call @grouped_pixels_conv")


@pytest.mark.parametrize("name", NETWORKS)
def test_programs_grow_with_different_blocks(name):
    few, many = made(name, 4), made(name, 8)
    assert convolutions(few[1], *few[2:]) == convolutions(many[1], *many[2:])
    assert convolutions(few[0], *few[2:]) < convolutions(many[0], *many[2:])


@pytest.mark.parametrize("name, deep", [("skipnet", 14), ("resnet", 65)])
def test_deep_ones_have_loops_by_default(name, deep):
    """Of 12 equal blocks and more, of a ResNet 64; a block less in the last stages, and these have none."""
    for blocks, loops in ((deep, True), (deep - 1, False)):
        _, looped, *given = made(name, blocks)
        assert (convolutions(NETWORKS[name](blocks), *given) == convolutions(looped, *given)) == loops


def test_remat_needs_less_memory():
    """Of the gradient of a deep stage: what its loop keeps for the backward pass is the larger part."""

    def temporaries(remat):
        _, net, variables, images = made("resnet", 12, remat=remat)
        gradient = jax.grad(lambda x: jnp.sum(net.apply(variables, x).logits[:, 0]))
        return jax.jit(gradient).lower(jnp.tile(images, (16, 1, 1, 1))).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(True) < 0.8 * temporaries(False)


def test_training_and_random_gates_stay_unrolled():
    _, looped, variables, images = made("skipnet", 3)
    output, moved = looped.apply(
        variables, images, train=True, mutable=["batch_stats"], rngs={"gate": jax.random.key(0)}
    )
    assert np.isfinite(output.logits).all()
    before, after = (tree["group1_layer1"]["bn1"]["mean"] for tree in (variables["batch_stats"], moved["batch_stats"]))
    assert not np.array_equal(before, after)


def test_checks_find_in_a_loop_what_they_find_without():
    """The default of a deep network: its derivative comes out of a scan."""
    plain, looped, variables, images = made("resnet", 3)
    given = {"eps": 0.1, "key": jax.random.key(0)}
    found = [check(partial(net.apply, variables), images, jnp.array([0, 1]), **given) for net in (plain, looped)]
    assert [finding.code for finding in found[0]] == [finding.code for finding in found[1]]


def test_registry_passes_the_choice_on():
    assert networks.create("resnet-20-cifar10", scan_from=2).scan_from == 2


@pytest.mark.parametrize("name", ["resnet-20-cifar10", "skipnet-sp-rnn-38-cifar10"])
def test_one_block_is_no_loop(name):
    """A block alone may change its shape, which no loop could carry."""
    net = networks.create(name, scan_from=1)
    with pytest.raises(ValueError, match="scan_from: got 1, expected"):
        variables = jax.eval_shape(networks.create(name).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        jax.eval_shape(net.apply, variables, jnp.zeros((1, 32, 32, 3)))
