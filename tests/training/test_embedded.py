"""The table of shipped networks is complete, and its clouds are what the recipes say."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from dyn_jax import networks
from dyn_jax.datasets import objects, rooms, streets
from dyn_jax.networks import create
from dyn_jax.networks.checkpoint import save_variables
from dyn_jax.networks.pretrained import PRETRAINED
from dyn_jax.sparse3d import Cylinder
from dyn_jax.training import embedded
from dyn_jax.training.loop import evaluate, fit
from dyn_jax.training.points import (
    Clouds,
    object_batch,
    objects_recipe,
    room_batch,
    rooms_recipe,
    scan_batch,
    segmentation_loss,
    streets_recipe,
)
from dyn_jax.training.recipe import mean_cross_entropy
from dyn_jax.types import Output


def test_every_shipped_network_has_a_recipe():
    ends = ("-digits", "-rooms", "-objects", "-streets")
    small = {name for name in networks.names() if name.endswith(ends)}
    assert set(embedded.RECIPES) == small | set(embedded.TRUNKS) >= set(PRETRAINED)
    for name in embedded.RECIPES:
        assert all(stage.epochs == 2 for stage in embedded.recipe_of(name, 2).stages)
        assert sum(stage.epochs for stage in embedded.recipe_of(name).stages) > 2


def test_bad_names_and_numbers(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'sact-digits'"):
        embedded.train("sact-digit")
    with pytest.raises(ValueError, match="epochs: got 0"):
        embedded.train("sact-digits", epochs=0)
    with pytest.raises(ValueError, match="seed: got -1"):
        embedded.train("sact-digits", seed=-1)


def test_a_trunk_is_looked_at_before_the_data(tmp_path, monkeypatch):
    monkeypatch.setitem(embedded.DATA, "cifar10", lambda split, folder: pytest.fail("data were read"))
    with pytest.raises(ValueError, match="trunk: got None, expected the variables of resnet-32-cifar10"):
        embedded.train("skipnet-32-cifar10")
    with pytest.raises(ValueError, match="trunk: got 'x', expected none"):
        embedded.train("sact-digits", trunk="x")
    with pytest.raises(FileNotFoundError, match="no such file"):
        embedded.train("sact-32-cifar10", trunk=tmp_path / "none")
    shallow = networks.create("resnet-20-cifar10").init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    save_variables(tmp_path / "trunk", shallow)
    with pytest.raises(ValueError, match="do not fit the ResNet: missing batch_stats/layer1_3"):
        embedded.train("dynconv-32-cifar10", trunk=tmp_path / "trunk")


def test_missing_images_are_named(tmp_path):
    trunk = tmp_path / "trunk"
    save_variables(trunk, networks.create("resnet-32-cifar10").init(jax.random.key(0), np.zeros((1, 32, 32, 3))))
    with pytest.raises(FileNotFoundError, match=f"no file cifar10_lossless_train.npz in {tmp_path}"):
        embedded.train("skipnet-32-cifar10", trunk=trunk, folder=tmp_path)


def test_a_checkpoint_is_looked_at_before_the_data(tmp_path, monkeypatch):
    monkeypatch.setitem(embedded.DATA, "digits", lambda split, folder: pytest.fail("data were read"))
    path = tmp_path / "run"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        embedded.train("sact-digits", checkpoint=path)
    with pytest.raises(FileNotFoundError, match="checkpoint: .*does not exist"):
        embedded.train("sact-digits", checkpoint=tmp_path / "missing" / "run")


@pytest.mark.parametrize("chosen", [room_batch, object_batch])
def test_clouds(chosen):
    """Side by side, labelled, moved by the seed and epoch alone, and as they are when a network is measured."""
    data = rooms("train", 5, points=64) if chosen is room_batch else objects("train", 5, points=64)
    source = Clouds(chosen, test_size=2)
    first = list(source.batches(data, 2, 0, 0))
    assert len(first) == 2 and source.count(data) == 5
    for cloud, labels in first:
        assert cloud.clouds == 2 and cloud.xyz.shape == (128, 3) and cloud.valid.all()
        np.testing.assert_array_equal(cloud.batch, np.repeat([0, 1], 64))
        assert len(labels) == (128 if chosen is room_batch else 2)
    again = list(source.batches(data, 2, 0, 0))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again)))
    assert (first[0][0].xyz != next(source.batches(data, 2, 0, 1))[0].xyz).any()
    plain = list(source.in_order(data))
    assert [cloud.clouds for cloud, _ in plain] == [2, 2, 1]
    xyz = [scene.xyz for scene in data] if chosen is room_batch else data.xyz
    np.testing.assert_array_equal(np.concatenate([cloud.xyz for cloud, _ in plain]), np.concatenate(xyz))


def test_points_that_do_not_count_are_in_no_loss():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 3)).astype(np.float32), np.array([1, 2, 0, 255, 1, 255], np.int32)
    counted = labels != 255
    np.testing.assert_allclose(
        mean_cross_entropy(Output(logits), labels), mean_cross_entropy(Output(logits[counted]), labels[counted]), 1e-6
    )
    counted &= labels != 0  # the class of what does not count in a scan
    np.testing.assert_allclose(
        segmentation_loss(Output(logits), labels), segmentation_loss(Output(logits[counted]), labels[counted]), 1e-6
    )
    assert float(mean_cross_entropy(Output(logits), np.full(6, 255))) == 0
    with jax.debug_nans(False):  # no class is no point that does not count; 255 may be one
        assert np.isnan(mean_cross_entropy(Output(logits), np.full(6, 3)))
    many = rng.normal(size=(6, 300)).astype(np.float32)
    assert float(mean_cross_entropy(Output(many), np.full(6, 255))) > 0


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        ({"labels": None}, "got no labels"),
        ({"colours": None}, "got no colours"),
        ({"labels": np.full(64, 10, np.int32)}, "got label 10, expected 0 to 9 or 255"),
        ({"labels": np.full(64, -1, np.int32)}, "got label -1"),
        ({"labels": np.zeros(63, np.int32)}, "got labels int32 of shape"),
    ],
)
def test_clouds_that_cannot_be_trained_on(spoilt, words):
    data = rooms("train", 4, points=64)
    data[2] = data[2]._replace(**spoilt)
    with pytest.raises(ValueError, match=rf"data\[2\] \({data[2].name}\): {words}"):
        fit(create("minkunet-rooms"), data, rooms_recipe(1))


class Says(nn.Module):
    """Every point is of the class that its intensity says."""

    voxel_size, levels = Cylinder(), 5

    def __call__(self, cloud, *, capacity):
        del capacity
        return Output(jax.nn.one_hot(cloud.features[:, 0].astype(int), 4))


def test_unlabelled_points_of_a_scan_are_not_measured():
    """Three classes occur; what is predicted where the fourth, 0, stands is nobody's error."""
    scan = streets("test", 1)[0]
    labels = np.arange(len(scan.xyz), dtype=np.int32) % 4
    said = np.where(labels == 0, 3, labels)
    right = evaluate(Says(), {}, [scan._replace(labels=labels, intensity=said.astype(np.float32))], Clouds(scan_batch))
    assert right == {"accuracy": 1.0, "mean_iou": 1.0}
    said[labels == 2] = 1
    wrong = evaluate(Says(), {}, [scan._replace(labels=labels, intensity=said.astype(np.float32))], Clouds(scan_batch))
    assert wrong["mean_iou"] == pytest.approx(0.5, abs=0.02) and wrong["accuracy"] == pytest.approx(2 / 3, abs=0.02)


def test_objects_and_scans_that_cannot_be_trained_on():
    data = objects("train", 32, points=8)
    with pytest.raises(ValueError, match="data: got label 40"):
        fit(create("minkfcnn-objects"), data._replace(labels=data.labels + 40), objects_recipe(1))
    scans = streets("train", 2)
    with pytest.raises(ValueError, match=r"data\[1\] .*: got no labels"):
        fit(create("cylinder3d-streets"), [scans[0], scans[1]._replace(labels=None)], streets_recipe(1))


def test_turns_keep_heights_and_distances():
    data = objects("train", 4, points=32)
    cloud, _ = object_batch(data, np.arange(4), np.random.default_rng(0))
    still, _ = object_batch(data, np.arange(4), None)
    assert np.linalg.norm(cloud.xyz - still.xyz, axis=1).mean() > 0.3
    # scaled by at most a tenth, shifted by at most 0.1, jittered by 0.01
    assert np.abs(cloud.xyz[:, 2] - still.xyz[:, 2]).max() < 0.1 * 1 + 0.1 + 0.06
