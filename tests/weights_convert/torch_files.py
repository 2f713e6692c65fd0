"""Small PyTorch files for the reader's tests."""

from collections import OrderedDict

import pytest

torch = pytest.importorskip("torch")

LAYOUTS = ("zip", "legacy")


def save(content, path, layout="zip", **options):
    torch.save(content, path, _use_new_zipfile_serialization=layout == "zip", **options)
    return path


def small_state(prefix=""):
    return OrderedDict(
        [
            (f"{prefix}conv1.weight", torch.arange(6, dtype=torch.float32).reshape(2, 1, 3, 1)),
            (f"{prefix}bn1.num_batches_tracked", torch.tensor(7)),
            (f"{prefix}fc.bias", torch.tensor([0.5, -2.0])),
        ]
    )
