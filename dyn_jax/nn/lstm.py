"""One LSTM step in PyTorch's gate order and with its two bias vectors."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax.nn.parameter import parameter

Carry = tuple[jax.Array, jax.Array]


def lstm_step(carry: Carry, pre_activation: jax.Array) -> Carry:
    """``c' = f c + i g``, ``h' = o tanh(c')`` with gates i, f, g, o along the last axis.

    (h, c), each [batch, hidden], and the products plus biases [batch, 4 hidden] -> the new (h, c).
    """
    _, c = carry
    i, f, g, o = jnp.split(pre_activation, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


class LSTM(nn.Module):
    """Parameters of `lstm_step`: weight_ih [in, 4 hidden], weight_hh [hidden, 4 hidden], two biases [4 hidden]."""

    hidden: int

    @nn.compact
    def __call__(self, carry: Carry, x: jax.Array) -> Carry:
        bound = self.hidden**-0.5
        init = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        weight_ih = parameter(self, "weight_ih", init, (x.shape[-1], 4 * self.hidden))
        weight_hh = parameter(self, "weight_hh", init, (self.hidden, 4 * self.hidden))
        bias_ih = parameter(self, "bias_ih", init, (4 * self.hidden,))
        bias_hh = parameter(self, "bias_hh", init, (4 * self.hidden,))
        return _step(carry, x, weight_ih, weight_hh, bias_ih + bias_hh)


@partial(jax.jit, inline=True)
def _step(carry: Carry, x: jax.Array, weight_ih: jax.Array, weight_hh: jax.Array, bias: jax.Array) -> Carry:
    return lstm_step(carry, x @ weight_ih + carry[0] @ weight_hh + bias.reshape(1, -1))
