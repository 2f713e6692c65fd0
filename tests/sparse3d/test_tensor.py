"""Sparse tensors from host arrays: what is kept, and every refusal."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax.sparse3d import from_numpy, to_numpy

SITES = np.array([[1, 0, 0, 5], [0, 2, -1, 3], [1, 0, 0, 5], [0, -2, 4, 3]])
FEATURES = np.arange(8, dtype=np.float32).reshape(4, 2)


def test_order_stays_and_the_first_of_duplicates_is_kept():
    tensor = from_numpy(SITES, FEATURES, capacity=5)
    assert tensor.coordinates.tolist() == [[1, 0, 0, 5], [0, 2, -1, 3], [0, -2, 4, 3], [0] * 4, [0] * 4]
    assert tensor.features.tolist() == [[0, 1], [2, 3], [6, 7], [0, 0], [0, 0]]
    assert tensor.valid.tolist() == [True] * 3 + [False] * 2 and not tensor.overflow
    assert (tensor.coordinates.dtype, tensor.features.dtype, tensor.stride) == (jnp.int32, jnp.float32, (1, 1, 1))
    coordinates, features = to_numpy(tensor)
    np.testing.assert_array_equal(coordinates, SITES[[0, 1, 3]])
    np.testing.assert_array_equal(features, FEATURES[[0, 1, 3]])


def test_default_capacity_is_the_number_of_distinct_sites():
    assert from_numpy(SITES, FEATURES).coordinates.shape == (3, 4)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2", "<f8"])
def test_any_floating_dtype(dtype):
    tensor = from_numpy(SITES, FEATURES.astype(dtype))
    np.testing.assert_array_equal(to_numpy(tensor)[1], to_numpy(from_numpy(SITES, FEATURES))[1])


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.uint64])
def test_any_integer_dtype(dtype):
    coordinates = np.abs(SITES).astype(dtype)
    np.testing.assert_array_equal(to_numpy(from_numpy(coordinates, FEATURES))[0], np.abs(SITES)[[0, 1, 3]])


def test_stride():
    coordinates = SITES * np.array([1, 4, 4, 2])
    tensor = from_numpy(coordinates, FEATURES, stride=(4, 4, 2))
    assert tensor.stride == (4, 4, 2) and tensor.sites().stride == (4, 4, 2)


def test_sites_of_a_tensor():
    tensor = from_numpy(SITES, FEATURES, capacity=5)
    sites = tensor.sites()
    assert sites.coordinates[:3].tolist() == [[0, -2, 4, 3], [0, 2, -1, 3], [1, 0, 0, 5]] and int(sites.count) == 3
    assert not sites.overflow and tensor.replace(overflow=jnp.array(True)).sites().overflow


def test_lost_rows_are_not_handed_out():
    with pytest.raises(ValueError, match="overflow flag is set"):
        to_numpy(from_numpy(SITES, FEATURES).replace(overflow=jnp.array(True)))


FAR = np.array([[0, 0, 0, 0], [0, 65535, 65536, 0], [0, 1, 1, 1], [0, 2, 2, 2]])
BAD = {
    "rank": (SITES[:, :, None], FEATURES, {}, ValueError, r"coordinates: got shape \(4, 4, 1\), expected \[n, 4\]"),
    "columns": (SITES[:, 1:], FEATURES, {}, ValueError, r"coordinates: got shape \(4, 3\)"),
    "float coordinates": (SITES * 1.0, FEATURES, {}, TypeError, "coordinates: got dtype float64, expected integers"),
    "bool coordinates": (SITES > 0, FEATURES, {}, TypeError, "coordinates: got dtype bool"),
    "rows": (SITES, FEATURES[:3], {}, ValueError, r"features: got shape \(3, 2\), expected \[4, channels\]"),
    "feature rank": (SITES, FEATURES[:, 0], {}, ValueError, r"features: got shape \(4,\)"),
    "integer features": (SITES, FEATURES.astype(int), {}, TypeError, "features: got dtype int64"),
    "empty": (SITES[:0], FEATURES[:0], {}, ValueError, "got no voxels, expected at least one"),
    "NaN": (SITES, np.where(FEATURES == 3, np.nan, FEATURES), {}, ValueError, "features: got NaN or infinite"),
    "infinite": (SITES, np.where(FEATURES == 3, np.inf, FEATURES), {}, ValueError, "features: got NaN or infinite"),
    "batch": (SITES - [1, 0, 0, 0], FEATURES, {}, ValueError, "got batch -1, expected at least 0"),
    "range": (SITES + np.array([0, 2**30, 0, 0]), FEATURES, {}, ValueError, r"expected magnitudes below 2\^30"),
    "64 bit": (SITES + np.array([0, 2**40, 0, 0]), FEATURES, {}, ValueError, r"expected magnitudes below 2\^30"),
    "box": (FAR, FEATURES, {}, ValueError, r"got a bounding box of 1 x 65536 x 65537 x 3 cells, expected < 2\^32"),
    "multiples": (SITES, FEATURES, {"stride": 2}, ValueError, r"no multiples of the stride \(2, 2, 2\)"),
    "stride": (SITES, FEATURES, {"stride": 0}, ValueError, "stride: got 0, expected at least 1"),
    "capacity": (SITES, FEATURES, {"capacity": 2}, ValueError, "capacity: got 2, expected at least 3"),
    "float capacity": (SITES, FEATURES, {"capacity": 8.0}, TypeError, "capacity: got 8.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(case):
    coordinates, features, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        from_numpy(coordinates, features, **options)


def test_a_large_unsigned_coordinate_does_not_wrap():
    huge = SITES.astype(np.uint64)
    huge[:, 1:] = 2**64 - 3
    with pytest.raises(ValueError, match="coordinates"):
        from_numpy(np.abs(huge), FEATURES)
