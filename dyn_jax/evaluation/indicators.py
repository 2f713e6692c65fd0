"""Indicators of attack failure, as functions of what an attack recorded: one number or flag an example, nothing judged.

Some of them are high on healthy networks too, whose loss goes on rising long after the attack has succeeded; so
`checks.from_attack` reads them only where the attack failed. Source: Pintor et al. 2022, "Indicators of Attack Failure:
Debugging and Improving Optimization of Adversarial Examples", section 3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.bim import bim
from dyn_jax.attacks.forward import Network

TAIL = 10  # steps at the end of a loss path in which it should have settled


def unavailable_gradients(gradient: jax.typing.ArrayLike) -> np.ndarray:
    """[example] bool: no entry of the gradient [example, ...] differs from zero."""
    gradient = np.asarray(gradient)
    return ~np.any(gradient != 0, axis=tuple(range(1, gradient.ndim)))


def unstable_predictions(loss: jax.typing.ArrayLike, loss_near: jax.typing.ArrayLike) -> np.ndarray:
    """``min(1, mean_r |L(x + r) - L(x)| / |L(x)|)``, the divisor 1 where ``L(x)`` is 0; NaN stays NaN.

    Args:
      loss: [example], L at x.
      loss_near: [draw, example], L at points around x; the paper draws 100 in the cube of edge 8/255.

    Returns:
      [example]. The paper's bound is 0.1.
    """
    loss, near = np.asarray(loss, np.float64), np.asarray(loss_near, np.float64)
    if near.ndim != 2 or near.shape[1:] != loss.shape:
        raise ValueError(f"loss_near: got shape {near.shape}, expected (draws, {len(loss)})")
    divisor = np.where(loss == 0, 1, np.abs(loss))
    return np.minimum(np.mean(np.abs(near - loss) / divisor, axis=0), 1)


def silent_success(success: jax.typing.ArrayLike, path_success: jax.typing.ArrayLike) -> np.ndarray:
    """[example] bool: what the attack returned fails, though one of its iterates succeeded.

    The intended rule; the released code looks at an empty path and never fires.

    `success` [example] bool is that of the returned value, `path_success` [example, step] of every iterate.
    """
    success = np.asarray(_validate.rows("success", success, np.shape(success)[0]))
    return ~success & np.any(_path("path_success", path_success, len(success)), axis=1)


def incomplete_optimization(losses: jax.typing.ArrayLike) -> np.ndarray:
    """[example]: by how much the best loss so far, scaled to [0, 1], still rose in the last ten entries of the path.

    Args:
      losses: [example, step], ascended (`AttackResult.steps.loss`).

    Returns:
      [example]; the paper's bound is 0.05. 0 for a constant path; NaN where it is not finite.
    """
    path = _path("losses", losses).astype(np.float64)
    path = np.where(np.isfinite(path).all(axis=1, keepdims=True), path, np.nan)
    low = path.min(axis=1, keepdims=True)
    span = path.max(axis=1, keepdims=True) - low
    best = np.maximum.accumulate((path - low) / np.where(span == 0, 1, span), axis=1)[:, -TAIL:]
    return best.max(axis=1) - best.min(axis=1)


def transfer_failure(success: jax.typing.ArrayLike, surrogate_success: jax.typing.ArrayLike) -> np.ndarray:
    """[example] bool: the returned value fools the network that was differentiated, but not the one judged."""
    success = np.asarray(_validate.rows("success", success, np.shape(success)[0]))
    return ~success & np.asarray(_validate.rows("surrogate_success", surrogate_success, len(success)))


def unconstrained_failure(
    forward: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    victim: Network | None = None,
    step_size: jax.typing.ArrayLike | str = "2/255",
    steps: int = 20,
) -> jax.Array:
    """[example] bool: sign steps on the margin do not fool the network even without a bound on the perturbation."""
    attack = bim(eps=1.0, step_size=step_size, steps=steps, objective="margin")
    return ~attack(forward, images, labels, victim=victim).success


def near(key: jax.Array, images: jax.Array, radius: float = 8 / 255, draws: int = 100) -> jax.Array:
    """[draw, *images]: points drawn uniformly from the cube of edge `radius` around every image, not clipped."""
    noise = jax.random.uniform(key, (draws, *images.shape), images.dtype, -radius / 2, radius / 2)
    return jnp.asarray(images)[None] + noise


def _path(name: str, got: jax.typing.ArrayLike, examples: int | None = None) -> np.ndarray:
    path = np.asarray(got)
    if path.ndim != 2 or not path.shape[1] or examples not in (None, len(path)):
        raise ValueError(f"{name}: got shape {path.shape}, expected ({examples or 'examples'}, steps)")
    return path
