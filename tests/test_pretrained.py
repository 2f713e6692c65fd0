"""The image networks that ship: accurate, and adaptive in fact."""

import jax
import numpy as np
import pytest

from dyn_jax import metrics, networks
from dyn_jax.datasets import cifar10_lossless, digits, to_float
from dyn_jax.gates import ponder_of_trace

QUICK = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize(
    "name", ["skipnet-digits", "skipnet-rl-digits", "dynconv-digits", "sact-digits", "manidp-digits"]
)
def test_saves_multiply_adds_by_the_input(name):
    net, variables = networks.pretrained(name)
    data = digits("test")
    output = jax.jit(net.apply, compiler_options=QUICK)(variables, data.images[:200])
    assert float(metrics.accuracy(output.logits, data.labels[:200])) > 0.96
    executed = np.asarray(metrics.executed_macs(output.trace))
    saved = 1 - executed / metrics.dense_macs(output.trace)
    assert 0.15 < saved.mean() < 0.60
    assert len(np.unique(executed)) >= 5 and saved.std() > 0.005


def test_tokens_halt_at_layers_of_their_own():
    """The shipped A-ViT: every layer is some token's last, images differ in their work, and so do their maps."""
    net, variables = networks.pretrained("avit-digits")
    data = digits("test")
    output = jax.jit(net.apply, compiler_options=QUICK)(variables, data.images[:200])
    assert float(metrics.accuracy(output.logits, data.labels[:200])) > 0.93
    (cost,) = ponder_of_trace(output.trace).values()
    layers = np.asarray(cost.units)
    assert np.mean([(layers == n).any() for n in range(1, net.depth + 1)]) > 0.8
    assert layers.mean(1).std() > 0.3 and len(np.unique(layers, axis=0)) > 150
    saved = 1 - np.asarray(metrics.executed_macs(output.trace)) / metrics.dense_macs(output.trace)
    assert 0.15 < saved.mean() < 0.60


def test_uses_all_experts_by_the_input():
    """The cost is constant; every expert has work, and two images are served by different ones."""
    net, variables = networks.pretrained("vmoe-digits")
    data = digits("test")
    output = jax.jit(net.apply, compiler_options=QUICK)(variables, data.images[:200])
    assert float(metrics.accuracy(output.logits, data.labels[:200])) > 0.96
    assert len(np.unique(np.asarray(metrics.executed_macs(output.trace)))) == 1
    assert (metrics.load_imbalance(output.trace) < 0.3).all()
    moved = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), output.trace)
    assert (metrics.expert_iou(output.trace, moved) < 0.7).all()


def test_one_expert_an_image_and_every_expert_has_work():
    net, variables = networks.pretrained("moe-digits")
    data = digits("test")
    output = jax.jit(net.apply, compiler_options=QUICK)(variables, data.images[:200])
    assert float(metrics.accuracy(output.logits, data.labels[:200])) > 0.95
    (load,) = metrics.expert_load(output.trace)
    assert (load > 0.15).all() and len(load) == 4


CIFAR = [name for name in networks.PRETRAINED if name.endswith("cifar10")]


@pytest.mark.parametrize("name", CIFAR)
def test_loads_in_single_precision_and_is_what_its_name_says(name):
    net, variables = networks.pretrained(name)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert net == networks.untrained(name)


@pytest.mark.parametrize("name", CIFAR)
def test_answers_original_images_and_saves_by_the_input(name, shared_dir):
    """At least half of the units decide by the input, 15 to 60 % of the multiply-adds are saved."""
    data = cifar10_lossless(shared_dir / "data", "test")
    net, variables = networks.pretrained(name)
    run = jax.jit(net.apply, compiler_options=QUICK)
    parts = [run(variables, to_float(data.images[i : i + 100])) for i in (0, 100)]
    logits = np.concatenate([part.logits for part in parts])
    executed = np.concatenate([metrics.executed_macs(part.trace) for part in parts])
    shares = np.concatenate([metrics.example_shares(part.trace) for part in parts])
    assert np.mean(logits.argmax(1) == data.labels[:200]) > 0.85
    assert 0.15 < 1 - executed.mean() / metrics.dense_macs(parts[0].trace) < 0.60
    assert np.mean(shares.std(0) > 0.02) >= 0.5
