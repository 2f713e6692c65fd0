"""RDI-ResNet-38: the published weights against the authors' arrays, thresholds, answers, costs and attacks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import weights_convert
from dyn_jax import attacks, metrics, networks, objectives
from dyn_jax.networks import rdi
from dyn_jax.types import Output

NAME = "rdi-resnet38-cifar10"


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, -3, -1))


@pytest.fixture(scope="module")
def network(shared_dir):
    pytest.importorskip("torch")
    path = shared_dir / "data" / "checkpoints" / "rdi_resnet38_checkpoint_60000.pth.tar"
    from weights_convert.torch_io import read_state_dict

    net = networks.create(NAME)
    return net, weights_convert.convert(net, read_state_dict(path))


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("rdi_resnet38")


def images_of(arrays):
    return jnp.asarray(arrays["x_uint8"], jnp.float32) / 255


@pytest.fixture(scope="module")
def output(network, arrays):
    net, variables = network
    apply = jax.jit(lambda x, t: net.apply(variables, x, threshold=t))
    return lambda t: apply(images_of(arrays), jnp.asarray(t))


def test_logits_entropies_exits_and_answers(output, arrays):
    got = output(arrays["T"][:6])
    np.testing.assert_allclose(got.trace.exits, arrays["logits"].transpose(1, 0, 2), atol=2e-5)
    np.testing.assert_allclose(rdi.entropy(got.trace.exits), arrays["entropy"].T, atol=1e-5)
    np.testing.assert_array_equal(metrics.exits.exit_index(got.trace), arrays["exit"])
    np.testing.assert_array_equal(jnp.argmax(got.logits, 1), arrays["answer"])
    raw = output(arrays["T_raw"][:6])
    np.testing.assert_array_equal(metrics.exits.exit_index(raw.trace), arrays["raw/exit"])


def test_costs(output, arrays):
    trace = output(arrays["T"][:6]).trace
    released = jnp.asarray(rdi.RELEASED_COSTS)[metrics.exits.exit_index(trace)]
    np.testing.assert_allclose(jnp.mean(released), arrays["mflops"], rtol=1e-3)
    np.testing.assert_allclose(rdi.RELEASED_COSTS, arrays["mmac_released_rule"], rtol=1e-12)
    linear = np.cumsum([320, 320, 320, 320, 640, 640, 640])  # not counted there
    stages = np.cumsum([trace.static_macs, *(unit.macs for unit in trace.units)])
    np.testing.assert_allclose((stages - linear) / 2**20, arrays["mmac_executed"], rtol=1e-12)


def test_the_threshold_rule(output, arrays):
    got = rdi.quantile_thresholds(output(arrays["T"][:6]).trace.exits, offsets=(0,) * 6)
    np.testing.assert_allclose(got, arrays["small/T_raw"][:6], atol=1e-5)
    with pytest.raises(ValueError, match="offsets: got 2, expected 6"):
        rdi.quantile_thresholds(arrays["logits"].transpose(1, 0, 2), offsets=(0, 0))


def test_the_ensemble_is_an_answer_of_its_own(network, arrays):
    net, variables = network
    said = net.clone(answer=rdi.weighted_sum, threshold=tuple(arrays["T"][:6])).apply(variables, images_of(arrays))
    np.testing.assert_array_equal(jnp.argmax(said.logits, 1), arrays["answer_ensemble"])


def test_losses_and_gradients_of_every_exit(network, arrays):
    net, variables = network
    images, labels = images_of(arrays)[:8], jnp.asarray(arrays["labels"][:8], jnp.int32)

    @jax.jit
    def of_exit(k):
        def total(x):
            exits = net.apply(variables, x).trace.exits
            chosen = jax.lax.dynamic_index_in_dim(exits, k, axis=1, keepdims=False)
            return jnp.mean(objectives.cross_entropy(Output(chosen), labels))

        return jax.value_and_grad(total)(images)

    for k in range(7):
        loss, gradient = of_exit(k)
        np.testing.assert_allclose(loss, arrays[f"loss/ce{k}"], rtol=1e-5)
        expected = nhwc(arrays[f"grad/ce{k}"])
        error = jnp.abs(gradient - expected).max((1, 2, 3)) / jnp.abs(expected).max()
        assert (error <= 1e-5).sum() >= 7, error  # a ReLU within rounding of 0 may decide otherwise in one image


@pytest.mark.parametrize("name, prefix", [("single", "k0/"), ("single", "k6/"), ("average", "")])
def test_attacks_step_by_step(network, golden, name, prefix):
    arrays = golden(f"attack_rdi_{name}")
    net, variables = network
    images, labels = images_of(arrays), jnp.asarray(arrays["labels"], jnp.int32)
    forward = partial(net.apply, variables, threshold=tuple(arrays["T"][:6]))
    make = partial(attacks.released.rdi.single, int(prefix[1])) if prefix else attacks.released.rdi.average
    attack = make(float(arrays["eps"]), float(arrays["gamma"]), 1)
    step = jax.jit(lambda s: attack(forward, images, labels, key=jax.random.key(0), start=s).adversarial)
    x = nhwc(arrays[f"{prefix}start"])
    for number, allowed in ((1, 1e-3), (2, 0.03), (3, 0.03), (4, 0.03), (5, 0.03)):
        x = step(x)
        expected = nhwc(arrays[f"{prefix}step{number}"])
        assert float(jnp.mean(jnp.abs(x - expected) > 1e-4)) <= allowed
    assert float(jnp.abs(x - images).max()) > 0.9 * float(arrays["eps"])  # control: the clean image is not near


def test_max_average_picks_the_largest_sum(network, golden):
    arrays = golden("attack_rdi_maxaverage")
    net, variables = network
    images, labels = images_of(arrays), jnp.asarray(arrays["labels"], jnp.int32)
    forward = partial(net.apply, variables)
    total = objectives.sum_of_exits()
    sums = jax.jit(lambda x: total(forward(x), labels))
    candidates = [nhwc(start) for start in arrays["cand_step1"]]
    got = np.stack([sums(x) for x in candidates], axis=1)
    np.testing.assert_allclose(got, arrays["sum_loss_step1"], rtol=1e-3)
    np.testing.assert_array_equal(got.argmax(1), arrays["chosen_step1"])
    attack = attacks.released.rdi.max_average(steps=2)
    result = jax.jit(lambda x: attack(forward, x, labels, key=jax.random.key(0)))(images)
    assert result.steps.loss.shape == (8, 14)
    assert (sums(result.adversarial) > sums(images)).all()


@pytest.mark.parametrize(
    "fields, words", [({"threshold": (0.5, 0.5)}, "got 2 numbers, expected one, or 6"), ({"threshold": 0.0}, "above 0")]
)
def test_bad_thresholds(fields, words):
    net = networks.create(NAME, **fields)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))


@pytest.mark.parametrize("depth, n", [(38, 6), (74, 12), (110, 18), (152, 25)])
def test_published_depths(depth, n):
    """Exits hang on blocks int(n / 4) and int(3 n / 4) of every group."""
    net = networks.create(f"rdi-resnet{depth}-cifar10")
    assert net.trunk.depths == (n, n, n)
    assert net.exit_after == tuple(group * n + k for group in range(3) for k in (n // 4, 3 * n // 4))
