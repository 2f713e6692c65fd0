"""A network that compiles in a second and has all that a run must keep, and a run of it for another process."""

import time

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dyn_jax.datasets import ImageData
from dyn_jax.training import recipe
from dyn_jax.training.loop import fit
from dyn_jax.types import Output


class Tiny(nn.Module):
    """Linear, with running statistics and dropout."""

    gate_layers = ("gate",)

    @nn.compact
    def __call__(self, images, *, occupancy=None, train=False):
        x = images.reshape(images.shape[0], -1)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return Output(nn.Dense(3, name="gate")(x) + nn.Dense(3, name="head")(x))


def budget(output, labels, progress):
    """Depends on the epoch, and on the mean of the epoch before."""
    weight = jnp.where(progress.cross_entropy < 5, progress.cross_entropy, 1) * (1 + progress.epoch)
    return recipe.mean_cross_entropy(output, labels) + 0.01 * weight * jnp.mean(output.logits**2)


def some(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return ImageData(rng.random((count, 4, 4, 3)).astype(np.float32), np.arange(count, dtype=np.int32) % 3, "made up")


FIRST = recipe.Recipe(2, 4, recipe.AdamW(), loss=budget, source=recipe.Images(1, flip=True))
TWO_STAGES = recipe.Recipe(3, 4, recipe.SGD(0.05), loss=budget, measured=True, before=FIRST)


def slowly(path):
    """A run that takes seconds, for a process that shall not reach its end."""
    augment = recipe.augment_crop_flip
    recipe.augment_crop_flip = lambda *given: time.sleep(0.05) or augment(*given)
    fit(Tiny(), some(), TWO_STAGES, seed=3, checkpoint=path, every=3)
