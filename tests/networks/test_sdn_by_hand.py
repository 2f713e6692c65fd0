"""Early exits by hand: scores, weights and stages on a network that says what it is shown; layers; bad input."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import nn, occupancy
from dyn_jax.gates import early_exit
from dyn_jax.metrics import exits
from dyn_jax.networks import sdn
from dyn_jax.testing._compare import quick_jit


@dataclasses.dataclass(frozen=True)
class ToyTrunk(sdn.Trunk):
    """Says what it is shown: row k of the image, at column 0, is the logits of exit k; three stages, no weights."""

    def layers(self, x, train):
        for _ in range(2):
            yield sdn.Layer(x, x, 10)

    def exit(self, x, layer, num_classes, init, train):
        return x[:, layer, 0], 1

    def head(self, x, num_classes, init, train):
        return x[:, 2, 0], 5


TOY = sdn.SDN(ToyTrunk(), (0, 1), image_size=3, num_classes=3, normalization=None)


def toy(logits, net=TOY, **how):
    """`net` on the image of logits [batch, 3, 3]."""
    return net.apply({}, jnp.pad(logits[:, :, None], ((0, 0), (0, 0), (0, 2), (0, 0))), **how)


def logits_with(confidences, classes=3):
    """[1, exit, class] logits whose class 0 has exactly these softmax probabilities, the others sharing the rest."""
    rows = [[np.log(p)] + [np.log((1 - p) / (classes - 1))] * (classes - 1) for p in confidences]
    return jnp.asarray(rows, jnp.float32)[None]


# --- the gate, by hand


def test_confidence_scores_by_hand():
    scores = early_exit.exit_scores(logits_with([0.6, 0.5]), 0.8)
    np.testing.assert_allclose(scores, [[0.2, 0.2]], atol=1e-6)  # the highest so far, not the newest


def test_an_exit_fires_at_its_threshold_inclusive():
    logits = jnp.zeros((1, 1, 4))  # confidence exactly 1/4
    at, above = (early_exit.exit_scores(logits, t)[0, 0] for t in (0.25, np.float32(0.25) * (1 + 1e-6)))
    assert at < 0 <= above


def test_entropy_scores_by_hand():
    scores = early_exit.exit_scores(jnp.zeros((1, 1, 4)), 0.75, "entropy")  # uniform: relative entropy 1
    np.testing.assert_allclose(scores, [[0.25]], atol=1e-6)


def test_patience_scores_by_hand():
    logits = jax.nn.one_hot(jnp.array([[0, 1, 1, 1, 2]]), 3)
    scores = early_exit.exit_scores(logits, 2, "patience")
    np.testing.assert_array_equal(scores, [[1.5, 1.5, 0.5, -0.5, -0.5]])  # runs 0 0 1 2 0, longest so far 0 0 1 2 2
    each = early_exit.exit_scores(logits, (9, 9, 1, 9, 9), "patience")
    np.testing.assert_array_equal(each, [[8.5, 8.5, -0.5, -0.5, -0.5]])  # the second run of 1 meets its own patience


@pytest.mark.parametrize("kind", ["hard", "sigmoid", "straight_through"])
def test_weights_are_shares(kind):
    how = {"hard": occupancy.hard(), "sigmoid": occupancy.sigmoid(3.0)}.get(kind, occupancy.straight_through(3.0))
    occupancies = how(jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)), jnp.float32))
    weights = early_exit.exit_weights(occupancies)
    assert weights.shape == (50, 5) and float(weights.min()) >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    o = np.asarray(occupancies)
    np.testing.assert_allclose(weights[:, 2], o[:, 0] * o[:, 1] * (1 - o[:, 2]), atol=1e-6)
    if kind != "sigmoid":
        assert set(np.unique(np.asarray(weights))) <= {0.0, 1.0}


def test_who_answers_when_nobody_is_sure():
    logits, limits = logits_with([0.6, 0.7, 0.5]), jnp.full(2, 0.8)
    np.testing.assert_array_equal(early_exit.answers(logits, limits, "last"), logits)
    best = early_exit.answers(logits, limits, "most_confident")
    np.testing.assert_array_equal(best, logits[:, jnp.array([0, 1, 1])])


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0001, float("nan"), (0.5, 0.0), np.array([0.5, np.nan])])
def test_threshold_out_of_range(threshold):
    for rule in ("confidence", "entropy"):
        with pytest.raises(ValueError, match="threshold"):
            early_exit.check_thresholds(threshold, rule, 2)
    with pytest.raises(ValueError, match="threshold"):
        toy(logits_with([0.5] * 3), threshold=threshold)


def test_values_that_are_refused():
    logits = logits_with([0.5] * 3)
    for patience in (0, 0.5, 1.5):
        with pytest.raises(ValueError, match="patience"):
            early_exit.check_thresholds(patience, "patience", 2)
    for several in ((0.5, 0.5, 0.5), np.full(3, 0.5), (), [0.5]):
        with pytest.raises(ValueError, match="numbers, expected one, or 2: one for every exit but the last"):
            toy(logits, threshold=several)
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        toy(logits, threshold=np.full((2, 1), 0.5))
    with pytest.raises(TypeError, match="threshold"):
        toy(logits, threshold=(0.5, None))
    for fields, word in (
        ({"exit_after": (0, 2)}, "exit_after"),
        ({"exit_after": (1, 0)}, "exit_after"),
        ({"answer": "first"}, "answer"),
        ({"rule": "confidense"}, "rule"),
        ({"linear_init": "big"}, "linear_init"),
    ):
        with pytest.raises(ValueError, match=word):
            toy(logits, TOY.clone(**fields))


# --- stages, on a network that says what it is shown


def test_gradient_by_hand_through_soft_exits():
    """LGM's gradient on exits is that of ``sum_i e_i logits_i`` written out; FGM's sees the answering exit only."""
    logits = logits_with([0.5, 0.6, 0.7])

    def by_hand(logits):
        sure = jnp.max(jax.nn.softmax(logits), axis=-1)
        first, second = jax.nn.sigmoid(5 * (0.8 - sure[:, 0])), jax.nn.sigmoid(5 * (0.8 - sure[:, 1]))
        shares = jnp.stack([1 - first, first * (1 - second), first * second], axis=1)
        return jnp.sum(shares[:, :, None] * logits, axis=1)[0, 0]

    def ours(logits, how):
        return toy(logits, TOY.clone(answer="last"), occupancy=how).logits[0, 0]

    hows = (occupancy.sigmoid(5.0), occupancy.hard(), occupancy.straight_through(5.0))
    run = quick_jit(lambda z: (jax.grad(by_hand)(z), [jax.grad(ours)(z, how) for how in hows]))
    expected, (soft, hard, straight) = jax.tree.map(np.asarray, run(logits))
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    np.testing.assert_array_equal(hard[0], [[0, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert np.abs(soft[0, 1]).max() > 0.01 and np.abs(straight[0, 1]).max() > 0.01


def test_a_threshold_for_each_exit():
    logits = logits_with([0.6, 0.5, 0.5]).at[0, :, 2].add(jnp.array([0.0, 0.01, 0.02]))  # so that exits differ
    for threshold, stage in ((0.45, 0), ((0.9, 0.45), 1), ((0.9, 0.9), 2)):
        out = toy(logits, TOY.clone(answer="last", threshold=threshold))
        np.testing.assert_allclose(out.logits, logits[:, stage], atol=1e-6)
        assert sum(int(unit.on[0]) for unit in out.trace.units) == stage
    sweep = jnp.array([[0.45, 0.45], [0.9, 0.45], [0.9, 0.9]])

    def stages(t):
        return exits.exit_index(toy(logits, threshold=t).trace), exits.decide(logits, t).stage

    for stage in quick_jit(jax.vmap(stages))(sweep):
        np.testing.assert_array_equal(stage[:, 0], [0, 1, 2])


def test_rule_and_answer_are_values():
    """RDI-Nets' entropies in nats against a threshold each, and the sum of the exits so far, by these thresholds."""

    def nats(exits, thresholds):
        p = jax.nn.softmax(exits)
        return -jnp.sum(p * jnp.log(p + 1e-5), axis=-1) - thresholds[None]

    def ensemble(exits, thresholds):
        p = jax.nn.softmax(exits)
        so_far = jnp.cumsum(p[:, :-1] * thresholds[None, :, None], axis=1)
        return jnp.concatenate([so_far, jnp.sum(p, axis=1, keepdims=True)], axis=1)

    rule = early_exit.Rule(nats, lambda t: t > 0, "positive")
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3, 3)), jnp.float32) * 2
    limits = (0.5, 0.8)
    net = TOY.clone(rule=rule, answer=ensemble, threshold=limits)
    out, decision = jax.device_get(
        quick_jit(lambda z: (toy(z, net), exits.decide(z, limits, rule=rule, answer=ensemble)))(logits)
    )
    p = np.asarray(jax.nn.softmax(logits))
    stages = set()
    for b in range(20):
        entropies = [-(p[b, k] * np.log(p[b, k] + 1e-5)).sum() for k in range(2)]
        stage = next((k for k in range(2) if entropies[k] < limits[k]), 2)
        says = sum(limits[j] * p[b, j] for j in range(stage + 1)) if stage < 2 else p[b].sum(0)
        np.testing.assert_allclose(out.logits[b], says, atol=1e-6)
        assert (decision.stage[b], decision.exit[b], decision.prediction[b]) == (stage, stage, says.argmax())
        stages.add(stage)
    assert stages == {0, 1, 2}
    assert out.trace.static_macs == 11 and [unit.macs for unit in out.trace.units] == [11, 5]
    with pytest.raises(ValueError, match="expected positive"):
        exits.decide(logits, -1.0, rule=rule)


# --- layers


def test_mixed_pool_by_hand():
    x = jnp.asarray([[1.0, 2.0], [3.0, 6.0]]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(nn.mixed_pool(x, jnp.array([0.25]), 2), [[[[0.25 * 6 + 0.75 * 3]]]])


def test_max_pool_gives_ties_to_the_first():
    x = jnp.asarray([[1.0, 5.0], [5.0, 5.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: jnp.sum(nn.max_pool(x, 2)))(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])


@pytest.mark.parametrize("size,stride", [(6, 1), (6, 2), (5, 2)])
def test_depthwise_convolution_against_xla(size, stride):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, size, size, 3), (3, 3, 1, 3)))

    def twin(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        pad = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), pad, dimension_numbers=names, feature_group_count=3
        )

    @quick_jit
    def run(x, kernel, cotangent):
        got, got_vjp = jax.vjp(lambda x, k: nn.depthwise_conv3x3(x, k, stride), x, kernel)
        expected, expected_vjp = jax.vjp(twin, x, kernel)
        return (got, *got_vjp(cotangent)), (expected, *expected_vjp(cotangent))

    cotangent = jnp.asarray(rng.normal(size=jax.eval_shape(twin, x, kernel).shape), jnp.float32)
    for got, expected in zip(*run(x, kernel, cotangent)):
        np.testing.assert_allclose(got, expected, atol=1e-4)
    np.testing.assert_allclose(run(x, kernel, cotangent)[0][0], twin(x, kernel), atol=1e-5)
