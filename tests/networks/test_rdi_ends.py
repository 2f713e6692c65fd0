"""RDI-ResNet-38 beside the authors' arrays: answers and costs under both rules, attacks to their ends."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit, traced_once

import weights_convert
from dyn_jax import attacks, metrics, networks, objectives
from dyn_jax.networks import rdi

NAME = "rdi-resnet38-cifar10"
FILES = {"single k0": "k0/", "single k6": "k6/", "average": "", "maxaverage": ""}


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, -3, -1))


def images_of(arrays, count=None):
    return jnp.asarray(arrays["x_uint8"][:count], jnp.float32) / 255


@pytest.fixture(scope="module")
def variables(shared_dir):
    pytest.importorskip("torch")
    from weights_convert.torch_io import read_state_dict

    path = shared_dir / "data" / "checkpoints" / "rdi_resnet38_checkpoint_60000.pth.tar"
    return weights_convert.convert(NAME, read_state_dict(path))


@pytest.fixture(scope="module")
def forward(variables):
    return traced_once(networks.create(NAME), variables)


@pytest.fixture(scope="module")
def compiled(variables):
    """answer -> (images, thresholds) -> `Output`."""

    def compiled(answer):
        net = networks.create(NAME, answer=answer)
        return jax.jit(lambda x, limit: net.apply(variables, x, threshold=limit))

    made = {answer: compiled(answer) for answer in ("last", rdi.weighted_sum)}
    return lambda x, limit, answer="last": made[answer](x, jnp.asarray(limit[:6], jnp.float32))


def costs_of(trace):
    """The released table holds two decimals."""
    return np.floor(np.array(rdi.RELEASED_COSTS) * 100)[np.asarray(metrics.exits.exit_index(trace))] / 100


@pytest.mark.parametrize("rule, prefix", [("T", ""), ("T_raw", "raw/")])
def test_exits_answers_and_costs_under_a_rule(compiled, golden, rule, prefix):
    arrays = golden("rdi_resnet38")
    images, limit = images_of(arrays), arrays[rule]
    output = compiled(images, limit)
    np.testing.assert_array_equal(metrics.exits.exit_index(output.trace), arrays[f"{prefix}exit"])
    np.testing.assert_array_equal(jnp.argmax(output.logits, 1), arrays[f"{prefix}answer"])
    np.testing.assert_allclose(costs_of(output.trace).mean(), arrays[f"{prefix}mflops"], rtol=1e-4)
    together = compiled(images, limit, rdi.weighted_sum)
    np.testing.assert_array_equal(jnp.argmax(together.logits, 1), arrays[f"{prefix}answer_ensemble"])
    entropy = rdi.entropy(output.trace.exits)[:, :6] - limit[None, :6]
    margin = arrays["margin_T" if rule == "T" else "margin_raw"]
    np.testing.assert_allclose(jnp.abs(entropy).min(), margin, atol=1e-5)


def test_thresholds_and_tables(golden):
    arrays = golden("rdi_resnet38")
    np.testing.assert_allclose(arrays["T_raw"][:6] - np.array(rdi.OFFSETS), arrays["T"][:6], atol=1e-6)
    np.testing.assert_allclose(rdi.OFFSETS, arrays["T_offset"][:6])
    np.testing.assert_allclose(rdi.THRESHOLDS, arrays["T_hardcoded_v3"], atol=5e-6)
    np.testing.assert_allclose(arrays["mmac_trunk"] + arrays["mmac_head"], rdi.RELEASED_COSTS, rtol=1e-12)
    np.testing.assert_allclose(arrays["flop_table_released"], rdi.RELEASED_COSTS, atol=0.01)


def test_the_average_loss_and_the_worst_exit_of_one_step(forward, golden):
    """The mean over exits and its gradient; one step on each exit, the image of the largest sum, the loss there."""
    arrays = golden("rdi_resnet38")
    images, labels = images_of(arrays, 8), jnp.asarray(arrays["labels"][:8], jnp.int32)
    mean = lambda x: jnp.mean(attacks.released.rdi.mean_of_exits(forward(x), labels))
    gradient_of = jax.jit(jax.value_and_grad(mean))
    for x, name in ((images, "average"), (nhwc(arrays["maxavg/image"]), "maxavg")):
        loss, gradient = gradient_of(x)
        np.testing.assert_allclose(loss, arrays[f"loss/{name}"], rtol=1e-5)
        expected = nhwc(arrays[f"grad/{name}"])
        error = jnp.abs(gradient - expected).max((1, 2, 3)) / jnp.abs(expected).max()
        assert (error <= 1e-5).sum() >= 7, error  # a ReLU within rounding of 0 may decide otherwise in one image
    attack = attacks.released.rdi.max_average(steps=1)
    found = jax.jit(lambda x: attack(forward, x, labels, key=jax.random.key(0), start=x))(images)
    sums = arrays["maxavg/sum_loss"]
    np.testing.assert_array_equal(sums.argmax(1), arrays["maxavg/index"])
    np.testing.assert_allclose(found.loss, sums.max(1), rtol=1e-3)
    assert float(jnp.mean(jnp.abs(found.adversarial - nhwc(arrays["maxavg/image"])) > 1e-4)) <= 1e-3


@pytest.mark.parametrize("name", FILES)
def test_what_the_attacks_ended_at(compiled, golden, name):
    """Logits, exits, answers and costs of the clean and the stored last images; losses of the stored steps."""
    arrays, prefix = golden(f"attack_rdi_{name.split()[0]}"), FILES[name]
    images, labels = images_of(arrays), jnp.asarray(arrays["labels"], jnp.int32)
    last = compiled(nhwc(arrays[f"{prefix}step20"]), arrays["T"])
    np.testing.assert_allclose(last.trace.exits, arrays[f"{prefix}logits_adv"].transpose(1, 0, 2), atol=2e-5)
    for when, output in (("before", compiled(images, arrays["T"])), ("after", last)):
        np.testing.assert_array_equal(metrics.exits.exit_index(output.trace), arrays[f"{prefix}exit_{when}"])
        np.testing.assert_array_equal(jnp.argmax(output.logits, 1), arrays[f"{prefix}answer_{when}"])
        np.testing.assert_allclose(costs_of(output.trace).mean(), arrays[f"{prefix}mflops_{when}"], rtol=1e-3)
    total = objectives.sum_of_exits()
    for number in (1, 2, 3, 4, 5, 20):
        output = compiled(nhwc(arrays[f"{prefix}step{number}"]), arrays["T"])
        if name == "maxaverage":
            wanted = arrays[f"sum_loss_step{number}"].max(1)
            np.testing.assert_array_equal(arrays[f"sum_loss_step{number}"].argmax(1), arrays[f"chosen_step{number}"])
            np.testing.assert_allclose(total(output, labels), wanted, rtol=1e-4)
            continue
        objective = attacks.released.rdi.mean_of_exits
        objective = objectives.exit_objective(int(prefix[1])) if prefix else objective
        loss = jnp.mean(objective(output, labels, None))
        np.testing.assert_allclose(loss, arrays[f"{prefix}loss"][number], rtol=1e-4)


def test_an_attack_to_its_end(forward, compiled, golden):
    """Twenty steps in one run from the stored start: every loss within 1 %, exits of seven of eight images."""
    arrays = golden("attack_rdi_average")
    images, labels = images_of(arrays), jnp.asarray(arrays["labels"], jnp.int32)
    attack = attacks.released.rdi.average(float(arrays["eps"]), float(arrays["gamma"]), int(arrays["steps"]))
    run = jax.jit(lambda s: attack(forward, images, labels, key=jax.random.key(0), start=s))
    result = run(nhwc(arrays["start"]))
    losses = np.append(np.asarray(result.steps.loss).mean(0), np.asarray(result.loss).mean())
    np.testing.assert_allclose(losses, arrays["loss"], rtol=0.01)
    after = compiled(result.adversarial, arrays["T"]).trace
    assert np.sum(np.asarray(metrics.exits.exit_index(after)) == arrays["exit_after"]) >= 7


def test_five_steps_of_all_candidates(forward, golden):
    """Each exit's run from its own stored start: the sums that choose, and what is chosen after every step."""
    arrays = golden("attack_rdi_maxaverage")
    images, labels = images_of(arrays), jnp.asarray(arrays["labels"], jnp.int32)
    eps, size = float(arrays["eps"]), float(arrays["gamma"])
    total = objectives.sum_of_exits()
    sums = quick_jit(lambda x: total(forward(x), labels))
    states, found = [nhwc(start) for start in arrays["start"]], [[] for _ in range(5)]
    single = attacks.released.rdi.single(0, eps, size, 1)

    @quick_jit
    def step(k, start):
        """`single` at exit k: one program for all of them."""
        at = lambda output, y, _: objectives.resolve("ce")(output.replace(logits=output.trace.exits[:, k]), y, None)
        attack = dataclasses.replace(single, objective=at)
        return attack(forward, images, labels, key=jax.random.key(0), start=start).adversarial

    for k, x in enumerate(states):
        for number in range(5):
            x = step(k, x)
            found[number].append((x, sums(x)))
            if number == 0:
                assert float(jnp.mean(jnp.abs(x - nhwc(arrays["cand_step1"][k])) > 1e-4)) <= 1e-3
    for number, candidates in enumerate(found, start=1):
        got = np.stack([values for _, values in candidates], axis=1)
        np.testing.assert_allclose(got, arrays[f"sum_loss_step{number}"], rtol=0.01)
        chosen = got.argmax(1)
        np.testing.assert_array_equal(chosen, arrays[f"chosen_step{number}"])
        images_chosen = jnp.stack([candidates[k][0][i] for i, k in enumerate(chosen)])
        assert float(jnp.mean(jnp.abs(images_chosen - nhwc(arrays[f"step{number}"])) > 1e-4)) <= 0.03
