"""A network of one gate on 4 x 4 images, made of nothing but its weights: an evaluation of it compiles in seconds."""

from __future__ import annotations

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import occupancy as occupancies
from dyn_jax.evaluation import Budget, evaluate
from dyn_jax.types import Output, Trace, UnitTrace

SHAPE, CLASSES, COUNT = (4, 4, 3), 5, 21
SHORT = Budget(steps=4, targets=2, queries=12, energy_steps=3, lambdas=(1.0, 8.0))


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    size = int(np.prod(SHAPE))
    return {"gate": draw(size), "always": draw(size, CLASSES), "gated": 2 * draw(size, CLASSES)}


def gated(variables, x, *, occupancy=None):
    """One layer that always runs, and one behind a gate on the image."""
    flat = x.reshape(len(x), -1) - 0.5
    score = flat @ variables["gate"]
    on = (occupancies.hard() if occupancy is None else occupancy)(score)
    logits = flat @ variables["always"] + on[:, None] * jnp.tanh(flat @ variables["gated"])
    unit = UnitTrace(score, on, 100, name="gate", extras={"probability": jax.nn.sigmoid(score)})
    return Output(logits, Trace((unit,), 50))


def static(variables, x):
    """The layer that always runs."""
    return (x.reshape(len(x), -1) - 0.5) @ variables["always"]


def noisy(variables, x, *, key):
    """Logits with fresh noise; it must be told its key."""
    return static(variables, x) + 0.5 * jax.random.normal(key, (len(x), CLASSES))


def gated_at_random(variables, x, *, occupancy=None, rngs=None):
    """`gated` behind a gate that draws."""
    key = (rngs or {}).get("gate")
    how = occupancies.hard() if occupancy is None else occupancy
    return gated(variables, x, occupancy=how if key is None else lambda score: how(score, key=key))


def data(count: int = COUNT, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """8-bit images, and what `gated` says about them but for the fourth."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.float32) / 255
    labels = np.array(jnp.argmax(gated(weights(), images).logits, axis=1), np.int32)
    if count > 3:
        labels[3] = (labels[3] + 1) % CLASSES
    return images, labels


def run(output=None, attacks="fgsm,bim@soft,energy-apgd@straight-through", **given):
    """An evaluation of `gated`."""
    images, labels = data()
    given = {"eps": "16/255", "budget": SHORT, "batch_size": 5, **given}
    return evaluate(gated, weights(), images, labels, attacks=attacks, output=output, **given)


def files(folder) -> dict[str, bytes]:
    """What a finished run consists of."""
    root = pathlib.Path(folder)
    names = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in names}


if __name__ == "__main__":
    # python -m tests.evaluation.toy FOLDER [ADDRESS PROCESS]: a run to be killed, or on devices, or one of two
    if len(sys.argv) > 2:
        jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
    run(sys.argv[1])
