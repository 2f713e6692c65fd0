"""What a network relies on in every gate of the catalogue."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ALL_GATES, drawn, gate_scores
from compiled import quick_jit


@pytest.mark.parametrize("name", ALL_GATES)
def test_scores_belong_to_their_example_and_can_be_moved(name):
    gate, features, elements = ALL_GATES[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *features)), jnp.float32)
    first = (x, x) if name == "recurrent" else (x,)
    shapes = jax.eval_shape(gate.init, jax.random.key(0), *((first, x) if name == "recurrent" else first))
    variables = drawn(shapes)
    run = quick_jit(lambda x: gate_scores(gate, variables, x))
    scores = run(x)
    assert scores.shape == (3, *elements) and np.isfinite(scores).all()
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(run(x[order]), scores[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gate_scores(gate, variables, x), scores, rtol=1e-4, atol=1e-5)
    slopes = quick_jit(jax.grad(lambda x: gate_scores(gate, variables, x)[0].sum()))(x)
    assert np.isfinite(slopes).all()
    assert np.abs(slopes[0]).max() > 0 and np.abs(slopes[1:]).max() == 0  # an example's score sees that example alone
