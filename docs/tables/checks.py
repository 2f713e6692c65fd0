"""The codes of the checks of an evaluation."""

from __future__ import annotations

from docs.tables import markdown, named
from dyn_jax.evaluation.findings import CODES


@named("checks")
def checks() -> str:
    """Every code with its severity, meaning and remedy."""
    rows = [(f"`{name}`", code.severity, code.meaning, code.remedy) for name, code in CODES.items()]
    return markdown(("code", "severity", "what was seen", "what to do"), rows)
