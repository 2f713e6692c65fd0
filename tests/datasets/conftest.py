"""A made-up CIFAR-10 of a few images per file, written in every form that the real one comes in."""

from __future__ import annotations

import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

PER_FILE = 20
FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
PY, BIN = "cifar-10-batches-py", "cifar-10-batches-bin"


def python2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """Opcode by opcode what Python 2 and NumPy 1 wrote into the real files (protocol 2, byte strings)."""

    def text(content: bytes) -> bytes:
        return b"U" + struct.pack("<B", len(content)) + content

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    content = pixels.tobytes()
    return b"".join(
        [
            b"\x80\x02}q\x01(",
            *(text(b"batch_label"), text(b"training batch 1 of 5")),
            *(text(b"labels"), b"](", *map(integer, labels), b"e"),
            text(b"data"),
            *(b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n", b"K\x00\x85", text(b"b"), b"\x87R"),
            *(b"(K\x01", integer(pixels.shape[0]), integer(pixels.shape[1]), b"\x86"),
            *(b"cnumpy\ndtype\n", text(b"u1"), b"K\x00K\x01\x87R"),
            *(b"(K\x03", text(b"|"), b"NNN", integer(-1), integer(-1), b"K\x00tb"),
            *(b"\x89T", struct.pack("<i", len(content)), content, b"tb"),
            b"u.",
        ]
    )


def python3_pickle(pixels: np.ndarray, labels: list[int], protocol: int, keys: type = bytes) -> bytes:
    """The same batch as today's pickle and NumPy write it."""
    batch = {"batch_label": "x", "labels": labels, "data": pixels, "filenames": [f"{i}.png" for i in labels]}
    return pickle.dumps({key.encode() if keys is bytes else key: v for key, v in batch.items()}, protocol)


class MadeUp:
    """`PER_FILE` random images in each of the six files."""

    def __init__(self):
        rng = np.random.default_rng(5)
        self.pixels = {name: rng.integers(0, 256, (PER_FILE, 3072), np.uint8) for name in FILES}
        self.labels = {name: rng.integers(0, 10, PER_FILE).tolist() for name in FILES}

    def expected(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images NHWC and labels, by loops over rows, columns and planes."""
        names = FILES[:5] if split == "train" else FILES[5:]
        images = np.zeros((PER_FILE * len(names), 32, 32, 3), np.uint8)
        flat = np.concatenate([self.pixels[name] for name in names])
        for row in range(32):
            for column in range(32):
                for plane in range(3):
                    images[:, row, column, plane] = flat[:, plane * 1024 + row * 32 + column]
        return images, np.concatenate([self.labels[name] for name in names]).astype(np.int32)

    def blob(self, form: str, name: str) -> bytes:
        pixels, labels = self.pixels[name], self.labels[name]
        if form == "bin":
            return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels))
        if form == "python2":
            return python2_pickle(pixels, labels)
        return python3_pickle(pixels, labels, int(form[-1]))

    def write(self, directory: os.PathLike, form: str, *, archive: bool = False) -> str:
        """Writes the six files as "bin", "python2" or "protocol2".."protocol4"; returns the folder or the archive."""
        base = BIN if form == "bin" else PY
        folder = os.path.join(directory, base)
        os.makedirs(folder)
        for name in FILES:
            with open(os.path.join(folder, name + (".bin" if form == "bin" else "")), "wb") as file:
                file.write(self.blob(form, name))
        if not archive:
            return folder
        path = os.path.join(directory, "cifar-10-binary.tar.gz" if form == "bin" else "cifar-10-python.tar.gz")
        with tarfile.open(path, "w:gz") as tar:
            for name in sorted(os.listdir(folder), reverse=True):  # the order in the archive must not matter
                tar.add(os.path.join(folder, name), f"{base}/{name}")
                os.remove(os.path.join(folder, name))
        os.rmdir(folder)
        return path


@pytest.fixture(scope="session")
def made_up() -> MadeUp:
    return MadeUp()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here may reach for the network."""
    import socket

    def refuse(*_arguments, **_options):
        raise AssertionError("a data set tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
