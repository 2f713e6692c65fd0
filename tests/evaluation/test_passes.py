"""How often the network runs for an image that stands everything: no more than under AutoAttack's released code."""

import jax
import numpy as np
import pytest

from dyn_jax.evaluation import Budget, checks, evaluate

SHAPE, CLASSES, COUNT = (4, 4, 3), 10, 33
GRADIENTS = 101 + 9 * 101 + 9 * 100
"""Backward passes of a robust image: APGD-CE, APGD-T and FAB-T, in the paper, the released code and here."""


@pytest.fixture
def counted(monkeypatch):
    """(network, {direction: rows that it saw}): a linear one that counts."""
    monkeypatch.setattr(checks, "check", lambda *_, **__: ())  # they are few, and of the first images alone
    seen = {"forward": 0, "backward": 0}

    def add(direction, x):
        def note():
            seen[direction] += len(x)

        jax.debug.callback(note)
        return x

    noted = jax.custom_vjp(lambda x: add("forward", x))
    noted.defvjp(lambda x: (add("forward", x), None), lambda _, g: (add("backward", g),))
    return (lambda variables, x: noted(x).reshape(len(x), -1) @ variables["w"] + variables["b"][None]), seen


def passes(counted, budget, **given):
    """{direction: passes of an image} of an evaluation in which nothing breaks."""
    net, seen = counted
    seen.update(dict.fromkeys(seen, 0))
    rng = np.random.default_rng(0)
    variables = {"w": rng.normal(size=(48, CLASSES)).astype(np.float32), "b": np.arange(CLASSES, dtype=np.float32)}
    images = rng.random((COUNT, *SHAPE), np.float32)
    labels = np.argmax(images.reshape(COUNT, -1) @ variables["w"] + variables["b"], 1).astype(np.int32)
    got = evaluate(net, variables, images, labels, eps=0.0, budget=budget, **given)
    jax.effects_barrier()
    assert got is not None and got.robust_accuracy == 1
    return {name: rows / COUNT for name, rows in seen.items()}


def test_of_a_robust_image(counted, golden):
    """The released code's own count of 128 images, 117 of them right and 28 robust: APGD-CE broke all others."""
    stored = golden("eval_aa_rdi38_eps8")
    right, robust = stored["clean_correct"].sum(), stored["robust"].sum()
    assert robust == stored["robust_after_apgd_ce"].sum()
    first = 1 + 101 + 1  # APGD-CE looks at the clean images, runs, and what it found is judged
    checks = 7 * len(stored["index"])
    rest = stored["forward_images"] - checks - len(stored["index"]) - right * first
    assert rest % robust == 0  # of APGD-T, FAB-T and Square
    most = 1 + first + rest / robust
    got = passes(counted, Budget(), attacks="standard", batch_size=COUNT)
    assert 0.98 * most < got["forward"] <= most
    assert got["backward"] == GRADIENTS


def test_hardly_a_row_is_filled_up(counted):
    """33 images in chunks of at most 32: two of 17."""
    budget = Budget(steps=4, targets=1, queries=1)
    whole, halves = (passes(counted, budget, attacks="bim", batch_size=size) for size in (COUNT, COUNT - 1))
    assert halves["backward"] == pytest.approx(whole["backward"] * 34 / 33) and whole["backward"] >= 4
