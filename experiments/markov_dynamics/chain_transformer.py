"""The small GPT-2 of "Attention with Markov" (arXiv 2402.04161): tied or not, with a limited view or not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.backbone import Backbone, Capabilities, CausalLM, Mixer
from lightnet.typing import Array


class WindowedAttention(Mixer):
    """Causal softmax attention in which position i sees j with 0 <= i - j <= window.

    Attributes:
        width: channels D.
        num_heads: heads H; a divisor of D.
        window: furthest position back; 0 sees all.
        out_scale: standard deviation of the output projection's initial values.
        dtype: of the computation.

    Example:
        >>> attention = WindowedAttention(width=4, num_heads=1, window=2)
        >>> jax.jit(attention.init_with_output)(jax.random.key(0), jnp.ones((1, 5, 4)))[0][0].shape
        (1, 5, 4)
    """

    width: int
    num_heads: int = 1
    window: int = 0
    out_scale: float = 0.02
    dtype: Any = None

    @property
    def capabilities(self) -> Capabilities:
        """Whole sequences only."""
        return Capabilities(causal=True, state=False, step=False, segments=False, mask=False)

    @nn.compact
    def __call__(
        self, x: Array, state: None = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, None]:
        """Attend within a window.

        Args:
            x: (B, L, D).
            state: not supported.
            segment_ids: not supported.
            mask: not supported.

        Returns:
            (B, L, D) and None.

        Raises:
            ValueError: something that is not supported is given.
        """
        self.require(state=state is not None, segments=segment_ids is not None, mask=mask is not None)
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        projected = dense(3 * self.width, kernel_init=nn.initializers.normal(0.02), name="qkv")(x)
        shape = (*x.shape[:2], self.num_heads, self.width // self.num_heads)
        q, k, v = (part.reshape(shape) for part in jnp.split(projected, 3, axis=-1))
        view = (self.window, 0) if self.window else None
        seen = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=view)
        out = dense(self.width, kernel_init=nn.initializers.normal(self.out_scale), name="out")
        return out(seen.reshape(x.shape)), None


def chain_transformer(length: int, *, layers: int, width: int, tied: bool = True, window: int = 0) -> CausalLM:
    """The model: learned positions, one head, exact GELU, no biases but at the output.

    Args:
        length: longest text.
        layers: blocks.
        width: channels.
        tied: whether the output kernel is the embedding.
        window: see `WindowedAttention`.

    Returns:
        A causal model of binary symbols.

    Example:
        >>> chain_transformer(16, layers=1, width=4).vocab_size
        2
    """
    backbone = Backbone(
        mixer=partial(WindowedAttention, window=window),
        num_layers=layers,
        width=width,
        activation=partial(nn.gelu, approximate=False),
    )
    return CausalLM(backbone, vocab_size=2, max_length=length, tied=tied, head_bias=True)


def next_symbol_loss(model: CausalLM) -> Callable[[Any, Array], Array]:
    """Mean cross-entropy of each symbol but the first given those before it.

    Args:
        model: from `chain_transformer`.

    Returns:
        (parameters, symbols (B, L)) -> nats per symbol.
    """

    def loss(params: Any, symbols: Array) -> Array:
        logits: Any = model.apply({"params": params}, symbols[:, :-1])
        logs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(logs, symbols[:, 1:, None], axis=-1).mean()

    return loss
