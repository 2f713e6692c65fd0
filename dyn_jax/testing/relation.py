"""What a relation between a point and a voxel must be, as a check."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.occupancy.voxel import Relation
from dyn_jax.testing._compare import close, require

_CHECK = "check_relation"
_STEPS = 41


def check_relation(
    relation: Relation, *, inside: float = 0.9, outside: float = 0.1, steepness: float = 0.1, surrogate: bool = False
) -> None:
    """Checks that `relation` is fit to replace "1 if the point lies in the voxel, else 0".

    Close to it: at least `inside` at the voxel's centre, at most `outside` one voxel away from it on any axis. Values
    in [0, 1] up to there, falling along every axis. Steep at the faces: the derivative along an axis, half a voxel
    from the centre, is at least `steepness` per voxel edge. The derivative is finite everywhere, also where a careless
    exponential overflows (100 voxels away). It works on any batch of pairs and gives the same under ``jit``.

    Args:
      relation: ``(distance [..., 3], inside [...]) -> value [...]``, see `dyn_jax.occupancy.voxel`.
      inside, outside, steepness: see above.
      surrogate: the value is exactly 1 inside and 0 outside, and only the derivative is that of an approximation.

    Source: LGM paper sections III.B and IV.C, the criteria for an approximation, on eq. 29-30.
    """
    line = np.linspace(0.0, 1.0, _STEPS, dtype=np.float32)
    with jax.debug_nans(False):
        for axis in range(3):
            distance = np.zeros((_STEPS, 3), np.float32)
            distance[:, axis] = line
            within = distance.max(axis=1) < 0.5
            value = relation(jnp.asarray(distance), jnp.asarray(within))
            require(jnp.shape(value) == (_STEPS,), _CHECK, f"got shape {jnp.shape(value)} for {_STEPS} pairs")
            value, slope = np.asarray(value), _slope(relation, distance, within)[:, axis]
            require(np.isfinite(value).all(), _CHECK, f"axis {axis}: got values that are not finite")
            low, high = float(value.min()), float(value.max())
            require(-1e-6 <= low and high <= 1 + 1e-6, _CHECK, f"axis {axis}: got values in [{low:.6g}, {high:.6g}]")
            require(value[0] >= inside, _CHECK, f"at the centre: got {value[0]:.6g}, expected at least {inside}")
            text = f"axis {axis}, one voxel away: got {value[-1]:.6g}, expected at most {outside}"
            require(value[-1] <= outside, _CHECK, text)
            rise = float(np.max(np.diff(value)))
            require(rise <= 1e-6, _CHECK, f"axis {axis}: rises by {rise:.3g} with the distance")
            steepest = max(0.0, *(-slope[np.abs(line - 0.5) < 0.1]))
            text = f"axis {axis}: slope {steepest:.3g} at the face, expected {steepness}"
            require(steepest >= steepness, _CHECK, text)
            if surrogate:
                close(_CHECK, f"axis {axis}: surrogate's value", value, within, 1e-6)
        far = np.array([[100.0, 0, 0], [100.0, 100, 100], [0.5, 0.5, 0.5], [0, 0, 0]], np.float32)
        within = np.array([False, False, False, True])
        require(np.isfinite(_slope(relation, far, within)).all(), _CHECK, "derivative is not finite")
        batch = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (2, 3, 3)), jnp.float32)
        where = jnp.all(batch < 0.5, axis=-1)
        together = relation(batch, where)
        require(jnp.shape(together) == (2, 3), _CHECK, f"got shape {jnp.shape(together)} for pairs of shape (2, 3)")
        require(together.dtype == batch.dtype, _CHECK, f"got dtype {together.dtype}, expected {batch.dtype}")
        alone = [[relation(batch[i, j], where[i, j]) for j in range(3)] for i in range(2)]
        close(_CHECK, "one pair at a time", together, np.array(alone), 1e-6)
        close(_CHECK, "jit = eager", jax.jit(relation)(batch, where), together, 1e-6)


def _slope(relation: Relation, distance: np.ndarray, within: np.ndarray) -> np.ndarray:
    """[pair, 3], derivative of every pair's value in its own distance."""
    return np.asarray(jax.grad(lambda d: jnp.sum(relation(d, jnp.asarray(within))))(jnp.asarray(distance)))
