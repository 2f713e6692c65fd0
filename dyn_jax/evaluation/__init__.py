"""A standard evaluation: what makes its numbers trustworthy."""

from dyn_jax.evaluation import checks as checks
from dyn_jax.evaluation import indicators as indicators
from dyn_jax.evaluation.checks import CODES as CODES
from dyn_jax.evaluation.checks import Finding as Finding
from dyn_jax.evaluation.checks import check as check
