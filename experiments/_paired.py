"""FGM against LGM on the same images: the gradients, shares with errors, the paired test, as many random flips."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binomtest

from dyn_jax import occupancy
from dyn_jax.types import Occupancy

Z = 1.96  # of a 95 % interval


class Flipped(occupancy.Stochastic):
    """The hard occupancy with every element flipped with probability `rate`: as many as an attack, not the worst."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, score: jax.Array, *, key: jax.Array) -> jax.Array:
        value = occupancy.hard()(score)
        return jnp.where(jax.random.bernoulli(key, self.rate, score.shape), 1 - value, value)


def gradients(soft: Iterable[float], straight: Iterable[float]) -> dict[str, Occupancy]:
    """FGM, and LGM by its lambdas."""
    leaded = {f"LGM soft {lam:g}": occupancy.sigmoid(lam) for lam in soft}
    leaded |= {f"LGM straight-through {lam:g}": occupancy.straight_through(lam) for lam in straight}
    return {"FGM": occupancy.hard(), **leaded}


def percent(hits: np.ndarray) -> tuple[float, float]:
    """Share of hits in percent, and its standard error."""
    share = float(np.mean(hits))
    return round(100 * share, 2), round(100 * (share * (1 - share) / len(hits)) ** 0.5, 2)


def paired(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """What `second` leaves less than `first` ([n] bool each: still answered rightly), in points: ``minus FGM``.

    Negative where `second` is stronger; ``low`` and ``high`` of its 95 % interval (Wald, paired), and McNemar's exact
    ``p`` of the one-sided test that `second` leaves as many or more.
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
