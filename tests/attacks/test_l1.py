"""The L1 ball: its projection, APGD's sparse steps, Square's bumps, against twins in NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit
from linear import WEIGHTS, images, linear

from dyn_jax import attacks
from dyn_jax.attacks import Course
from dyn_jax.attacks.square import bump
from dyn_jax.attacks.squares import L1Moves, SquareDraws
from dyn_jax.attacks.threat import L1, into_l1
from dyn_jax.types import Output

IMAGES = images(0.0, 1.0)
KEY = jax.random.key(0)
LABELS = jnp.argmax(linear(IMAGES).logits, 1)


def test_projection_by_hand():
    """|.9| + |.5| + |.1| with radius 1: all shorter by .2 would be .7 + .3 + 0; room .4 for the first: .4 + .5 + .1."""
    delta, wide = jnp.array([[0.9, -0.5, 0.1]]), jnp.full((1, 3), 2.0)
    np.testing.assert_allclose(into_l1(delta, wide, 1.0), [[0.7, -0.3, 0.0]], atol=1e-6)
    np.testing.assert_allclose(into_l1(delta, jnp.array([[0.4, 2.0, 2.0]]), 1.0), [[0.4, -0.5, 0.1]], atol=1e-6)
    np.testing.assert_allclose(into_l1(delta, jnp.array([[0.4, 2.0, 2.0]]), 0.8), [[0.4, -0.4, 0.0]], atol=1e-6)
    np.testing.assert_allclose(into_l1(delta, wide, 0.0), [[0, 0, 0]], atol=0)
    np.testing.assert_array_equal(into_l1(delta, wide, 2.0), delta)


def test_the_projection_is_the_nearest_point():
    """In three dimensions, beside a fine grid of the set; and the radial one is not the nearest."""
    clean, eps = np.array([0.3, 0.9, 0.5]), 0.6
    ticks = np.linspace(0, 1, 81)
    grid = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[np.abs(grid - clean).sum(1) <= eps]
    for x in ([0.9, 0.8, 0.1], [0.3, 1.7, 0.9], [-0.5, 0.9, 2.0], [0.31, 0.88, 0.52]):
        shape = lambda v: jnp.asarray(v, jnp.float32).reshape(1, 1, 1, 3)
        got, radial = (
            np.asarray(L1(eps, scaled=scaled).project(shape(x), shape(clean))).ravel() for scaled in (False, True)
        )
        nearest = np.linalg.norm(grid - x, axis=1).min()
        assert np.linalg.norm(got - x) <= nearest + 1e-6
        assert np.abs(got - clean).sum() <= eps + 1e-6 and got.min() >= 0 and got.max() <= 1
        assert np.linalg.norm(radial - x) >= np.linalg.norm(got - x) - 1e-6


def projected(delta, room, eps):
    """The twin: halving in float64."""
    cut = lambda t: np.clip(np.abs(delta) - t, 0, room)
    low, high = 0.0, float(np.abs(delta).max())
    if cut(0).sum() <= eps:
        return np.sign(delta) * cut(0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if cut(middle).sum() > eps else (low, middle)
    return np.sign(delta) * cut(high)


@pytest.mark.parametrize("eps", [1e-3, 0.5, 3.0, 12.0])
def test_projection_of_many_numbers(eps):
    rng = np.random.default_rng(0)
    delta = rng.normal(size=(6, 3072)) * np.exp(rng.normal(size=(6, 1)))
    room = rng.uniform(0, 1, delta.shape) * (rng.random(delta.shape) > 0.2)
    room[:3] = np.inf
    got = into_l1(jnp.asarray(delta, jnp.float32), jnp.asarray(room, jnp.float32), eps)
    wanted = [projected(d, r, eps) for d, r in zip(np.float64(np.float32(delta)), np.float64(np.float32(room)))]
    np.testing.assert_allclose(got, wanted, atol=3e-6)


A = np.random.default_rng(1).normal(size=48)


def wavy(x):
    """Logits 0 and sum A sin(4 x): the gradient of the margin of label 0 is 4 A cos(4 x)."""
    value = jnp.sum(jnp.asarray(A, x.dtype)[None] * jnp.sin(4 * x.reshape(len(x), -1)), axis=1)
    return Output(jnp.stack([jnp.zeros_like(value), value], axis=1))


def apgd_twin(clean, start, eps, steps, drawn):
    """One stage on one image, step by step: (x of the largest value, losses)."""
    value = lambda x: float(np.sum(A * np.sin(4 * x)))
    slope = lambda x: 4 * A * np.cos(4 * x)
    into = lambda x: np.clip(
        clean + projected(x - clean, np.where(x < clean, clean, 1 - clean), eps), 0, 1
    )  # fmt: skip
    n, x, size = len(clean), start, eps
    count = n if drawn else np.sum(start != clean)
    most = -(-n // 5) if drawn else -(-2 * count // 3)  # n / 5 and count / 1.5, rounded up
    g, losses = slope(x), [value(x)]
    best, best_g, best_value = x, g, losses[0]
    every = max(int(0.04 * steps), 1)
    for number in range(1, steps + 1):
        least = np.sort(np.abs(g))[min(n - most, n - 1)]
        signs = np.sign(g) * (np.abs(g) >= least)
        x = into(x + size * signs / np.abs(signs).sum())
        g, now = slope(x), value(x)
        losses.append(now)
        if now > best_value:
            best, best_g, best_value = x, g, now
        if number % every == 0:
            changed = np.sum(best != clean)
            if 20 * changed < 19 * count:
                size, x, g = eps, best, best_g
            else:
                size = max(size / 1.5, eps / 10)
            most, count = -(-2 * changed // 3), changed
    return best, losses


@pytest.mark.parametrize("steps", [8, 20])
def test_apgd_step_by_step(steps):
    """From a given start, in one ball, in double precision; the twin knows no batch.

    Not for longer: numbers that end at clean up to a last bit are counted, and so decide the next steps.
    """
    clean, rng = np.tile(np.asarray(IMAGES[:3], np.float64), (10, 1, 1, 1)), np.random.default_rng(0)
    start = np.clip(clean + rng.normal(size=clean.shape) * (rng.random(clean.shape) > 0.5) * 0.02, 0, 1)
    attack = attacks.apgd(1.5, steps, norm="l1", objective="margin", attack_all=True)
    with jax.enable_x64(True):
        run = quick_jit(lambda x, s: attack(wavy, x, np.zeros(len(clean), int), key=KEY, start=s))
        result = run(jnp.asarray(clean), jnp.asarray(start))
        got, paths = np.asarray(result.adversarial), np.asarray(result.steps.loss)
    for row in range(len(clean)):
        best, losses = apgd_twin(clean[row].ravel(), start[row].ravel(), 1.5, steps, drawn=False)
        np.testing.assert_allclose(paths[row], losses, atol=1e-4)
        np.testing.assert_allclose(got[row].ravel(), best, atol=1e-5)


def best_linear(eps):
    """The most that a linear margin can gain: the largest weights first, each as far as the box goes."""
    logits, weights = np.asarray(linear(IMAGES).logits), np.asarray(WEIGHTS)
    gains = []
    for row, label in enumerate(np.asarray(LABELS)):
        of = []
        for other in set(range(3)) - {int(label)}:
            w = weights[:, other] - weights[:, label]
            clean = np.asarray(IMAGES[row]).ravel()
            room = np.where(w > 0, 1 - clean, clean)
            left, gain = eps, logits[row, other] - logits[row, label]
            for k in np.argsort(-np.abs(w)):
                move = min(room[k], left)
                gain, left = gain + move * abs(w[k]), left - move
            of.append(gain)
        gains.append(max(of))
    return np.array(gains)


@pytest.mark.parametrize("radii", [(1.0,), (3.0, 2.0, 1.0)])
def test_apgd_reaches_the_best_of_a_linear_network(radii):
    attack = attacks.apgd(2.0, 60, norm="l1", objective="margin", course=Course(radii), attack_all=True, restarts=2)
    result = quick_jit(lambda x: attack(linear, x, LABELS, key=KEY))(IMAGES)
    most = best_linear(2.0)
    assert np.all(np.asarray(result.loss) <= most + 1e-4) and np.all(np.asarray(result.loss) >= most - 0.05)
    assert np.all(np.asarray(result.distance) <= 2.0 + 1e-5)
    assert result.steps.loss.shape[1] == 60 + len(radii)  # each ball's start is evaluated


def test_an_error_on_the_way_is_kept():
    """A network that errs on a thin shell only: the largest loss is elsewhere, and right."""

    def shell(x):
        far = jnp.max(jnp.abs(x - 0.5), axis=(1, 2, 3))
        return Output(jnp.stack([jnp.where((far > 0.02) & (far < 0.06), -1.0, 1.0) - 0.5 * far, 0 * far], 1))

    climb = lambda output, labels, targets=None: -output.logits[:, 0]
    uphill = lambda output, labels, targets=None: -output.logits[:, 0] + 100 * (output.logits[:, 0] > 0)
    x, y = jnp.full((2, 4, 4, 3), 0.5), np.zeros(2, int)
    start = x + 0.05
    for objective, wanted in ((climb, True), (uphill, False)):
        loss = attacks.apgd(0.2, 5, objective=objective)(shell, x, y, key=KEY, start=start)
        error = attacks.apgd(0.2, 5, objective=objective, course=Course(keep="error"))(
            shell, x, y, key=KEY, start=start
        )
        assert loss.success.all() == wanted and error.success.all()


def test_apgd_t_keeps_any_error():
    """The loss aims at class 1, which is never reached; on the way class 2 wins."""

    def shell(x):
        far = jnp.max(jnp.abs(x - 0.5), axis=(1, 2, 3))
        return Output(jnp.stack([1 + 0 * far, far, jnp.where((far > 0.02) & (far < 0.06), 3.0, -1.0), far - 9], 1))

    aim = lambda output, labels, targets: jnp.take_along_axis(output.logits, targets[:, None], 1)[:, 0]
    x, y = jnp.full((2, 4, 4, 3), 0.5), np.zeros(2, int)
    for keep, wanted in (("loss", False), ("error", True)):
        attack = attacks.apgd_t(0.2, 5, target_classes=1, objective=aim, course=Course(keep=keep))
        result = attack(shell, x, y, key=KEY, start=x + 0.05)
        assert result.success.all() == result.success.any() == wanted and result.steps.error.any()


def test_bumps_by_hand():
    """Side 3: weights 1, and 1/16 more where the two squares of side 1 and 3 overlap; absolute values add up to 1."""
    upper = np.array([[1, 17, 1]]) / 19
    lower = np.array([[1, 1, 1], [1, 17, 1]]) / 22
    np.testing.assert_allclose(bump(3, "l1"), np.concatenate([upper, -lower]) / 2, rtol=1e-12)


def test_a_proposal_of_square_by_hand():
    """One channel's square is emptied, another one filled with what both had, a share of what is free, a bump."""
    rng = np.random.default_rng(0)
    clean = np.full((1, 6, 6, 2), 0.5, np.float32)
    delta = rng.uniform(-0.01, 0.01, clean.shape)
    eps, side, (row, col), (row2, col2) = 1.0, 3, (1, 0), (3, 3)
    signs = np.array([[1.0, -1.0]])
    wanted = delta.copy()
    free = max(eps - np.abs(delta).sum(), 0) / 2
    here, there = np.s_[0, row : row + side, col : col + side], np.s_[0, row2 : row2 + side, col2 : col2 + side]
    for c in range(2):
        old = delta[(*here, c)]
        had = np.abs(old).sum() + np.abs(delta[(*there, c)]).sum()  # these two do not overlap
        new = bump(side, "l1").T * signs[0, c] + old / np.abs(old).sum()
        wanted[(*there, c)] = 0
        wanted[(*here, c)] = new / np.abs(new).sum() * (free + had) * 2
    seen = []

    def search(problem, keys, start):
        moves = L1Moves(problem, (6, 6))
        of = lambda *values: tuple(jnp.asarray([v]) for v in values)
        drawn = (*of(row, col, row2, col2), jnp.asarray(signs, jnp.float32), jnp.asarray([True]))
        seen.append(moves.proposal(jnp.asarray(clean + delta, jnp.float32), jnp.int32(side), (side,), drawn))
        return attacks.Found(problem.domain.clean)

    attack = attacks.Attack(search, attacks.ball("l1", eps), lambda o, y, t=None: o.logits[:, 0], attack_all=True)
    attack(lambda x: Output(jnp.stack([x.mean((1, 2, 3)), 0 * x.mean((1, 2, 3))], 1)), jnp.asarray(clean), [0])
    np.testing.assert_allclose(np.asarray(seen[0]) - clean, wanted, atol=1e-6)


def test_square_replays_in_l1():
    """The same numbers, given or drawn again, lead to the same image, in the ball."""
    rng = np.random.default_rng(0)
    n = 12
    draws = SquareDraws(
        start_signs=rng.choice([-1, 1], (16, 5, 3)), row=rng.integers(0, 1, (n, 5)), col=rng.integers(0, 1, (n, 5)),
        signs=rng.choice([-1, 1], (n, 5, 3)), start_turned=rng.random((16, 5)) > 0.5,
        row2=rng.integers(0, 1, (n, 5)), col2=rng.integers(0, 1, (n, 5)), turned=rng.random((n, 5)) > 0.5,
    )  # fmt: skip
    run = quick_jit(lambda x, key: attacks.square(1.0, n, norm="l1", draws=draws)(linear, x, LABELS, key=key))
    first, second = run(IMAGES, KEY), run(IMAGES, jax.random.key(1))
    np.testing.assert_array_equal(first.adversarial, second.adversarial)
    assert np.all(np.asarray(first.distance) <= 1 + 1e-5) and np.any(np.asarray(first.distance) > 0.9)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: attacks.apgd(1.0, 10, course=Course((3.0, 2.0))), "radii: got .*end with 1"),
        (lambda: attacks.apgd(1.0, 2, course=Course((3.0, 2.0, 1.0))), "radii: got 3 of them for 2 steps"),
        (lambda: attacks.apgd(1.0, 10, course=Course((-1.0, 1.0))), "radii: got -1.0"),
        (
            lambda: attacks.apgd_t(1.0, 10, course=Course(keep="best")),
            "keep: got 'best', expected one of error, loss",
        ),
        (lambda: attacks.ddn(10, bounds=(1.0, 0.0)), "bounds: got"),
    ],
)
def test_message(make, words):
    with pytest.raises(ValueError, match=words):
        make()
