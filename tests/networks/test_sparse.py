"""ReLU as an occupancy: the network is the static ResNet, its work depends on the input, and can be attacked."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ALL_NETWORKS, some_images, tiny_forward, variables_of
from compiled import quick_jit

from dyn_jax import attacks, metrics, networks, objectives, occupancy
from dyn_jax.metrics import Accelerator
from dyn_jax.types import Output, Trace, UnitTrace

IMAGES = some_images(16, 6)


@pytest.mark.parametrize("form", ["A", "B"])
def test_is_the_static_resnet(form):
    static, net, variables = (
        ALL_NETWORKS[f"resnet {form}"],
        ALL_NETWORKS[f"sparse {form}"],
        variables_of(f"resnet {form}"),
    )

    def both(x):
        of = lambda apply: jax.value_and_grad(lambda x: jnp.sum(apply(variables, x).logits ** 2))(x)
        return of(static.apply), of(net.apply), static.apply(variables, x), net.apply(variables, x)

    (_, expected), (_, gradient), before, after = quick_jit(both)(IMAGES)
    np.testing.assert_allclose(after.logits, before.logits, atol=1e-5)
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * float(jnp.abs(expected).max()))
    assert metrics.dense_macs(after.trace) == before.trace.static_macs
    executed = metrics.executed_macs(after.trace)
    assert len(np.unique(np.asarray(executed))) == 6 and (executed < metrics.dense_macs(after.trace)).all()


def test_sponge_examples_and_the_energy_attacks():
    net, variables = ALL_NETWORKS["sparse A"], variables_of("resnet A")
    forward = partial(net.apply, variables)
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    chosen = {
        "norm": objectives.activation_norm(),
        "density": objectives.activation_density(),
        "scores": objectives.energy(),
    }
    rose = {}
    for name, objective in chosen.items():
        attack = attacks.bim(0.2, 0.04, 8, objective=objective, attack_all=True)
        result = quick_jit(lambda x, a=attack: a(forward, x))(IMAGES)
        before, after = (metrics.accelerator_energy(t, size) for t in (result.trace_clean, result.trace_adversarial))
        assert (
            objective(Output(result.logits_adversarial, result.trace_adversarial), None).sum()
            > objective(Output(result.logits_clean, result.trace_clean), None).sum()
        )
        rose[name] = float(jnp.mean(after / before)) - 1
    assert rose["density"] > 0.002 and rose["scores"] > 0.01, rose


def test_soft_occupancies_are_swish():
    net, variables = ALL_NETWORKS["sparse A"], variables_of("resnet A")
    unit = net.apply(variables, IMAGES[:1], occupancy=occupancy.sigmoid(2.0)).trace.units[0]
    np.testing.assert_allclose(unit.occupancy, jax.nn.sigmoid(2 * unit.score), rtol=1e-5)


def test_energy_by_hand():
    score = jnp.array([[1.0, -1.0, 2.0, 3.0]])
    trace = Trace((UnitTrace(score, occupancy.hard()(score), 10),), 5)
    got = metrics.accelerator_energy(trace, 7)
    np.testing.assert_allclose(got, [1950 * (7 + 2 * 3) + 3.7 * (5 + 30)])
    worst = metrics.accelerator_energy(trace, 7, Accelerator(skips=False))
    np.testing.assert_allclose(worst, [1950 * (7 + 2 * 4) + 3.7 * (5 + 40)])
    density = objectives.activation_density(1.0)(Output(score, trace), None)
    np.testing.assert_allclose(density, [(1 / 2 + 4 / 5 + 9 / 10) / 4], rtol=1e-6)
    np.testing.assert_allclose(objectives.activation_norm()(Output(score, trace), None), [14**0.5], rtol=1e-6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: objectives.activation_density(0.0), "sigma: got 0.0"),
        (lambda: objectives.activation_norm()(Output(jnp.ones((1, 2))), None), "without units"),
        (lambda: metrics.accelerator_energy(tiny_forward(some_images(4)).trace, -1), "parameters: got -1"),
        (
            lambda: networks.create("sparse-resnet-20-cifar10").init(jax.random.key(0), some_images(18)),
            "multiples of 4",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
