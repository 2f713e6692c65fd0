"""SkipNet's recurrent gate: one LSTM shared along the depth of the network."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import macs
from dyn_jax.nn import LSTM, Dense
from dyn_jax.nn.lstm import Carry


class RecurrentGate(nn.Module):
    """Embedded features -> LSTM step -> one linear unit: the score of the next block.

    The pooled features are embedded per block, outside this module (`embed`); LSTM and projection are shared.
    Source: SkipNet section 3.2, figure 3b.
    """

    hidden: int = 10

    def setup(self) -> None:
        self.rnn = LSTM(self.hidden)
        self.proj = Dense(1)

    def __call__(self, carry: Carry, embedding: jax.Array) -> tuple[Carry, jax.Array]:
        """carry (h, c), embedding [batch, hidden] -> new carry, score [batch]."""
        carry = self.rnn(carry, embedding)
        return carry, self.proj(carry[0])[:, 0]

    def zero_carry(self, x: jax.Array) -> Carry:
        """The carry that every forward pass starts from."""
        return jnp.zeros((x.shape[0], self.hidden), x.dtype), jnp.zeros((x.shape[0], self.hidden), x.dtype)

    def macs(self, in_features: int) -> int:
        """Multiply-adds of one score, with the embedding of `in_features` pooled channels."""
        return macs.dense(in_features, self.hidden) + macs.lstm(self.hidden, self.hidden) + macs.dense(self.hidden, 1)
