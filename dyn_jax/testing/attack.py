"""What every attack of dyn_jax promises about its result, as a check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax.attacks.base import Attack, AttackResult, as_forward, is_adversarial
from dyn_jax.testing._compare import require
from dyn_jax.types import Output

_CHECK = "check_attack"
_SLACK = 1e-6
_UNDECIDED = 1e-4  # logits closer than this may be ranked differently by another compilation


def check_attack(
    attack: Attack,
    forward: Callable[[jax.Array], Output | jax.Array],
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    victim: Callable[[jax.Array], Output | jax.Array] | None = None,
    targets: jax.Array | None = None,
    mask: jax.Array | None = None,
    factory: Callable[[float], Attack] | None = None,
    differing: float = 0.01,
) -> None:
    """Checks the contract of `dyn_jax.attacks.AttackResult`.

    Shape and dtype of the images are kept; the result is finite, inside the threat set and unchanged outside the
    mask; images that the attack leaves alone are the given ones; `success` and `distance` are what one gets from the
    returned array; jit = eager; two batches of one shape are traced once; eps 0 changes nothing.

    Args:
      attack, forward, images, labels, key, victim, targets, mask: as for calling the attack.
      factory: eps -> the same kind of attack, for the check of eps 0; None leaves it out.
      differing: share of pixels in which jit and eager may differ (the sign of a gradient near 0 is undecided).

    Raises:
      AssertionError: naming the promise that was broken, where and by how much.
    """
    given: dict[str, Any] = {"victim": victim, "mask": mask}
    judge = jax.jit(as_forward(forward if victim is None else victim))
    traces = 0

    @jax.jit
    def run(x: jax.Array, y: jax.Array, t: jax.Array | None, k: jax.Array | None) -> AttackResult:
        nonlocal traces
        traces += 1
        return attack(forward, x, y, key=k, targets=t, **given)

    with jax.debug_nans(False):
        result = run(images, labels, targets, key)
        _check_result(result, attack, judge, images, labels, targets, mask)
        order = np.roll(np.arange(images.shape[0]), 1)
        run(images[order], labels[order], None if targets is None else targets[order], key)
        require(traces == 1, _CHECK, f"traced {traces} times for two batches of one shape, expected once")
        eager = attack(forward, images, labels, key=key, targets=targets, **given)
        share = float(jnp.mean(jnp.abs(eager.adversarial - result.adversarial) > 1e-4))
        require(share <= differing, _CHECK, f"jit = eager: {100 * share:.2f} % of the pixels differ")
        if factory is not None:
            still = factory(0.0)(forward, images, labels, key=key, targets=targets, **given)
            change = float(jnp.max(jnp.abs(still.adversarial - images)))
            require(change <= _SLACK, _CHECK, f"eps 0 changed the images by up to {change:.6g}")


def _check_result(
    result: AttackResult,
    attack: Attack,
    judge: Callable[[jax.Array], Output],
    images: jax.Array,
    labels: jax.Array,
    targets: jax.Array | None,
    mask: jax.Array | None,
) -> None:
    x = result.adversarial
    got, expected = (x.shape, x.dtype), (images.shape, images.dtype)
    require(got == expected, _CHECK, f"adversarial: got {got}, expected {expected}")
    require(bool(jnp.isfinite(x).all()), _CHECK, "adversarial: NaN or infinite pixels")
    distance = np.asarray(attack.threat.distance(x, images))
    outside = np.flatnonzero(~np.asarray(attack.threat.contains(x, images)))
    low, high = float(x.min()), float(x.max())
    text = (
        f"outside {attack.threat}: examples {outside}, distances {distance[outside]}, pixels in [{low:.6g}, {high:.6g}]"
    )
    require(outside.size == 0, _CHECK, text)
    if mask is not None:
        free = jnp.asarray(mask)[None, :, :, None] if jnp.ndim(mask) == 2 else jnp.asarray(mask)
        change = float(jnp.max(jnp.abs(x - images) * (1 - free)))
        require(change == 0, _CHECK, f"pixels outside the mask changed by up to {change:.6g}")
    if not attack.attack_all and not attack.keep_start:
        alone = np.asarray(is_adversarial(judge(images).logits, labels, targets))
        change = float(np.max(np.abs(np.asarray(x - images)) * alone[:, None, None, None]))
        require(change == 0, _CHECK, f"images that were misclassified to begin with changed by up to {change:.6g}")

    for name, flag, logits, claimed in (
        ("success", result.success, judge(x).logits, result.logits_adversarial),
        ("clean_success", result.clean_success, judge(images).logits, result.logits_clean),
    ):
        require(flag.dtype == bool and flag.shape == labels.shape, _CHECK, f"{name}: got {flag.dtype}{flag.shape}")
        ranked = np.sort(np.asarray(logits), axis=1)
        undecided = ranked[:, -1] - ranked[:, -2] <= _UNDECIDED
        wrong = (np.asarray(flag) != np.asarray(is_adversarial(logits, labels, targets))) & ~undecided
        text = f"{name} of examples {np.flatnonzero(wrong)} is not what the victim says about the returned array"
        require(not wrong.any(), _CHECK, text)
        same = np.allclose(claimed, logits, rtol=1e-3, atol=1e-3, equal_nan=True)
        require(same, _CHECK, f"the result's logits for {name} are not the victim's")
    require(np.allclose(result.distance, distance, atol=1e-5), _CHECK, f"distance: {result.distance}, is {distance}")
