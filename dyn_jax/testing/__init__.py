"""Property checks for a new occupancy, relation, network or attack: call them from your own tests.

Every check returns None, or raises AssertionError with a plain sentence: what failed, where and by how much.
"""

from dyn_jax.testing.attack import check_attack as check_attack
from dyn_jax.testing.network import check_network as check_network
from dyn_jax.testing.occupancy import check_occupancy as check_occupancy
from dyn_jax.testing.relation import check_relation as check_relation
