"""CIFAR-10 through TFDS, without TensorFlow: the same arrays in the same order."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from dyn_jax.datasets import cifar10, cifar10_from_tfds, prepare_tfds
from dyn_jax.datasets.tfds_builder import _row

PER_FILE = 20


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, made_up):
    pytest.importorskip("array_record")
    root = tmp_path_factory.mktemp("tfds")
    made_up.write(root / "source", "python2")
    folder = prepare_tfds(root / "source", root / "data", images_per_file=PER_FILE)
    return root, folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_same_arrays_as_the_files(prepared, made_up, split):
    root, folder = prepared
    assert folder == str(root / "data" / "cifar10" / "3.0.2")
    data = cifar10_from_tfds(root / "data", split, images_per_file=PER_FILE)
    images, labels = made_up.expected(split)
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    files = cifar10(root / "source", split, images_per_file=PER_FILE)
    assert (data.images.dtype, data.labels.dtype, data.name) == (files.images.dtype, files.labels.dtype, files.name)
    assert "tensorflow" not in sys.modules


def test_stock_builder_reads_what_ours_wrote(prepared, made_up):
    import tensorflow_datasets as tfds

    root, folder = prepared
    stock = tfds.builder("cifar10", data_dir=str(root / "data"), file_format="array_record")
    assert type(stock).__module__.startswith("tensorflow_datasets.") and str(stock.data_path) == folder
    assert stock.info.splits["train"].num_examples == 5 * PER_FILE
    assert stock.info.features["label"].int2str(7) == "horse"
    images, labels = made_up.expected("train")
    rows = []
    for example in stock.as_data_source("train"):
        rows.append(_row(example["id"], "train", 100, ""))
        np.testing.assert_array_equal(example["image"], images[rows[-1]])
        assert example["label"] == labels[rows[-1]]
    assert sorted(rows) == list(range(100))
    assert rows != sorted(rows)  # control: TFDS does shuffle, so restoring the order does something


def test_prepared_data_are_kept(prepared):
    root, folder = prepared
    before = {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}
    assert prepare_tfds(root / "nowhere", root / "data", images_per_file=PER_FILE) == folder
    assert before == {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}


def test_counts_are_checked(prepared):
    root, _ = prepared
    with pytest.raises(ValueError, match="got 100 train examples, expected 50000; delete the folder"):
        prepare_tfds(root / "source", root / "data")
    with pytest.raises(ValueError, match="got 20 test examples, expected 10000"):
        cifar10_from_tfds(root / "data", "test")
    assert len(cifar10_from_tfds(root / "data", "test", images_per_file=None).labels) == PER_FILE


def test_lost_examples_are_noticed_after_writing(tmp_path, made_up, monkeypatch):
    """A writer that drops examples, as TFDS does for parquet."""
    from dyn_jax.datasets import tfds_builder

    made_up.write(tmp_path / "source", "bin")
    builder = tfds_builder._builder_class()
    honest = builder._generate_examples

    def lossy(self, split):
        return (example for i, example in enumerate(honest(self, split)) if i % 3)

    monkeypatch.setattr(builder, "_generate_examples", lossy)
    with pytest.raises(ValueError, match="got 66 train examples, expected 100"):
        prepare_tfds(tmp_path / "source", tmp_path / "data", images_per_file=None)


def test_not_prepared(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        cifar10_from_tfds(tmp_path)
    assert str(tmp_path / "cifar10") in str(caught.value) and "dyn_jax.datasets.prepare_tfds(" in str(caught.value)


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DYN_JAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "tensorflow_datasets" / "cifar10")):
        cifar10_from_tfds()


def test_missing_source_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"):
        prepare_tfds(tmp_path / "source", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_other_file_format(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": "cifar10", "fileFormat": "tfrecord"}))
    for call in (lambda: cifar10_from_tfds(tmp_path), lambda: prepare_tfds(tmp_path / "source", tmp_path)):
        with pytest.raises(ValueError, match="got file format tfrecord, expected array_record"):
            call()


@pytest.mark.parametrize("identifier", [b"train_00100", b"test_00001", "train_x", b"00001", "train_-1"])
def test_strange_ids(identifier):
    assert _row(b"train_00099", "train", 100, "folder") == 99
    with pytest.raises(ValueError, match="folder: got id"):
        _row(identifier, "train", 100, "folder")


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="split: got 'validation'"):
        cifar10_from_tfds(tmp_path, "validation")


def test_missing_package_is_named(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    with pytest.raises(ImportError, match=r"pip install .*importlib_resources array_record"):
        cifar10_from_tfds(prepared[0] / "data", images_per_file=PER_FILE)
