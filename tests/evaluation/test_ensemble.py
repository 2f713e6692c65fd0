"""The ensemble: the worst of each example, found by whom, judged again; what is refused before anything runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks, networks, occupancy
from dyn_jax.attacks import to_8bit
from dyn_jax.evaluation import Budget, ensemble, evaluate, plan
from dyn_jax.evaluation.ensemble import Job
from tests.evaluation import toy

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module")
def found(quick_programs):
    return toy.run()


def test_the_verdict_is_a_fresh_pass_over_what_is_returned(found):
    images, labels = toy.data()
    logits = np.asarray(toy.gated(toy.weights(), found.examples["adversarial"]).logits)
    wrong = logits.argmax(1) != labels
    np.testing.assert_array_equal(found.examples["broken"], wrong & found.examples["correct"])
    assert found.robust_accuracy == pytest.approx(1 - wrong.mean())
    assert found.summary["robust_acc"] == f"{100 * found.robust_accuracy:.2f}"
    assert np.abs(found.examples["adversarial"] - images).max() <= 16 / 255 + 1e-6
    assert found.summary["clean_acc"] == f"{100 * 20 / 21:.2f}" and found.examples["found_by"][3] == -2
    assert 0 < found.examples["broken"].sum() < 20, "an example must stand and one must fall for the test to mean much"


def test_a_broken_example_is_not_attacked_again(found):
    first, second = (found.attacks[name] for name in ("fgsm", "bim@soft"))
    assert first["run"].sum() == 20 and not first["run"][3]
    np.testing.assert_array_equal(second["run"], first["run"] & ~first["success"])
    by = found.examples["found_by"]
    np.testing.assert_array_equal(by == 0, first["success"])
    np.testing.assert_array_equal(by == 1, second["success"] & second["run"])
    assert [line.get("found_first") for line in found.summary["attacks"]] == [(by == k).sum() for k in range(3)]


@pytest.mark.parametrize("name", ["fmn", "fmn@soft", "energy-apgd@straight-through"])
def test_an_error_inside_the_ball_counts_whatever_was_looked_for(name):
    alone = toy.run(attacks=name, eps="24/255")
    labels = toy.data()[1]
    logits = np.asarray(toy.gated(toy.weights(), alone.attacks[name]["adversarial"]).logits)
    wrong = (logits.argmax(1) != labels) & alone.attacks[name]["inside"] & alone.examples["correct"]
    assert wrong.any()
    np.testing.assert_array_equal(alone.examples["broken"], wrong)
    assert alone.summary["robust_acc"] == f"{100 * (alone.examples['correct'] & ~wrong).mean():.2f}"
    assert alone.summary["attacks"][0]["found_first"] == wrong.sum() and alone.summary["not_confirmed"] == 0
    if curve := alone.summary["curves"]["eps"]:
        assert curve["accuracy"][20] == pytest.approx(float(alone.summary["robust_acc"]))  # at eps
    after = toy.run(attacks=f"{name},fgsm", eps="24/255")  # and takes no image away from the attacks on accuracy
    np.testing.assert_array_equal(after.attacks["fgsm"]["run"], after.examples["correct"])


def test_the_accuracy_of_autoattack_is_that_of_its_four_attacks():
    four = ",".join(plan.PLANS["standard"])
    alone = toy.run(attacks="standard", eps="12/255")
    first = toy.run(attacks=f"{four},bim@soft,curve", eps="12/255")
    assert alone.summary["autoattack_acc"] == alone.summary["robust_acc"] == first.summary["autoattack_acc"]
    taken = toy.run(attacks=f"fgsm,{four}", eps="12/255")
    assert taken.summary["attacks"][0]["broken"] > 0
    assert taken.summary["autoattack_acc"] is None  # it has not met the images that FGSM broke
    assert plan.PLANS["dynamics"][:4] == plan.PLANS["standard"]


def test_an_entry_is_the_attack_itself():
    images, labels = toy.data()
    alone = toy.run(attacks="apgd-ce")
    forward = lambda x: toy.gated(toy.weights(), x)
    key = Job(None, (), None, None, 0, 5, (1, 1), None).key("apgd-ce")
    result = attacks.apgd("16/255", 4, course=attacks.Course(keep="error"))(forward, images, labels, key=key)
    np.testing.assert_array_equal(alone.examples["broken"], np.asarray(result.success & ~result.clean_success))
    rows = alone.examples["broken"]
    np.testing.assert_allclose(alone.examples["adversarial"][rows], np.asarray(result.adversarial)[rows], atol=1e-6)


def test_the_worst_lambda_counts():
    both = toy.run(attacks="bim@soft")
    budgets = [dataclasses.replace(toy.SHORT, lambdas=(lam,)) for lam in (1.0, 8.0)]
    alone = [toy.run(attacks="bim@soft", budget=budget) for budget in budgets]
    either = alone[0].examples["broken"] | alone[1].examples["broken"]
    np.testing.assert_array_equal(both.examples["broken"], either)


def test_the_most_expensive_image_in_the_ball_counts(found):
    images, _ = toy.data()
    macs = lambda x: 50 + 100 * (np.asarray(toy.gated(toy.weights(), x).trace.units[0].score) >= 0)
    np.testing.assert_array_equal(found.examples["macs"], macs(images))
    np.testing.assert_array_equal(found.examples["macs_worst"], macs(found.examples["costliest"]))
    assert (found.examples["macs_worst"] >= found.examples["macs"]).all()
    saved = found.examples["macs"] < 150
    share = ((found.examples["macs_worst"] - found.examples["macs"])[saved] / 100).mean()
    assert found.summary["energy"]["recovery_in_ball"] == pytest.approx(share, rel=1e-5) and share > 0
    assert np.abs(found.examples["costliest"] - images).max() <= 16 / 255 + 1e-6


def test_8_bit_images_stay_in_the_ball_and_are_judged(found):
    images, labels = toy.data()
    coarse = found.examples["adversarial_8bit"]
    np.testing.assert_array_equal(coarse, np.asarray(to_8bit(found.examples["adversarial"], images)))
    assert np.abs(coarse.astype(int) - np.round(images * 255)).max() <= 16
    wrong = np.asarray(toy.gated(toy.weights(), coarse.astype(np.float32) / 255).logits).argmax(1) != labels
    np.testing.assert_array_equal(found.examples["broken_8bit"], wrong & (found.examples["found_by"] >= 0))


def test_results_do_not_depend_on_the_batch_size(found):
    other = toy.run(batch_size=21)
    np.testing.assert_array_equal(found.examples["found_by"], other.examples["found_by"])
    np.testing.assert_allclose(found.examples["adversarial"], other.examples["adversarial"], atol=1e-6)


def test_short_memory_halves_the_batch_with_equal_results(found, monkeypatch):
    from dyn_jax.evaluation import chunks

    whole, asked = chunks.Chunks._side_by_side, []

    def short(self, group, arrays):
        asked.append(self.size)
        if self.size > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return whole(self, group, arrays)

    monkeypatch.setattr(chunks.Chunks, "_side_by_side", short)
    other = toy.run()
    assert {5, 3, 2} <= set(asked)
    np.testing.assert_array_equal(found.examples["found_by"], other.examples["found_by"])
    np.testing.assert_allclose(found.examples["adversarial"], other.examples["adversarial"], atol=1e-6)
    monkeypatch.setattr(chunks.Chunks, "_side_by_side", lambda self, *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError, match="one example alone"):
        toy.run()


def test_a_thousand_cases_are_inside_and_judged_right():
    """Images, eps and norms at random, at the bounds too: every success re-evaluates, every image is in the set."""
    rng, total = np.random.default_rng(0), 0
    cases = (
        *(("linf", 0.0, "apgd-ce"), ("linf", "1/255", "apgd-t"), ("linf", 1.5, "square"), ("linf", "8/255", "fab-t")),
        *(("l2", 0.4, "apgd-ce"), ("l2", 1e-3, "square"), ("l1", 1.5, "apgd-ce"), ("l1", 3.0, "fab-t")),
    )
    for norm, eps, attack in cases:
        images = np.clip(rng.normal(0.5, 0.6, (125, *toy.SHAPE)), 0, 1).astype(np.float32)
        labels = np.asarray(toy.static(toy.weights(), images)).argmax(1).astype(np.int32)
        labels[::7] = rng.integers(0, toy.CLASSES, len(labels[::7]))
        got = evaluate(
            toy.static, toy.weights(), images, labels, eps=eps, norm=norm, attacks=attack, budget=toy.SHORT,
            batch_size=125,
        )  # fmt: skip
        moved = got.examples["adversarial"]
        radius = float(np.max(_distance(norm, moved - images)))
        limit = float(attacks.ball(norm, eps).eps)
        assert radius <= limit * (1 + 1e-6) + 2e-6 and moved.min() >= 0 and moved.max() <= 1
        wrong = np.asarray(toy.static(toy.weights(), moved)).argmax(1) != labels
        np.testing.assert_array_equal(got.examples["broken"], wrong & got.examples["correct"])
        assert got.summary["not_confirmed"] == 0
        total += len(images)
    assert total >= 1000


def _distance(norm, delta):
    flat = delta.reshape(len(delta), -1)
    return np.linalg.norm(flat.astype(np.float64), {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)


def test_curves_along_the_steps_by_hand():
    """BIM cut off after k steps is its k-th iterate; the second attack goes on where the first one ended."""
    images, labels = toy.data()
    forward = lambda x: toy.gated(toy.weights(), x)
    got = toy.run(attacks="bim,fgsm,energy-apgd@straight-through", batch_size=21)
    curves, eps = got.summary["curves"]["steps"], 16 / 255
    stood = got.examples["correct"]
    wanted = []
    for k in range(4):
        x = attacks.bim(eps, eps / 4, k)(forward, images, labels).adversarial if k else images
        stood = stood & (np.asarray(forward(x).logits).argmax(1) == labels)
        wanted.append(100 * stood.mean())
    np.testing.assert_allclose(curves["bim"]["accuracy"], wanted, atol=0.01)
    assert wanted[0] > wanted[-1] and len(curves["bim"]["loss"]) == 4
    assert f"{curves['fgsm']['accuracy'][0]:.2f}" == got.summary["attacks"][0]["accuracy_after"]
    back = curves["energy-apgd@straight-through"]["recovery"]
    assert back[0] >= 0 and np.all(np.diff(back) >= 0) and len(back) == 5
    assert back[-1] >= got.summary["energy"]["recovery"]["energy-apgd@straight-through"] - 1e-6 and back[-1] > 0


def test_steps_outside_the_ball_are_no_errors_inside_it():
    """FAB walks wherever the boundary is: what its curve ends with is what it broke within eps."""
    got = toy.run(attacks="fab-t", eps="6/255", batch_size=21)
    curve = got.summary["curves"]["steps"]["fab-t"]["accuracy"]
    assert f"{curve[-1]:.2f}" == got.summary["attacks"][0]["accuracy_after"]
    errs = got.attacks["fab-t"]["path_error"][:, -1] > 0
    assert errs.any() and not errs.all()


def test_an_iterate_that_fooled_but_was_not_returned_is_said():
    """Between 2 and 6 levels from the clean image this network errs, and BIM walks on."""

    def shell(variables, x):
        far = jnp.max(jnp.abs(x - 0.5), axis=(1, 2, 3)) * 255
        return jnp.stack([jnp.where((far > 2) & (far < 6), -1.0, 1.0) - far / 100, 0 * far, 0 * far - 9], axis=1)

    given = {"eps": "8/255", "attacks": "bim", "budget": dataclasses.replace(toy.SHORT, steps=8)}
    start = np.full((4, *toy.SHAPE), 0.5, np.float32)
    start[:, 0, 0, 0] += 0.5 / 255
    got = evaluate(shell, {}, start, np.zeros(4, np.int32), **given)
    assert not got.examples["broken"].any()
    assert "silent_success" in [one["code"] for one in got.summary["checks"]]


def test_attacks_that_ask_for_little():
    """Yes and no, numbers, and smallest norms; of the smallest norms the steepness that found the nearer one counts."""
    got = toy.run(attacks="rays,spsa,fgsm", batch_size=21)
    assert got.attacks["rays"]["success"].any() and got.attacks["spsa"]["run"].any()
    images, labels = toy.data()
    near = attacks.rays("16/255", toy.SHORT.queries)(lambda x: toy.gated(toy.weights(), x), images, labels)
    np.testing.assert_array_equal(got.examples["found_by"] == 0, near.success & ~near.clean_success)
    budgets = [dataclasses.replace(toy.SHORT, lambdas=lambdas) for lambdas in ((1.0, 8.0), (1.0,), (8.0,))]
    run = lambda budget: toy.run(attacks="ddn@soft", norm="l2", eps=0.5, budget=budget, batch_size=21)
    both, *alone = [run(budget).attacks["ddn@soft"]["distance"] for budget in budgets]
    np.testing.assert_allclose(both, np.minimum(*alone), rtol=1e-5)


def test_plus_and_rand():
    images, labels = toy.data()
    got = toy.run(attacks="plus", batch_size=21, budget=dataclasses.replace(toy.SHORT, steps=2, targets=1, queries=2))
    assert [line["attack"] for line in got.summary["attacks"]] == list(plan.PLANS["plus"])
    forward = lambda x: toy.gated(toy.weights(), x)
    key = Job(None, (), None, None, 0, 5, (1, 1), None).key("apgd-ce-5")
    alone = attacks.apgd("16/255", 2, restarts=5, course=attacks.Course(keep="error"))(forward, images, labels, key=key)
    np.testing.assert_array_equal(got.examples["found_by"] == 0, alone.success & ~alone.clean_success)
    random = evaluate(
        toy.noisy, toy.weights(), images, labels, eps="16/255", attacks="rand", budget=toy.SHORT, draws=(3, 5),
        batch_size=21,
    )  # fmt: skip
    assert list(random.attacks) == ["apgd-ce", "apgd-dlr"] and random.summary["random"]["draws"] == 5


def test_grad_mdm_taps_where_it_can():
    """One gate a unit behind a tap: its nodes; elsewhere its losses alone, which the result says."""

    def tapped(variables, x, *, occupancy=None, tap=None):
        trunk, branch = (x, x) if tap is None else tap(x, 0)
        out = toy.gated(variables, trunk, occupancy=occupancy)
        score = (branch.reshape(len(x), -1) - 0.5) @ variables["gate"]
        unit = out.trace.units[0].replace(score=score, extras={"probability": jax.nn.sigmoid(score)})
        return out.replace(trace=out.trace.replace(units=(unit,)))

    images, labels = toy.data(5)
    budget = dataclasses.replace(toy.SHORT, energy_steps=13)
    for net, even in ((tapped, True), (toy.gated, False)):
        got = evaluate(net, toy.weights(), images, labels, eps="8/255", attacks="grad-mdm", budget=budget)
        forward = lambda x, net=net, **given: net(toy.weights(), x, **given)
        alone = attacks.grad_mdm(steps=13, even=even)(forward, images, labels)
        np.testing.assert_allclose(got.attacks["grad-mdm"]["distance"], alone.distance, rtol=1e-4, atol=1e-6)
        assert ("note" in got.summary["attacks"][0]) == (not even)


def test_nonfinite_logits_are_an_outcome_of_their_own():
    def blind(variables, x):
        return jnp.where(x.mean((1, 2, 3), keepdims=True)[..., 0, 0] > 0.5, jnp.nan, toy.static(variables, x))

    images, _ = toy.data()
    labels = np.asarray(toy.static(toy.weights(), images)).argmax(1).astype(np.int32)
    with jax.debug_nans(False):
        got = evaluate(blind, toy.weights(), images, labels, eps="1/255", attacks="fgsm", budget=toy.SHORT)
    bright = images.mean((1, 2, 3)) > 0.5
    assert got.examples["invalid"][bright].all() and not got.examples["broken"][bright].any()
    assert got.robust_accuracy <= 1 - bright.mean() and got.summary["unreliable"]


def test_a_network_that_looks_at_its_neighbours_is_told():
    """Batch statistics: what was broken among others like it is not when the robust ones are back."""

    def among(variables, x):
        return toy.static(variables, 0.5 + x - x.mean(0, keepdims=True))

    images, labels = toy.data(6)
    got = evaluate(among, toy.weights(), images, labels, eps="16/255", attacks="fgsm", budget=toy.SHORT, batch_size=3)
    (told,) = (one for one in got.summary["checks"] if one["code"] == "not_confirmed")
    assert got.summary["unreliable"] and len(told["examples"]) == got.summary["not_confirmed"] > 0
    assert "batch statistics" in told["remedy"]


def deeper():
    return networks.create("resnet-32-cifar10", widths=(1, 1, 1)).init(jax.random.key(0), np.zeros((1, 8, 8, 3), "f4"))


BAD = {
    "one output": ({"net": lambda v, x: toy.static(v, x)[:, :1], "labels": np.zeros(3, np.int32)}, "one output.*two"),
    "labels": ({"labels": np.array([0, 1, 9], np.int32)}, r"labels: got labels in \[0, 9\], expected \[0, 4\]"),
    "images": ({"images": 2 * np.ones((3, *toy.SHAPE), np.float32)}, "images: got values"),
    "attack": ({"attacks": "apgd-c"}, "attacks: got 'apgd-c', did you mean apgd-ce"),
    "soft of a static network": ({"attacks": "apgd-ce@soft"}, "no gates to soften"),
    "energy of a static network": ({"attacks": "energy"}, "without adaptive units"),
    "few classes": ({"net": lambda v, x: toy.static(v, x)[:, :3], "labels": np.zeros(3, np.int32)}, "at least 4"),
    "eps": ({"eps": "eight"}, "eps"),
    "norm": ({"norm": "l3"}, "norm"),
    "norm of ddn": ({"attacks": "ddn"}, "ddn in the linf norm, expected l2"),
    "norm of rays": ({"attacks": "rays", "norm": "l1"}, "rays in the l1 norm, expected linf"),
    "no attack": ({"attacks": ()}, "expected at least one"),
    "labels beyond 32 bits": ({"labels": np.full(3, 2**32)}, r"labels: got labels in \[4294967296"),
    "seed": ({"seed": 1.5}, "seed: got 1.5"),
    "one number of draws": ({"draws": 5}, r"draws: got 5, expected \(of gradients, of verdicts\)"),
    "budget": ({"budget": {"steps": 2}}, "budget: got dict, expected a dyn_jax.evaluation.Budget"),
    "part": ({"part": (2, 2)}, r"part: got \(2, 2\)"),
    "more parts than examples": ({"part": (0, 4)}, r"part: got \(0, 4\), .* at most one for each of 3"),
    "no devices": ({"devices": []}, "devices: got none"),
    "facts": ({"facts": "name"}, "facts: got str, expected a mapping"),
    "nothing to resume from": ({"resume": True, "output": None}, "resume: got True without an output"),
    "norm of clouds": ({"norm": "ray"}, "norm: got 'ray', expected one of l1, l2, linf"),
    "occupancy": ({"net": toy.gated, "occupancy": "soft"}, "occupancy: got str"),
    "attacks that are no names": ({"attacks": [3]}, r"attacks: got \[3\], expected names"),
    "a deeper network's weights": (
        {"net": networks.create("resnet-20-cifar10", widths=(1, 1, 1)), "variables": deeper},
        r"60 leaves do not fit the ResNet: unexpected (batch_stats|params)/layer1_3",
    ),
    "one's own keys": ({"net": lambda v, x: v["w"] @ x}, "net, variables: .* KeyError: 'w'"),
    "weights": ({"variables": {"always": np.zeros((7, 5), np.float32)}}, "dot_general|incompatible|shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_said_in_the_first_second(case, tmp_path):
    images, _ = toy.data(3)
    given = {"net": toy.static, "variables": toy.weights(), "images": images, "labels": np.zeros(3, np.int32)}
    given |= {"eps": "8/255", "attacks": "apgd-t", "output": tmp_path / "run"}
    changes, message = BAD[case]
    if callable(changes.get("variables")):
        changes = {**changes, "variables": changes["variables"]()}
    with pytest.raises((ValueError, TypeError), match=message):
        evaluate(**{**given, **changes})
    assert not (tmp_path / "run").exists()


def test_bad_options():
    for field, value in (("steps", 0), ("queries", 1.5), ("lambdas", ()), ("lambdas", (-1.0,))):
        with pytest.raises((ValueError, TypeError), match=field):
            Budget(**{field: value})
    with pytest.raises(TypeError, match="occupancy"):
        images, labels = toy.data(3)
        evaluate(toy.static, toy.weights(), images, labels, eps=0.1, attacks="fgsm", occupancy=occupancy.hard())


def test_chunks_hold_what_is_there_and_no_more():
    """At most one row in each chunk is filled up."""
    for rows in (1, 2, 17, 18, 33, 64, 65, 117, 1000):
        for most in (1, 5, 64, 100):
            size = ensemble._size(rows, most)
            count = -(-rows // size)
            assert size <= most and count == -(-rows // most) and count * size - rows < count


def test_every_name_of_every_plan_is_known():
    for name in plan.PLANS:
        assert plan.names_of(name) == plan.PLANS[name]
    assert plan.names_of("standard,apgd-ce,energy")[:4] == plan.PLANS["standard"]


def test_nothing_runs_before_bad_input_is_refused():
    """Shapes alone are traced."""
    images, labels = toy.data(3)
    ran = []

    def watched(variables, x):
        ran.append(isinstance(x, jax.core.Tracer))
        return toy.static(variables, x)

    with pytest.raises(ValueError, match="without adaptive units"):
        evaluate(watched, toy.weights(), images, labels, eps="8/255", attacks="energy")
    assert ran and all(ran)


@pytest.mark.parametrize("steps", [1, 4, 5])
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t"])
def test_few_steps_in_l1(name, steps):
    """Three radii need a step each; with fewer the last one is searched alone."""
    assert plan.ATTACKS[name][1](plan.Threat("l1", 2.0), Budget(steps=steps), 4).threat.eps == 2.0
