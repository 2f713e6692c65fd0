"""GradAuto step by step against the authors' code, on a stub of six linear gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks, objectives
from dyn_jax.attacks import rectify, tanh_space
from dyn_jax.types import Output, Trace, UnitTrace

FILES = ("attack_gradauto_K1", "attack_gradauto_K0.01", "attack_gradauto_K1_acc")
STEPS = 6


def nhwc(array):
    return jnp.asarray(np.moveaxis(np.asarray(array, np.float32), -3, -1))


@pytest.fixture(scope="module", params=FILES)
def arrays(request, golden):
    return golden(request.param)


def stub(arrays):
    gates, out = nhwc(arrays["Wg"].reshape(-1, 3, 32, 32)), nhwc(arrays["Wo"].reshape(-1, 3, 32, 32))
    bias = jnp.asarray(arrays["bg"], jnp.float32).reshape(-1)

    def forward(x):
        scores = jnp.einsum("nhwc,ghwc->ng", x, gates) + bias[None, :]
        units = tuple(UnitTrace(s, (s > 0).astype(s.dtype), 1, logit=True) for s in scores.T)
        return Output(jnp.einsum("nhwc,ohwc->no", x, out), Trace(units, 1))

    return forward


def run(arrays, steps):
    attack = attacks.grad_auto(
        float(arrays["K"]),
        steps=steps,
        learning_rate=float(arrays["lr"]),
        keep_logits=1e5 * bool(arrays["acc_maintain"]),
        protocol="release",
        normalization=None,
    )
    return jax.jit(lambda x: attack(stub(arrays), x))(nhwc(arrays["x"]))


def test_change_of_variable_and_first_gradients(arrays):
    x = nhwc(arrays["x"])
    change = tanh_space.as_released(None)
    np.testing.assert_allclose(change.to_image(x, jnp.zeros_like(x)), nhwc(arrays["tanh_rescale_of_x"]), atol=1e-6)

    def loss(delta, which):
        return jnp.sum(which(stub(arrays)(change.to_image(x, delta)).trace, weights="equal"))

    finished = jax.grad(loss)(jnp.zeros_like(x), objectives.finished_loss)
    complexity = jax.grad(loss)(jnp.zeros_like(x), objectives.complexity_loss)
    for got, name in ((finished, "gpos_at0"), (complexity, "gneg_raw_at0")):
        expected = nhwc(arrays[name])
        np.testing.assert_allclose(got, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    inner = jnp.sum(complexity * finished, axis=(1, 2, 3))
    np.testing.assert_allclose(inner, arrays["dot_neg_pos_at0"].reshape(-1), rtol=1e-4)
    assert 0 < int((inner < 0).sum()) < len(inner)  # both branches of eq. 25 occur
    turned = rectify.direction(complexity, finished)
    np.testing.assert_array_equal(turned.projected, inner < 0)


def test_every_step(arrays):
    """The image of step i is made from the modifier after step i - 1; gates and distortion are of that image."""
    x = nhwc(arrays["x"])
    to_image = tanh_space.as_released(None).to_image
    masks = arrays["masks"].reshape(STEPS, -1, arrays["masks"].shape[-1])
    var = arrays["var"].reshape(STEPS, -1)
    for steps in range(1, STEPS + 1):
        result = run(arrays, steps)
        before = jnp.zeros_like(x) if steps == 1 else nhwc(arrays["modifier_after"][steps - 2])
        np.testing.assert_allclose(result.adversarial, to_image(x, before), atol=2e-5)
        np.testing.assert_allclose(result.record.distortion[-1] / x[0].size, var[steps - 1], rtol=1e-4)
        np.testing.assert_array_equal(result.record.on[-1], masks[steps - 1])


def test_the_paper_s_order_is_another(arrays):
    """Control: normalising before projecting gives other images, once a component was taken off."""
    x = nhwc(arrays["x"])
    paper = attacks.grad_auto(
        float(arrays["K"]), steps=6, direction_from=0, weights="equal", keep="last", change="release", normalization=None
    )
    far = jnp.abs(paper(stub(arrays), x).adversarial - run(arrays, 7).adversarial).max()
    print(far)
    assert float(far) > 1e-3
