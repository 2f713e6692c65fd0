"""Attacks on adaptive neural networks, functional and jitted, in JAX/Flax."""

from dyn_jax import attacks as attacks
from dyn_jax import macs as macs
from dyn_jax import metrics as metrics
from dyn_jax import networks as networks
from dyn_jax import objectives as objectives
from dyn_jax import occupancy as occupancy
from dyn_jax import sparse3d as sparse3d
from dyn_jax import types as types
from dyn_jax.deployed import deploy as deploy

__version__ = "0.2.0"
