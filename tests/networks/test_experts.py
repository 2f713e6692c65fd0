"""Routers and networks of experts: scores and queues by hand, the authors' arrays, measures, attacks, bad input."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ALL_NETWORKS, some_images, tiny_forward, variables_of
from compiled import quick_jit

import weights_convert
from dyn_jax import attacks, metrics, networks, objectives, occupancy
from dyn_jax.gates import experts
from dyn_jax.networks import moe


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def double(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), tree)


# --- the gate, by hand


def test_scores_by_hand():
    z = jnp.array([[3.0, 1.0, 2.0, 0.5]])
    np.testing.assert_array_equal(experts.expert_scores(z), [[1.0, -2.0, -1.0, -2.5]])
    np.testing.assert_array_equal(experts.expert_scores(z, 2), [[2.0, -1.0, 1.0, -1.5]])
    tied = experts.expert_scores(jnp.array([[1.0, 2.0, 2.0, 2.0]]), 2)
    np.testing.assert_array_equal(tied >= 0, [[False, True, True, False]])  # the first of equal ones


@pytest.mark.parametrize("k", [1, 2, 3])
def test_exactly_k_run(k):
    z = jnp.asarray(np.random.default_rng(k).integers(0, 3, (50, 4)), jnp.float32)  # full of ties
    assert (jnp.sum(experts.expert_scores(z, k) >= 0, axis=1) == k).all()


def test_the_bar_moves_or_is_fixed():
    z = jnp.array([3.0, 1.0, 2.0])
    chosen = lambda bar: jax.grad(lambda z: experts.expert_scores(z, 1, bar)[0])(z)
    np.testing.assert_array_equal(chosen("moves"), [1.0, 0.0, -1.0])
    np.testing.assert_array_equal(chosen("fixed"), [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(jax.vjp(moe.released_choice, z - 2.5)[1](jnp.ones(3))[0], [1.0, 0.0, 0.0])


def test_room_by_hand():
    """Expert 0 takes two: the first choices of tokens 0 and 1; with priority those of 2 (.9) and 1 (.8)."""
    p = jnp.array([[[0.6, 0.4], [0.8, 0.2], [0.9, 0.1], [0.3, 0.7]]])
    on = (experts.expert_scores(p) >= 0).astype(p.dtype)
    np.testing.assert_array_equal(experts.room(p, on, 1, 2)[0], [[1, 0], [1, 0], [0, 0], [0, 1]])
    np.testing.assert_array_equal(experts.room(p, on, 1, 2, True)[0], [[0, 0], [1, 0], [1, 0], [0, 1]])
    assert experts.capacity(130, 2, 4, 0.8) == 52 and experts.capacity(10, 1, 4, 1.0) == 4


def test_balance_by_hand():
    even = jnp.array([[[0.8, 0.2], [0.2, 0.8]]])
    np.testing.assert_allclose(experts.balance_losses(even), [[0.0], [1.0]], atol=1e-6)
    one = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
    np.testing.assert_allclose(experts.balance_losses(one), [[1.0], [2.0]], atol=1e-6)


# --- V-MoE against the authors' code


@pytest.fixture(scope="module")
def vmoe(golden):
    arrays = golden("vmoe_e4k2")
    meta = json.loads(str(arrays["meta"]))
    tokens = (meta["size"] // meta["patch"]) ** 2 + 1
    same = {"patch": "patch", "width": "width", "heads": "heads", "experts": "E", "capacity_factor": "cf"}
    same |= {"depth": "layers", "mlp_width": "mlp", "k": "K", "image_size": "size", "num_classes": "classes"}
    sizes = {ours: meta[theirs] for ours, theirs in same.items()}
    sizes |= {"moe_layers": tuple(meta["moe"]), "group_size": meta["n"] * tokens // meta["groups"]}
    net = networks.create("vmoe-s32-imagenet", **sizes)
    state = {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}
    return arrays, meta, net, weights_convert.convert(net, state)


def images_of(arrays, dtype=jnp.float64):
    return jnp.asarray(np.moveaxis(arrays["images_u8"], 1, -1), dtype) / 255


def entropy(output, labels):
    return jnp.mean(objectives.cross_entropy(output, labels))


def test_experts_with_room_for_every_token_take_all_of_them(vmoe, float64):
    arrays, meta, net, variables = vmoe
    roomy = net.clone(routing="expert_choice", capacity_factor=float(meta["E"]))
    trace = roomy.apply(variables, images_of(arrays)).trace
    assert all(unit.on.all() for unit in trace.units)


@pytest.mark.parametrize("routing, prefix", [("token", ""), ("priority", "bpr/"), ("expert_choice", "ec/")])
def test_vmoe_logits_routes_and_gradient(vmoe, float64, routing, prefix):
    arrays, meta, net, variables = vmoe
    variables, labels = double(variables), jnp.asarray(arrays["labels"], jnp.int32)

    @quick_jit
    @partial(jax.grad, has_aux=True)
    def run(x):
        output = net.clone(routing=routing).apply(variables, x)
        return entropy(output, labels), output

    if not prefix:
        limit = experts.capacity(meta["n"] * output_tokens(meta) // meta["groups"], meta["K"], meta["E"], meta["cf"])
        assert [limit] * len(meta["moe"]) == [arrays[f"capacity/{layer}"] for layer in meta["moe"]]

    gradient, output = run(images_of(arrays))
    np.testing.assert_allclose(output.logits, arrays[f"{prefix}logits"], atol=1e-12)
    expected = arrays[f"{prefix}grad_ce"]  # by images in [-1, 1]
    assert np.linalg.norm(gradient / 2 - expected) <= 1e-12 * np.linalg.norm(expected)
    for unit, layer in zip(output.trace.units, meta["moe"]):
        combine = arrays[f"{prefix}combine/{layer}"]
        weight = unit.extras["weight"] * unit.occupancy * unit.extras["kept"]
        np.testing.assert_allclose(weight.reshape(combine.shape), combine, atol=1e-12)
        if prefix:
            continue
        dispatched = (unit.occupancy * unit.extras["kept"]).reshape(combine.shape) > 0
        np.testing.assert_array_equal(dispatched, arrays[f"dispatch/{layer}"])
        np.testing.assert_allclose(
            unit.extras["logits"].reshape(combine.shape), arrays[f"router_logits/{layer}"], atol=1e-12
        )
        dropped = jnp.sum(unit.occupancy * (1 - unit.extras["kept"]))
        assert int(dropped) == arrays[f"dropped/{layer}"] and unit.name == f"encoderblock_{layer}"
        balance = experts.balance_losses(unit.extras["weight"].reshape(meta["groups"], -1, meta["E"]))
        np.testing.assert_allclose(balance.importance, arrays[f"importance_loss/{layer}"], rtol=1e-12)
        np.testing.assert_allclose(balance.gshard, arrays[f"gshard_loss/{layer}"], rtol=1e-6)


def output_tokens(meta):
    return (meta["size"] // meta["patch"]) ** 2 + 1


def test_vmoe_auxiliary_losses_and_what_the_mixtures_give(vmoe, float64):
    """The released loss has 0.005 of the importance; a group's losses are averaged."""
    arrays, meta, net, variables = vmoe
    variables, labels = double(variables), jnp.asarray(arrays["labels"], jnp.int32)
    mixture = lambda module, _: type(module).__name__ == "Moe"

    def losses(x):
        output, kept = net.apply(variables, x, capture_intermediates=mixture, mutable=["intermediates"])
        groups = [unit.extras["weight"].reshape(meta["groups"], -1, meta["E"]) for unit in output.trace.units]
        balance = [experts.balance_losses(p) for p in groups]
        aux = 0.005 * jnp.stack([b.importance for b in balance])
        values = {"aux": jnp.mean(jnp.sum(aux, axis=0)), "gshard": jnp.mean(sum(b.gshard for b in balance))}
        values["ce_aux"] = entropy(output, labels) + values["aux"]
        return values, (aux, kept["intermediates"])

    values, pull, (aux, kept) = quick_jit(lambda x: jax.vjp(losses, x, has_aux=True))(images_of(arrays))
    for each, layer in zip(aux, meta["moe"]):
        np.testing.assert_allclose(each, arrays[f"auxiliary_loss/{layer}"], rtol=1e-6)
        ((out, _),) = kept["Encoder"][f"encoderblock_{layer}"]["Moe"]["__call__"]
        np.testing.assert_allclose(out[:1], arrays[f"moe_out/{layer}"], atol=1e-12)
    np.testing.assert_allclose(aux.sum(0), arrays["auxiliary_loss"], rtol=1e-6)
    np.testing.assert_allclose(values["ce_aux"], arrays["loss_ce_aux"], rtol=1e-9)
    for name in values:
        gradient = pull({other: jnp.float64(name == other) for other in values})[0]
        expected = arrays[f"grad_{name}"]  # by images in [-1, 1]
        assert np.linalg.norm(gradient / 2 - expected) <= 1e-6 * np.linalg.norm(expected), name


def test_vmoe_in_single_precision(vmoe):
    arrays, _, net, variables = vmoe
    logits = quick_jit(net.apply)(variables, images_of(arrays, jnp.float32)).logits
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-5)


def test_vmoe_load_loss(vmoe, float64):
    arrays, meta, _, _ = vmoe
    z = jnp.asarray(arrays[f"router_logits/{meta['moe'][0]}"][:1])
    noisy, deviation = z + arrays["load/noise"][None], 1 / meta["E"]
    np.testing.assert_allclose(experts.load_loss(z, noisy, meta["K"], deviation), [arrays["load/value"]], rtol=1e-6)


def test_vmoe_attack_and_its_routes(vmoe, float64):
    """The released attack: eps / steps a step, no box; images of a group share the capacity."""
    arrays, meta, net, variables = vmoe
    variables, images = double(variables), images_of(arrays)
    labels, steps = jnp.asarray(arrays["labels"], jnp.int32), meta["steps"]
    eps = meta["eps"] / 2  # of images in [-1, 1]
    attack = attacks.bim(eps, eps / steps, steps, bounds=(-1.0, 2.0), attack_all=True)
    result = quick_jit(lambda x: attack(partial(net.apply, variables), x, labels))(images)
    moved = np.rint((result.adversarial - images) * steps / eps)
    assert np.mean(moved != arrays["pgd"][-1]) <= 1e-4
    iou = metrics.expert_iou(result.trace_clean, result.trace_adversarial, dropped="none")
    expected = [arrays[f"state/sum_iou/{layer}"] / meta["n"] for layer in meta["moe"]]
    np.testing.assert_allclose(iou, expected, rtol=1e-6)
    logits = (result.logits_clean, result.logits_adversarial)
    said = np.stack([jnp.argmax(z, axis=1) for z in logits])
    losses = np.stack([-jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], 1)[:, 0] for z in logits])
    np.testing.assert_array_equal(said, arrays["pred"])
    np.testing.assert_allclose(losses, arrays["loss_each"], rtol=1e-9)
    np.testing.assert_allclose(losses.sum(1), arrays["state/sum_loss"], rtol=1e-9)
    assert (said[0] != said[1]).sum() == arrays["state/num_changes"]
    np.testing.assert_array_equal((said == np.asarray(labels)).sum(1), arrays["state/num_correct"])
    every = []  # with the 'indices' dispatcher what found no room counts as chosen
    for trace in (result.trace_clean, result.trace_adversarial):
        units = [u.replace(extras={**u.extras, "kept": jnp.ones_like(u.score)}) for u in trace.units]
        every.append(trace.replace(units=tuple(units)))
    expected = [arrays[f"indices/sum_iou/{layer}"] / meta["n"] for layer in meta["moe"]]
    np.testing.assert_allclose(metrics.expert_iou(*every), expected, rtol=1e-6)
    np.testing.assert_allclose(result.logits_clean, arrays["logits_indices"], atol=1e-12)
    for unit, layer in zip(result.trace_adversarial.units, meta["moe"]):
        weight = unit.extras["weight"] * unit.occupancy * unit.extras["kept"]
        np.testing.assert_allclose(weight, arrays[f"combine_adv/{layer}"].reshape(weight.shape), atol=1e-9)
    unchanged = metrics.expert_iou(result.trace_clean, result.trace_clean, dropped="none")
    assert (unchanged < 1).all()  # the released rule: dropped tokens count 0
    np.testing.assert_array_equal(metrics.expert_iou(result.trace_clean, result.trace_clean), 1)


# --- Robust-MoE-CNN against the authors' code


@pytest.fixture(scope="module")
def moe_resnet(golden):
    arrays = golden("advmoe_resnet_e2")
    meta = json.loads(str(arrays["meta"]))
    sizes = {"depths": tuple(meta["blocks"]), "experts": meta["E"], "router": (tuple(meta["rb"]), (16, 32, 64))}
    net = moe.cifar(ratio=meta["ratio"], bar="fixed", **sizes)
    state = {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}
    repeated = {f"layer1.0.conv1.{key}": value for key, value in state.items() if key.startswith("router.")}
    return arrays, meta, net, weights_convert.convert(net, state | repeated)


def test_moe_resnet(moe_resnet, float64):
    """Cross-entropy with the released choice and with a fixed one, the router's own loss, what the last layer reads."""
    arrays, meta, net, variables = moe_resnet
    variables, labels = double(variables), jnp.asarray(arrays["labels"], jnp.int32)
    target = objectives.router_target()

    @quick_jit
    def run(x):
        def losses(x, how, scores):
            bent = lambda score: how(score) + scores * (score >= 0)  # its derivative is that of a chosen score
            output = net.apply(variables, x, occupancy=bent)
            return {"ce": entropy(output, labels), "router": jnp.mean(target(output, labels))}, output

        zero = jnp.zeros((len(labels), meta["E"]))
        values, pull, output = jax.vjp(lambda x, s: losses(x, moe.released_choice, s), x, zero, has_aux=True)
        fixed = jax.grad(lambda x: losses(x, occupancy.hard(), zero)[0]["ce"])(x)
        one = lambda name: pull({key: jnp.float64(key == name) for key in values})
        return (
            values,
            output,
            {"grad_ce_fixed": fixed, "grad_ce": one("ce")[0], "grad_router": one("router")[0]},
            one("ce")[1],
        )

    values, output, gradients, by_scores = run(images_of(arrays))
    unit = output.trace.units[0]
    np.testing.assert_allclose(output.logits, arrays["logits"], atol=1e-12)
    np.testing.assert_array_equal(jnp.argmax(output.logits, axis=1), arrays["pred"])
    head = variables["params"]["linear"]
    np.testing.assert_allclose(arrays["feat"] @ head["kernel"] + head["bias"][None], output.logits, atol=1e-12)
    np.testing.assert_allclose(unit.extras["logits"], arrays["scores"], atol=1e-12)
    np.testing.assert_array_equal(jnp.argmax(unit.occupancy, axis=1), arrays["expert"])
    np.testing.assert_allclose(by_scores, arrays["grad_scores"], atol=1e-12)
    np.testing.assert_allclose([values["ce"], values["router"]], [arrays["loss_ce"], arrays["loss_router"]], rtol=1e-12)
    for name, gradient in gradients.items():
        expected = np.moveaxis(arrays[name], 1, -1)
        assert np.linalg.norm(gradient - expected) <= 1e-11 * np.linalg.norm(expected), name


def test_moe_resnet_under_attack(moe_resnet, float64):
    arrays, meta, net, variables = moe_resnet
    images, labels = images_of(arrays), jnp.asarray(arrays["labels"], jnp.int32)
    forward = partial(net.apply, double(variables), occupancy=moe.released_choice)
    start = images + meta["eps"] * jnp.asarray(np.moveaxis(arrays["pgd_noise"], 1, -1), jnp.float64)
    states = [np.moveaxis(step, 1, -1) for step in arrays["pgd"]]
    attack = attacks.bim(meta["eps"], meta["step"], 1, attack_all=True)
    run = quick_jit(lambda x, s: attack(forward, x, labels, start=s))
    for expected in states:
        found = run(images, start)
        start = found.adversarial
        np.testing.assert_allclose(start, expected, atol=1e-6)
    np.testing.assert_allclose(found.logits_adversarial, arrays["adv_logits"], atol=1e-9)
    got = found.trace_adversarial.units[0].extras["logits"]
    np.testing.assert_allclose(got, arrays["adv_scores"], atol=1e-9)


# --- the words: constant cost, another architecture


def small(name):
    return ALL_NETWORKS[name], variables_of(name)


@pytest.mark.parametrize("name", ["moe", "vmoe"])
def test_the_cost_is_constant_and_the_architecture_is_not(name):
    net, variables = small(name)
    net = net.clone(k=1)
    images = some_images(16, 24, seed=3)
    output = quick_jit(lambda x: net.apply(variables, x))(images)
    executed = metrics.executed_macs(output.trace)
    np.testing.assert_allclose(executed, executed[0], rtol=1e-6)
    assert executed[0] < metrics.dense_macs(output.trace)
    attack = attacks.bim(1.0, 0.3, 8, objective=objectives.other_experts(), attack_all=True)
    result = quick_jit(lambda x: attack(partial(net.apply, variables), x))(images)
    assert (metrics.expert_iou(result.trace_clean, result.trace_adversarial) < 1).all()
    np.testing.assert_allclose(metrics.executed_macs(result.trace_adversarial), executed, rtol=1e-6)
    one = attacks.bim(1.0, 0.3, 8, objective=objectives.expert_load(1), attack_all=True)
    result = quick_jit(lambda x: one(partial(net.apply, variables), x))(images)
    before, after = (metrics.expert_load(trace)[0] for trace in (result.trace_clean, result.trace_adversarial))
    assert after[1] > before[1] and float(after.sum()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["moe", "vmoe"])
def test_leaded_gradients_have_more_than_the_fixed_routes(name):
    net, variables = small(name)
    images, labels = some_images(16, 4), jnp.array([0, 1, 2, 3])

    @quick_jit
    def gradient(lam):
        def of(how):
            return jax.grad(lambda x: entropy(net.apply(variables, x, occupancy=how), labels))(images)

        return of(occupancy.hard()), of(occupancy.straight_through(lam))

    fixed, leaded = gradient(2.0)
    assert float(jnp.linalg.norm(leaded - fixed)) > 1e-3 * float(jnp.linalg.norm(fixed))


def test_measures_by_hand():
    net, variables = small("moe")
    trace = net.apply(variables, some_images(16, 4)).trace
    routed = lambda rows: trace.replace(units=(trace.units[0].replace(occupancy=jnp.eye(4)[jnp.array(rows)]),))
    np.testing.assert_allclose(metrics.expert_load(routed([0, 0, 1, 2]))[0], [0.5, 0.25, 0.25, 0])
    np.testing.assert_allclose(metrics.load_imbalance(routed([3, 3, 3, 3])), [np.sqrt(3)], rtol=1e-6)
    np.testing.assert_allclose(metrics.load_imbalance(routed([0, 1, 2, 3])), [0], atol=1e-7)
    np.testing.assert_allclose(metrics.expert_iou(routed([0, 1, 2, 3]), routed([0, 1, 0, 0])), [0.5])


ENERGY = (attacks.grad_auto(steps=1), attacks.ilfo(steps=1), attacks.grad_mdm(steps=2))


@pytest.mark.parametrize("attack", [*ENERGY, attacks.bim(0.1, 0.1, 1, objective=objectives.energy())])
def test_there_is_no_energy_to_attack(attack):
    net, variables = small("moe")
    with pytest.raises(ValueError, match="network of constant cost"):
        attack(partial(net.apply, variables), some_images(16, 2), key=jax.random.key(0))


def shapes(name, **fields):
    net = networks.create(name, **fields)
    size = getattr(net, "image_size", 32)
    return jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))


BAD = {
    "k": (lambda: shapes("vmoe-digits", k=4), "k: got 4, expected at most 3"),
    "one expert": (lambda: shapes("vmoe-digits", experts=1), "experts: got 1, expected at least 2"),
    "one expert, images": (lambda: shapes("moe-digits", experts=1), "experts: got 1, expected at least 2"),
    "k, images": (lambda: shapes("moe-digits", k=5), "k: got 5, expected at most 3"),
    "heads": (lambda: shapes("vmoe-digits", heads=3), "heads: got 3, expected a divisor of the width, 40"),
    "patch": (lambda: shapes("vmoe-digits", patch=5), "image_size: got 32, expected a multiple of the patch, 5"),
    "layers": (lambda: shapes("vmoe-digits", moe_layers=(4,)), r"moe_layers: got \(4,\)"),
    "routing": (lambda: shapes("vmoe-digits", routing="tokens"), "did you mean 'token'"),
    "capacity": (lambda: shapes("vmoe-digits", capacity_factor=0.0), "capacity_factor: got 0.0"),
    "depth": (lambda: moe.cifar(20), "depth: got 20"),
    "bar": (lambda: experts.expert_scores(jnp.ones((1, 2)), 1, "move"), "bar: got 'move'"),
    "group": (
        lambda: small("vmoe")[0].clone(group_size=7).apply(variables_of("vmoe"), some_images(16, 2)),
        "group_size: got 7, expected a divisor of the batch's 34 tokens",
    ),
    "no experts": (lambda: metrics.expert_load(tiny_forward(some_images(4, 1)).trace), "no units of experts"),
    "router, tokens": (
        lambda: objectives.router_target()(
            small("vmoe")[0].apply(variables_of("vmoe"), some_images(16, 1)), jnp.zeros(1, jnp.int32)
        ),
        "got a router's logits",
    ),
    "router, experts": (lambda: objectives.router_target(1), "experts: got 1, expected at least 2"),
    "expert": (
        lambda: objectives.expert_load(9)(small("moe")[0].apply(variables_of("moe"), some_images(16, 1)), None),
        "expert: got 9, expected one of 4",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        call()
