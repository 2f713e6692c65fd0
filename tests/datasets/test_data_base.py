"""Batches, conversion and augmentation: hand-made values, then a loop as twin."""

from __future__ import annotations

import numpy as np
import pytest

from dyn_jax.datasets import Batch, ImageData, augment_crop_flip, batches, to_float
from dyn_jax.datasets.base import checked_images
from dyn_jax.datasets.corruptions import with_corrupted_copies


def numbered(count: int) -> ImageData:
    """`count` images; every pixel of image i is i, its label i % 10."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3)).copy()
    return ImageData(images, np.arange(count, dtype=np.int32) % 10, "numbered")


def test_to_float():
    got = to_float(np.array([0, 51, 255], np.uint8))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array([0, 0.2, 1], np.float32))
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(np.rint(to_float(every) * 255), every)  # comes back exactly
    floats = np.array([0.0, 0.25, 1.0])
    assert to_float(floats).dtype == np.float32
    np.testing.assert_array_equal(to_float(floats), floats)
    assert to_float(np.array([1 + 5e-7])).max() == 1  # rounding is forgiven, and cut


@pytest.mark.parametrize("bad", [np.array([1.1]), np.array([-0.01]), np.array([np.nan]), np.array([255.0])])
def test_to_float_refuses_other_ranges(bad):
    with pytest.raises(ValueError, match="images"):
        to_float(bad)


@pytest.mark.parametrize("dtype", [np.int32, np.int8, bool])
def test_to_float_refuses_other_dtypes(dtype):
    with pytest.raises(TypeError, match="images: got dtype"):
        to_float(np.zeros(3, dtype))


def test_batches_in_order():
    got = list(batches(numbered(7), 3))
    assert all(isinstance(batch, Batch) for batch in got)
    assert [batch.images[:, 0, 0, 0].tolist() for batch in got] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [batch.labels.tolist() for batch in got] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [batch.valid.tolist() for batch in got] == [[True] * 3, [True] * 3, [True]]
    assert got[0].images.dtype == np.uint8 and got[0].labels.dtype == np.int32


def test_batches_padded():
    got = list(batches(numbered(7), 5, pad_last=True))
    assert [batch.images[:, 0, 0, 0].tolist() for batch in got] == [[0, 1, 2, 3, 4], [5, 6, 5, 6, 5]]
    assert got[1].labels.tolist() == [5, 6, 5, 6, 5]
    assert [batch.valid.tolist() for batch in got] == [[True] * 5, [True, True, False, False, False]]
    assert [len(batch.labels) for batch in batches(numbered(10), 5, pad_last=True)] == [5, 5]
    assert next(batches(numbered(2), 100, pad_last=True)).images.shape == (100, 2, 2, 3)


@pytest.mark.parametrize("pad_last", [False, True])
@pytest.mark.parametrize("seed", [None, 0, 3, (3, 1)])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (7, 3), (12, 4), (50, 64)])
def test_every_example_comes_once(count, size, seed, pad_last):
    seen, labels = [], []
    for batch in batches(numbered(count), size, seed=seed, pad_last=pad_last):
        seen += batch.images[batch.valid, 0, 0, 0].tolist()
        labels += batch.labels[batch.valid].tolist()
    assert sorted(seen) == list(range(count))
    assert labels == [i % 10 for i in seen]  # image and label stay together


def test_seed_decides_the_order():
    def order(seed):
        return np.concatenate([batch.images[:, 0, 0, 0] for batch in batches(numbered(50), 8, seed=seed)]).tolist()

    assert order(1) == order(1)
    assert order((1, 1)) == order((1, 1))
    orders = [order(seed) for seed in (None, 0, 1, 2, (1, 1), (1, 2))]
    assert len({tuple(o) for o in orders}) == len(orders)  # control: they do differ


def test_batches_refuses_at_the_call():
    with pytest.raises(ValueError, match="batch_size: got 0"):
        batches(numbered(3), 0)
    with pytest.raises(TypeError, match=r"batch_size: got 2\.0"):
        batches(numbered(3), 2.0)
    with pytest.raises(ValueError, match="data: got 0 images"):
        batches(numbered(0), 2)
    with pytest.raises(ValueError, match=r"data: got 3 images and labels of shape \(2,\)"):
        batches(numbered(3)._replace(labels=np.zeros(2, np.int32)), 2)


def test_augment_by_hand():
    """One 2 x 2 image, pad 1: nine crops, each with its mirror image."""
    image = np.array([[1, 2], [3, 4]], np.uint8).reshape(1, 2, 2, 1)
    padded = [[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]
    crops = {tuple(padded[r + i][c + j] for i in (0, 1) for j in (0, 1)) for r in range(3) for c in range(3)}
    mirrored = {(b, a, d, c) for a, b, c, d in crops}
    rng = np.random.default_rng(0)
    seen = {tuple(augment_crop_flip(image, rng, pad=1).ravel().tolist()) for _ in range(500)}
    assert seen == crops | mirrored
    seen = {tuple(augment_crop_flip(image, rng, pad=1, flip=False).ravel().tolist()) for _ in range(500)}
    assert seen == crops
    seen = {tuple(augment_crop_flip(image, rng, pad=0).ravel().tolist()) for _ in range(50)}
    assert seen == {(1, 2, 3, 4), (2, 1, 4, 3)}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_augment_equals_a_loop(dtype):
    images = np.random.default_rng(1).integers(1, 255, (30, 5, 7, 3)).astype(dtype)
    before = images.copy()
    got = augment_crop_flip(images, np.random.default_rng(9), pad=2)
    rng = np.random.default_rng(9)
    offset, mirror = rng.integers(0, 5, (2, 30)), rng.random(30) < 0.5
    expected = np.zeros_like(images)
    for i in range(30):
        for y in range(5):
            for x in range(7):
                source_x = 6 - x if mirror[i] else x
                row, column = y + offset[0, i] - 2, source_x + offset[1, i] - 2
                if 0 <= row < 5 and 0 <= column < 7:
                    expected[i, y, x] = images[i, row, column]
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(images, before)
    assert got.dtype == dtype
    assert 0 < mirror.sum() < 30 and len(set(offset[0])) == 5  # control: the case covers something


def test_augment_draws_for_every_image():
    images = np.broadcast_to(np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1), (4000, 8, 8, 1))
    got = augment_crop_flip(images, np.random.default_rng(0))
    flipped = (np.diff(got[:, :, :, 0].astype(int), axis=2) == -1).any((1, 2))
    assert 0.46 < flipped.mean() < 0.54
    assert len({image.tobytes() for image in got}) == 2 * 81


def test_augment_without_anything_is_the_identity():
    images = np.random.default_rng(1).random((3, 4, 4, 3))
    np.testing.assert_array_equal(augment_crop_flip(images, np.random.default_rng(0), pad=0, flip=False), images)


def test_augment_refuses():
    with pytest.raises(ValueError, match=r"images: got shape \(4, 4, 3\)"):
        augment_crop_flip(np.zeros((4, 4, 3)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="pad: got -1"):
        augment_crop_flip(np.zeros((1, 4, 4, 3)), np.random.default_rng(0), pad=-1)


def good() -> ImageData:
    return numbered(4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"labels": np.zeros((4, 1), np.int32)},
            ValueError,
            r"data: got 4 images and labels of shape \(4, 1\), .*\(4,\)",
        ),
        ({"labels": np.zeros((1, 4), np.int32)}, ValueError, r"labels of shape \(1, 4\)"),
        ({"labels": np.eye(4, dtype=np.int32)}, ValueError, r"labels of shape \(4, 4\)"),
        ({"labels": np.int32(3)}, ValueError, r"labels of shape \(\)"),
        ({"labels": np.zeros(4)}, TypeError, "data: got labels of dtype float64, expected integers"),
        ({"labels": np.zeros(4, bool)}, TypeError, "got labels of dtype bool"),
        ({"labels": np.array(["a"] * 4)}, TypeError, "got labels of dtype <U1"),
        ({"labels": np.array([0, 1, -1, 2])}, ValueError, r"data: got labels in \[-1, 2\]"),
        ({"labels": np.array([0, 1, 2**40, 2])}, ValueError, r"got labels in \[0, 1099511627776\]"),
        (
            {"images": np.zeros((4, 2, 2), np.uint8)},
            ValueError,
            r"data: got images of shape \(4, 2, 2\), expected \[n, height",
        ),
        ({"images": np.zeros((4, 2, 2, 3), np.int64)}, TypeError, "data: got images of dtype int64, expected uint8 or"),
        ({"images": np.zeros((4, 2, 2, 3), bool)}, TypeError, "data: got images of dtype bool"),
        (
            {"images": np.full((4, 2, 2, 3), 255.0)},
            ValueError,
            r"data: images: got values in \[255, 255\], expected \[0",
        ),
        ({"images": np.full((4, 2, 2, 3), -1.0)}, ValueError, "data: images: got values in"),
        ({"images": np.full((4, 2, 2, 3), np.nan)}, ValueError, "data: images: got 48 NaN or infinite values"),
        ({"images": np.uint8(0)}, ValueError, "data: got 0 images"),
    ],
)
def test_data_that_are_no_labelled_images(change, error, message):
    for door in (lambda data: batches(data, 2), checked_images, with_corrupted_copies):
        with pytest.raises(error, match=message):
            door(good()._replace(**change))


def test_checked_images_keep_what_is_good():
    data = checked_images(good()._replace(labels=np.arange(4, dtype=np.uint8)), classes=4)
    assert data.labels.dtype == np.int32 and data.labels.tolist() == [0, 1, 2, 3] and data.images is not None
    with pytest.raises(ValueError, match=r"here: got labels in \[0, 3\], expected \[0, 2\]"):
        checked_images(good(), "here", 3)
    assert next(batches(good()._replace(labels=[1, 2, 3, 4]), 4)).labels.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_to_float_twice_is_to_float_once(dtype):
    values = np.random.default_rng(0).random((3, 4, 4, 3))
    images = (255 * values).astype(np.uint8) if dtype == np.uint8 else values.astype(dtype)
    images[0] = 0
    images[1] = 255 if dtype == np.uint8 else 1
    once = to_float(images)
    assert once.tobytes() == to_float(once).tobytes() and once.max() == 1 and once.min() == 0
