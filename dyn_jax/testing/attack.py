"""What every attack of dyn_jax promises about its result, as a check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.attacks.base import Attack, AttackResult, is_adversarial
from dyn_jax.attacks.domains import Domain, domain_of
from dyn_jax.attacks.forward import Network, as_forward
from dyn_jax.attacks.threat import Box, Dropped, Threat
from dyn_jax.testing._compare import quick_jit, require
from dyn_jax.types import Output, PointCloud

_CHECK = "check_attack"
_SLACK = 1e-6
_UNDECIDED = 1e-4  # logits closer than this may be ranked differently by another compilation


def check_attack(
    attack: Attack,
    forward: Network,
    inputs: jax.Array | PointCloud,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    victim: Network | None = None,
    targets: jax.Array | None = None,
    mask: jax.Array | None = None,
    factory: Callable[[float], Attack] | None = None,
    differing: float | None = 0.01,
) -> AttackResult:
    """Checks the contract of `dyn_jax.attacks.AttackResult`, on images or a point cloud.

    Shape and dtype of the clean value are kept; the result is finite, inside the threat set and unchanged outside the
    mask; examples that the attack leaves alone are the given ones; `success` and `distance` are what one gets from the
    returned value; jit = eager; two batches of one shape, and two of eps, are traced once; eps 0 changes nothing.

    Args:
      attack, forward, inputs, labels, key, victim, targets, mask: as for calling the attack.
      factory: eps, possibly traced -> the same kind of attack, for the check of eps 0; `attack` is what it makes of
        ``attack.threat.eps``. None leaves it out.
      differing: share of values in which jit and eager may differ (the sign of a gradient near 0 is undecided); None
        leaves the eager run out, which takes as long as all the rest.

    Returns:
      The result.
    """
    given: dict[str, Any] = {"victim": victim, "mask": mask}
    domain = domain_of(inputs, attack.threat, mask)
    judge = quick_jit(as_forward(forward if victim is None else victim))
    traces = 0

    @quick_jit
    def run(eps: Any, x: Any, y: jax.Array, t: jax.Array | None, k: jax.Array | None) -> AttackResult:
        nonlocal traces
        traces += 1
        return (attack if factory is None else factory(eps))(forward, x, y, key=k, targets=t, **given)

    with jax.debug_nans(False):
        eps = None if factory is None else _radius(attack.threat)
        result = run(eps, inputs, labels, targets, key)
        _check_result(result, attack, domain, judge, labels, targets)
        other = jax.tree.map(lambda leaf: leaf[np.roll(np.arange(leaf.shape[0]), 1)], (inputs, labels, targets))
        run(eps, *other, key)
        still = None if eps is None else run(0 * eps, inputs, labels, targets, key)
        require(traces == 1, _CHECK, f"traced {traces} times for two batches of one shape, expected once")
        if differing is not None:
            eager = attack(forward, inputs, labels, key=key, targets=targets, **given)
            share = float(jnp.mean(jnp.abs(eager.adversarial - result.adversarial) > 1e-4))
            require(share <= differing, _CHECK, f"jit = eager: {100 * share:.2f} % of the values differ")
        if still is not None:
            change = float(jnp.max(jnp.abs(still.adversarial - domain.clean)))
            require(change <= _SLACK, _CHECK, f"eps 0 changed the clean value by up to {change:.6g}")
    return result


def _radius(threat: Threat) -> jax.Array:
    """The eps of a ball."""
    if isinstance(threat, (Box, Dropped)):
        raise TypeError(f"factory: got one for a {type(threat).__name__}, expected None: only a ball has an eps")
    return jnp.asarray(threat.eps, jnp.result_type(float))


def _check_result(
    result: AttackResult,
    attack: Attack,
    domain: Domain,
    judge: Callable[..., Output],
    labels: jax.Array,
    targets: jax.Array | None,
) -> None:
    x, clean = result.adversarial, domain.clean
    got, expected = (x.shape, x.dtype), (clean.shape, clean.dtype)
    require(got == expected, _CHECK, f"adversarial: got {got}, expected {expected}")
    require(bool(jnp.isfinite(x).all()), _CHECK, "adversarial: NaN or infinite values")
    distance = np.asarray(domain.threat.distance(x, clean))
    outside = np.flatnonzero(~np.asarray(domain.threat.contains(x, clean)))
    low, high = float(x.min()), float(x.max())
    text = (
        f"outside {attack.threat}: examples {outside}, distances {distance[outside]}, values in [{low:.6g}, {high:.6g}]"
    )
    require(outside.size == 0, _CHECK, text)
    if domain.free is not None:
        change = float(jnp.max(jnp.abs(x - clean) * (1 - domain.free)))
        require(change == 0, _CHECK, f"values outside the mask changed by up to {change:.6g}")
    before, after = judge(domain.input(clean)).logits, judge(domain.input(x)).logits
    if not attack.attack_all and not attack.keep_start:
        rows = is_adversarial(before, labels, targets)
        alone = rows if len(rows) == domain.examples else ~domain.any_row(~rows & result.counted)
        change = float(jnp.max(jnp.where(domain.spread(alone), jnp.abs(x - clean), 0)))
        text = f"examples that were misclassified to begin with changed by up to {change:.6g}"
        require(change == 0, _CHECK, text)

    for name, flag, logits, claimed in (
        ("success", result.success, after, result.logits_adversarial),
        ("clean_success", result.clean_success, before, result.logits_clean),
    ):
        require(flag.dtype == bool and flag.shape == labels.shape, _CHECK, f"{name}: got {flag.dtype}{flag.shape}")
        ranked = np.sort(np.asarray(logits), axis=1)
        undecided = ranked[:, -1] - ranked[:, -2] <= _UNDECIDED
        hit = np.asarray(is_adversarial(logits, labels, targets) & result.counted & ~result.invalid)
        wrong = (np.asarray(flag) != hit) & ~undecided
        text = f"{name} of examples {np.flatnonzero(wrong)} is not what the victim says about the returned value"
        require(not wrong.any(), _CHECK, text)
        same = np.allclose(claimed, logits, rtol=1e-3, atol=1e-3, equal_nan=True)
        require(same, _CHECK, f"the result's logits for {name} are not the victim's")
    require(np.allclose(result.distance, distance, atol=1e-5), _CHECK, f"distance: {result.distance}, is {distance}")
