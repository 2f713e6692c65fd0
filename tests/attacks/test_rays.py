"""Perturbations along the beam: by hand, in the runner, and what has no beams."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit

from dyn_jax import attacks
from dyn_jax.attacks import Ray
from dyn_jax.types import Output, PointCloud

CLEAN = jnp.asarray([[3.0, 0, 4], [0, 0, 0.1], [0, 0, 0]])


def test_by_hand():
    ray = Ray(0.5)
    moved = CLEAN + jnp.asarray([[1.0, 7, 0], [0, 0, -1], [1, 1, 1]])
    expected = [[3.3, 0, 4.4], [0, 0, 0.05], [0, 0, 0]]  # 0.6 m along the beam; no nearer than half way; no beam
    np.testing.assert_allclose(ray.project(moved, CLEAN), expected, atol=1e-6)
    np.testing.assert_allclose(ray.distance(ray.project(moved, CLEAN), CLEAN), [0.5, 0.05, 0], atol=1e-6)
    assert ray.contains(ray.project(moved, CLEAN), CLEAN).all()
    assert not ray.contains(CLEAN + jnp.asarray([[0, 0.01, 0]]), CLEAN)[:2].any()


def test_an_attack_keeps_every_ring():
    rng = np.random.default_rng(0)
    xyz = jnp.asarray(rng.normal(size=(60, 3)) * 10, jnp.float32)
    cloud = PointCloud(xyz, jnp.zeros((60, 1)), jnp.ones(60, bool))
    weights = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    forward = lambda cloud: Output(jnp.sin(cloud.xyz @ weights) @ jnp.ones((4, 4)) + cloud.xyz @ weights)
    attack = attacks.bim(0.3, 0.1, 5, norm="ray")
    labels = jnp.argmax(forward(cloud).logits, axis=1)
    result = quick_jit(lambda cloud: attack(forward, cloud, labels))(cloud)
    moved, clean = np.asarray(result.adversarial, float), np.asarray(xyz, float)
    unit = lambda points: points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_allclose(unit(moved), unit(clean), atol=1e-6)
    assert attack.threat.contains(result.adversarial, xyz).all()
    away = np.asarray(result.distance)
    assert away.max() <= 0.3 + 1e-5 and away.max() > 0.05
    assert float(result.loss.sum()) > float(jnp.sum(attack.objective(forward(cloud), labels, None)))


def test_images_have_no_rays():
    with pytest.raises(ValueError, match="images have no rays"):
        attacks.bim(0.1, 0.1, 1, norm="ray")(
            lambda x: Output(x.reshape(2, -1)[:, :3]), jnp.full((2, 4, 4, 3), 0.5), jnp.asarray([1, 2])
        )
    with pytest.raises(ValueError, match="norm"):
        attacks.bim(0.1, 0.1, 1, norm="beam")
    assert jax.tree.leaves(Ray(0.5)) == [0.5]
