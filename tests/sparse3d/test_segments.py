"""Sums, spreads and "any of" over groups: loops, exact gradients, very long and empty groups, the same bits again."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dyn_jax.sparse3d.segments import any_of, segments, spread, sum_over

GROUP = np.array([2, 0, 2, -1, 3, 2, 0, 7])  # of 5 groups; 1 and 4 are empty, rows 3 and 7 belong to none
VALUES = np.array([1.0, 2, 4, 8, 16, 32, 64, 128], np.float32)
make = jax.jit(segments, static_argnums=1, static_argnames="is_sorted")


def twin(values, group, size, combine, identity):
    out = np.full((size, *np.shape(values)[1:]), identity, np.float64)
    for value, g in zip(np.asarray(values, np.float64), group):
        if 0 <= g < size:
            out[g] = combine(out[g], value)
    return out


@jax.jit
def all_of(values, relation, groups, per_group):
    """Every function of the module with its gradient."""
    total, sum_back = jax.vjp(lambda v: sum_over(v, groups), values)
    rows, spread_back = jax.vjp(lambda v: spread(v, groups), per_group)
    some, any_back = jax.vjp(lambda r: any_of(r, groups), relation)
    one = jnp.ones_like(some)
    return total, *sum_back(per_group), rows, *spread_back(values), some, *any_back(one)


def test_by_hand():
    groups = make(jnp.asarray(GROUP), 5)
    assert groups.count.tolist() == [2, 0, 3, 1, 0]
    assert sum_over(jnp.asarray(VALUES), groups).tolist() == [66, 0, 37, 16, 0]
    assert spread(jnp.array([1.0, 2, 3, 4, 5]), groups).tolist() == [3, 1, 3, 0, 4, 3, 1, 0]
    relation = jnp.array([0.5, 0.25, 0.5, 1.0, 0.0, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(any_of(relation, groups), [1 - 0.75 * 0.5, 0, 0.75, 0, 0])
    gradient = jax.grad(lambda r: any_of(r, groups).sum())(relation)
    np.testing.assert_allclose(gradient, [0.5, 0.5, 0.5, 0, 1, 0.25, 0.75, 0])


@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize(("rows", "size"), [(200, 40), (1000, 1), (300, 1000), (1, 1), (64, 2)])
def test_equals_a_loop(rows, size, is_sorted):
    rng = np.random.default_rng(rows)
    group = rng.integers(-1, size + 1, rows).astype(np.int32)
    if is_sorted:
        group = np.sort(np.where((group < 0) | (group >= size), size, group))
    groups = make(jnp.asarray(group), size, is_sorted=is_sorted)
    relation = jnp.asarray(rng.uniform(0, 0.4, rows), jnp.float32)
    values, per_group = (jnp.asarray(rng.normal(size=(n, 2)), jnp.float32) for n in (rows, size))
    total, to_values, spread_rows, to_group, some, _ = all_of(values, relation, groups, per_group)
    np.testing.assert_allclose(total, twin(values, group, size, np.add, 0), atol=2e-5)
    expected = [per_group[g] if 0 <= g < size else np.zeros(2) for g in group]
    np.testing.assert_array_equal(spread_rows, expected)
    np.testing.assert_array_equal(to_values, expected)
    np.testing.assert_allclose(to_group, twin(values, group, size, np.add, 0), atol=2e-5)
    np.testing.assert_allclose(some, 1 - twin(1 - np.asarray(relation), group, size, np.multiply, 1), atol=2e-6)


@pytest.mark.parametrize("certain", [0, 1, 2, 3])
def test_gradient_of_any_of_is_exact_where_relations_are_one(certain):
    """The product of the others: with one r = 1 only that row has a gradient, with two of them none has."""
    rng = np.random.default_rng(certain)
    relation = rng.uniform(0.1, 0.9, 12).astype(np.float32)
    group = np.array([0, 1] * 6, np.int32)
    relation[[0, 4, 8][:certain]] = 1
    got = jax.grad(lambda r: any_of(r, make(jnp.asarray(group), 2)).sum())(jnp.asarray(relation))
    others = lambda row: [s for s in range(12) if s != row and group[s] == group[row]]
    expected = [np.prod(1 - relation[others(row)].astype(np.float64)) for row in range(12)]
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=0)
    assert np.count_nonzero(np.asarray(got)[group == 0]) == {0: 6, 1: 1}.get(certain, 0)


def test_a_group_of_a_thousand():
    """Neither the value nor the gradient of 1000 factors loses more than rounding."""
    with jax.enable_x64(True):
        relation = jnp.asarray(np.random.default_rng(0).uniform(0, 0.01, 1000))
        groups = segments(jnp.zeros(1000, jnp.int32), 3)
        value, gradient = jax.value_and_grad(lambda r: any_of(r, groups)[0])(relation)
        product = np.exp(np.log1p(-np.asarray(relation)).sum())
        np.testing.assert_allclose(value, 1 - product, rtol=1e-13)
        np.testing.assert_allclose(gradient, product / (1 - np.asarray(relation)), rtol=1e-12)
        np.testing.assert_allclose(sum_over(relation, groups), [np.sum(np.asarray(relation)), 0, 0], rtol=1e-13)


def test_derivatives_in_float64():
    with jax.enable_x64(True):
        groups = segments(jnp.asarray(GROUP), 5)
        values = jnp.asarray(np.random.default_rng(1).uniform(0.1, 0.9, 8))
        check_grads(jax.jit(lambda r: jnp.sin(any_of(r, groups))), (values,), order=1, modes=["rev"])
        check_grads(jax.jit(lambda v: jnp.sin(sum_over(v, groups))), (values,), order=1, modes=["rev"])
        check_grads(jax.jit(lambda v: jnp.sin(spread(v, groups))), (values[:5],), order=1, modes=["rev"])


def test_sum_and_spread_are_transposes():
    """<sum_over(v), w> = <v, spread(w)>."""
    groups = make(jnp.asarray(GROUP), 5)
    w = jnp.array([1.0, 2, 3, 5, 7])
    assert float(sum_over(jnp.asarray(VALUES), groups) @ w) == float(jnp.asarray(VALUES) @ spread(w, groups)) != 0


def test_nothing_leaks_between_groups():
    """A NaN stays in its group, in values and gradients, and one in a row of no group stays out of every group."""
    with jax.debug_nans(False):
        groups = make(jnp.asarray(GROUP), 5)
        poisoned = jnp.asarray(VALUES).at[jnp.array([3, 4])].set(jnp.nan)
        total, _, _, to_group, some, to_relation = all_of(poisoned, poisoned, groups, jnp.ones(5))
    for values in (total, to_group, some):
        assert np.isnan(values).tolist() == [False, False, False, True, False]
    assert not np.isnan(np.delete(to_relation, [3, 4])).any()


def test_bitwise_repeatable_and_traced_once():
    rng = np.random.default_rng(2)
    values, relation = rng.normal(size=(500, 3)).astype(np.float32), rng.uniform(size=500).astype(np.float32)

    def whole(group, values, relation):
        groups = segments(group, 30)
        return all_of.__wrapped__(values, relation, groups, jnp.ones((30, 3)))

    once = jax.jit(chex.assert_max_traces(whole, 1))
    drawn = [rng.integers(0, 31, 500).astype(np.int32), rng.integers(0, 3, 500).astype(np.int32)]
    results = [once(jnp.asarray(drawn[which]), values, relation) for which in (0, 1, 0, 0)]
    chex.assert_trees_all_equal(results[0], results[2], results[3])


def test_vmap_equals_a_loop():
    """Groups of unequal length: 1, 7 and 40 rows at the longest."""
    rng = np.random.default_rng(3)
    group = jnp.stack([jnp.arange(40), jnp.arange(40) // 7, jnp.zeros(40, jnp.int32)])
    values, relation = (
        jnp.asarray(rng.normal(size=(3, 40)), jnp.float32),
        jnp.asarray(rng.uniform(size=(3, 40)), jnp.float32),
    )

    def whole(group, values, relation):
        return all_of.__wrapped__(values, relation, segments(group, 40), jnp.ones(40))

    loop = [jax.jit(whole)(*given) for given in zip(group, values, relation)]
    together = jax.jit(jax.vmap(whole))(group, values, relation)
    chex.assert_trees_all_close(together, jax.tree.map(lambda *a: jnp.stack(a), *loop), atol=1e-6)
