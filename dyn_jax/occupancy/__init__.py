"""Occupancy functions: how a score becomes a value in [0, 1], an argument of every forward pass.

FGM is ``jax.grad`` through `hard`, LGM is ``jax.grad`` through `sigmoid` or `straight_through`; any other callable
``score -> value`` serves as well (check it with `dyn_jax.testing.check_occupancy`).
"""

from dyn_jax.occupancy import voxel as voxel
from dyn_jax.occupancy.gate import Hard as Hard
from dyn_jax.occupancy.gate import Sigmoid as Sigmoid
from dyn_jax.occupancy.gate import StraightThrough as StraightThrough
from dyn_jax.occupancy.gate import hard as hard
from dyn_jax.occupancy.gate import sigmoid as sigmoid
from dyn_jax.occupancy.gate import straight_through as straight_through
from dyn_jax.occupancy.stochastic import Bernoulli as Bernoulli
from dyn_jax.occupancy.stochastic import GumbelSigmoid as GumbelSigmoid
from dyn_jax.occupancy.stochastic import Stochastic as Stochastic
from dyn_jax.occupancy.stochastic import bernoulli as bernoulli
from dyn_jax.occupancy.stochastic import gumbel_sigmoid as gumbel_sigmoid
