"""SlowFormer: the released steps to the bit, by hand, and on every adaptive family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ALL_NETWORKS, image_size, some_images, tiny_forward, tiny_victim, variables_of
from compiled import quick_jit

import dyn_jax
import weights_convert
from dyn_jax import attacks, gates, metrics
from dyn_jax.attacks import released
from dyn_jax.attacks.slowformer import cut, nearest_level, paste_at
from dyn_jax.types import Output

FILES = ("slowformer_avit_w48_8x8",)


def search_of(facts, prior, steps):
    target = gates.prior_target(facts["depth"], facts["target_depth"])
    size = (facts["patch_w"], facts["patch_h"])
    return released.slowformer(size, steps, batch_size=facts["patch_n"], prior=prior, target=target).search


@pytest.fixture(scope="module", params=FILES)
def run(request, golden, meta):
    """(arrays, meta, network, variables, batches of images in [0, 1])."""
    arrays = golden(request.param)
    facts = meta(arrays)
    keys = ("patch", "width", "depth", "heads", "mlp_ratio", "gate_scale", "gate_center")
    sizes = {key: facts[key] for key in keys} | {"image_size": facts["size"], "num_classes": facts["classes"]}
    net = dyn_jax.networks.create("avit-tiny-imagenet", **sizes)
    weights = golden(facts["weights"].removesuffix(".npz"))
    variables = weights_convert.convert(net, {k[3:]: v for k, v in weights.items() if k.startswith("sd/")})
    batches = np.moveaxis(arrays["images_u8"], 2, -1) / 255.0
    return arrays, facts, net, variables, batches


def followed(net, variables, search, batches, start):
    images = jnp.asarray(batches).reshape(-1, *batches.shape[2:])
    labels = jnp.zeros(len(images), jnp.int32)
    forward = lambda x: net.apply(variables, x)
    return quick_jit(lambda images, start: search.fit(forward, images, labels, start))(images, start)


@pytest.mark.parametrize("part, prior", [("", 1e-3), ("noprior/", 0.0)])
def test_the_released_steps_in_double_precision(run, part, prior):
    arrays, facts, net, variables, batches = run
    steps = int(facts["patch_steps"])
    with jax.enable_x64(True):
        search = search_of(facts, prior, steps)
        patch, record = followed(net, variables, search, batches, jnp.asarray(arrays["patch_init"]))
        used = jax.vmap(search.normalized)(record.patch)
        np.testing.assert_allclose(used, arrays[f"{part}patch_used"], atol=1e-9)
        np.testing.assert_allclose(-record.objective, arrays[f"{part}loss"], rtol=1e-9)
        np.testing.assert_allclose(search.pasted(patch), arrays[f"{part}patch_final"], atol=1e-9)
        if not part:
            np.testing.assert_allclose(patch, arrays["patch_step"][-1], atol=1e-9)
            np.testing.assert_allclose(
                search.pasted(jnp.asarray(arrays["patch_raw"])), arrays["patch_init"], atol=1e-12
            )


@pytest.mark.parametrize("part", ["", "noprior/"])
def test_the_gradient_at_the_released_patch(run, part):
    arrays, facts, net, variables, batches = run
    search = search_of(facts, 0.0 if part else facts["alpha"], 1)
    labels = jnp.zeros(len(batches[0]), jnp.int32)
    gradient = quick_jit(lambda x, p: search.gradient(lambda x: net.apply(variables, x), x, labels, p))
    expected = (arrays[f"{part}{key}"] for key in ("patch_used", "grad", "loss"))
    for batch, used, wanted, loss in zip(batches, *expected):
        value, got = gradient(jnp.asarray(batch, jnp.float32), jnp.asarray(used, jnp.float32))
        assert np.linalg.norm(-got - wanted) / np.linalg.norm(wanted) < 1e-4
        np.testing.assert_allclose(-value, loss, rtol=1e-5)


def test_counters_and_the_drift_of_the_release(run):
    arrays, facts, net, variables, batches = run
    final, without = (jnp.asarray(arrays[f"{part}patch_final"], jnp.float32) for part in ("", "noprior/"))
    search, target = search_of(facts, 0.0, 1), gates.prior_target(facts["depth"], facts["target_depth"])

    @quick_jit
    def measured(x):
        trace = net.apply(variables, x).trace
        (cost,) = gates.ponder_of_trace(trace).values()
        return cost, gates.halting_prior(jnp.mean(gates.halting_of_trace(trace)[1:], (0, 2)), target)

    for number, batch in enumerate(jnp.asarray(batches, jnp.float32)):
        np.testing.assert_array_equal(measured(batch)[0].units, arrays["counter_clean"][number])
        for patch, part in ((final, ""), (without, "noprior/")):
            layers = measured(paste_at(batch, search.pixels(patch)))[0].units
            np.testing.assert_array_equal(layers, arrays[f"{part}counter_final"][number])
        used = jnp.asarray(arrays["patch_used"][number], jnp.float32)
        cost, prior = measured(paste_at(batch, search.pixels(used)))
        np.testing.assert_array_equal(cost.units, arrays["counter"][number])
        np.testing.assert_allclose(cost.cost, arrays["rho"][number], atol=1e-5)
        np.testing.assert_allclose(prior, arrays["kl"][number], rtol=1e-5)
    with jax.enable_x64(True):
        patch, changed = jnp.asarray(arrays["patch_final"]), []
        for _ in range(5):
            again = search.pasted(patch)
            changed.append(int((again != patch).sum()))
            patch = again
        np.testing.assert_array_equal(changed, arrays["projection_drift"])
        assert changed[0] > 0
        low, high = (np.asarray(search.normalized(jnp.full((1, 1, 3), v))).ravel() for v in (0.0, 1.0))
        once = nearest_level(patch, low, high)
        np.testing.assert_allclose(nearest_level(once, low, high), once, atol=0)


def test_the_released_patches_in_single_precision(run):
    """At most one level off where a value lies on a boundary, in the first step nowhere."""
    arrays, facts, net, variables, batches = run
    search = search_of(facts, facts["alpha"], int(facts["patch_steps"]))
    start = search.pasted(jnp.asarray(arrays["patch_raw"], jnp.float32))
    _, record = followed(net, variables, search, np.float32(batches), start)
    levels = np.asarray(record.patch) * 255
    std, mean = (np.asarray(facts[name]) for name in ("std", "mean"))
    difference = np.abs(levels - (arrays["f32/patch_used"] * std + mean) * 255)
    assert difference[0].max() < 1e-3 and difference.max() < 1.001
    np.testing.assert_allclose(-np.asarray(record.objective), arrays["f32/loss"], rtol=2e-2)
    patch, changed = jnp.asarray(arrays["f32/patch_final"]), []
    for _ in range(5):
        patch, before = search.pasted(patch), patch
        changed.append(int((patch != before).sum()))
    np.testing.assert_array_equal(changed, arrays["f32/projection_drift"])


# --- by hand


@pytest.mark.parametrize(
    "tokens, macs",
    [
        ([197] * 12, 1.2584112),
        ([197] * 6 + [100] * 6, 0.9515808),
        ([100] * 12, 0.626629248),
        ([197 - 10 * i for i in range(12)], 0.9058128),
        ([20] * 12, 0.165383808),
    ],
)
def test_reported_macs(tokens, macs):
    assert released.reported_macs(tokens, 192) == pytest.approx(macs * 1e9, rel=1e-12)


def test_a_patch_where_it_is_wanted():
    images, patch = jnp.zeros((2, 6, 5, 3)), jnp.ones((2, 3, 3))
    got = paste_at(images, patch, (3, 1))
    assert float(got.sum()) == 2 * 2 * 3 * 3 and (got[:, 3:5, 1:4] == 1).all()
    np.testing.assert_array_equal(cut(got[1], (2, 3), (3, 1)), patch)
    for place in ((-1, 0), (5, 0)):  # a slice from -1 on would be empty, and the patch nowhere
        with pytest.raises(ValueError, match=f"size: got 2 rows from {place[0]} on"):
            paste_at(images, patch, place)


def test_one_patch_for_all_images_that_ascends():
    images = some_images(4, 6)
    attack = attacks.slowformer((3, 2), 30, learning_rate=0.5, batch_size=3, place=(1, 2))
    run = quick_jit(lambda x, key: attack(tiny_forward, x, key=key, victim=tiny_victim))
    result = run(images, jax.random.key(0))
    patches = np.asarray(result.adversarial)[:, 1:4, 2:4]
    np.testing.assert_array_equal(patches, np.broadcast_to(patches[:1], patches.shape))
    np.testing.assert_allclose(patches * 255, np.round(patches * 255), atol=1e-3)
    rest = np.ones((4, 4), bool)
    rest[1:4, 2:4] = False
    np.testing.assert_array_equal(np.asarray(result.adversarial)[:, rest], np.asarray(images)[:, rest])
    objective = np.asarray(result.record.objective)
    assert objective.shape == (6, 30) and objective[0, -2:].mean() > objective[0, :2].mean()
    assert (np.asarray(run(images, jax.random.key(1)).adversarial) != np.asarray(result.adversarial)).any()


ADAPTIVE = ("avit", "skipnet rnn rl", "dynconv", "sdn resnet")  # tokens, layers, positions, exits


@pytest.mark.parametrize("name", ADAPTIVE)
def test_on_other_adaptive_families(name):
    net, variables = ALL_NETWORKS[name], variables_of(name)
    images = some_images(image_size(net), 4)
    attack = attacks.slowformer((8, 8), 3, batch_size=2)
    result = quick_jit(lambda x: attack(lambda x: net.apply(variables, x), x, key=jax.random.key(0)))(images)
    assert np.isfinite(np.asarray(result.record.objective)).all()
    assert np.isfinite(np.asarray(metrics.executed_macs(result.trace_adversarial))).all()


def test_the_papers_objective_on_an_avit():
    net, variables = ALL_NETWORKS["avit"], variables_of("avit")
    images = some_images(16, 2)
    target = gates.prior_target(net.depth, 2)
    objective = attacks.ponder_objective(0.5, 0.1, target)
    trace = quick_jit(net.apply)(variables, images).trace
    (cost,) = gates.ponder_of_trace(trace).values()
    prior = max(float(gates.halting_prior(gates.mean_halting(trace), target)), 0)
    got = objective(Output(jnp.zeros((2, 3)), trace), jnp.zeros(2, int))
    np.testing.assert_allclose(got, 0.5 * np.asarray(cost.cost).mean(1) - 0.1 * prior, rtol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: attacks.slowformer((0, 2), 1), "size: got 0"),
        (lambda: attacks.slowformer(4, 1), r"size: got 4, expected \(rows, columns\)"),
        (lambda: attacks.slowformer((2, 2), 0), "steps: got 0"),
        (lambda: attacks.slowformer((2, 2), 1, place=(-1, 0)), "place: got -1"),
        (lambda: attacks.slowformer((2, 2), 1, learning_rate=0.0), "learning_rate: got 0.0"),
        (lambda: attacks.slowformer((2, 2), 1, batch_size=0), "batch_size: got 0"),
        (lambda: attacks.ponder_objective(prior=0.1), "target: got None"),
    ],
)
def test_bad_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"size": (5, 2)}, "size: got 5 rows from 0 on, expected at most 4"),
        ({"place": (0, 3)}, "size: got 2 columns from 3 on"),
        ({"batch_size": 3}, "batch_size: got 3, expected a divisor of the 4 images"),
        ({"mean_std": ((0.5,), (0.5,))}, "mean_std: got 1 channels, expected the images' 3"),
    ],
)
def test_a_patch_that_does_not_fit(fields, message):
    attack = attacks.slowformer(**{"size": (2, 2), "steps": 1, **fields})
    with pytest.raises(ValueError, match=message):
        attack(tiny_forward, some_images(4, 4), key=jax.random.key(0))


def test_no_key_no_units_constant_cost():
    images = some_images(16, 2)
    attack = attacks.slowformer((2, 2), 1)
    with pytest.raises(ValueError, match="key: got None"):
        attack(tiny_forward, some_images(4, 4))
    for name, message in (("resnet A", "without adaptive units"), ("evit", "constant cost")):
        net, variables = ALL_NETWORKS[name], variables_of(name)
        with pytest.raises(ValueError, match=message):
            attack(lambda x, net=net, v=variables: net.apply(v, x), images, key=jax.random.key(0))
