"""What the released AutoAttack left of two published networks, judged here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax.attacks import ball

SETS = ("resnet20_eps1", "resnet20_eps2", "rdi38_eps8")
ORDER = ("apgd_ce", "apgd_t", "fab_t", "square")


@functools.cache
def network(folder, name):
    """images -> logits."""
    pytest.importorskip("torch")
    import weights_convert
    from dyn_jax import networks
    from weights_convert.torch_io import read_state_dict

    registered, file = {
        "resnet20": ("resnet-20-cifar10", "resnet20-12fca82f.th"),
        "rdi38": ("rdi-resnet38-cifar10", "rdi_resnet38_checkpoint_60000.pth.tar"),
    }[name]
    net = networks.create(registered)
    variables = weights_convert.convert(net, read_state_dict(folder / "data" / "checkpoints" / file))

    @jax.jit
    def logits(x):
        output = net.apply(variables, x)
        return output.logits if output.trace.exits is None else output.trace.exits[:, -1]

    return logits


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_same_images_stand(name, golden, shared_dir):
    """Every image the released code broke is broken here and in the ball; all others are the clean ones, and right."""
    arrays, logits = golden(f"eval_aa_{name}"), network(shared_dir, name.partition("_")[0])
    with np.load(shared_dir / "data" / "cifar10_lossless_test.npz") as data:
        clean = jnp.asarray(data["image"][arrays["index"]], jnp.float32) / 255
    label, robust = arrays["label"], arrays["robust"]
    right = np.asarray(logits(clean)).argmax(1) == label
    np.testing.assert_array_equal(right, arrays["clean_correct"])
    np.testing.assert_array_equal(np.asarray(logits(jnp.asarray(arrays["x_adv"]))).argmax(1) == label, robust)
    space = ball("linf", float(arrays["eps"]))
    assert np.all(space.distance(jnp.asarray(arrays["x_adv"]), clean) <= float(arrays["eps"]) + 1e-7)
    np.testing.assert_allclose(arrays["x_adv"][robust], clean[robust], atol=1e-7)

    standing, accuracy = right.copy(), [right.mean()]
    for attack in ORDER[: len(arrays["attacks"])]:
        assert not np.any(arrays[f"broken_{attack}"] & ~standing)  # a broken one is not attacked again
        standing &= ~arrays[f"broken_{attack}"]
        np.testing.assert_array_equal(standing, arrays[f"robust_after_{attack}"])
        accuracy.append(standing.mean())
    np.testing.assert_array_equal(standing, robust)
    np.testing.assert_allclose(accuracy, arrays["robust_accuracy"], atol=1e-6)
