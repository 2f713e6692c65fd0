"""Token maps, by hand."""

import pathlib

import numpy as np
import pytest

from dyn_jax import plotting
from dyn_jax.types import Trace, UnitTrace


def unit(name, on, **fields):
    on = np.asarray(on, np.float32)
    return UnitTrace(on - 0.5, on, 1, name=name, **fields)


def test_layers_of_every_patch():
    """A-ViT: the class token in front is left out; EViT: a fused one behind; AdaViT: other units are."""
    halts = Trace((unit("blocks_1", [[0, 1, 1, 1, 0]]), unit("blocks_2", [[0, 1, 0, 0, 0]])))
    np.testing.assert_array_equal(plotting.token_layers(halts), [[[2, 1], [1, 0]]])
    drops = Trace((unit("blocks_0", [[1, 1, 0, 0]], constant=True), unit("blocks_1", [[1, 0, 0, 0, 1]], constant=True)))
    np.testing.assert_array_equal(plotting.token_layers(drops), [[[2, 1], [0, 0]]])
    chosen = Trace((unit("blocks_1_heads", [[1, 1, 1, 1]]), unit("blocks_1_tokens", [[0, 1, 0, 1]])))
    np.testing.assert_array_equal(plotting.token_layers(chosen), [[[0, 1], [0, 1]]])


def test_no_tokens():
    with pytest.raises(ValueError, match="got no units of tokens"):
        plotting.token_layers(Trace((unit("group1_layer0", [[1]]),)))


def test_figure(tmp_path):
    trace = Trace((unit("blocks_1", [[1, 1, 0, 0, 1]] * 2),))
    path = plotting.token_figure(
        np.zeros((2, 4, 4, 3)), {"clean": trace, "patched": trace}, str(tmp_path / "a" / "b.png")
    )
    assert pathlib.Path(path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
