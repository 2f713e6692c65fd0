"""Deployed execution: the batched network's answers, and what is off is not computed."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ALL_NETWORKS, image_size, some_images, variables_for

import dyn_jax
from dyn_jax import metrics, networks, occupancy

IMAGES = 6
FAMILIES = (
    *("skipnet rnn sp", "skipnet ff1", "dynconv", "dynconv bottleneck", "sact", "act"),
    *("sdn resnet", "sdn mobilenet", "rdi"),
)


def batched(net, variables, images):
    return jax.jit(lambda x: net.apply(variables, x, occupancy=occupancy.hard()))(images)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    """(network, variables, images, batched output, deployed network)."""
    net = ALL_NETWORKS[request.param]
    size = image_size(net)
    variables, images = variables_for(net, size), some_images(size, IMAGES)
    return net, variables, images, batched(net, variables, images), dyn_jax.deploy(net, variables, image_size=size)


def test_answers_of_the_batched_network(case):
    net, _, images, output, deployed = case
    answers = [deployed(image) for image in images]
    scale = np.abs(output.logits).max()
    for answer, logits in zip(answers, output.logits):
        np.testing.assert_allclose(answer.logits, logits, atol=1e-6 * scale)
    np.testing.assert_array_equal([a.macs for a in answers], metrics.executed_macs(output.trace))
    if output.trace.exits is None:
        assert answers[0].exit is None
    else:
        np.testing.assert_array_equal([a.exit for a in answers], metrics.exits.exit_index(output.trace))
    assert "conditional(" in deployed.compiled.as_text()
