"""Two layers of attention that learn in-context bigrams: "Statistical Induction Heads" (arXiv 2402.11004).

Attention only: no MLP, learned relative positions that enter the logits through the query, a residual stream with norms
before each layer and at the end, an output layer of its own. The attention weights are returned, since what the two
layers attend to is the result.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.typing import Array

_INIT = nn.initializers.normal(0.02)


class RelativeAttention(nn.Module):
    """Causal attention with learned relative positions.

    a_ij = softmax_j (q_i . (k_j + r_{i-j}) / sqrt(d)),  j <= i

    Attributes:
        width: channels D.
        heads: heads H; a divisor of D.
        length: longest sequence.

    Example:
        >>> attention = RelativeAttention(width=4, heads=2, length=3)
        >>> (y, weights), _ = jax.eval_shape(attention.init_with_output, jax.random.key(0), jnp.ones((1, 3, 4)))
        >>> y.shape, weights.shape
        ((1, 3, 4), (1, 2, 3, 3))
    """

    width: int
    heads: int
    length: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Attend.

        Args:
            x: (B, L, D).

        Returns:
            (B, L, D), and the weights (B, H, L, L) at [b, h, i, j].
        """
        size, count = self.width // self.heads, x.shape[1]
        dense = partial(nn.DenseGeneral, features=(self.heads, size), use_bias=False, kernel_init=_INIT)
        q, k, v = (dense(name=name)(x) for name in ("query", "key", "value"))
        relative = self.param("relative", _INIT, (self.length, self.heads, size))
        lag = np.subtract.outer(np.arange(count), np.arange(count))
        by_lag = jnp.einsum("bihd,rhd->bhir", q, relative[:count])
        by_place = jnp.take_along_axis(by_lag, jnp.broadcast_to(np.maximum(lag, 0), by_lag.shape), -1)
        logits = (jnp.einsum("bihd,bjhd->bhij", q, k) + by_place) / size**0.5
        weights = jax.nn.softmax(jnp.where(lag[None, None] >= 0, logits, -jnp.inf))
        seen = jnp.einsum("bhij,bjhd->bihd", weights, v)
        out = nn.DenseGeneral(self.width, axis=(-2, -1), use_bias=False, kernel_init=_INIT, name="out")(seen)
        return out, weights


class InductionModel(nn.Module):
    """The stack: embedding, attention layers, logits of the symbol after each position.

    Attributes:
        alphabet: symbols K.
        length: longest sequence.
        width: channels D.
        heads: of each layer.

    Example:
        >>> model = InductionModel(alphabet=2, length=5, width=4)
        >>> symbols = jnp.zeros((1, 5), jnp.int32)
        >>> (logits, weights), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), symbols)
        >>> logits.shape, len(weights)
        ((1, 5, 2), 2)
    """

    alphabet: int
    length: int
    width: int = 16
    heads: tuple[int, ...] = (1, 1)

    @nn.compact
    def __call__(self, symbols: Array) -> tuple[Array, list[Array]]:
        """Predict.

        Args:
            symbols: (B, L) integers.

        Returns:
            Logits (B, L, K), and the attention weights of each layer.
        """
        x = nn.Embed(self.alphabet, self.width, embedding_init=_INIT, name="embedding")(symbols)
        weights = []
        for layer, heads in enumerate(self.heads):
            attention = RelativeAttention(self.width, heads, self.length, name=f"attention_{layer}")
            change, attended = attention(nn.LayerNorm(name=f"norm_{layer}")(x))
            x = x + change
            weights.append(attended)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(self.alphabet, use_bias=False, kernel_init=_INIT, name="head")(x), weights


def previous_token_attention(weights: Array) -> Array:
    """Mean attention on the position just before, of the head that has most of it.

    Args:
        weights: of one layer, (B, H, L, L).

    Returns:
        A scalar in [0, 1].

    Example:
        >>> float(previous_token_attention(jnp.eye(3, k=-1)[None, None]))
        1.0
    """
    return jnp.diagonal(weights, offset=-1, axis1=-2, axis2=-1).mean(axis=(0, 2)).max()


def induction_mass(weights: Array, symbols: Array) -> Array:
    """Mean attention on positions whose predecessor is the current symbol, where there is one.

    Args:
        weights: of one layer with one head, (B, 1, L, L).
        symbols: (B, L).

    Returns:
        A scalar in [0, 1]; NaN if no symbol has occurred before.

    Example:
        >>> symbols = jnp.array([[0, 1, 0]])
        >>> weights = jnp.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.7, 0.1]])
        >>> round(float(induction_mass(weights[None, None], symbols)), 3)  # the last 0 looks at what followed the first
        0.7
    """
    follows = jnp.pad(symbols[:, None, :-1] == symbols[:, :, None], ((0, 0), (0, 0), (1, 0)))
    follows &= jnp.tril(jnp.ones(follows.shape[1:], bool))[None]
    there = follows.any(axis=-1)
    mass = jnp.where(follows, weights[:, 0], 0).sum(axis=-1)
    return jnp.where(there, mass, 0).sum() / there.sum()
