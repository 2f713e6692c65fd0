"""Folders of TFDS that were damaged."""

from __future__ import annotations

import os

import pytest

from dyn_jax import datasets


@pytest.fixture
def prepared(tmp_path):
    pytest.importorskip("array_record")
    scenes = [scene._replace(name=f"s{i}") for i, scene in enumerate(datasets.rooms("test", 3, points=40))]
    return tmp_path, datasets.prepare_scenes_tfds({"test": scenes}, "made_up", tmp_path)


def changed(folder, name, change):
    path = os.path.join(folder, name)
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(change(content))


TFDS = {
    "broken record": ("dataset_info.json", lambda c: c[:-30], "dataset_info.json: not a readable JSON file"),
    "record that is a list": ("dataset_info.json", lambda c: b"[]", "dataset_info.json: got a JSON list"),
    "empty record": ("dataset_info.json", lambda c: b"", "dataset_info.json: not a readable JSON"),
    "record of more": ("dataset_info.json", lambda c: c.replace(b'"3"', b'"5"'), "made_up/1.0.0: "),
    "record of fewer": ("dataset_info.json", lambda c: c.replace(b'"3"', b'"2"'), "made_up/1.0.0: "),
    "renamed feature": (
        "features.json",
        lambda c: c.replace(b'"xyz"', b'"zyx"'),
        "1.0.0: got features colours, labels",
    ),
    "broken features": ("features.json", lambda c: c[:100], "features.json: not a readable JSON file"),
    "deep features": ("features.json", lambda c: b'{"a":' * 50_000, "features.json: not a readable JSON file"),
    "foreign class": (
        "features.json",
        lambda c: c.replace(b"tensorflow_datasets.core.features.text_feature.Text", b"antigravity.Text"),
        "features.json: got the class antigravity.Text, expected one of TFDS's own",
    ),
    "truncated shard": ("made_up-test.array_record-00000-of-00001", lambda c: c[: len(c) // 2], "made_up/1.0.0: "),
    "shard cut at its end": ("made_up-test.array_record-00000-of-00001", lambda c: c[:-5], "made_up/1.0.0: "),
    "empty shard": ("made_up-test.array_record-00000-of-00001", lambda c: b"", "made_up/1.0.0: "),
    "shard of zeros": ("made_up-test.array_record-00000-of-00001", lambda c: bytes(len(c)), "made_up/1.0.0: "),
}


@pytest.mark.parametrize("case", TFDS)
def test_damaged_tfds(prepared, case):
    data_dir, folder = prepared
    name, change, message = TFDS[case]
    assert len(datasets.scenes_from_tfds("made_up", "test", data_dir)) == 3
    changed(folder, name, change)
    with pytest.raises(ValueError, match=message):
        datasets.scenes_from_tfds("made_up", "test", data_dir)


@pytest.mark.parametrize("missing", ["features.json", "made_up-test.array_record-00000-of-00001"])
def test_tfds_without_a_file(prepared, missing):
    data_dir, folder = prepared
    path = os.path.join(folder, missing)
    os.unlink(path)
    with pytest.raises((FileNotFoundError, ValueError), match=missing):
        datasets.scenes_from_tfds("made_up", "test", data_dir)
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{missing}: is a pipe"):
        datasets.scenes_from_tfds("made_up", "test", data_dir)
