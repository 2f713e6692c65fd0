"""CIFAR-10 in npz files: the readers on made-up ones, and the cut into what is trained on and what is held back."""

from __future__ import annotations

import io
from unittest import mock

import numpy as np
import pytest

from dyn_jax.datasets import cifar_packed as readers


def jpeg_arrays(images: np.ndarray) -> dict[str, np.ndarray]:
    from PIL import Image

    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=95)
        files.append(buffer.getvalue())
    return {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offset": np.cumsum([0, *map(len, files)]),
        "label": np.arange(len(images), dtype=np.uint8),
    }


def flat_images() -> np.ndarray:
    """Three images of one colour each, which JPEG nearly keeps."""
    colours = np.array([[250, 10, 20], [0, 0, 0], [40, 200, 90]], np.uint8)
    return np.broadcast_to(colours[:, None, None], (3, 32, 32, 3)).copy()


def test_lossless(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "cifar10_lossless_test.npz", image=images, label=np.array([9, 0, 4], np.uint8))
    data = readers.cifar10_lossless(tmp_path, "test")
    np.testing.assert_array_equal(data.images, images)
    assert data.labels.tolist() == [9, 0, 4] and data.labels.dtype == np.int32
    assert data.name == "CIFAR-10 (3 lossless images)"


def test_jpeg(tmp_path):
    np.savez(tmp_path / "cifar10_jpeg_train.npz", **jpeg_arrays(flat_images()))
    data = readers.cifar10_jpeg(tmp_path, "train")
    assert data.images.shape == (3, 32, 32, 3) and data.images.dtype == np.uint8
    assert np.abs(data.images.astype(int) - flat_images()).max() <= 3
    assert data.labels.tolist() == [0, 1, 2] and data.labels.dtype == np.int32
    assert data.name == "CIFAR-10 (JPEG, lossy)"


@pytest.mark.parametrize("name", ["cifar10_lossless", "cifar10_jpeg"])
def test_missing_and_truncated(tmp_path, name):
    read = getattr(readers, name)
    with pytest.raises(FileNotFoundError, match=f"{name}_test.npz in {tmp_path}"):
        read(tmp_path, "test")
    with pytest.raises(ValueError, match="split: got 'val'"):
        read(tmp_path, "val")
    image = np.zeros((2, 32, 32, 3), np.uint8)
    np.savez(tmp_path / f"{name}_test.npz", image=image, **jpeg_arrays(image))
    assert len(read(tmp_path, "test").labels) == 2
    whole = (tmp_path / f"{name}_test.npz").read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / f"{name}_test.npz").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"{name}_test.npz: not an npz"):
            read(tmp_path, "test")


@pytest.mark.parametrize(
    "change",
    [
        {"image": np.zeros((2, 3, 32, 32), np.uint8)},
        {"image": np.zeros((2, 32, 32, 3), np.float32)},
        {"image": np.zeros((3, 32, 32, 3), np.uint8)},
        {"label": np.array([1, 10], np.uint8)},
        {"label": np.array([[1, 2]], np.uint8)},
        {"image": np.zeros((0, 32, 32, 3), np.uint8), "label": np.zeros(0, np.uint8)},
        {"label": np.array([1, 2], object)},
    ],
)
def test_lossless_arrays_that_do_not_fit(tmp_path, change):
    arrays = {"image": np.zeros((2, 32, 32, 3), np.uint8), "label": np.array([1, 2], np.uint8)}
    np.savez(tmp_path / "cifar10_lossless_test.npz", **{**arrays, **change})
    with pytest.raises(ValueError, match=r"cifar10_lossless_test\.npz"):
        readers.cifar10_lossless(tmp_path, "test")


def test_jpeg_arrays_that_do_not_fit(tmp_path):
    good = jpeg_arrays(flat_images())
    short, broken = good["offset"].copy(), good["jpeg"].copy()
    short[-1] -= 1
    broken[:4] = 0
    small = jpeg_arrays(np.zeros((3, 16, 16, 3), np.uint8))
    grey = jpeg_arrays(np.zeros((3, 32, 32), np.uint8))
    longer = np.append(good["jpeg"], np.uint8(0))
    changes = (
        {"offset": short},
        {"jpeg": longer},
        {"offset": good["offset"][::-1].copy()},
        {"jpeg": broken},
        small,
        grey,
    )
    for change in changes:
        np.savez(tmp_path / "cifar10_jpeg_test.npz", **{**good, **change})
        with pytest.raises(ValueError, match=r"cifar10_jpeg_test\.npz"):
            readers.cifar10_jpeg(tmp_path, "test")


def test_what_is_held_back_is_in_no_form_among_what_is_trained_on(tmp_path):
    """Blurred noise, whose twins JPEG does not hide; the held-back images are the first lossless ones."""
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (7, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    with mock.patch.object(readers, "_CUT", (slice(None, 2), slice(2, None))):
        shown = [3, 6, 0, 5, 1, 2, 4]
        np.savez(tmp_path / "cifar10_lossless_train.npz", image=originals[:4], label=np.arange(4, dtype=np.uint8))
        arrays = jpeg_arrays(originals[shown]) | {"label": np.array(shown, np.uint8)}
        np.savez(tmp_path / "cifar10_jpeg_train.npz", **arrays)
        np.savez(tmp_path / "cifar10_jpeg_test.npz", **arrays)
        held = readers.cifar10_packed(tmp_path, "held_back")
        train = readers.cifar10_packed(tmp_path, "train")
        test = readers.cifar10_packed(tmp_path, "test")
    assert held.labels.tolist() == [0, 1] and (held.images == originals[:2]).all()
    assert train.labels.tolist() == [3, 6, 5, 2, 4, 2, 3]
    assert train.name == "CIFAR-10 (JPEG, lossy, and lossless)" and len(test.labels) == 7
    with pytest.raises(ValueError, match="split: got 'val'"):
        readers.cifar10_packed(tmp_path, "val")


def test_labels_that_are_shares(tmp_path):
    """Cast, 0.5 would be class 0 and NaN some class."""
    for label in (0.5, np.nan):
        np.savez(tmp_path / "cifar10_lossless_test.npz", image=np.zeros((2, 32, 32, 3), np.uint8), label=[1, label])
        with pytest.raises(TypeError, match="test.npz: got labels of dtype float64, expected integers"):
            readers.cifar10_lossless(tmp_path, "test")


def test_a_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "cifar10_lossless_test.npz"
    np.savez_compressed(path, image=np.zeros((1, 1), np.uint8), label=np.zeros(1))
    with (
        mock.patch.object(readers._files, "LIMIT", 200),
        pytest.raises(ValueError, match="expected at most|unpacks to"),
    ):
        readers.cifar10_lossless(tmp_path, "test")
