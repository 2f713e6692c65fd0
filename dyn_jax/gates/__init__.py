"""Gates: features -> scores. A unit is on where its score is >= 0."""

from dyn_jax.gates.channel import ChannelGate as ChannelGate
from dyn_jax.gates.early_exit import exit_scores as exit_scores
from dyn_jax.gates.early_exit import exit_weights as exit_weights
from dyn_jax.gates.feed_forward import FeedForwardGate as FeedForwardGate
from dyn_jax.gates.halting import GlobalHalting as GlobalHalting
from dyn_jax.gates.halting import SpatialHalting as SpatialHalting
from dyn_jax.gates.halting import halting_of_trace as halting_of_trace
from dyn_jax.gates.halting import halting_prior as halting_prior
from dyn_jax.gates.halting import halting_score as halting_score
from dyn_jax.gates.halting import halting_weights as halting_weights
from dyn_jax.gates.halting import mean_halting as mean_halting
from dyn_jax.gates.halting import ponder as ponder
from dyn_jax.gates.halting import ponder_of_trace as ponder_of_trace
from dyn_jax.gates.halting import prior_target as prior_target
from dyn_jax.gates.recurrent import RecurrentGate as RecurrentGate
from dyn_jax.gates.spatial import SpatialGate as SpatialGate
from dyn_jax.gates.spatial import dilate as dilate
from dyn_jax.gates.spatial import dilation as dilation
from dyn_jax.gates.top_k import top_k_score as top_k_score
