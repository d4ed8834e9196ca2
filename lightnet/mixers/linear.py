"""Plain linear attention: no decay, no normalisation over tokens."""

import jax.numpy as jnp

from lightnet.backbone import Capabilities
from lightnet.mixers.gated import GatedMixer, LinearState, PerToken, no_decay
from lightnet.mixers.parts import paired_key_size, precision_of_states
from lightnet.scan import gated_linear_attention, gated_linear_step
from lightnet.typing import Array


class LinearAttention(GatedMixer):
    """Linear attention o_i = sum_j (phi(q_i) . phi(k_j)) v_j, over j <= i if causal, over all j if not.

    Katharopoulos et al. 2020 (arXiv 2006.16236), without their denominator: the norm of `GatedOutput` takes its place,
    as in LightNet, of which this is the ablation with phi(K) instead of softmax(K).

    Attributes:
        causal: whether position i sees only j <= i.
        activation: phi, of queries and keys. This field and the others: see `GatedMixer`.

    Example:
        >>> import jax
        >>> mixer = LinearAttention(width=4, num_heads=2)
        >>> (y, state), variables = jax.jit(mixer.init_with_output)(jax.random.key(0), jnp.ones((1, 3, 4)))
        >>> y.shape, state.matrix.shape
        ((1, 3, 4), (1, 2, 2, 2))
    """

    causal: bool = True

    @property
    def capabilities(self) -> Capabilities:
        """Masks always; segments, a state and steps on sequences when causal."""
        recurrent = self.causal and self.grid is None
        return Capabilities(causal=self.causal, state=recurrent, step=recurrent, segments=recurrent, mask=True)

    def init_state(self, batch: int) -> LinearState:
        """The state before the first token."""
        self.require(state=True)
        shape = (batch, self.num_heads, paired_key_size(self.relative, self.head_size), self.head_size)
        return LinearState(jnp.zeros(batch, jnp.int32), jnp.zeros(shape, precision_of_states(self.dtype)))

    def _read(
        self, x: Array, coordinates: Array, state: LinearState | None, per_token: PerToken
    ) -> tuple[Array, tuple]:
        q, k, v = self._features(x, coordinates)
        if not self.causal:
            return _whole(q, k, v, per_token["mask"]), ()
        before = None if state is None else state.matrix
        o, matrix = gated_linear_attention(q, k, v, no_decay(v), initial_state=before, **per_token)
        return o, (matrix,)

    def _read_one(self, x: Array, coordinates: Array, state: LinearState) -> tuple[Array, tuple]:
        q, k, v = self._features(x, coordinates)
        o, matrix = gated_linear_step(q, k, v, no_decay(v), state.matrix)
        return o, (matrix,)

    def _features(self, x: Array, coordinates: Array) -> tuple[Array, Array, Array]:
        q, k, v = self._parts(x)
        q, k = self.activation(q), self.activation(k)
        if self.relative is not None:
            q, k = self.encoding.pair(q, k, self.encoding(coordinates))
        return q, k, v


def _whole(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """q (k^T v) over all real tokens; the sum in float32 at least."""
    if mask is not None:
        k = jnp.where(mask[..., None, None], k, 0)
    wide = jnp.promote_types(v.dtype, jnp.float32)
    matrix = jnp.einsum("blhk,blhv->bhkv", k, v, preferred_element_type=wide)
    return jnp.einsum("blhk,bhkv->blhv", q, matrix, preferred_element_type=wide).astype(v.dtype)
