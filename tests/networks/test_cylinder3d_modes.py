"""Cylinder3D beside the authors' arrays in its other two modes: own neighbourhoods, and the batch's statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from compiled import quick_jit
from test_cylinder3d import CAPACITY, labels_of, network, points_of, scores_of
from test_cylinder3d import arrays as arrays
from test_cylinder3d import state as state

import weights_convert


def evaluated(net, state, points, labels, **given):
    """(cross-entropy, (output, statistics), gradient by the features of the points)."""
    variables = weights_convert.convert(net, state)

    def loss(features, variables):
        how = {"capacity": CAPACITY, "mutable": ["batch_stats"], **given}
        output, updated = net.apply(variables, points.replace(features=features), **how)
        log_probability = jax.nn.log_softmax(scores_of(output))
        own = jnp.take_along_axis(log_probability, labels[:, None], axis=1)[:, 0]
        return -jnp.sum(jnp.where(labels != 0, own, 0)) / jnp.sum(labels != 0), (output, updated)

    (value, found), gradient = quick_jit(jax.value_and_grad(loss, has_aux=True))(points.features, variables)
    return value, found, gradient


def test_own_neighbourhoods_are_another_network(arrays, state):
    points, _ = points_of(arrays, "b1")
    net = network(neighbourhoods="own")
    value, (output, _), gradient = evaluated(net, state, points, labels_of(arrays, "b1"))
    logits = arrays["b1/nominal/voxel_logits"]
    np.testing.assert_allclose(scores_of(output)[: len(logits)], logits, atol=2e-5)  # of 22
    assert np.abs(logits - arrays["b1/voxel_logits"]).max() > 10
    np.testing.assert_allclose(value, arrays["b1/nominal/ce"], rtol=1e-5)
    expected = arrays["b1/nominal/grad_ce_ptfeat_0"]
    assert np.linalg.norm(gradient - expected) <= 1e-5 * np.linalg.norm(expected)


def test_batch_statistics(arrays, state):
    """A hundred rows more than there are points do not count."""
    net, (points, _) = network(), points_of(arrays, "b1", 2100)
    value, (output, updated), gradient = evaluated(net, state, points, labels_of(arrays, "b1"), train=True)
    logits = arrays["b1/train/voxel_logits"]
    # of 9. In float64 our network is 3.3e-4 from the file but 4e-5 from itself in float32 (running statistics: 3e-6 and
    # 4e-7 relative): the rounding is the file's; 70 rows decide the deepest norms
    np.testing.assert_allclose(scores_of(output)[: len(logits)], logits, atol=5e-4)
    after = {key[15:]: value for key, value in arrays.items() if key.startswith("b1/train/after/")}
    moved = weights_convert.convert(net, {**state, **after})["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), updated["batch_stats"], moved)
    np.testing.assert_allclose(value, arrays["b1/train/ce"], rtol=1e-5)
    expected = arrays["b1/train/grad_ce_ptfeat_0"]
    # The file is off by its own rounding, which begins with 6e-6 of the first layer's mean and grows to 2e-5 of the
    # deepest, of 70 rows: our gradient is 4e-6 from itself in float64, and 2.9e-3 from it.
    assert np.linalg.norm(gradient[:2000] - expected) <= 5e-3 * np.linalg.norm(expected)
    assert not np.any(gradient[2000:])
