"""Imports PyTorch checkpoints of the papers' networks into dyn_jax variables.

``convert(name, state_dict)`` takes numpy arrays; only `weights_convert.torch_io` (and with it
``python -m weights_convert NAME in.pth out``) needs PyTorch.
"""

from dyn_jax.networks.checkpoint import target_shapes as target_shapes
from weights_convert.engine import ConversionError as ConversionError
from weights_convert.engine import convert as convert
