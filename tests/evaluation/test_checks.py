"""Checks: every broken model is found out, no healthy one is, and a finding says what to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from dyn_jax import networks, occupancy
from dyn_jax.attacks import bim
from dyn_jax.evaluation import checks
from dyn_jax.types import Output, Trace, UnitTrace

EPS = "8/255"


def run(forward, data=None, **options):
    images, labels = zoo.digits_data() if data is None else data
    return checks.check(forward, images, labels, eps=EPS, key=jax.random.key(0), **options)


def codes(findings):
    return {finding.code for finding in findings}


def test_nothing_is_found_on_a_healthy_network():
    assert run(zoo.digits_model()) == ()
    assert run(jax.jit(zoo.digits_model()), norm="l2", victim=zoo.digits_model()) == ()
    assert run(zoo.straight_through_quantised(zoo.digits_model()), victim=zoo.quantised(zoo.digits_model())) == ()


@pytest.mark.parametrize("name", zoo.BROKEN)
def test_every_broken_model_is_found_out(name):
    make, wanted = zoo.BROKEN[name]
    make = functools.partial(make, bright=0.3) if make is zoo.nan_bright_images else make
    findings = run(make(zoo.digits_model()))
    assert wanted <= codes(findings)
    for finding in findings:
        severity, _, remedy = checks.CODES[finding.code]
        assert (finding.severity, finding.remedy) == (severity, remedy) and finding.message
        if finding.share is None:
            assert len(finding.examples) == 0
        else:
            assert finding.share == pytest.approx(len(finding.examples) / 12) and finding.share > 0
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities)  # errors first


def adaptive(name, how):
    net, variables = networks.pretrained(name)
    return functools.partial(net.apply, variables, occupancy=how)


def test_nothing_is_found_on_an_adaptive_network_under_lgm():
    forward, victim = (adaptive("skipnet-digits", how) for how in (occupancy.sigmoid(10.0), occupancy.hard()))
    assert run(forward, zoo.digits_data(size=32), victim=victim) == ()


@pytest.mark.slow
def test_nothing_is_found_on_a_network_of_cifar10_under_lgm(cifar):
    gates = occupancy.straight_through(10.0), occupancy.hard()
    forward, victim = (adaptive("dynconv-32-cifar10", how) for how in gates)
    assert run(forward, cifar, victim=victim) == ()


@pytest.mark.torch
def test_nothing_is_found_on_a_deeper_published_network(deeper, cifar):
    assert run(deeper, cifar) == ()


def test_hard_gates_are_named_with_their_remedy():
    """True of every adaptive network under FGM, and nothing else is found there."""
    (finding,) = run(adaptive("dynconv-digits", occupancy.hard()), zoo.digits_data(size=32))
    assert (finding.code, finding.severity) == ("hard_gates", "warning") and finding.share > 0
    assert "attack the straight-through network" in finding.remedy and "zero gradients: hard gates" in finding.remedy
    assert "6 of 6 gated units" in finding.message


def test_gates_drawn_under_a_bound_key():
    def gated(x, how):
        score = jnp.mean(x, axis=(1, 2, 3)) - 0.3
        o = how(score)
        return Output(zoo.digits_model()(x) * (1 + o[:, None]), Trace((UnitTrace(score, o, 5),)))

    bound = functools.partial(occupancy.gumbel_sigmoid(0.1), key=jax.random.key(0))
    assert codes(run(lambda x: gated(x, bound))) == {"frozen_randomness"}
    sampled = lambda key: lambda x: gated(x, functools.partial(occupancy.gumbel_sigmoid(0.1), key=key))
    assert run(None, make_forward=sampled) == ()
    by_chance = lambda key: lambda x: gated(x, functools.partial(occupancy.bernoulli(), key=key))
    assert codes(run(None, make_forward=by_chance)) == {"hard_gates"}  # a sample has no derivative


class TestDeclaredRandomness:
    """`make_forward`: key -> forward."""

    def noisy(self, key):
        return lambda x: zoo.digits_model()(x + 0.05 * jax.random.normal(key, x.shape))

    def test_a_random_network_that_says_so_is_healthy(self):
        assert run(None, make_forward=self.noisy) == ()

    def test_one_draw_of_it_is_not(self):
        assert codes(run(self.noisy(jax.random.key(3)), make_forward=self.noisy)) == {"frozen_randomness"}

    def test_a_draw_kept_where_the_program_does_not_show_it(self):
        draw = np.asarray(jax.random.normal(jax.random.key(0), (10,)))  # added to the logits
        keep = lambda x: zoo.digits_model()(x) + draw[None]
        honest = lambda key: lambda x: zoo.digits_model()(x) + jax.random.normal(key, (1, 10))
        assert run(keep) == () and run(None, make_forward=honest) == ()
        (finding,) = run(keep, make_forward=honest)
        assert finding.code == "frozen_randomness" and finding.share == 1 and "two keys" in finding.message

    def test_a_second_hidden_key(self):
        hidden = lambda key: lambda x: self.noisy(key)(x) + self.noisy(jax.random.key(9))(x)
        assert codes(run(None, make_forward=hidden)) == {"frozen_randomness"}


def test_a_victim_is_looked_at_too():
    findings = run(zoo.digits_model(), victim=zoo.fixed_key_noise(zoo.digits_model()))
    assert [f.code for f in findings] == ["frozen_randomness"] and findings[0].message.startswith("victim: ")


def test_two_classes_and_a_gradient_that_is_not_finite():
    few = lambda x: zoo.digits_model()(x)[:, :2]
    images, labels = zoo.digits_data()
    assert "few_classes" in codes(run(few, (images, np.minimum(labels, 1))))
    root = lambda x: zoo.digits_model()(x) + jnp.sqrt(jnp.sum((0 * x) ** 2, axis=(1, 2, 3)))[:, None]
    assert "nonfinite_gradient" in codes(run(root))


def test_what_attacks_leave_behind_is_read_where_they_failed():
    success = np.array([True, False, False, False])
    rising = np.tile(np.arange(12.0), (4, 1))
    settled = np.r_[np.zeros(1), np.ones(11)]
    losses = np.stack([rising[0], rising[1], settled, settled])
    path = np.zeros((4, 12), bool)
    path[[0, 3], 5] = True
    reading = checks.from_attack(success, losses, path_success=path, unstable=[0.9, 0.01, 0.5, np.nan])
    assert {f.code: f.examples.tolist() for f in reading.findings} == {
        "silent_success": [3],
        "incomplete_optimization": [1],
        "unstable_predictions": [2],
    }
    assert (reading.raw["incomplete_optimization"] > 0.05).tolist() == [True, True, False, False]  # beside it, unread
    assert checks.from_attack(np.ones(4, bool), rising).findings == ()
    (finding,) = checks.from_attack(success, surrogate_success=np.array([True, True, False, False])).findings
    assert (finding.code, finding.share) == ("transfer_failure", 0.25)


def test_an_attack_without_gradients_that_does_better():
    found = np.zeros(1000, bool)
    rows = lambda *numbers: np.isin(np.arange(1000), numbers)
    white = rows(*range(500))
    assert checks.from_ensemble({"apgd_ce": white, "square": rows(1, 2, 600, 601)}).findings == ()  # 0.2 %
    (finding,) = checks.from_ensemble({"apgd_ce": white, "fab_t": found, "square": rows(600, 601, 602)}).findings
    assert (finding.code, finding.examples.tolist()) == ("black_box_better", [600, 601, 602])
    assert checks.from_ensemble({"square": white}).findings == ()  # nothing to compare with
    assert checks.from_ensemble({}) == ((), {})


def test_a_masked_network_through_the_whole_chain():
    """Attack, reading: the network that gradients cannot enter is broken by random signs alone."""
    images, labels = zoo.digits_data()
    result = bim(0.3, 0.05, 8, objective="margin")(zoo.detached_zero_gradient(zoo.digits_model()), images, labels)
    reading = checks.from_attack(result.success, result.steps.loss)
    assert reading.findings == () and not np.any(np.asarray(result.success))  # the path is flat: nothing to see there
    assert "zero_gradient" in codes(run(zoo.detached_zero_gradient(zoo.digits_model())))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": np.zeros((12, 1), int)}, r"labels: got shape \(12, 1\)"),
        ({"labels": np.full(12, 10)}, r"labels: got labels in \[10, 10\]"),
        ({"images": jnp.zeros((12, 8, 8, 3)) + 2}, r"images: got values in \[2, 2\]"),
        ({"eps": -1}, "eps: got -1"),
        ({"norm": "l3"}, "norm: got 'l3'"),
    ],
)
def test_bad_input(change, words):
    images, labels = zoo.digits_data()
    given = {"images": images, "labels": labels, "eps": EPS, "key": jax.random.key(0), **change}
    with pytest.raises(ValueError, match=words):
        checks.check(zoo.digits_model(), given.pop("images"), given.pop("labels"), **given)


def test_bad_input_of_other_kinds():
    images, labels = zoo.digits_data()
    with pytest.raises(TypeError, match="key: got int, expected one typed PRNG key"):
        checks.check(zoo.digits_model(), images, labels, eps=EPS, key=0)
    with pytest.raises(TypeError, match="forward: got None without make_forward"):
        checks.check(None, images, labels, eps=EPS, key=jax.random.key(0))
    with pytest.raises(ValueError, match="incomplete_optimization: got 2 examples, expected 3"):
        checks.from_attack(np.zeros(3, bool), np.ones((2, 4)))


def test_every_code_says_what_to_do():
    for code, (severity, meaning, remedy) in checks.CODES.items():
        assert severity in ("error", "warning") and meaning and remedy, code


FLAGS = {
    "aa_randomized": "randomised",
    "aa_range_output": "probabilities",
    "aa_zero_gradient": "zero_gradient",
    "aa_dynamic": "gradient_in_forward",
}
MODELS = {
    "resnet20": lambda f: f,
    "detached_zero_gradient": zoo.detached_zero_gradient,
    "detached_no_graph": zoo.detached_no_graph,
    "quantised_16_levels": zoo.quantised,
    "softmax_output": zoo.softmax_output,
    "fixed_key_noise": zoo.fixed_noise_array,
    "fresh_noise": zoo.fresh_noise,
    "reversed_gradient": zoo.reversed_gradient,
    "logits_x1000": zoo.logits_x1000,
    "nan_bright_images": zoo.nan_bright_images,
    "hard_gate_blur": zoo.hard_gate_blur,
    "hard_threshold_input": zoo.thresholded_input,
    "gradient_in_forward": zoo.gradient_in_forward,
}
BLIND = {"fixed_key_noise", "reversed_gradient", "logits_x1000", "hard_gate_blur"}  # where AutoAttack sees nothing


@pytest.mark.torch
@pytest.mark.parametrize("model", MODELS)
def test_published_network_and_what_was_made_of_it(model, golden, published):
    """Everything AutoAttack flags is found, and what it is blind to as well; nothing on the network itself."""
    stored = golden("eval_failure_checks")
    forward, images, labels = published
    findings = run(MODELS[model](lambda x: forward(x).logits), (images, labels))
    found = codes(findings)
    assert bool(found) == (model != "resnet20")
    for flag, code in FLAGS.items():
        if model != "nan_bright_images":  # there AutoAttack says zero gradient: here that is a finding of its own
            cut = model == "detached_no_graph" and code == "zero_gradient"  # torch has no graph, JAX zeros
            assert (code in found) == (bool(stored[f"{model}/{flag}"]) or cut), code
    by_code = {finding.code: finding for finding in findings}
    if model in BLIND:
        assert not any(stored[f"{model}/{flag}"] for flag in FLAGS)
    for code, name in (("zero_gradient", "zero_gradients"), ("nonfinite_logits", "zero_gradients")):
        if code in by_code:
            np.testing.assert_array_equal(by_code[code].examples, np.flatnonzero(stored[f"{model}/{name}"]))
    if model not in ("fixed_key_noise", "fresh_noise", "nan_bright_images"):  # other noise, other verdict on NaN
        survivors = by_code["unconstrained_failure"].examples if "unconstrained_failure" in by_code else []
        right = stored[f"{model}/pgd_loss"][0] > 0
        failed = (stored[f"{model}/unconstrained_attack_failure"] == 1) & right
        np.testing.assert_array_equal(survivors, np.flatnonzero(failed))


@pytest.mark.parametrize("model", MODELS)
def test_the_square_flag_of_stored_accuracies(model, golden):
    """From the cascade's accuracies alone: how many images each attack broke first."""
    stored = golden("eval_failure_checks")
    left = np.round(np.nan_to_num(stored[f"{model}/aa_accuracy"], nan=-1) * len(stored["index"])).astype(int)
    ran = left[left >= 0]  # what was not run had nothing left to run on
    row, names = np.arange(len(stored["index"])), ("apgd_ce", "apgd_t", "square")
    first = {name: (row >= after) & (row < before) for name, before, after in zip(names, ran, ran[1:])}
    found = codes(checks.from_ensemble(first).findings)
    assert ("black_box_better" in found) == bool(stored[f"{model}/aa_square"])
