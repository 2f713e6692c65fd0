"""A-ViT: parity with the authors' code, and what a halted token is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit

import dyn_jax
import weights_convert
from dyn_jax import attacks, gates, metrics, occupancy
from dyn_jax.networks import avit
from dyn_jax.networks.avit import AViT
from dyn_jax.types import Trace

FILES = ("avit_w48_d6_32",)
TINY = AViT(image_size=8, patch=4, width=8, depth=3, heads=2, num_classes=3, gate_scale=1.0, gate_center=0.0)


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, 1, -1), jnp.float32)


def relative(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def sizes_of(meta):
    keys = ("patch", "width", "depth", "heads", "mlp_ratio", "gate_scale", "gate_center")
    return {key: meta[key] for key in keys} | {"image_size": meta["size"], "num_classes": meta["classes"]}


def losses(output, labels, target, weight):
    """Of the released code: the prior looks at every image but the first, halted tokens too."""
    taken = jnp.take_along_axis(jax.nn.log_softmax(output.logits), labels[:, None], 1)
    (cost,) = gates.ponder_of_trace(output.trace).values()
    prior = gates.halting_prior(jnp.mean(gates.halting_of_trace(output.trace)[1:], (0, 2)), target)
    ce, ponder = -jnp.mean(taken), jnp.mean(cost.cost)
    return {"ce": ce, "ponder": ponder, "kl": prior, "train": ce + 5e-4 * ponder + weight * jnp.maximum(prior, 0)}


@pytest.fixture(scope="module", params=FILES)
def run(request, golden, meta):
    """(arrays, output, losses, their gradients by the images, the training loss's by the parameters)."""
    arrays = golden(request.param)
    facts = meta(arrays)
    net = dyn_jax.networks.create("avit-tiny-imagenet", normalize=False, **sizes_of(facts))
    variables = weights_convert.convert(net, {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")})
    labels, target = jnp.asarray(arrays["labels"]), gates.prior_target(facts["depth"], facts["target_depth"])
    np.testing.assert_allclose(target, arrays["distr_target"], rtol=1e-5, atol=1e-7)

    @quick_jit
    def every(variables, x):
        def named(variables, x):
            output = net.apply(variables, x)
            return losses(output, labels, target, facts["alpha"]), output

        values, pull, output = jax.vjp(named, variables, x, has_aux=True)
        kinds = list(values)
        pulls = {k: pull({j: jnp.float32(j == k) for j in kinds}) for k in kinds}
        return output, values, {k: pulls[k][1] for k in kinds}, pulls["train"][0]

    return (arrays, facts, net, *every(variables, nhwc(arrays["xn"])))


def test_logits_masks_and_halting(run):
    arrays, _, _, output, *_ = run
    np.testing.assert_allclose(output.logits, arrays["logits"], atol=1e-5)
    on = np.stack([unit.on for unit in output.trace.units])
    np.testing.assert_array_equal(on, arrays["mask_on"][1:])
    assert arrays["mask_on"][0].all() and on.any() and not on.all()
    np.testing.assert_allclose(gates.halting_of_trace(output.trace), np.moveaxis(arrays["h"], 0, 1), atol=1e-5)
    (cost,) = gates.ponder_of_trace(output.trace).values()
    np.testing.assert_array_equal(cost.units, arrays["counter_token"])
    np.testing.assert_allclose(cost.cost, arrays["rho_token"], atol=1e-5)


def test_the_share_of_halting_by_layer(run):
    """As the released prior has it: without the first image, all tokens."""
    arrays, _, _, output, *_ = run
    mean = np.asarray(gates.halting_of_trace(output.trace))[1:].mean((0, 2))
    np.testing.assert_allclose(mean, arrays["halting_score_layer"], atol=1e-6)
    np.testing.assert_allclose(mean / mean.sum(), arrays["distr"], atol=1e-6)
    margin = min(float(jnp.min(jnp.where(jnp.isfinite(u.score), jnp.abs(u.score), 1))) for u in output.trace.units)
    np.testing.assert_allclose(margin, arrays["min_margin"], rtol=1e-2)


def test_what_every_block_gives(run):
    """Of image 0, halted tokens too: nobody reads them."""
    arrays, _, net, *_ = run
    variables = weights_convert.convert(net, {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")})
    seen = lambda module, _: isinstance(module, avit.Block)
    apply = lambda x: net.apply(variables, x, capture_intermediates=seen, mutable=["intermediates"])[1]
    kept = quick_jit(apply)(nhwc(arrays["xn"]))["intermediates"]
    for layer, expected in enumerate(arrays["layer_out0"]):
        np.testing.assert_allclose(kept[f"blocks_{layer}"]["__call__"][0][0], expected, atol=2e-5)


def test_losses_and_their_gradients(run):
    arrays, _, _, _, values, gradients, _ = run
    for name, value in values.items():
        np.testing.assert_allclose(value, arrays[f"loss_{name}"], rtol=1e-5)
        assert relative(gradients[name], nhwc(arrays[f"grad_{name}"])) < 1e-4, name


def test_gradients_by_the_parameters(run):
    arrays, _, net, *_, gradient = run
    names = [k for k in arrays if k.startswith("pgrad_train/")]
    expected = {k.removeprefix("pgrad_train/"): arrays[k] for k in names}
    whole = {k[3:]: expected.get(k[3:], v) for k, v in arrays.items() if k.startswith("sd/")}
    wanted = weights_convert.convert(net, whole)
    held = weights_convert.convert(net, {k: np.float32(np.zeros(v.shape) + (k in expected)) for k, v in whole.items()})
    compared = 0
    for got, want, holds in zip(*map(jax.tree.leaves, (gradient, wanted, held))):
        if np.all(holds):
            assert relative(got, want) < 1e-4
            compared += 1
    assert compared == len(names) > 0


def test_multiply_adds_depend_on_the_others_that_are_there(run):
    arrays, facts, _, output, *_ = run
    active, width, ratio = arrays["mask_on"].sum(-1), facts["width"], facts["mlp_ratio"]
    blocks = (active * ((4 + 2 * ratio) * width**2 + 2 * width * active)).sum(0)
    rest = 3 * facts["size"] ** 2 * width + width * facts["classes"]
    np.testing.assert_allclose(metrics.executed_macs(output.trace), blocks + rest, rtol=1e-6)


def test_masking_that_stops_the_gradient_is_noticed(run, monkeypatch):
    """Control: the prior sees the h of halted tokens, whose gradient passes the place where they are made 0."""
    arrays, _, net, *_ = run
    monkeypatch.setattr(avit, "_kept", lambda x, o: o[..., None] * x)
    variables = weights_convert.convert(net, {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")})
    target = jnp.asarray(arrays["distr_target"], jnp.float32)
    prior = lambda x: gates.halting_prior(
        jnp.mean(gates.halting_of_trace(net.apply(variables, x).trace)[1:], (0, 2)), target
    )
    gradient = quick_jit(jax.grad(prior))(nhwc(arrays["xn"]))
    assert relative(gradient, nhwc(arrays["grad_kl"])) > 0.1


# --- by hand


def variables_of(net, seed=0, scale=1.0):
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, net.image_size, net.image_size, 3)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_a_halted_token_cannot_be_seen():
    """All tokens halt after the first layer: the answer is that of one layer, and nothing behind it matters."""
    net = TINY.clone(gate_scale=0.0, gate_center=-20.0)  # h = 1
    variables, x = variables_of(net), jnp.full((2, 8, 8, 3), 0.5)
    other = {
        "params": {**variables["params"], "blocks_2": jax.tree.map(lambda v: v + 1, variables["params"]["blocks_2"])}
    }
    run = quick_jit(partial(net.apply))
    first, second = run(variables, x), run(other, x)
    np.testing.assert_array_equal(first.logits, second.logits)
    assert not any(unit.on.any() for unit in first.trace.units)
    (cost,) = gates.ponder_of_trace(first.trace).values()
    np.testing.assert_allclose(cost.cost, 2.0)  # one unit and a remainder of 1


def test_soft_occupancies_let_the_energy_be_differentiated():
    net, x = TINY, jnp.asarray(np.random.default_rng(1).uniform(size=(2, 8, 8, 3)), jnp.float32)
    variables = variables_of(net, scale=0.5)

    @quick_jit
    def energy(x, direction, t):
        run = lambda t: metrics.executed_macs(
            net.apply(variables, x + t * direction, occupancy=occupancy.sigmoid(3.0)).trace
        )
        return jax.jvp(lambda t: jnp.sum(run(t)) / 1e4, (t,), (jnp.ones_like(t),))

    direction = jnp.asarray(np.random.default_rng(2).normal(size=x.shape), jnp.float32)
    slope = energy(x, direction, jnp.float32(0))[1]
    high, low = (energy(x, direction, jnp.float32(t))[0] for t in (3e-3, -3e-3))
    np.testing.assert_allclose(slope, (high - low) / 6e-3, rtol=2e-2)
    assert abs(slope) > 1e-3


def test_energy_attacks_run_on_it():
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 8, 8, 3)), jnp.float32)
    attack = attacks.grad_auto(steps=3, learning_rate=0.1)
    result = quick_jit(lambda x: attack(partial(TINY.apply, variables_of(TINY, scale=0.5)), x))(images)
    before, after = (metrics.executed_macs(trace) for trace in (result.trace_clean, result.trace_adversarial))
    assert result.record.complexity[:, 0].max() > 0 and (after >= before).all()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"patch": 3}, r"patch: got 3, expected a divisor of image_size 8"),
        ({"heads": 3}, r"heads: got 3, expected a divisor of width 8"),
        ({"depth": 1}, r"depth: got 1, expected at least 2"),
        ({"patch": 0}, r"patch: got 0, expected at least 1"),
    ],
)
def test_sizes_that_make_no_network(fields, message):
    with pytest.raises(ValueError, match=message):
        TINY.clone(**fields).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_images_of_another_size():
    with pytest.raises(ValueError, match="images: got 12x12, expected 8x8"):
        TINY.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))


def test_prior_of_another_length():
    with pytest.raises(ValueError, match="halting, target"):
        gates.halting_prior(jnp.ones(3), jnp.ones(4))
    with pytest.raises(ValueError, match="expected that of an A-ViT"):
        gates.halting_of_trace(Trace())
