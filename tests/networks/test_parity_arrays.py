"""Logits, scores, masks and input gradients against the authors' code, for FGM and both forms of LGM."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit, switched

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
TOLERANCE = {("skipnet_cifar_rl_38", "gg10"): 1e-3, ("skipnet_cifar_sp_38", "gg10"): 1e-3}


def nhwc(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


# What each file holds; a missing one fails, an unlisted one is found by test_every_array_is_compared.
HELD = {
    "skipnet_cifar_rl_38": ("fgm", "gg10", "gg1", "fg10", "fg1"),
    "skipnet_cifar_sp_38": ("fgm", "hardconst", "gg10", "gg1", "spadv", "fg10", "fg1"),
    "skipnet_cifar_ffsp_38": ("fgm", "hardconst"),
    "dynconv_cifar_resnet8": ("fgm", "gg10", "gg1", "fg10", "fg1"),
    "dynconv_imagenet_basic_1111_w025": ("fgm", "gg10", "gg1", "fg10", "fg1"),
}
SOFT = [file for file in sorted(FILES) if "gg10" in HELD[file]]
DYNCONV = [file for file in sorted(FILES) if file.startswith("dynconv")]


@pytest.fixture(scope="module")
def run(golden):
    """run(file, occupancy) -> (arrays, gradient of the mean cross-entropy, output); a file's network compiles once."""

    @cache
    def compiled(file):
        arrays = golden(file)
        name, fields = FILES[file]
        net = dyn_jax.networks.create(name, normalize=False, **fields)
        variables = weights_convert.convert(net, {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")})
        labels = jnp.asarray(arrays["y"], jnp.int32)

        @quick_jit
        @partial(jax.grad, has_aux=True)
        def loss(x, gate):
            output = net.apply(variables, x, occupancy=gate)
            log_probability = jax.nn.log_softmax(output.logits)
            return -jnp.mean(jnp.take_along_axis(log_probability, labels[:, None], 1)), output

        return arrays, loss

    def run(file, gate):
        arrays, loss = compiled(file)
        return arrays, *loss(nhwc(arrays["xn"]), switched(gate))

    return run


@pytest.mark.parametrize("file, mode", [(file, mode) for file in sorted(FILES) for mode in HELD[file]])
def test_forward_and_gradient(run, file, mode):
    gate = MODES[mode]
    if mode == "fgm" and "sp_" in file:
        gate = occupancy.straight_through(1.0)  # the released SP classes are straight-through in evaluation too
    arrays, gradient, output = run(file, gate)
    np.testing.assert_allclose(output.logits, arrays[f"logits_{mode}"], atol=1e-5)
    expected = nhwc(arrays[f"grad_{mode}"])
    error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
    assert error < TOLERANCE.get((file, mode), 1e-5)
    check = check_masks if file in DYNCONV else check_gates
    assert check(arrays, mode, output.trace) > 0


@pytest.mark.parametrize("file", sorted(FILES))
def test_every_array_is_compared(golden, file):
    assert sorted(HELD[file]) == sorted(k.removeprefix("grad_") for k in golden(file) if k.startswith("grad_"))


def check_gates(arrays, mode, trace):
    """How many of the file's arrays were compared."""
    scores, gates = (np.stack([getattr(unit, what) for unit in trace.units]) for what in ("score", "occupancy"))
    expected = {}
    if f"gate_logit_{mode}" in arrays:
        expected["logit"] = (scores, arrays[f"gate_logit_{mode}"][: len(scores)])
    if f"gate_logit2_{mode}" in arrays:
        both = arrays[f"gate_logit2_{mode}"][: len(scores)]
        expected["logit2"] = (scores, both[..., 1] - both[..., 0])
    if f"gates_{mode}" in arrays and mode != "spadv":  # spadv's file holds the hard gates beside a soft blend
        expected["gates"] = (gates, arrays[f"gates_{mode}"])
    for name, (got, want) in expected.items():
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)
    return len(expected)


def check_masks(arrays, mode, trace):
    suffix = f"_{mode}" if mode.startswith("gg") else ""
    for number, unit in enumerate(trace.units):
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
    return len(trace.units)


@pytest.mark.parametrize("file", SOFT)
def test_another_lambda_is_noticed(run, file):
    """Control."""
    arrays, gradient, _ = run(file, occupancy.sigmoid(9.0))
    expected = nhwc(arrays["grad_gg10"])
    assert np.linalg.norm(gradient - expected) / np.linalg.norm(expected) > 2 * TOLERANCE.get((file, "gg10"), 1e-5)


@pytest.mark.parametrize("file", DYNCONV)
def test_multiply_adds_of_dynconv(run, file):
    """The released counter: convolutions and the mask unit's bias additions, no linear layer."""
    arrays, _, output = run(file, occupancy.hard())
    linear, bias_adds = 0, 0
    state = {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")}
    for key, value in state.items():
        if key == "fc.weight" or key.endswith("maskconv.fc.weight"):
            linear += value.size
    for unit in output.trace.units:
        bias_adds += unit.score[0].size
    counted = float(metrics.executed_macs(output.trace).mean()) - linear + bias_adds
    assert counted == pytest.approx(float(arrays["macs_per_image"]), rel=1e-6)
