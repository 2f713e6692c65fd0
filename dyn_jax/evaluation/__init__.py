"""A standard evaluation of adaptive networks: an ensemble of attacks, checks, runs that survive, a report."""

from dyn_jax.evaluation import checks as checks
from dyn_jax.evaluation import indicators as indicators
from dyn_jax.evaluation.checks import CODES as CODES
from dyn_jax.evaluation.checks import Finding as Finding
from dyn_jax.evaluation.checks import check as check
from dyn_jax.evaluation.ensemble import Evaluation as Evaluation
from dyn_jax.evaluation.ensemble import evaluate as evaluate
from dyn_jax.evaluation.plan import ATTACKS as ATTACKS
from dyn_jax.evaluation.plan import PLANS as PLANS
from dyn_jax.evaluation.plan import Budget as Budget
from dyn_jax.evaluation.report import report as report
