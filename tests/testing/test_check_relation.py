"""The relation check passes what the paper uses and names what is wrong with the rest."""

import jax
import jax.numpy as jnp
import pytest

from dyn_jax.occupancy import voxel
from dyn_jax.testing import check_relation


@pytest.mark.parametrize("relation", [voxel.sigmoid(10.0), voxel.sigmoid(55.0), voxel.bilinear(), voxel.rbf()])
def test_the_papers_relations_pass(relation):
    check_relation(relation)


def test_straight_through_passes_as_a_surrogate():
    check_relation(voxel.straight_through(), surrogate=True)
    with pytest.raises(AssertionError, match="surrogate's value"):
        check_relation(voxel.sigmoid(10.0), surrogate=True)


@pytest.mark.parametrize(
    ("relation", "message"),
    [
        (voxel.hard(), "slope 0 at the face"),
        (voxel.sigmoid(1.0), "at the centre: got 0.24"),
        (lambda d, inside: jnp.ones_like(inside, jnp.float32), "one voxel away: got 1"),
        (lambda d, inside: 2 * jnp.prod(1 - d, axis=-1), r"values in \[0, 2\]"),
        (lambda d, inside: jnp.prod(1 - d, axis=-1) * jnp.cos(20 * d[..., 0]) ** 2, "rises by"),
        (
            lambda d, inside: jnp.prod(1 / (1 + jnp.exp(10 * (d - 0.5))), axis=-1) + 0 * jnp.sqrt(d[..., 0]),
            "not finite",
        ),
        (lambda d, inside: jnp.prod(1 - d, axis=-1).sum(), "got shape"),
        (lambda d, inside: jax.nn.sigmoid(30 * (0.5 - d[..., 0])), "axis 1, one voxel away"),
    ],
    ids=["hard", "flat", "constant", "above 1", "wavy", "infinite slope", "sums", "one axis"],
)
def test_what_fails(relation, message):
    with pytest.raises(AssertionError, match=message):
        check_relation(relation)
