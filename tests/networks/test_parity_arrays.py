"""Logits, scores, masks and input gradients against the authors' code, for FGM and both forms of LGM."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dyn_jax
import weights_convert
from dyn_jax import metrics, occupancy

REDUCED = {"block": "basic", "depths": (1, 1, 1, 1), "widths": (16, 32, 64, 128), "num_classes": 10}
FILES = {
    "skipnet_cifar_rl_38": ("skipnet-rl-rnn-38-cifar10", {}),
    "skipnet_cifar_sp_38": ("skipnet-sp-rnn-38-cifar10", {}),
    "skipnet_cifar_ffsp_38": ("skipnet-sp-ff-38-cifar10", {}),
    "dynconv_cifar_resnet8": ("dynconv-8-cifar10", {}),
    "dynconv_imagenet_basic_1111_w025": ("dynconv-50-imagenet", REDUCED),
}
MODES = {
    "fgm": occupancy.hard(),
    "hardconst": occupancy.hard(),
    "gg10": occupancy.sigmoid(10.0),
    "gg1": occupancy.sigmoid(1.0),
    "spadv": occupancy.sigmoid(1.0),
    "fg10": occupancy.straight_through(10.0),
    "fg1": occupancy.straight_through(1.0),
}
# Relative L2 error of the input gradient; gg10 is a deep chain of soft gates, where correct programs differ by 1e-4.
TOLERANCE = {"gg10": 1e-3}


def nhwc(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


@pytest.fixture(scope="module", params=sorted(FILES))
def case(request, golden):
    """(file, arrays, run) with run(occupancy) -> (gradient of the mean cross-entropy, output)."""
    arrays = golden(request.param)
    name, fields = FILES[request.param]
    net = dyn_jax.networks.create(name, normalize=False, **fields)
    variables = weights_convert.convert(net, {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")})
    labels = jnp.asarray(arrays["y"], jnp.int32)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def run(x, gate):
        output = net.apply(variables, x, occupancy=gate)
        log_probability = jax.nn.log_softmax(output.logits)
        return -jnp.mean(jnp.take_along_axis(log_probability, labels[:, None], 1)), output

    return request.param, arrays, lambda gate: run(nhwc(arrays["xn"]), gate)


@pytest.mark.parametrize("mode", sorted(MODES))
def test_forward_and_gradient(case, mode):
    file, arrays, run = case
    if f"logits_{mode}" not in arrays:
        pytest.skip(f"{file} has no {mode}")
    gate = MODES[mode]
    if mode == "fgm" and "sp_" in file:
        gate = occupancy.straight_through(1.0)  # the released SP classes are straight-through in evaluation too
    gradient, output = run(gate)
    np.testing.assert_allclose(output.logits, arrays[f"logits_{mode}"], atol=1e-5)
    expected = nhwc(arrays[f"grad_{mode}"])
    error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
    assert error < TOLERANCE.get(mode, 1e-5)
    check_gates(arrays, mode, output.trace)
    check_masks(arrays, mode, output.trace)


def check_gates(arrays, mode, trace):
    if f"gate_logit_{mode}" in arrays:
        scores = np.stack([unit.score for unit in trace.units])
        np.testing.assert_allclose(scores, arrays[f"gate_logit_{mode}"][: len(scores)], atol=1e-5)
    if f"gate_logit2_{mode}" in arrays:
        scores = np.stack([unit.score for unit in trace.units])
        both = arrays[f"gate_logit2_{mode}"][: len(scores)]
        np.testing.assert_allclose(scores, both[..., 1] - both[..., 0], atol=1e-5)
    if f"gates_{mode}" in arrays and mode != "spadv":  # spadv's file holds the hard gates beside a soft blend
        gates = np.stack([unit.occupancy for unit in trace.units])
        np.testing.assert_allclose(gates, arrays[f"gates_{mode}"], atol=1e-5)


def check_masks(arrays, mode, trace):
    suffix = f"_{mode}" if mode.startswith("gg") else ""
    for number, unit in enumerate(trace.units):
        if f"mask{number:02d}_std" not in arrays:
            return
        std, dilated = (arrays[f"mask{number:02d}_{kind}{suffix}"][:, 0] for kind in ("std", "dilate"))
        np.testing.assert_allclose(unit.occupancy, std, atol=2e-5)
        np.testing.assert_allclose(unit.extras["dilated"], dilated, atol=2e-5)
        first, rest = (int(n) for n in arrays[f"mask{number:02d}_flops_per_position"])
        wide = dilated[0].size // std[0].size  # positions of the first convolution for one of the others
        assert unit.dense_macs == wide * first + rest
        expected = rest * std.sum((1, 2), dtype=float) + first * dilated.sum((1, 2), dtype=float)
        np.testing.assert_allclose(metrics.executed_unit_macs(unit), expected, rtol=2e-5)
        if mode == "fgm":
            np.testing.assert_allclose(unit.score, arrays[f"mask{number:02d}_soft"][:, 0], atol=1e-5)


def test_another_lambda_is_noticed(case):
    """Control."""
    file, arrays, run = case
    if "grad_gg10" not in arrays:
        pytest.skip(f"{file} has no gg10")
    gradient, _ = run(occupancy.sigmoid(9.0))
    expected = nhwc(arrays["grad_gg10"])
    assert np.linalg.norm(gradient - expected) / np.linalg.norm(expected) > 1e-3


def test_multiply_adds_of_dynconv(case):
    """The released counter: convolutions and the mask unit's bias additions, no linear layer."""
    file, arrays, run = case
    if "macs_per_image" not in arrays:
        pytest.skip(f"{file} has no multiply-adds")
    _, output = run(occupancy.hard())
    linear, bias_adds = 0, 0
    state = {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")}
    for key, value in state.items():
        if key == "fc.weight" or key.endswith("maskconv.fc.weight"):
            linear += value.size
    for unit in output.trace.units:
        bias_adds += unit.score[0].size
    counted = float(metrics.executed_macs(output.trace).mean()) - linear + bias_adds
    assert counted == pytest.approx(float(arrays["macs_per_image"]), rel=1e-6)
