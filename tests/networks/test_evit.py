"""EViT: parity with the authors' code, what is dropped, a cost that cannot be attacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit

import dyn_jax
import weights_convert
from dyn_jax import attacks, metrics, objectives, occupancy
from dyn_jax.networks import evit
from dyn_jax.networks.evit import EViT

FILES = ("topk_evit_w48_d5",)
TINY = EViT(image_size=8, patch=2, width=8, heads=2, num_classes=3, keep=(0.5, 1, 0.6))


def nhwc(array):
    return np.moveaxis(array, 1, -1)


@pytest.fixture(scope="module", params=[(file, part) for file in FILES for part in ("", "fuse/")], ids=str)
def run(request, golden, meta):
    """(arrays under the names of the plain network, output, cross-entropy, its gradient, meta)."""
    file, part = request.param
    arrays = golden(file)
    facts = meta(arrays)
    sizes = {key: facts[key] for key in ("patch", "width", "heads", "mlp_ratio")}
    sizes |= {"image_size": facts["size"], "num_classes": facts["classes"], "keep": tuple(facts["keep"])}
    net = dyn_jax.networks.create("evit-fused-tiny-imagenet" if part else "evit-tiny-imagenet", **sizes)
    variables = weights_convert.convert(net, {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")})
    labels = jnp.asarray(arrays["labels"])

    @quick_jit
    @jax.value_and_grad
    def loss(x):
        taken = jnp.take_along_axis(jax.nn.log_softmax(net.apply(variables, x).logits), labels[:, None], 1)
        return -jnp.mean(taken)

    x = jnp.asarray(nhwc(arrays["images_u8"]) / 255, jnp.float32)
    output = quick_jit(net.apply)(variables, x)
    if part:
        arrays = {k: v for k, v in arrays.items() if not k.startswith(("kept", "idx", "cls_attn", "left"))}
        arrays |= {k.removeprefix(part): v for k, v in list(arrays.items()) if k.startswith(part)}
    return arrays, output, *loss(x), facts


def kept_of(arrays, unit, number, before):
    """Places [batch, element] of what the released code keeps, from its indices within the tokens that are there."""
    kept = np.zeros(unit.score.shape, bool)
    for example, (order, chosen) in enumerate(zip(before, arrays[f"idx/{number}"])):
        kept[example, order[chosen]] = True
    return kept


def test_logits_sets_and_gradient(run):
    arrays, output, loss, gradient, facts = run
    np.testing.assert_allclose(output.logits, arrays["logits"], atol=1e-5)
    np.testing.assert_allclose(loss, arrays["loss_ce"], rtol=1e-5)
    expected = nhwc(arrays["grad_ce"]) / np.float64(facts["std"]).reshape(1, 1, 1, -1)
    assert np.linalg.norm(gradient - expected) / np.linalg.norm(expected) < 1e-4
    fused = len(output.trace.units[1].score[0]) > len(output.trace.units[0].score[0])
    before = [np.arange(output.trace.units[0].elements)] * len(output.logits)
    for number, unit in enumerate(output.trace.units):
        kept = kept_of(arrays, unit, number, before)
        np.testing.assert_array_equal(unit.on, kept)
        count = arrays[f"idx/{number}"].shape[1]
        assert unit.constant and (kept.sum(1) == count).all()
        if f"kept/{number}" in arrays:
            np.testing.assert_array_equal(unit.on, arrays[f"kept/{number}"])
        at_kept = np.stack([row[order] for row, order in zip(np.asarray(unit.score), before)])
        attended = arrays[f"cls_attn/{number}"]
        kth = np.sort(attended, 1)[:, -count, None]
        np.testing.assert_allclose(at_kept, attended - kth, atol=1e-6)
        # the released order: kept ones as sorted, the fused one behind
        before = [order[chosen] for order, chosen in zip(before, arrays[f"idx/{number}"])]
        if fused:
            before = [np.append(order, unit.elements) for order in before]


def test_multiply_adds_are_those_of_the_tokens_left(run):
    arrays, output, _, _, facts = run
    width, ratio, count, total = facts["width"], facts["mlp_ratio"], 1 + output.trace.units[0].elements, 0
    for number, left in enumerate(arrays["left_tokens"]):
        total += count * 4 * width**2 + 2 * width * count**2
        if facts["keep"][number] < 1:
            count = 1 + int(left) if int(left) < count else count
        total += count * 2 * ratio * width**2
    total += 3 * facts["size"] ** 2 * width + width * facts["classes"]
    np.testing.assert_allclose(metrics.executed_macs(output.trace), total, rtol=1e-6)


# --- by hand


def variables_of(net, seed=0):
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, net.image_size, net.image_size, 3)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def tiny():
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 8, 8, 3)), jnp.float32)
    variables = variables_of(TINY)
    return images, lambda x, how=None: TINY.apply(variables, x, occupancy=how)


def test_costs_by_hand():
    """One block, 5 tokens, keep half: qkv, proj and products of 5; MLP of the class token and ceil(4 / 2)."""
    assert evit.costs((0.5,), 5, False, 2, 8) == (5 * 16 + 4 * 25 + 32, [(2, 32, 32)])
    static, ((k, on, dense),) = evit.costs((0.5, 1), 5, False, 2, 8)
    assert static + k * on == (5 * 16 + 4 * 25) + 3 * 32 + (3 * 16 + 4 * 9) + 3 * 32
    assert static + 4 * dense == 2 * (5 * 16 + 4 * 25 + 5 * 32)


def test_numbers_of_tokens_are_shares(tiny):
    images, forward = tiny
    counted = TINY.clone(keep=(8, 1, 5)).apply(variables_of(TINY), images)
    shares = forward(images)
    np.testing.assert_array_equal(counted.logits, shares.logits)
    assert metrics.dense_macs(counted.trace) == metrics.dense_macs(shares.trace)


def test_gradients_of_the_three_occupancies(tiny):
    """FGM has no derivative of the choice; both forms of LGM have, straight-through at the values of the hard one."""
    images, forward = tiny
    total = lambda x, how: (lambda o: (jax.nn.logsumexp(o.logits).sum(), o.logits))(forward(x, how))
    kinds = [occupancy.hard(), occupancy.straight_through(20.0), occupancy.sigmoid(20.0)]
    (g0, z0), (g1, z1), (g2, z2) = (
        quick_jit(jax.grad(lambda x, h=h: total(x, h), has_aux=True))(images) for h in kinds
    )
    np.testing.assert_allclose(z0, z1, atol=1e-5)
    assert np.abs(z0 - z2).max() > 1e-3
    assert min(np.linalg.norm(g0 - g1), np.linalg.norm(g0 - g2)) > 1e-3 * np.linalg.norm(g0)


@pytest.mark.parametrize(
    "attack",
    [
        attacks.ilfo(steps=1),
        attacks.grad_auto(steps=1),
        attacks.grad_mdm(steps=2),
        attacks.bim(0.1, 0.1, 1, objective=objectives.energy(), attack_all=True),
    ],
)
def test_a_constant_cost_cannot_be_attacked(tiny, attack):
    images, forward = tiny
    with pytest.raises(ValueError, match="network of constant cost .* attack which ones run"):
        attack(forward, images)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"keep": (0.5, 0)}, r"keep: got \(0.5, 0\), expected a share"),
        ({"keep": ()}, "keep"),
        ({"keep": (1.2,)}, "keep"),
        ({"keep": (17,)}, r"keep: got 17 tokens in \(17,\), expected at most 16"),
        ({"keep": (0.5, 9)}, "keep: got 9 tokens in .*, expected at most 8"),
        ({"heads": 3}, "heads: got 3, expected a divisor of width 8"),
        ({"patch": 3}, "patch: got 3, expected a divisor of image_size 8"),
    ],
)
def test_sizes_that_make_no_network(fields, message):
    with pytest.raises(ValueError, match=message):
        TINY.clone(**fields).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
