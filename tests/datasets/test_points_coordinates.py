"""Coordinates at every door for clouds: map coordinates, dtypes, columns, empty clouds, NaN."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import _validate
from dyn_jax.datasets import Objects, Scene, read_points_bin, read_s3dis_room
from dyn_jax.datasets.points import check_objects, check_scene
from dyn_jax.sparse3d import from_numpy, point_cloud

LOCAL = np.random.default_rng(0).uniform(0, 4, (50, 3))
UTM = np.array([388096.0, 3948996.0, 30.0])
NONE = np.zeros((50, 1))


def test_map_coordinates_are_refused_with_the_rounding_and_the_way_out():
    """Between 2^21 and 2^22 m float32 has steps of 1/4 m."""
    with pytest.raises(
        ValueError, match=r"xyz: got coordinates up to 39\d+\.?\d* m, which float32 rounds by up to 0.125 m"
    ):
        point_cloud(LOCAL + UTM, NONE)
    with pytest.raises(ValueError, match="subtract an origin"):
        point_cloud((LOCAL + UTM).astype(np.float32), NONE)


def test_an_origin_is_subtracted_before_rounding():
    cloud = point_cloud(LOCAL + UTM, NONE, origin=UTM)
    np.testing.assert_allclose(cloud.xyz, LOCAL, atol=1e-6)
    rounded = np.asarray((LOCAL + UTM).astype(np.float32) - UTM.astype(np.float32))
    assert np.abs(rounded - LOCAL).max() > 0.1  # control: the other way round loses the shape
    integers = (1000 * LOCAL).astype(np.int64)
    assert point_cloud(integers + 10**7, NONE, origin=[10**7] * 3).xyz.tolist() == integers.tolist()
    with pytest.raises(ValueError, match="which float32 rounds by up to 0.125 m"):
        point_cloud((LOCAL + UTM).astype(np.float32), NONE, origin=UTM)  # the rounding is in the file
    for origin in ([1.0], [0.0, np.nan, 0.0], np.zeros((3, 1))):
        with pytest.raises(ValueError, match="origin: got"):
            point_cloud(LOCAL, NONE, origin=origin)


def test_the_bound_is_32768_metres():
    """Below, neighbouring float32 are at most 2 mm apart, and nothing is rounded by more than half of it."""
    near = np.nextafter(np.float32(32768), np.float32(0))
    assert np.spacing(near) / 2 <= _validate.ROUNDING < np.spacing(np.float32(32768)) / 2
    assert point_cloud(np.full((1, 3), near), NONE[:1]).xyz[0, 0] == near
    for large in (32768.0, -32768.0, 1e38, 1e300):
        with pytest.raises(ValueError, match="rounds by up to"):
            point_cloud(np.array([[0, 0, large]]), NONE[:1])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16, np.int8, np.uint16, np.int64])
def test_dtypes(dtype):
    """Floats of 16 bits are taken where they are fine enough: float16 below 4 m, bfloat16 below 1/4 m."""
    xyz = (
        np.array([[0, 0, 0], [0.2, 0.1, -0.2]])
        if jnp.issubdtype(dtype, jnp.floating)
        else np.array([[0, 1, 2], [3] * 3])
    )
    xyz = xyz.astype(dtype)
    cloud = point_cloud(xyz, xyz)
    assert cloud.xyz.dtype == cloud.features.dtype == jnp.float32
    np.testing.assert_array_equal(cloud.xyz, xyz.astype(np.float32))


def test_16_bits_are_too_few_for_a_room():
    for dtype, words in ((np.float16, "float16 rounds by up to 0.00195 m"), (jnp.bfloat16, "bfloat16 rounds by up to")):
        with pytest.raises(ValueError, match=f"xyz: got coordinates up to 4.* m, which {words}"):
            point_cloud(np.full((1, 3), 4.5).astype(dtype), NONE[:1])


@pytest.mark.parametrize(
    ("xyz", "features", "error", "message"),
    [
        (LOCAL.T, NONE, ValueError, r"xyz: got shape \(3, 50\), expected \[points, 3\]"),
        (LOCAL[:, :2], NONE, ValueError, r"xyz: got shape \(50, 2\)"),
        (np.c_[NONE, LOCAL], NONE, ValueError, r"xyz: got shape \(50, 4\)"),
        (LOCAL[None], NONE[None], ValueError, r"xyz: got shape \(1, 50, 3\)"),
        (LOCAL[:0], NONE[:0], ValueError, r"xyz: got shape \(0, 3\), .* at least one point"),
        (LOCAL.astype(str), NONE, TypeError, "xyz: got dtype <U"),
        (LOCAL > 1, NONE, TypeError, "xyz: got dtype bool"),
        (LOCAL + 1j, NONE, TypeError, "xyz: got dtype complex128"),
        (np.where(LOCAL > 3.9, np.nan, LOCAL), NONE, ValueError, r"xyz: got \d+ points with NaN or infinite"),
        (LOCAL, NONE[:, 0], ValueError, r"features: got shape \(50,\), expected \[50, channels\]"),
        (LOCAL, NONE.T, ValueError, r"features: got shape \(1, 50\)"),
        (LOCAL, NONE.astype(str), TypeError, "features: got dtype <U"),
        (LOCAL, NONE + 1e300, ValueError, "features: got 50 points with NaN or infinite"),
    ],
)
def test_bad_clouds(xyz, features, error, message):
    with pytest.raises(error, match=message):
        point_cloud(xyz, features)


def test_readers_refuse_map_coordinates(tmp_path):
    rows = np.c_[LOCAL + UTM, np.full((50, 3), 7.0)]
    np.save(tmp_path / "room.npy", rows)
    np.savetxt(tmp_path / "room.txt", rows)
    rows.astype("<f4").tofile(tmp_path / "room.bin")
    for name, read in (("room.npy", read_s3dis_room), ("room.txt", read_s3dis_room), ("room.bin", read_points_bin)):
        with pytest.raises(ValueError, match=f"{name}: xyz: got coordinates up to .* rounds by up to 0.125 m"):
            read(tmp_path / name)
    rows[:, :3] -= UTM
    np.save(tmp_path / "room.npy", rows)
    np.testing.assert_allclose(read_s3dis_room(tmp_path / "room.npy").xyz, LOCAL, atol=1e-6)
    rows[0, 0] = 1e300
    np.save(tmp_path / "room.npy", rows)
    with pytest.raises(ValueError, match="room.npy: got 1 NaN or infinite xyz"):
        read_s3dis_room(tmp_path / "room.npy")
    far = (LOCAL + UTM).astype(np.float32)
    with pytest.raises(ValueError, match="here: xyz: got coordinates up to"):
        check_scene(Scene(far, None, None, "s"), "here")
    with pytest.raises(ValueError, match="here: xyz: got coordinates up to"):
        check_objects(Objects(far[None], np.zeros(1, np.int32), "o"), "here")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 1), np.int32), r"here: got xyz of shape \(2, 5, 3\) and labels of shape \(2, 1\)"),
        (np.zeros(3, np.int32), r"labels of shape \(3,\)"),
        (np.array([0, 40], np.int32), "here: got label 40, expected 0 to 39"),
        (np.array([0, -1], np.int32), "here: got label -1"),
        (np.array([0.0, np.nan], np.float32), "here: got labels float32"),
    ],
)
def test_labels_of_objects(labels, message):
    with pytest.raises(ValueError, match=message):
        check_objects(Objects(np.zeros((2, 5, 3), np.float32), labels, "o"), "here", 40)


def test_sparse_rows_of_mixed_columns():
    """(x, y, z, batch) has its largest x in the batch column."""
    sites = np.array([[0, 5, 6, 7], [1, 8, 9, 4], [1, 8, 9, 5]])
    assert from_numpy(sites, np.ones((3, 1), np.float32)).coordinates.shape == (3, 4)
    with pytest.raises(ValueError, match="got batch 8 in the first column of 3 rows"):
        from_numpy(sites[:, [1, 2, 3, 0]], np.ones((3, 1), np.float32))
    with pytest.raises(ValueError, match="features: got NaN or infinite values"):
        from_numpy(sites, np.full((3, 1), 1e300))
