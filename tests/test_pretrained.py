"""The small image networks that ship: accurate, and adaptive in fact."""

import jax
import numpy as np
import pytest

from dyn_jax import metrics, networks
from dyn_jax.datasets import digits

QUICK = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize(
    "name", ["skipnet-digits", "skipnet-rl-digits", "dynconv-digits", "sact-digits", "manidp-digits"]
)
def test_saves_multiply_adds_by_the_input(name):
    net, variables = networks.pretrained(name)
    data = digits("test")
    output = jax.jit(net.apply, compiler_options=QUICK)(variables, data.images[:200])
    assert float(metrics.accuracy(output.logits, data.labels[:200])) > 0.96
    executed = np.asarray(metrics.executed_macs(output.trace))
    saved = 1 - executed / metrics.dense_macs(output.trace)
    assert 0.15 < saved.mean() < 0.60
    assert len(np.unique(executed)) >= 5 and saved.std() > 0.005
