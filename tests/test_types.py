"""A unit of a trace as a pytree: what is static, what is data, and what passes through jit, vmap, grad and slicing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.types import Output, Trace, UnitTrace

LARGE = 5 * 10**9  # beyond 32 bits


def unit_of(macs, dense_macs=None, **extras):
    score = jnp.array([[0.5, -0.5], [1.0, 2.0], [-1.0, -2.0]])
    return UnitTrace(score, (score >= 0).astype(jnp.float32), macs, dense_macs, "block", extras)


def names(tree):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_an_integer_is_static_and_its_own_dense_price():
    unit = unit_of(LARGE)
    assert names(unit) == [".score", ".occupancy"]
    assert (unit.macs, unit.dense_macs, unit.name, unit.elements) == (LARGE, LARGE, "block", 2)
    assert unit_of(3, 7).dense_macs == 7 and unit_of(np.int64(LARGE)).macs == LARGE
    np.testing.assert_array_equal(unit.on, [[True, False], [True, True], [False, False]])
    half = unit.replace(occupancy=jnp.full((3, 2), 0.5))
    assert half.on.all() and not unit.replace(occupancy=jnp.full((3, 2), 0.4999)).on.any()


def test_an_array_is_data_and_has_no_dense_price_of_its_own():
    unit = unit_of(jnp.ones((3, 1)), value=jnp.ones(3))
    assert names(unit) == [".score", ".occupancy", ".extras['value']", ".macs"]
    assert unit.dense_macs is None and unit_of(jnp.ones((3, 1)), LARGE).dense_macs == LARGE


def test_static_prices_survive_every_transformation():
    unit = unit_of(LARGE, probability=jnp.ones((3, 2)))
    same = lambda other: (other.macs, other.dense_macs, other.name) == (LARGE, LARGE, "block")
    assert same(jax.jit(lambda u: u)(unit))
    assert same(jax.vmap(lambda u: u)(unit))
    assert same(jax.tree.map(lambda leaf: leaf[0], unit))
    assert same(jax.eval_shape(lambda u: u, unit))
    assert same(unit.replace(score=unit.score + 1))
    assert same(jax.grad(lambda u: jnp.sum(u.score**2))(unit))
    stacked = jax.lax.scan(lambda c, _: (c, unit), 0, None, length=2)[1]
    assert same(stacked) and stacked.score.shape == (2, 3, 2)


def test_costs_as_arrays_are_sliced_mapped_and_differentiated():
    unit = unit_of(jnp.array([[1.0], [2.0], [3.0]]), 9, value=jnp.arange(3.0))
    second = jax.tree.map(lambda leaf: leaf[1], unit)
    assert (float(second.macs[0]), float(second.extras["value"]), second.dense_macs) == (2, 1, 9)
    doubled = jax.jit(jax.vmap(lambda u: u.replace(macs=2 * u.macs)))(unit)
    np.testing.assert_array_equal(doubled.macs, [[2], [4], [6]])
    slope = jax.grad(lambda u: jnp.sum(u.occupancy * u.macs))(unit)
    np.testing.assert_array_equal(slope.macs, [[1], [2], [0]])
    np.testing.assert_array_equal(slope.occupancy, [[1, 1], [2, 2], [3, 3]])


def test_another_price_is_another_compilation_and_the_same_one_is_not():
    @jax.jit
    @chex.assert_max_traces(2)
    def total(unit):
        return float(unit.macs) * jnp.sum(unit.occupancy)

    assert [float(total(unit_of(macs))) for macs in (2, 2, 3, 2)] == [6, 6, 9, 6]


def test_structures_compare_by_static_parts():
    a, b = unit_of(2), unit_of(2)
    assert jax.tree.structure(a) == jax.tree.structure(b) != jax.tree.structure(unit_of(3))
    assert jax.tree.structure(unit_of(2, value=jnp.ones(3))) != jax.tree.structure(a)
    chex.assert_trees_all_equal(a, b)


def test_an_output_is_batch_first_throughout():
    unit = unit_of(jnp.ones((3, 2)), dilated=jnp.ones((3, 4)))
    output = Output(jnp.ones((3, 5)), Trace((unit, unit_of(2)), LARGE, exits=jnp.ones((3, 2, 5))))
    alone = jax.tree.map(lambda leaf: leaf[:1], output)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(alone)} == {1}
    assert alone.trace.static_macs == LARGE and alone.trace.exits.shape == (1, 2, 5)
