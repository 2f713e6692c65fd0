"""Corruptions: by hand, against HSV of the standard library, statistics, bad input."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from dyn_jax.datasets import ImageData
from dyn_jax.datasets import corruptions as module


def images(seed=0, count=2, size=4):
    return np.random.default_rng(seed).random((count, size, size, 3), np.float32)


@pytest.mark.parametrize("table", ["imagenet", "cifar"])
@pytest.mark.parametrize("severity", module.SEVERITIES)
def test_brightness_is_hsv(table, severity):
    x = images()
    x[0, 0, 0], x[0, 0, 1], x[0, 0, 2] = 0, 1, (0.2, 0.2, 0.2)  # black, white, grey
    got = module.brightness(x, severity, table=table)
    amount = module.BRIGHTNESS[table][severity - 1]
    for index in np.ndindex(x.shape[:3]):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, x[index]))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + amount, 1))
        np.testing.assert_allclose(got[index], expected, atol=1e-6)
    assert got.dtype == np.float32


def test_noise_has_the_stated_deviation():
    grey = np.full((40, 16, 16, 3), 0.5, np.float32)
    for severity, std in zip((1, 2), (0.08, 0.12)):  # too small to be clipped at 0.5
        noise = module.gaussian_noise(grey, severity, np.random.default_rng(0)) - 0.5
        assert abs(noise.std() - std) < 0.002 and abs(noise.mean()) < 0.002
    harsh = module.gaussian_noise(grey, 5, np.random.default_rng(0))
    assert harsh.min() == 0 and harsh.max() == 1 and harsh.dtype == np.float32
    again = module.gaussian_noise(grey, 5, np.random.default_rng(0))
    other = module.gaussian_noise(grey, 5, np.random.default_rng(1))
    np.testing.assert_array_equal(harsh, again)
    assert (harsh != other).any()


def test_copies_are_in_the_documented_order():
    data = ImageData((255 * images()).astype(np.uint8), np.array([3, 5], np.int32), "made up")
    got = module.with_corrupted_copies(data, seed=7)
    assert got.images.shape == (22, 4, 4, 3) and got.labels.tolist() == [3, 5] * 11
    clean = data.images.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(got.images[:2], clean)
    np.testing.assert_array_equal(got.images[2:4], module.gaussian_noise(clean, 1, np.random.default_rng((7, 1))))
    np.testing.assert_array_equal(got.images[20:], module.brightness(clean, 5))
    assert len(module.with_corrupted_copies(data, severities=(2,)).images) == 6


@pytest.mark.parametrize("severity,error", [(0, ValueError), (6, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_severity_out_of_range(severity, error):
    with pytest.raises(error, match="severity"):
        module.brightness(images(), severity)
    with pytest.raises(error, match="severity"):
        module.gaussian_noise(images(), severity, np.random.default_rng(0))


def test_other_bad_input():
    with pytest.raises(ValueError, match="table"):
        module.brightness(images(), 1, table="tiny")
    with pytest.raises(ValueError, match="expected \\[n, height, width, 3\\]"):
        module.brightness(images()[..., :1], 1)
    with pytest.raises(ValueError, match="images"):
        module.brightness(images() + 1, 1)
