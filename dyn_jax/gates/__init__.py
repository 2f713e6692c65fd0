"""Gates: features -> scores. A unit is on where its score is >= 0."""

from dyn_jax.gates.feed_forward import FeedForwardGate as FeedForwardGate
from dyn_jax.gates.recurrent import RecurrentGate as RecurrentGate
from dyn_jax.gates.spatial import SpatialGate as SpatialGate
from dyn_jax.gates.spatial import dilate as dilate
