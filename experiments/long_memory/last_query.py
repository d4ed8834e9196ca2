"""Softmax attention of the last token only, for models whose last token alone is asked: linear in the length."""

import jax
import jax.numpy as jnp

from lightnet.backbone import Capabilities
from lightnet.mixers import SoftmaxAttention
from lightnet.typing import Array


class LastQueryAttention(SoftmaxAttention):
    """Causal softmax attention that is computed at the last token, and 0 at all others.

    o_L = sum_j softmax_j(q_L . k_j / sqrt(K)) v_j, the last row of `SoftmaxAttention`. In a model of one block whose
    last token alone is asked, nothing reads the other rows, so that its answers and gradients are those of all pairs,
    at L in place of L^2 / 2 scores for each head. It keeps no state and takes neither segments nor masks.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (1, 5, 4))
        >>> (y, _), params = LastQueryAttention(width=4, num_heads=2).init_with_output(jax.random.key(1), x)
        >>> whole, _ = SoftmaxAttention(width=4, num_heads=2).apply(params, x)
        >>> bool(jnp.allclose(y[:, -1], whole[:, -1], atol=1e-6)), float(abs(y[:, :-1]).max())
        (True, 0.0)
    """

    @property
    def capabilities(self) -> Capabilities:
        """None but that it is causal."""
        return Capabilities(causal=True, state=False, step=False, segments=False, mask=False)

    def _within(self, q: Array, k: Array, v: Array, run: Array, real: Array, plain: bool) -> Array:
        """Attention within one run of real tokens."""
        if not plain:
            raise ValueError("segment_ids, mask: expected None: the last token is asked")
        scores = jnp.einsum("bhm,bshm->bhs", q[:, -1], k) / v.shape[-1] ** 0.5
        o = jnp.einsum("bhs,bshk->bhk", jax.nn.softmax(scores), v)
        return jnp.pad(o[:, None], ((0, 0), (q.shape[1] - 1, 0), (0, 0), (0, 0)))
