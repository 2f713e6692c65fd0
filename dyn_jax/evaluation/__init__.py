"""A standard evaluation: what makes its numbers trustworthy."""

from dyn_jax.evaluation import checks as checks
from dyn_jax.evaluation import indicators as indicators
from dyn_jax.evaluation.checks import check as check
from dyn_jax.evaluation.findings import CODES as CODES
from dyn_jax.evaluation.findings import Finding as Finding
from dyn_jax.evaluation.findings import Reading as Reading
from dyn_jax.evaluation.reading import from_attack as from_attack
from dyn_jax.evaluation.reading import from_ensemble as from_ensemble
