"""The loop: killed runs go on to the same weights, other runs are refused, and what a recipe says is what happens."""

import dataclasses
import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import traverse_util
from tiny import TWO_STAGES, Tiny, some

from dyn_jax.networks import create
from dyn_jax.networks.checkpoint import load_variables, save_variables
from dyn_jax.training import runs
from dyn_jax.training.loop import evaluate, fit, gate_mask
from dyn_jax.training.recipe import SGD, AdamW, Images, Recipe

STEPS = 10  # of an epoch of 40 examples


class Stopped(Exception):
    pass


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(x, y)


def differ(a, b):
    return any((x != y).any() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture(scope="module")
def straight():
    """An uninterrupted run, without a checkpoint."""
    return fit(Tiny(), some(), TWO_STAGES, seed=3)


def test_killed_in_the_middle_of_an_epoch(straight, tmp_path):
    path = tmp_path / "run"
    folder = pathlib.Path(__file__).parent
    command = [sys.executable, "-c", "import sys, tiny; tiny.slowly(sys.argv[1])", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen(command, env=environment)
    while not path.exists():
        assert child.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    _, at = runs.load(path, {})
    assert (at.stage, at.epoch) == (0, 0) and 0 < at.step < STEPS and len(at.losses) == at.step
    heard = []
    resumed = fit(Tiny(), some(), TWO_STAGES, seed=3, checkpoint=path, report=lambda epoch, _: heard.append(epoch))
    assert heard == [1, 2, 3, 4, 5]
    assert_equal(resumed, straight)
    assert differ(fit(Tiny(), some(), TWO_STAGES, seed=4), straight)  # control


@pytest.mark.parametrize("saves", [1, 4, 6, 8, 9, 12, 20, 21])
def test_stopped_after_any_checkpoint(straight, tmp_path, monkeypatch, saves):
    """In either stage, in an epoch or between two, or at the end of a stage."""
    path, save, count = tmp_path / "run", runs.save, iter(range(1, 99))

    def stopping(*given):
        save(*given)
        if next(count) == saves:
            raise Stopped

    monkeypatch.setattr(runs, "save", stopping)
    with pytest.raises(Stopped):
        fit(Tiny(), some(), TWO_STAGES, seed=3, checkpoint=path, every=3)
    monkeypatch.undo()
    assert_equal(fit(Tiny(), some(), TWO_STAGES, seed=3, checkpoint=path), straight)
    before = path.read_bytes()
    assert_equal(fit(Tiny(), some(), TWO_STAGES, seed=3, checkpoint=path), straight)  # nothing is left to do
    assert path.read_bytes() == before


def test_another_run_is_refused(tmp_path):
    path = tmp_path / "run"
    recipe = Recipe(1, 4)
    fit(Tiny(), some(), recipe, checkpoint=path)
    kept = path.read_bytes()
    others = {
        "seed is 0 there and 1 here": {"seed": 1},
        "network is Tiny there and ManiDP here": {"net": create("manidp-digits")},
        "data is": {"data": some(seed=1)},
        "initial is": {"initial": load_variables(path)},
        "recipe.epochs is 1 there and 2 here": {"recipe": dataclasses.replace(recipe, epochs=2)},
        "recipe.optimizer is": {"recipe": dataclasses.replace(recipe, optimizer=SGD(0.2))},
        "recipe.loss is": {"recipe": dataclasses.replace(recipe, loss=tiny.budget)},
        "recipe.before is None there": {"recipe": dataclasses.replace(recipe, before=tiny.FIRST)},
    }
    for message, change in others.items():
        given = {"net": Tiny(), "data": some(), "recipe": recipe, **change}
        with pytest.raises(ValueError, match=f"checkpoint: .*another run: .*{message}"):
            fit(**given, checkpoint=path)
    assert path.read_bytes() == kept
    content = load_variables(path)
    for spoilt in (
        {"optimizer": {}, "run": {**content["run"], "of": np.frombuffer(b"[1]", np.uint8)}},
        {"run": {**content["run"], "stage": np.array(-1)}},
        {"run": {**content["run"], "losses": np.array(1.0)}},
    ):
        save_variables(path, {**content, **spoilt})
        with pytest.raises(ValueError, match=f"{path}: not a checkpoint of a training run"):
            fit(Tiny(), some(), recipe, checkpoint=path)
    save_variables(path, {"params": {}})
    with pytest.raises(ValueError, match="no checkpoint of a training run"):
        fit(Tiny(), some(), recipe, checkpoint=path)


def test_functions_are_told_apart():
    """By what they close over and do; two made alike are the same."""
    scaled = lambda factor: lambda output, labels, progress: factor * output
    of = lambda loss: runs.identify(Tiny(), Recipe(1, loss=loss), 0)["recipe.loss"]
    assert of(scaled(2.0)) == of(scaled(2.0)) != of(scaled(3.0))
    assert of(lambda output: output + 1) != of(lambda output: output - 1)


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, output, labels, progress):
        return self.weight * output


FACTOR = 1.0
WEIGHTS = np.array([1.0, 2.0])


def helper(output):
    return output


def test_what_wraps_a_function_is_looked_through(monkeypatch):
    """A loss that is jitted, bound, partly applied, an object or full of functions is still that loss."""
    of = lambda loss: runs.identify(Tiny(), Recipe(1, loss=loss), 0)["recipe.loss"]
    scaled = lambda factor: lambda output, labels, progress: factor * output
    for wrap in (
        lambda factor: jax.jit(scaled(factor)),
        lambda factor: functools.partial(scaled(factor)),
        lambda factor: functools.partial(Weighted(0), **{"progress": factor}),
        Weighted,
        lambda factor: Weighted(factor).__call__,
        lambda factor: {"loss": scaled(factor)},
        lambda factor: scaled(np.float32(factor + 1e-7)),
    ):
        assert of(wrap(1.0)) == of(wrap(1.0)) != of(wrap(2.0))
    assert of(scaled(np.float32(1.0))) != of(scaled(np.float32(1.0000001)))
    assert of(scaled(np.float32)) != of(scaled(np.float64))
    inner = [lambda output: (lambda x: x + 1)(output), lambda output: (lambda x: x - 1)(output)]
    assert of(inner[0]) != of(inner[1])
    for uses_global, name, other in (
        (lambda output: FACTOR * output, "FACTOR", 2.0),
        (lambda output: WEIGHTS * output, "WEIGHTS", np.array([1.0, 3.0])),
        (lambda output: helper(output), "helper", lambda output: -output),
    ):
        before = of(uses_global)
        monkeypatch.setitem(globals(), name, other)
        assert of(uses_global) != before


def test_the_order_of_a_set_is_no_other_run():
    """It differs from process to process."""
    script = (
        "from dyn_jax.training import runs; print(runs._describe({'a', 'b', 'c', 'd'}), "
        "runs._describe(lambda x: x in {'a', 'b', 'c', 'd'}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    said = {
        subprocess.run([sys.executable, "-c", script], env={**environment, "PYTHONHASHSEED": seed}, capture_output=True)
        .stdout.decode()
        .strip()
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1 and all(said)


def test_targets_are_checked_before_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        runs.writable("--output", tmp_path / "missing" / "file")
    with pytest.raises(ValueError, match="is a folder"):
        runs.writable("--output", tmp_path)
    with pytest.raises(ValueError, match="no regular file"):
        runs.writable("--output", os.devnull)
    with pytest.raises(ValueError, match="no regular file"):
        runs.writable("--output", "")
    assert runs.writable("--output", tmp_path / "file") == str(tmp_path / "file")
    with pytest.raises(ValueError, match="at least a batch of 4"):
        fit(Tiny(), some(3), TWO_STAGES)
    with pytest.raises(ValueError, match="every: got 0"):
        fit(Tiny(), some(), TWO_STAGES, every=0)
    infinite = {"params": {"head": {"kernel": np.full((1, 3), np.inf)}}}
    for change, message in (
        ({"seed": 1.5}, "seed: got 1.5"),
        ({"recipe": Recipe(0, 4)}, "epochs: got 0"),
        ({"recipe": Recipe(1, 0)}, "batch_size: got 0"),
        ({"initial": infinite}, "initial: got 3 NaN or infinite values at params/head/kernel"),
        (
            {"net": create("resnet-20-cifar10"), "initial": infinite},
            "variables: .* leaves do not fit the ResNet",
        ),
        (
            {"net": create("resnet-20-cifar10", num_classes=2)},
            r"data: got labels in \[0, 2\], expected \[0, 1\]",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            fit(**{"net": Tiny(), "data": some(), "recipe": Recipe(1, 4), **change})


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_halved_weights_are_trained_in_single_precision(straight, dtype):
    halved = jax.tree.map(lambda leaf: leaf.astype(dtype), straight)
    again = jax.tree.map(lambda leaf: leaf.astype(np.float32), halved)
    got = fit(Tiny(), some(), Recipe(1, 4), initial=halved)
    assert_equal(got, fit(Tiny(), some(), Recipe(1, 4), initial=again))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))


def test_a_loss_that_is_not_finite_ends_the_run():
    broken = Recipe(2, 4, loss=lambda output, labels, progress: np.inf * output.logits.sum())
    with jax.debug_nans(False), pytest.raises(FloatingPointError, match="epoch 1 is"):
        fit(Tiny(), some(), broken)


def test_silent_without_a_report(capfd):
    fit(Tiny(), some(), Recipe(1, 4))
    assert capfd.readouterr() == ("", "")


def test_a_frozen_layer_stays():
    start = jax.tree.map(np.asarray, Tiny().init(jax.random.key(0), some().images[:1]))
    recipe = Recipe(1, 4, trains=lambda layer: layer == "head")
    got = fit(Tiny(), some(), recipe, initial=start)
    assert {name for name in got["params"] if differ(got["params"][name], start["params"][name])} == {"head"}
    with pytest.raises(ValueError, match="initial: got None"):
        fit(Tiny(), some(), recipe)


def test_decay_leaves_the_gates_alone():
    """Without a gradient, decay is all that moves a parameter: ``p (1 - rate decay)`` in plain SGD."""
    start = jax.tree.map(np.asarray, Tiny().init(jax.random.key(0), some().images[:1]))
    nothing = lambda output, labels, progress: 0 * output.logits.sum()
    recipe = Recipe(1, 40, SGD(0.1, 0.5, momentum=0.0, nesterov=False), loss=nothing, decay_gates=False)
    for decay, expected in ((False, 1.0), (True, 0.95)):
        got = fit(Tiny(), some(), dataclasses.replace(recipe, decay_gates=decay), initial=start)["params"]
        np.testing.assert_allclose(got["gate"]["kernel"], expected * start["params"]["gate"]["kernel"], rtol=1e-6)
        np.testing.assert_allclose(got["head"]["kernel"], 0.95 * start["params"]["head"]["kernel"], rtol=1e-6)


GATES = {
    "skipnet-digits": ("control", "group1_gate0"),
    "skipnet-sp-ff-38-cifar10": ("group1_gate0", "group3_gate5"),
    "dynconv-digits": ("layer1_0_masker",),
    "manidp-digits": ("mb1", "mb2"),
    "sact-digits": ("block1_unit1_halting",),
    "act-32-cifar10": ("block3_unit4_halting",),
    "resnet-20-cifar10": (),
}


@pytest.mark.parametrize("name", GATES)
def test_what_a_network_calls_its_gates(name):
    """All that reads features to score units, and nothing of the trunk."""
    net = create(name)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))["params"]
    mask = traverse_util.flatten_dict(gate_mask(net, shapes))
    gates = {path for path, is_gate in mask.items() if is_gate}
    assert {part for part in GATES[name]} <= {part for path in gates for part in path}
    words = ("gate", "control", "masker", "mb1", "mb2", "halting")
    assert gates == {path for path in mask if any(word in part for part in path for word in words)}


def test_optimisers_against_optax():
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    gradient = jax.tree.map(lambda leaf: 3 * leaf, params)
    every = lambda params: jax.tree.map(lambda leaf: True, params)
    schedule = optax.cosine_decay_schedule(0.2, 6)
    pairs = [
        (SGD(0.2, 0.1), optax.chain(optax.add_decayed_weights(0.1), optax.sgd(schedule, 0.9, nesterov=True))),
        (
            AdamW(0.2, 0.1, 1.0),
            optax.chain(
                optax.clip_by_global_norm(1.0),
                optax.adamw(schedule, weight_decay=0.1, mask={"kernel": True, "bias": False}),
            ),
        ),
        (SGD(0.2, 0.1, momentum=None, milestones=(2,)), optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.2))),
    ]
    for ours, theirs in pairs:
        got, want = ours(3, 2, every), theirs
        state, other = got.init(params), want.init(params)
        for _ in range(2):  # the first epoch, before any milestone
            update, state = got.update(gradient, state, params)
            expected, other = want.update(gradient, other, params)
            for a, b in zip(jax.tree.leaves(update), jax.tree.leaves(expected)):
                np.testing.assert_allclose(a, b, rtol=1e-6)
    third = jax.tree.leaves(got.update(gradient, state, params)[0])[0]
    fourth = jax.tree.leaves(want.update(gradient, other, params)[0])[0]
    np.testing.assert_allclose(third, 0.1 * fourth, rtol=1e-5)  # the milestone


def test_images_of_an_epoch_depend_on_seed_and_epoch_alone():
    source, data = Images(2, flip=True), some(10)
    first = list(source.batches(data, 4, 0, 1))
    assert [x.shape for x, _ in first] == [(4, 4, 4, 3)] * 2  # two left over
    again, other = list(source.batches(data, 4, 0, 1)), list(source.batches(data, 4, 0, 2))
    assert_equal([x for x, _ in first], [x for x, _ in again])
    assert differ([x for x, _ in first], [x for x, _ in other])
    assert_equal(
        [x for x, _ in Images(first=1).batches(data, 4, 0, 1)], [x for x, _ in Images().batches(data, 4, 0, 2)]
    )


def test_evaluate_counts_no_nan_as_a_class():
    variables = jax.tree.map(
        lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), Tiny().init(jax.random.key(0), some().images)
    )
    with (
        jax.debug_nans(False),
        pytest.raises(FloatingPointError, match="evaluate: got NaN or infinite logits in 40 rows"),
    ):
        evaluate(Tiny(), variables, some())
    with pytest.raises(ValueError, match="got labels in"):
        evaluate(Tiny(), variables, some()._replace(labels=np.full(40, -1)))


def test_evaluate_counts_every_example_once():
    """300 examples in batches of 250: those that fill the second one up do not count."""
    data, variables = some(300), Tiny().init(jax.random.key(0), some().images[:1])
    right = np.argmax(Tiny().apply(variables, data.images).logits, axis=1) == data.labels
    assert evaluate(Tiny(), variables, data) == {"accuracy": pytest.approx(right.mean())}
