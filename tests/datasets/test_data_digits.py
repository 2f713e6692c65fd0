"""The handwritten digits: fixed stratified split, bilinear enlargement, range."""

from __future__ import annotations

import sys
import zlib

import numpy as np
import pytest

from dyn_jax.datasets import ImageData, digits
from dyn_jax.datasets.digits import enlarge, split_rows

sklearn_datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def source():
    return sklearn_datasets.load_digits()


def test_enlarge_by_hand():
    grey = np.array([[[0.0, 4.0], [8.0, 12.0]]])
    first = [0, 1, 3, 4]  # positions -1/4 -> 0, 1/4, 3/4, 5/4 -> 1
    expected = np.array([first, np.add(first, 2), np.add(first, 6), np.add(first, 8)])
    np.testing.assert_array_equal(enlarge(grey, 4)[0], expected)
    np.testing.assert_array_equal(enlarge(grey, 2), grey)


@pytest.mark.parametrize("size", [8, 9, 20, 32])
def test_enlarge_equals_a_loop(size):
    grey = np.random.default_rng(0).random((2, 8, 8))
    expected = np.zeros((2, size, size))
    for i in range(size):
        for j in range(size):
            y, x = (min(max((k + 0.5) * 8 / size - 0.5, 0), 7) for k in (i, j))
            top, left = min(int(y), 6), min(int(x), 6)
            v, u = y - top, x - left
            corner = grey[:, top : top + 2, left : left + 2]
            expected[:, i, j] = (1 - v) * ((1 - u) * corner[:, 0, 0] + u * corner[:, 0, 1]) + v * (
                (1 - u) * corner[:, 1, 0] + u * corner[:, 1, 1]
            )
    np.testing.assert_allclose(enlarge(grey, size), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("split", "count"), [("train", 1297), ("test", 500)])
def test_shape_and_range(split, count):
    data = digits(split)
    assert isinstance(data, ImageData)
    assert data.images.shape == (count, 32, 32, 3) and data.images.dtype == np.float32
    assert data.labels.shape == (count,) and data.labels.dtype == np.int32
    assert data.images.min() == 0 and data.images.max() <= 1 and data.images.max() > 0.99
    np.testing.assert_array_equal(data.images[..., 0], data.images[..., 1])
    np.testing.assert_array_equal(data.images[..., 0], data.images[..., 2])
    assert set(data.labels.tolist()) == set(range(10))


def test_small_size_is_the_source(source):
    rows = split_rows(source.target)
    for split in ("train", "test"):
        data = digits(split, size=8)
        np.testing.assert_array_equal(data.images[..., 0] * 16, source.images[rows[split]])
        np.testing.assert_array_equal(data.labels, source.target[rows[split]])


def test_split_is_disjoint_complete_and_stratified(source):
    rows = split_rows(source.target)
    assert len(rows["train"]) == 1297 and len(rows["test"]) == 500
    assert sorted([*rows["train"], *rows["test"]]) == list(range(1797))
    for label in range(10):
        ideal = 500 * (source.target == label).sum() / 1797
        assert abs((source.target[rows["test"]] == label).sum() - ideal) < 1


def test_split_is_fixed(source):
    """Weights are trained on this split: a change of it would show test examples to them."""
    test = split_rows(source.target)["test"]
    assert test[:10].tolist() == [1, 2, 3, 11, 13, 15, 20, 21, 32, 46]
    assert zlib.crc32(test.astype("<i4").tobytes()) == 0x8A431EE


def test_split_of_made_up_labels():
    """5 + 1795 + 1 examples: floors 1, 498, 0; the one still wanting goes to the largest remainder, class 0."""
    labels = np.array([0] * 5 + [1] * 1795 + [2])
    test = split_rows(labels)["test"]
    assert np.bincount(labels[test], minlength=3).tolist() == [2, 498, 0]


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match=r"split: got 'trian'.*did you mean 'train'"):
        digits("trian")
    with pytest.raises(ValueError, match="size: got 7, expected at least 8"):
        digits(size=7)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digits()
