"""A user's own model, beside the result that uses it."""

import flax.linen as nn


class MyModel(nn.Module):
    width: int = 16

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(self.width)(x)))
