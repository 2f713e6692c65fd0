"""Why a recovery stays below 100 %: every unit is attacked alone, with nothing else in the loss.

    python -m experiments.gradauto_reach [--images 8]

The scores are attacked, not their sigmoids, so that no gate is out of reach for its saturation. A unit that even then
is not on had no reachable input within the steps. The "ceiling" is what would come back with every unit at its own
best: units hinder each other, so it may be too high; an attack on all passes through other images, so it may be too
low. All units of a network are attacked in one vmap.

"Flat" are the elements that are off where the gating value hardly moves: a gate's sigmoid with a slope below 0.01, a
halting sigmoid likewise (SACT: a unit is off because the h before reach 0.99, so the last of them is often close to
1), a saliency of exactly 0 (ManiDP: below its ReLU, no gradient at all).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics
from dyn_jax.gates.halting import EPSILON
from dyn_jax.types import Trace
from experiments import _energy, _run

FLAT = 0.01
NETWORKS = ("skipnet-digits", "skipnet-rl-digits", "sact-digits", "manidp-digits", "dynconv-digits")


def flat_share(trace: Trace) -> float:
    """Share of the elements that are off whose gating value is flat, see the module."""
    flat, off = 0, 0
    before: dict[str, np.ndarray] = {}
    for unit in trace.units:
        score, is_off = np.asarray(unit.score), ~np.asarray(unit.on)
        if "probability" in unit.extras:
            on = np.asarray(unit.extras["probability"])
            is_flat = on * (1 - on) < FLAT
        elif "value" in unit.extras:
            is_flat = np.asarray(unit.extras["value"]) == 0
        else:
            block = unit.name.split("_")[0]
            h = np.clip(before.get(block, 1 - EPSILON) - score, 0, 1)
            before[block] = score
            is_flat = h * (1 - h) < FLAT
        flat, off = flat + int((is_flat & is_off).sum()), off + int(is_off.sum())
    return flat / max(off, 1)


def rows_of(how: argparse.Namespace) -> Iterator[dict]:
    def attack(weights: jax.Array) -> attacks.Attack:
        rectify, form = attacks.Rectify(direction=False), attacks.Form(keep="least_loss")
        return attacks.grad_auto(weights=weights, tau=None, rectify=rectify, form=form, **_energy.budget(how))

    for name, victim in _energy.victims(how, *how.networks):
        trace = jax.jit(victim.net.apply)(victim.variables, victim.images).trace
        alone = jax.vmap(victim.runner(attack), (None, None, None, 0))
        result, seconds = victim.timed(alone, jnp.eye(len(trace.units)))
        share = lambda units: [float(unit.on[number].mean()) for number, unit in enumerate(units)]
        costs = np.array([metrics.dense_unit_macs(unit) for unit in trace.units], np.float64)
        before = np.array(share(result.trace_clean.units))
        best = np.maximum(share(result.trace_adversarial.units), before)
        yield {
            "network": _energy.LABELS[name],
            "units": len(trace.units),
            "ceiling %": 100 * float(costs @ (best - before) / (costs @ (1 - before))),
            "flat %": 100 * flat_share(trace),
            "on before": [round(b, 3) for b in before.tolist()],
            "on when attacked alone": [round(b, 3) for b in best.tolist()],
            "seconds": seconds,
        }


def main() -> None:
    how = _energy.parser(__doc__, 8, networks=NETWORKS).parse_args()
    rows = _run.shown(rows_of(how))
    _energy.finish("gradauto_reach", rows, list(rows[0])[:4], how, **{"flat below": FLAT}, **_energy.budget(how))


if __name__ == "__main__":
    main()
