"""What an attack ascends, per example, and what the energy attacks descend."""

from dyn_jax.objectives.answers import OBJECTIVES as OBJECTIVES
from dyn_jax.objectives.answers import Objective as Objective
from dyn_jax.objectives.answers import cross_entropy as cross_entropy
from dyn_jax.objectives.answers import dlr as dlr
from dyn_jax.objectives.answers import hinge_margin as hinge_margin
from dyn_jax.objectives.answers import margin as margin
from dyn_jax.objectives.answers import released_margin as released_margin
from dyn_jax.objectives.answers import resolve as resolve
from dyn_jax.objectives.complexity import Weights as Weights
from dyn_jax.objectives.complexity import check_tau as check_tau
from dyn_jax.objectives.complexity import check_weights as check_weights
from dyn_jax.objectives.complexity import complexity_loss as complexity_loss
from dyn_jax.objectives.complexity import complexity_weights as complexity_weights
from dyn_jax.objectives.complexity import energy as energy
from dyn_jax.objectives.complexity import finished_loss as finished_loss
from dyn_jax.objectives.complexity import gating_excess as gating_excess
from dyn_jax.objectives.complexity import logit_drift as logit_drift
from dyn_jax.objectives.exits import at_exit as at_exit
from dyn_jax.objectives.exits import exit_objective as exit_objective
from dyn_jax.objectives.exits import exits_of as exits_of
from dyn_jax.objectives.exits import sum_of_exits as sum_of_exits
from dyn_jax.objectives.lovasz import lovasz as lovasz
from dyn_jax.objectives.lovasz import lovasz_softmax as lovasz_softmax
