"""What the environment must get right before any number can be trusted."""

import jax
import jax.numpy as jnp
import numpy as np
from compiled import exact_jit


def test_vmapped_product_and_reduction_are_right_beyond_32768_rows():
    """As users compile; jax 0.10.2 on CPU: wrong from row 32,768 on (jax-ml/jax#39103)."""
    rows = 40_000
    points = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    matrix = np.arange(9, dtype=np.float32).reshape(3, 3) / 10
    got = exact_jit(jax.vmap(lambda p: jnp.sum((jnp.asarray(matrix) @ p) ** 2)))(points)
    expected = ((points.astype(np.float64) @ matrix.T.astype(np.float64)) ** 2).sum(1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_the_miscompiling_version_is_not_installed():
    assert jax.__version__ != "0.10.2"
    assert tuple(map(int, jax.__version__.split(".")[:3])) >= (0, 10, 1)
