"""Plain linear attention: no decay, no normalisation over tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from lightnet.backbone import Capabilities, Mixer
from lightnet.mixers.parts import (
    GatedOutput,
    Relative,
    into_heads,
    paired_key_size,
    places,
    precision_of_states,
    zero_masked,
)
from lightnet.scan import gated_linear_attention, gated_linear_step
from lightnet.typing import Array


class LinearState(NamedTuple):
    """What a recurrence with a matrix state carries: the next position (B,) and the state (B, H, M, K)."""

    position: Array
    matrix: Array


class LinearAttention(Mixer):
    """Linear attention o_i = sum_j (phi(q_i) . phi(k_j)) v_j, over j <= i if causal, over all j if not.

    Katharopoulos et al. 2020 (arXiv 2006.16236), without their denominator: the norm of `GatedOutput` takes its place,
    as in LightNet, of which this is the ablation with phi(K) instead of softmax(K).

    Attributes:
        width: channels D.
        num_heads: heads H; a divisor of D.
        causal: whether position i sees only j <= i.
        activation: phi, of queries and keys.
        gate_activation: of the gate.
        gate_position: "before" or "after" the norm.
        gate_rank: None is the head size.
        norm: constructor of the norm over all channels.
        use_bias: biases of the projections.
        relative: constructor of relative encodings, called with `head_size`; None has none.
        grid: size along each axis where the tokens are cells of a grid; None is a sequence.
        num_extra: tokens before the grid.
        out_scale: standard deviation of the output kernel's initial values.
        dtype: of the computation; None takes that of the inputs and parameters.

    Example:
        >>> import jax
        >>> mixer = LinearAttention(width=4, num_heads=2)
        >>> (y, state), variables = mixer.init_with_output(jax.random.key(0), jnp.ones((1, 3, 4)))
        >>> y.shape, state.matrix.shape
        ((1, 3, 4), (1, 2, 2, 2))
    """

    width: int
    num_heads: int
    causal: bool = True
    activation: Callable[[Array], Array] = nn.silu
    gate_activation: Callable[[Array], Array] = nn.sigmoid
    gate_position: str = "before"
    gate_rank: int | None = None
    norm: Callable[..., nn.Module] = partial(nn.RMSNorm, epsilon=1e-6)
    use_bias: bool = False
    relative: Relative = None
    grid: tuple[int, ...] | None = None
    num_extra: int = 0
    out_scale: float = 0.02
    dtype: Any = None

    def setup(self) -> None:
        """Declare the projections and the output."""
        self.qkv = into_heads(3, self.width, self.num_heads, self.use_bias, self.dtype)
        head_size = self.width // self.num_heads
        gate = (self.gate_rank or head_size, self.gate_activation, self.gate_position, self.norm)
        self.output = GatedOutput(self.width, *gate, self.use_bias, self.out_scale, self.dtype)
        if self.relative is not None:
            self.encoding = self.relative(head_size=head_size)

    @property
    def capabilities(self) -> Capabilities:
        """Masks always; segments, a state and steps on sequences when causal."""
        recurrent = self.causal and self.grid is None
        return Capabilities(causal=self.causal, state=recurrent, step=recurrent, segments=recurrent, mask=True)

    def __call__(
        self,
        x: Array,
        state: LinearState | None = None,
        *,
        segment_ids: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, LinearState | None]:
        """Mix a sequence or a grid.

        Args:
            x: (B, L, D).
            state: from an earlier call; None at the start.
            segment_ids: (B, L); a token sees its own run only.
            mask: (B, L), true at real tokens. A masked token is not seen, gives 0 and gets no gradient.

        Returns:
            (B, L, D), and the state behind the last token (None without one).

        Raises:
            ValueError: something is not supported, or a shape is another than stated.
        """
        self.require(state=state is not None, segments=segment_ids is not None)
        x = zero_masked(x, mask)
        offset = None if state is None else state.position
        coordinates, after = places(x, self.grid, self.num_extra, segment_ids=segment_ids, mask=mask, offset=offset)
        q, k, v = self._projected(x, coordinates)
        if not self.causal:
            return zero_masked(self.output(_whole(q, k, v, mask), x), mask), None
        before = None if state is None else state.matrix
        no_decay = jnp.zeros((*v.shape[:3], 1), v.dtype)
        o, matrix = gated_linear_attention(q, k, v, no_decay, initial_state=before, segment_ids=segment_ids, mask=mask)
        y = zero_masked(self.output(o, x), mask)
        return y, LinearState(after, matrix) if self.capabilities.state else None

    def step(self, x: Array, state: LinearState) -> tuple[Array, LinearState]:
        """Advance by one token (B, D)."""
        self.require(step=True)
        q, k, v = self._projected(x, state.position[:, None])
        o, matrix = gated_linear_step(q, k, v, jnp.zeros((*v.shape[:2], 1), v.dtype), state.matrix)
        return self.output(o, x), LinearState(state.position + 1, matrix)

    def init_state(self, batch: int) -> LinearState:
        """The state before the first token."""
        self.require(state=True)
        size = self.width // self.num_heads
        shape = (batch, self.num_heads, paired_key_size(self.relative, size), size)
        return LinearState(jnp.zeros(batch, jnp.int32), jnp.zeros(shape, precision_of_states(self.dtype)))

    def _projected(self, x: Array, coordinates: Array) -> tuple[Array, Array, Array]:
        q, k, v = jnp.unstack(self.qkv(x), axis=-3)
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
