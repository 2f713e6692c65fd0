"""Every relation of the catalogue meets the criteria, or is known not to."""

import pytest
from catalogue import ALL_RELATIONS

from dyn_jax.testing import check_relation


@pytest.mark.parametrize("name", ALL_RELATIONS)
def test_relations(name):
    if name == "hard":  # the step itself: what the others stand in for
        with pytest.raises(AssertionError, match="slope 0"):
            check_relation(ALL_RELATIONS[name])
    else:
        check_relation(ALL_RELATIONS[name], surrogate=name == "straight_through")
