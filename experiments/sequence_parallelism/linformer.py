"""Linformer's attention, the sparse attention that sequence parallelism was shown with (Wang et al., 2006.04768)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.backbone import Capabilities, Mixer, partitioned
from lightnet.mixers.parts import into_heads, out_of_heads


class Linformer(Mixer):
    """Softmax attention of L tokens to R projected ones, softmax(Q (E K)^T / sqrt(K)) E V (Linformer, eq. 7).

    The projection E (R, L) is shared by heads and by keys and values. Split over the sequence, each device projects its
    own stretch, and what devices exchange is the sum, R tokens whatever L is.

    Attributes:
        width: channels D.
        num_heads: heads H.
        length: of a sequence, L.
        rank: projected tokens, R.
        out_scale: standard deviation of the output projection's initial values.
        dtype: of the computation.

    Example:
        >>> x = jnp.ones((1, 6, 8))
        >>> (y, _), variables = Linformer(width=8, num_heads=2, length=6, rank=3).init_with_output(jax.random.key(0), x)
        >>> y.shape
        (1, 6, 8)
    """

    width: int
    num_heads: int
    length: int
    rank: int = 256
    out_scale: float = 0.02
    dtype: Any = None

    def setup(self) -> None:
        """Declare the projections."""
        self.qkv = into_heads(3, self.width, self.num_heads, False, self.dtype)
        self.out = out_of_heads(self.width, self.out_scale, False, self.dtype)
        init = partitioned(nn.initializers.normal(self.rank**-0.5), None, None)
        self.projection = self.param("projection", init, (self.length, self.rank))

    @property
    def capabilities(self) -> Capabilities:
        """Whole sequences of one length."""
        return Capabilities(causal=False, state=False, step=False, segments=False, mask=False)

    def __call__(self, x: jax.Array, state: Any = None, **per_token: Any) -> tuple[jax.Array, None]:
        """Attend.

        Args:
            x: (B, L, D).
            state: None.
            **per_token: None each.

        Returns:
            (B, L, D), and no state.
        """
        given = {name: value is not None for name, value in per_token.items()}
        self.require(state=state is not None, segments=given.get("segment_ids", False), mask=given.get("mask", False))
        q, k, v = jnp.unstack(self.qkv(x), axis=2)
        k, v = (jnp.einsum("blhk,lr->brhk", y, self.projection.astype(y.dtype)) for y in (k, v))
        return self.out(jax.nn.dot_product_attention(q, k, v)), None
