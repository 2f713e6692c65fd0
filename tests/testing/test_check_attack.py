"""check_attack passes an attack and names the promise that a planted bad one breaks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from catalogue import tiny_forward, tiny_problem, tiny_victim

from dyn_jax import attacks
from dyn_jax.attacks import Found, Linf
from dyn_jax.objectives import cross_entropy
from dyn_jax.testing import check_attack

KEY = jax.random.key(0)
MASK = jnp.eye(4)


def make(eps=0.1):
    return attacks.bim(eps, 0.03, 2)


def run(attack, **given):
    images, labels, _ = tiny_problem()
    check_attack(attack, tiny_forward, images, labels, KEY, victim=tiny_victim, **given)


@dataclasses.dataclass(frozen=True)
class Altered:
    """`attack` with its result altered: what a runner of one's own could get wrong."""

    attack: attacks.Attack
    alter: object

    def __call__(self, forward, images, labels, **given):
        return self.alter(self.attack(forward, images, labels, **given), images)

    def __getattr__(self, name):
        return getattr(self.attack, name)


def altered(**changes):
    return Altered(make(), lambda r, x: r.replace(**{k: change(r, x) for k, change in changes.items()}))


def test_passes_good_ones():
    run(make(), factory=make, mask=MASK)
    run(attacks.bim(0.1, 0.03, 2, attack_all=True))


def far(r, x):
    return jnp.clip(x + 0.2 * (~r.clean_success)[:, None, None, None], 0, 1)


BAD = {
    "dtype": (altered(adversarial=lambda r, x: r.adversarial.astype(jnp.bfloat16)), "adversarial: got"),
    "shape": (altered(adversarial=lambda r, x: r.adversarial[:, :3]), "adversarial: got"),
    "NaN": (altered(adversarial=lambda r, x: r.adversarial * jnp.nan), "NaN"),
    "outside the ball": (altered(adversarial=far), "outside"),
    "outside the box": (altered(adversarial=lambda r, x: r.adversarial - x.min() - 1e-3), "outside"),
    "distance": (altered(distance=lambda r, x: r.distance + 1), "distance"),
    "success": (altered(success=lambda r, x: ~r.success), "success of examples .0 1 2 3."),
    "clean success": (altered(clean_success=lambda r, x: ~r.clean_success), "clean_success of examples"),
    "success as numbers": (altered(success=lambda r, x: r.success.astype(jnp.float32)), "success: got float32"),
    "logits of something else": (altered(logits_adversarial=lambda r, x: r.logits_adversarial + 1), "logits"),
    "touches what it should leave": (
        altered(adversarial=lambda r, x: r.adversarial.at[-1].set(jnp.clip(x[-1] - 0.01, 0, 1))),
        "misclassified to begin with changed",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_names_what_a_bad_one_breaks(name):
    attack, message = BAD[name]
    with pytest.raises(AssertionError, match=message):
        run(attack)


def test_finds_changes_outside_the_mask():
    change = lambda r, x: jnp.clip(r.adversarial + 0.01 * (~r.clean_success)[:, None, None, None], x - 0.1, x + 0.1)
    with pytest.raises(AssertionError, match="outside the mask"):
        run(altered(adversarial=lambda r, x: jnp.clip(change(r, x), 0, 1)), mask=MASK)


def test_finds_a_second_trace():
    class Retracing(Altered):
        def __call__(self, forward, images, labels, **given):
            result = super().__call__(forward, images, labels, **given)
            jax.clear_caches()
            return result

    with pytest.raises(AssertionError, match="traced 2 times"):
        run(Retracing(make(), lambda r, x: r))


def test_finds_a_difference_between_jit_and_eager():
    def alter(r, x):
        if isinstance(x, jax.core.Tracer):
            return r
        return dataclasses.replace(r, adversarial=x)

    with pytest.raises(AssertionError, match="jit = eager"):
        run(Altered(make(), alter))


def test_finds_an_eps_that_is_ignored():
    with pytest.raises(AssertionError, match="eps 0 changed"):
        run(make(), factory=lambda eps: make(0.1))


def test_the_runner_keeps_a_search_of_ones_own_inside():
    """A search that returns nonsense is projected, and what it may not touch is put back: the check passes."""

    def search(problem, keys, start):
        return Found(problem.domain.clean + jnp.where(problem.domain.spread(problem.labels % 2 == 0), 5.0, jnp.nan))

    run(attacks.Attack(search, Linf(0.1), cross_entropy), mask=MASK)


def test_an_attack_without_eps_has_no_factory():
    with pytest.raises(TypeError, match="factory: got one for a Box"):
        run(attacks.grad_auto(steps=1), factory=make)
