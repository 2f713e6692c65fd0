"""Two attacks on the same images: shares with their errors, the paired test, the difference with its interval."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest

Z = 1.96  # of a 95 % interval


def percent(hits: np.ndarray) -> tuple[float, float]:
    """Share of hits in percent, and its standard error."""
    share = float(np.mean(hits))
    return round(100 * share, 2), round(100 * (share * (1 - share) / len(hits)) ** 0.5, 2)


def paired(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """What `second` leaves less than `first`: the difference in points, its 95 % interval, McNemar's exact p.

    Args:
      first, second: [n] bool, whether each image is still answered rightly.

    Returns:
      ``minus FGM``, negative where `second` is stronger, with ``low`` and ``high`` (Wald, paired), and ``p`` of the
      one-sided test that `second` leaves as many or more.
    """
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    n, apart = len(first), only_first + only_second
    difference = (only_second - only_first) / n
    error = (max(apart - n * difference**2, 0) ** 0.5) / n
    p = binomtest(only_first, apart, alternative="greater").pvalue if apart else 1.0
    low, high = difference - Z * error, difference + Z * error
    return {
        "minus FGM": round(100 * difference, 2),
        "low": round(100 * low, 2),
        "high": round(100 * high, 2),
        "p": float(f"{p:.2g}"),
    }
