"""Local optimality: the released code's numbers, and what its curve gets wrong."""

import numpy as np
import pytest

from dyn_jax import metrics


def test_examples_of_the_release(golden):
    stored = golden("eval_attackbench_optimality")
    names = sorted({key.partition("/")[0] for key in stored})
    assert names
    for name in names:
        norms, best = stored[f"{name}/attack"], stored[f"{name}/best"]
        got = metrics.local_optimality(norms, best, curve="released")
        np.testing.assert_allclose(got, stored[f"{name}/optimality"], rtol=1e-6, err_msg=name)
        plotted = stored[f"{name}/optimality_plot"]
        if np.isfinite(plotted):  # one distinct distance alone has no curve there
            got = metrics.local_optimality(norms, best, curve="released_plot")
            np.testing.assert_allclose(got, plotted, rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_exact_area_has_none_of_the_traps():
    best = np.array([0.0, 0.1, 0.2, 0.4])
    assert metrics.local_optimality(best, best) == 1.0
    assert metrics.local_optimality([0.0, np.inf, np.inf, np.inf], best) == pytest.approx(0.0)
    worse = metrics.local_optimality([0.0, 0.2, 0.2, 0.4], best)
    assert worse == pytest.approx(1 - 0.025 / (0.3 - 0.175))
    assert metrics.local_optimality([2.0, 3.0, 4.0, 4.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.5)
    assert metrics.local_optimality([0.0, 9.0], [0.0, 1.0], where=np.array([True, True])) == 1.0


@pytest.mark.parametrize(
    "norms, best, options, words",
    [
        ([1.0], [1.0, 2.0], {}, "norms, best: got shapes"),
        ([np.nan], [1.0], {}, "got negative ones, NaN"),
        ([1.0], [np.inf], {}, "best: got inf"),
        ([1.0], [0.0], {}, "best: got 0.0"),
        ([1.0], [1.0], {"curve": "plot"}, "curve: got 'plot'"),
    ],
)
def test_bad_input(norms, best, options, words):
    with pytest.raises(ValueError, match=words):
        metrics.local_optimality(norms, best, **options)
