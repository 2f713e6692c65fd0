"""AdaViT: parity with the authors' code, evaluation and training; three kinds of units, counted once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit

import dyn_jax
import weights_convert
from dyn_jax import metrics, occupancy
from dyn_jax.networks import adavit
from dyn_jax.networks.adavit import AdaViT
from dyn_jax.training.adavit import USE, Usage, usage_loss, usage_parts, usage_terms

FILES = ("adavit_w48_d4",)
TINY = AdaViT(image_size=8, patch=4, width=8, depth=2, heads=2, num_classes=3)


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, 1, -1), jnp.float32)


def relative(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


class Replayed:
    """The noisy occupancy of a kind, with the next draws of a file (in the order of calls) instead of a key."""

    def __init__(self, how, draws):
        self.how, self.draws = how, draws

    def __call__(self, score):
        first, second = (-jnp.log(jnp.asarray(next(self.draws), score.dtype)) for _ in range(2))
        return self.how.decide(score + self.how.shift + (first - second).reshape(score.shape))


@pytest.fixture(scope="module", params=FILES)
def made(request, golden, meta):
    arrays = golden(request.param)
    facts = meta(arrays)
    sizes = {key: facts[key] for key in ("patch", "width", "depth", "heads", "mlp_ratio")}
    sizes |= {"image_size": facts["size"], "num_classes": facts["classes"], "keep_layers": facts["keep"]}
    net = dyn_jax.networks.create("adavit-tiny-imagenet", **sizes)
    return (
        arrays,
        facts,
        net,
        weights_convert.convert(net, {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")}),
    )


def occupancies(tag, arrays, facts, net):
    if tag == "eval":
        return adavit.released(net)
    keys = sorted(key for key in arrays if key.startswith("noise/"))
    draws = iter([arrays[key] for key in keys])
    noisy = adavit.released(net, noise=True, temperature=facts["tau"])
    return {kind: Replayed(how, draws) for kind, how in noisy.items()}


@pytest.fixture(scope="module", params=["eval", "train"])
def run(request, made):
    """(tag, arrays, meta, output, losses, their gradients by the normalised images)."""
    arrays, facts, net, variables = made
    labels = jnp.asarray(arrays["labels"])

    def losses(x):
        output = net.apply(variables, x, occupancy=occupancies(request.param, arrays, facts, net))
        taken = jnp.take_along_axis(jax.nn.log_softmax(output.logits), labels[:, None], 1)
        chosen = usage_parts(output.trace)
        means = sum(jnp.mean(part.on) for part in chosen)
        ce = -jnp.mean(taken)
        return {
            "ce": ce,
            "ada": usage_loss(output, labels),
            "select_mean": means,
            "slow": usage_loss(output, labels, USE) - ce,
        }, output

    @quick_jit
    def every(x):
        values, pull, output = jax.vjp(losses, x, has_aux=True)
        return output, values, {k: pull({j: jnp.float32(j == k) for j in values})[0] for k in values}

    x = jnp.asarray(np.moveaxis(arrays["images_u8"], 1, -1) / 255, jnp.float32)
    return (request.param, arrays, facts, *every(x))


def test_logits_and_choices(run):
    tag, arrays, _, output, *_ = run
    np.testing.assert_allclose(output.logits, arrays[f"{tag}/logits"], atol=1e-5)
    for part, kind in zip(usage_parts(output.trace), ("head", "layer", "token")):
        np.testing.assert_array_equal(np.round(np.asarray(part.on), 5), arrays[f"{tag}/{kind}_select"])
        assert 0.1 < np.mean(np.asarray(part.on)) < 0.99
        logit = arrays[f"{tag}/{kind}_logit"].reshape(part.logit.shape)
        np.testing.assert_allclose(part.logit, logit, atol=1e-5)


@pytest.mark.parametrize("name", ["ce", "ada", "select_mean", "slow"])
def test_losses_and_their_gradients(run, name):
    tag, arrays, facts, _, values, gradients = run
    key = f"slow_{tag}/{{}}_ada" if name == "slow" else f"{tag}/{{}}_{name}"
    if key.format("loss") in arrays:
        np.testing.assert_allclose(values[name], arrays[key.format("loss")], rtol=1e-5)
    expected = nhwc(arrays[key.format("grad")]) / np.asarray(facts["std"], np.float32).reshape(1, 1, 1, -1)
    assert relative(gradients[name], expected) < 1e-4


@pytest.mark.parametrize("prefix, usage", [("", Usage()), ("slow_", USE)])
def test_the_parts_of_the_loss(run, prefix, usage):
    tag, arrays, _, output, *_ = run
    for name, value in usage_terms(output.trace, usage)._asdict().items():
        np.testing.assert_allclose(value, arrays[f"{prefix}{tag}/{name}_loss"], rtol=1e-5)


def test_multiply_adds_by_hand(run):
    """``l0 h (4 D^2 n + 2 D n^2) + l1 (h D M n + D M n)`` and what always runs."""
    tag, arrays, facts, output, *_ = run
    width, depth, keep, heads = facts["width"], facts["depth"], facts["keep"], facts["heads"]
    wide = facts["mlp_ratio"] * width**2
    token, head, layer = (arrays[f"{tag}/{kind}_select"] for kind in ("token", "head", "layer"))
    total = 0
    for number, n in enumerate(token.sum(-1).T):
        gated = number >= keep
        share = head[:, number - keep].mean(-1) if gated else 1
        first, second = layer[:, number - keep].T if gated else (1, 1)
        total += first * share * (4 * width**2 * n + 2 * width * n**2) + second * wide * n * (share + 1)
        total += width * (token.shape[-1] - 1) + (2 + heads) * width * gated
    total += 3 * facts["size"] ** 2 * width + width * facts["classes"]
    np.testing.assert_allclose(metrics.executed_macs(output.trace), total, rtol=1e-5)
    tokens = token.shape[-1]
    dense = depth * ((4 * width**2 + 2 * wide + width) * tokens - width + 2 * width * tokens**2)
    dense += (depth - keep) * (2 + heads) * width + 3 * facts["size"] ** 2 * width + width * facts["classes"]
    assert metrics.dense_macs(output.trace) == dense


# --- by hand


def variables_of(net):
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_what_is_off_adds_nothing():
    """All sub-layers off: the second block changes nothing, whatever its weights."""
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 8, 8, 3)), jnp.float32)
    variables = variables_of(TINY)
    how = {"layer": jnp.zeros_like, "head": jnp.ones_like, "token": jnp.ones_like}
    run = quick_jit(lambda v: TINY.apply(v, images, occupancy=how))
    changed = jax.tree.map(lambda leaf: leaf + 1, variables["params"]["blocks_1"])
    one, two = run(variables), run({"params": {**variables["params"], "blocks_1": changed}})
    np.testing.assert_array_equal(one.logits, two.logits)


def test_the_derivative_is_that_of_the_logit():
    """Control: straight-through by the score has the same values and, for tokens (threshold 0.6), another slope."""
    net = adavit.released(TINY)["token"]
    score = jnp.linspace(-2.0, 2.0, 9)
    other = occupancy.straight_through(1.0)
    np.testing.assert_array_equal(net(score), other(score))
    slope, others = (jax.vmap(jax.grad(how))(score) for how in (net, other))
    p = jax.nn.sigmoid(score + np.log(1.5))
    np.testing.assert_allclose(slope, p * (1 - p), rtol=1e-6)
    assert np.abs(slope - others).max() > 0.03


def test_training_draws_its_noise():
    images, variables = jnp.full((2, 8, 8, 3), 0.5), variables_of(TINY)
    run = quick_jit(lambda key: TINY.apply(variables, images, train=True, rngs={"gate": key}))
    same, again, other = (np.asarray(run(jax.random.key(k)).trace.units[0].occupancy) for k in (0, 0, 1))
    np.testing.assert_array_equal(same, again)
    assert (same != other).any() and set(np.unique(np.round(same, 5))) <= {0, 1}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"heads": 3}, "heads: got 3, expected a divisor of width 8"),
        ({"patch": 3}, "patch: got 3, expected a divisor of image_size 8"),
        ({"token_threshold": 1.0}, r"token_threshold: got 1.0, expected a number in \(0, 1\)"),
    ],
)
def test_sizes_that_make_no_network(fields, message):
    with pytest.raises(ValueError, match=message):
        TINY.clone(**fields).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_other_kinds():
    with pytest.raises(ValueError, match=r"occupancy: got the kinds \['tokens'\], expected layer, head, token"):
        TINY.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), occupancy={"tokens": jnp.ones_like})
