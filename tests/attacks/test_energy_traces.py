"""GradAuto step by step against the authors' code, on a stub of six linear gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks, objectives
from dyn_jax.attacks import Pixels, Rectify, rectify, released
from dyn_jax.attacks.threat import Box
from dyn_jax.types import Output, Trace, UnitTrace

FILES = ("attack_gradauto_K1",)
STEPS = 6


def nhwc(array):
    return jnp.asarray(np.moveaxis(np.asarray(array, np.float32), -3, -1))


@pytest.fixture(scope="module", params=FILES)
def arrays(request, golden):
    return golden(request.param)


def weights_of(arrays):
    """Arguments of the compiled functions: XLA would spend long on folding them as constants."""
    maps = [nhwc(arrays[name].reshape(-1, 3, 32, 32)) for name in ("Wg", "Wo")]
    return nhwc(arrays["x"]), *maps, jnp.asarray(arrays["bg"], jnp.float32).reshape(-1)


def stub(x, gates, out, bias):
    scores = jnp.einsum("nhwc,ghwc->ng", x, gates) + bias[None, :]
    units = tuple(UnitTrace(s, (s > 0).astype(s.dtype), 1, extras={"probability": jax.nn.sigmoid(s)}) for s in scores.T)
    return Output(jnp.einsum("nhwc,ohwc->no", x, out), Trace(units, 1))


def run(arrays, attack):
    return jax.jit(lambda x, *weights: attack(lambda x: stub(x, *weights), x))(*weights_of(arrays))


RELEASE = released.form(None)


def to_image(x, delta):
    return RELEASE.change(Pixels(x, Box(RELEASE.bounds)), delta)


def released_attack(arrays, steps):
    return released.grad_auto(
        float(arrays["K"]),
        steps=steps,
        learning_rate=float(arrays["lr"]),
        keep_logits=1e5 * bool(arrays["acc_maintain"]),
        normalization=None,
    )


def test_change_of_variable_and_first_gradients(arrays):
    x = nhwc(arrays["x"])
    np.testing.assert_allclose(to_image(x, jnp.zeros_like(x)), nhwc(arrays["tanh_rescale_of_x"]), atol=1e-6)

    def gradient(which):
        def loss(delta, x, *weights):
            return jnp.sum(which(stub(to_image(x, delta), *weights).trace, weights="equal"))

        return jax.jit(jax.grad(loss))(jnp.zeros_like(x), *weights_of(arrays))

    finished, complexity = gradient(objectives.finished_loss), gradient(objectives.complexity_loss)
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
    for steps in (2, STEPS):
        result = run(arrays, released_attack(arrays, steps))
        before = nhwc(arrays["modifier_after"][steps - 2])
        # the logits' rounding enters with the weight 1e5 where they are kept
        tolerance = 1e-4 if arrays["acc_maintain"] else 2e-5
        np.testing.assert_allclose(result.adversarial, to_image(x, before), atol=tolerance)
        np.testing.assert_allclose(result.record.distortion.T / x[0].size, arrays["var"][:steps], rtol=1e-4)
        np.testing.assert_array_equal(jnp.moveaxis(result.record.on, 1, 0), arrays["masks"][:steps])


def test_the_paper_s_order_is_another(arrays):
    """Control: normalising before projecting gives other images, once a component was taken off."""
    fields = {"rectify": Rectify(begin=0), "weights": "equal", "form": RELEASE}
    adversarial = run(arrays, attacks.grad_auto(float(arrays["K"]), steps=5, **fields)).adversarial
    expected = to_image(nhwc(arrays["x"]), nhwc(arrays["modifier_after"][4]))
    assert float(jnp.abs(adversarial - expected).max()) > 1e-3
