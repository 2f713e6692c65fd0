"""One training step against the authors' code: logits, losses, parameter gradients, running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit
from flax import traverse_util

import dyn_jax
import weights_convert
from dyn_jax import occupancy
from dyn_jax.training.hrl import hrl_loss
from dyn_jax.training.sparsity import sparsity_loss
from weights_convert import engine, layout
from weights_convert.tables import table_for


def nhwc(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


class Step:
    """A golden file's network, and the comparison of what a training step gave."""

    def __init__(self, name, arrays):
        self.arrays = arrays
        self.net = dyn_jax.networks.create(name, normalize=False)
        state = {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")}
        self.variables = weights_convert.convert(self.net, state)
        self.images, self.labels = nhwc(arrays["xn"]), jnp.asarray(arrays["y"], jnp.int32)

    def gradient(self, gate, loss):
        """(parameter gradients, (aux of the loss, output, batch statistics afterwards))."""

        @quick_jit
        def run(params):
            def value(params):
                variables = {"params": params, "batch_stats": self.variables["batch_stats"]}
                output, updated = self.net.apply(
                    variables,
                    self.images,
                    occupancy=gate,
                    train=True,
                    rngs={"gate": jax.random.key(0)},
                    mutable=["batch_stats"],
                )
                total, aux = loss(output)
                return total, (aux, output, updated["batch_stats"])

            return jax.grad(value, has_aux=True)(params)

        return run(self.variables["params"])

    def check(self, prefix, gradient, statistics, tolerance=2e-5):
        rename = table_for(self.net)
        leaves = traverse_util.flatten_dict({"params": gradient, "batch_stats": statistics})
        compared = 0
        for key, expected in self.arrays.items():
            head, _, torch_key = key.removeprefix(f"{prefix}/").partition("/")
            if not key.startswith(f"{prefix}/") or head not in ("grad", "after") or "num_batches" in key:
                continue
            got = leaves[engine._target(rename, torch_key)]
            want = layout.transpose_to(expected, got.shape)
            error = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-12)
            assert error < tolerance, f"{torch_key}: relative error {error:.1e}"
            compared += 1
        assert compared >= 10


def cross_entropy(step, output):
    log_probability = jax.nn.log_softmax(output.logits)
    return -jnp.mean(jnp.take_along_axis(log_probability, step.labels[:, None], 1))


def test_skipnet_sp(golden):
    step = Step("skipnet-sp-rnn-38-cifar10", golden("skipnet_cifar_sp_38"))
    value = lambda output: (cross_entropy(step, output),) * 2
    gradient, (loss, output, statistics) = step.gradient(None, value)
    np.testing.assert_allclose(output.logits, step.arrays["train/logits"], atol=2e-5)
    np.testing.assert_allclose(loss, step.arrays["train/ce"], rtol=1e-5)
    gates = np.stack([unit.occupancy for unit in output.trace.units])
    np.testing.assert_array_equal(gates, step.arrays["train/gates"])
    step.check("train", gradient, statistics, tolerance=1e-4)


def test_skipnet_hrl_with_the_authors_actions(golden):
    step = Step("skipnet-rl-rnn-38-cifar10", golden("skipnet_cifar_rl_38"))
    actions = iter(jnp.asarray(step.arrays["train_hrl/actions"]))
    alpha, rl_weight, gamma = (float(v) for v in step.arrays["train_hrl/alpha_rlweight_gamma"])
    loss = lambda output: hrl_loss(output, step.labels, alpha=alpha, rl_weight=rl_weight, gamma=gamma)
    gradient, (parts, output, statistics) = step.gradient(lambda score: next(actions), loss)
    np.testing.assert_allclose(output.logits, step.arrays["train_hrl/logits"], atol=2e-5)
    np.testing.assert_allclose(parts.cross_entropy, step.arrays["train_hrl/ce"], rtol=1e-5)
    np.testing.assert_allclose(parts.surrogate, step.arrays["train_hrl/surrogate"], rtol=1e-4)
    step.check("train_hrl", gradient, statistics, tolerance=1e-4)


def test_hrl_returns_by_hand():
    """Two gates, two examples: skipping earns alpha / 2 each, the future counts, cross-entropy is subtracted."""
    from dyn_jax.types import Output, Trace, UnitTrace

    score = jnp.array([0.3, -0.2])
    units = [UnitTrace(score, jnp.array(o), 1) for o in ([1.0, 0.0], [0.0, 0.0])]
    output = Output(jnp.zeros((2, 4)), Trace(tuple(units)))
    _, parts = hrl_loss(output, jnp.array([0, 1]), alpha=0.2, rl_weight=0.5, gamma=0.5)
    entropy = np.log(4)
    np.testing.assert_allclose(parts.returns, [[0.05 - entropy, 0.15 - entropy], [0.1 - entropy] * 2], rtol=1e-6)
    probability = 1 / (1 + np.exp(-np.array([[0.3, 0.2], [-0.3, 0.2]])))
    np.testing.assert_allclose(parts.surrogate, -0.5 * np.sum(parts.returns * np.log(probability + 1e-6)), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_dynconv_without_noise(golden, temperature):
    step = Step("dynconv-8-cifar10", golden("dynconv_cifar_resnet8"))
    prefix = f"train/temp{temperature:g}"
    target, epochs = step.arrays["sp_target_numepochs"]

    def loss(output):
        entropy = cross_entropy(step, output)
        sparsity, _ = sparsity_loss(output.trace, target=float(target), epoch=20, epochs=int(epochs))
        return entropy + 10 * sparsity, (entropy, sparsity)

    # as in training: the dilated mask is hard, and no gradient passes through it
    gate = occupancy.gumbel_sigmoid(temperature, noise=False)
    gradient, ((entropy, sparsity), output, statistics) = step.gradient(gate, loss)
    np.testing.assert_allclose(output.logits, step.arrays[f"{prefix}/logits"], atol=2e-5)
    expected = step.arrays[f"{prefix}/ce_sp_total"]
    np.testing.assert_allclose([entropy, sparsity, entropy + 10 * sparsity], expected, rtol=2e-5)
    step.check(prefix, gradient, statistics, tolerance=1e-4)


def test_dynconv_with_the_authors_gumbel_noise(golden):
    step = Step("dynconv-8-cifar10", golden("dynconv_cifar_resnet8"))
    calls = iter(range(6))

    def noisy(score):
        number, dilated = divmod(next(calls), 2)  # every block asks for its mask, then for its dilated mask
        if dilated:
            return occupancy.hard()(score)
        gumbel = [
            -jnp.log(-jnp.log(jnp.asarray(step.arrays[f"train/noise/U{i}_{number:02d}"][:, 0]) + 1e-8) + 1e-8)
            for i in (1, 2)
        ]
        return occupancy.hard()(score + gumbel[0] - gumbel[1])

    output, _ = step.net.apply(step.variables, step.images, occupancy=noisy, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(output.logits, step.arrays["train/noise/logits"], atol=2e-5)


def test_sparsity_over_the_epochs(golden):
    step = Step("dynconv-8-cifar10", golden("dynconv_cifar_resnet8"))
    trace = jax.jit(step.net.apply)(step.variables, step.images).trace
    target, epochs = step.arrays["sp_target_numepochs"]
    for epoch, expected in zip(step.arrays["sp_epochs"], step.arrays["sp_cols_total_network_block_upper_lower_perc"]):
        total, parts = sparsity_loss(trace, target=float(target), epoch=float(epoch), epochs=int(epochs))
        got = [total, parts.network, parts.block, parts.upper, parts.lower, parts.share]
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(parts.block_share, step.arrays["sp_layer_perc"], rtol=1e-5)
