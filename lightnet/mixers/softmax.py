"""Softmax attention, which the other mixers are compared with."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from lightnet.backbone import Capabilities, Mixer
from lightnet.mixers.parts import Relative, into_heads, out_of_heads, paired_key_size, places, zero_masked
from lightnet.mixers.ring import split_attention
from lightnet.segments import run_index
from lightnet.typing import Array


class AttentionState(NamedTuple):
    """Keys and values of the tokens read so far in the current run; slots from `length` on are unused.

    The keys have their positions in them; M is K, or 2 K with MD-LRPE.
    """

    keys: Float[Array, "B S H M"]
    values: Float[Array, "B S H K"]
    length: Int[Array, " B"]


class SoftmaxAttention(Mixer):
    """Multi-head softmax attention, causal or not, with a key-value cache.

    o_i = sum_j softmax_j(q_i . k_j / sqrt(K)) v_j over the visible j (Vaswani et al. 2017, eq. 1). Where a mesh with an
    axis `sequence` is set, keys and values go round it (`lightnet.mixers.ring`).

    Attributes:
        width: channels D.
        num_heads: heads H; a divisor of D.
        causal: whether position i sees only j <= i.
        max_length: slots of the cache; 0 keeps no state, as in training.
        use_bias: biases of the two projections.
        out_scale: standard deviation of the output projection's initial values.
        dtype: of the computation; None takes that of the inputs and parameters.
        relative: constructor of relative encodings, called with `head_size`; None has none.
        grid: size along each axis where the tokens are cells of a grid, for `relative`; None is a sequence. On a grid
            there are neither segments nor a state.
        num_extra: tokens before the grid.

    Example:
        >>> attention = SoftmaxAttention(width=4, num_heads=2)
        >>> x = jnp.ones((1, 3, 4))
        >>> (y, state), variables = jax.jit(attention.init_with_output)(jax.random.key(0), x)
        >>> y.shape, state
        ((1, 3, 4), None)
    """

    width: int
    num_heads: int
    causal: bool = True
    max_length: int = 0
    use_bias: bool = False
    out_scale: float = 0.02
    dtype: Any = None
    relative: Relative = None
    grid: tuple[int, ...] | None = None
    num_extra: int = 0

    def setup(self) -> None:
        """Declare the projections into queries, keys and values and back."""
        self.qkv = into_heads(3, self.width, self.num_heads, self.use_bias, self.dtype)
        self.out = out_of_heads(self.width, self.out_scale, self.use_bias, self.dtype)
        if self.relative is not None:
            self.encoding = self.relative(head_size=self.width // self.num_heads)

    @property
    def capabilities(self) -> Capabilities:
        """Masks always, segments of sequences; a state when causal with a cache."""
        sequence = self.grid is None
        cached = self.causal and self.max_length > 0 and sequence
        return Capabilities(causal=self.causal, state=cached, step=cached, segments=sequence, mask=True)

    def __call__(
        self,
        x: Array,
        state: AttentionState | None = None,
        *,
        segment_ids: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, AttentionState | None]:
        """Attend within a sequence, and to the cache if a state is given.

        Args:
            x: (B, L, D).
            state: the cache so far; its tokens belong to the first run.
            segment_ids: (B, L); a token sees its own run only.
            mask: (B, L), true at real tokens. A masked token is not seen, gives 0 and gets no gradient.

        Returns:
            (B, L, D), and the cache after the last token (None without `max_length`).

        Raises:
            ValueError: a state is given to a mixer that keeps none, or the cache is full.
        """
        self.require(state=state is not None, segments=segment_ids is not None)
        x = zero_masked(x, mask)
        q, k, v = self._projected(x, None if state is None else state.length, segment_ids, mask)
        run = jnp.zeros(x.shape[:2], jnp.int32) if segment_ids is None else run_index(segment_ids, mask)
        real = jnp.ones(x.shape[:2], bool) if mask is None else mask
        if state is None:
            plain = segment_ids is None and mask is None
            o = self._within(q, k, v, run, real, plain)
        else:
            self._check_room(state, x.shape[1])
            keys = jnp.concatenate([state.keys.astype(k.dtype), k], 1)
            values = jnp.concatenate([state.values.astype(v.dtype), v], 1)
            visible = jnp.concatenate([_visible_slots(state, run), _visible_tokens(run, real, self.causal)], axis=-1)
            o = _attend(q, keys, values, visible)
        y = self.out(o)
        y = zero_masked(y if state is None else _poison_overflow(y, state), mask)
        if not self.capabilities.state:
            return y, None
        if state is None:
            state = self.init_state(x.shape[0])
            state = state._replace(keys=state.keys.astype(k.dtype), values=state.values.astype(v.dtype))
            self._check_room(state, x.shape[1])
        return y, _extend(state, k, v, run, real)

    def step(self, x: Array, state: AttentionState) -> tuple[Array, AttentionState]:
        """Attend from one token (B, D) to the cache and itself."""
        self.require(step=True)
        self._check_room(state, 1)
        q, k, v = self._projected(x[:, None], state.length)
        one = (x.shape[0], 1)
        state = _extend(state, k, v, jnp.zeros(one, jnp.int32), jnp.ones(one, bool))
        visible = _visible_slots(state, jnp.zeros(one, jnp.int32))
        y = self.out(_attend(q, state.keys.astype(k.dtype), state.values.astype(v.dtype), visible))
        return _poison_overflow(y, state)[:, 0], state

    def init_state(self, batch: int) -> AttentionState:
        """An empty cache for `batch` rows."""
        self.require(state=True)
        slots, size = (batch, self.max_length, self.num_heads), self.width // self.num_heads
        keys = jnp.zeros((*slots, paired_key_size(self.relative, size)), self.dtype)
        values = jnp.zeros((*slots, size), self.dtype)
        return AttentionState(keys, values, jnp.zeros(batch, jnp.int32))

    def _projected(
        self, x: Array, offset: Array | None, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, ...]:
        """Queries, keys and values, positions in the first two; the offset is the number of tokens before them."""
        q, k, v = jnp.unstack(self.qkv(x), axis=2)
        if self.relative is None:
            return q, k, v
        coordinates, _ = places(x, self.grid, self.num_extra, segment_ids=segment_ids, mask=mask, offset=offset)
        return *self.encoding.pair(q, k, self.encoding(coordinates)), v

    def _within(self, q: Array, k: Array, v: Array, run: Array, real: Array, plain: bool) -> Array:
        """Attention within the sequence; round a ring where a mesh splits it. Plain: one run of real tokens."""
        scale = 1.0 / np.sqrt(v.shape[-1])
        o = split_attention(q, k, v, None if plain else run, None if plain else real, causal=self.causal, scale=scale)
        if o is not None:
            return o
        visible = None if plain else _visible_tokens(run, real, self.causal)
        return _attend(q, k, v, visible, is_causal=self.causal and plain)

    def _check_room(self, state: AttentionState, tokens: int) -> None:
        """Refuse what does not fit where the length is known; `_poison_overflow` does what is possible inside jit."""
        full = tokens > self.max_length
        if not isinstance(state.length, jax.core.Tracer):
            full = full or int(state.length.max()) + tokens > self.max_length
        if full:
            raise ValueError(f"max_length: {tokens} more tokens do not fit a cache of {self.max_length} slots")


def _attend(
    q: Float[Array, "B L H M"],
    keys: Float[Array, "B S H M"],
    values: Float[Array, "B S H K"],
    visible: Bool[Array, "B L S"] | None,
    is_causal: bool = False,
) -> Float[Array, "B L H K"]:
    mask, size = None if visible is None else visible[:, None], values.shape[-1]
    if keys.shape[-1] > size:  # keys of MD-LRPE are; values must be as wide there
        values = jnp.pad(values, ((0, 0), (0, 0), (0, 0), (0, keys.shape[-1] - size)))
    o = jax.nn.dot_product_attention(q, keys, values, mask=mask, is_causal=is_causal, scale=1.0 / np.sqrt(size))
    return o[..., :size]


def _poison_overflow(y: Float[Array, "B L D"], state: AttentionState) -> Float[Array, "B L D"]:
    """NaN in rows whose cache has lost tokens: a wrong answer that shows, where jit leaves no way to raise."""
    lost = state.length > state.keys.shape[1]
    return jnp.where(lost[:, None, None], jnp.nan, y)


def _visible_tokens(run: Int[Array, "B L"], real: Bool[Array, "B L"], causal: bool) -> Bool[Array, "B L L"]:
    same_run = run[:, :, None] == run[:, None, :]
    visible = same_run & real[:, None, :]
    return jnp.tril(visible) if causal else visible


def _visible_slots(state: AttentionState, run: Int[Array, "B L"]) -> Bool[Array, "B L S"]:
    used = jnp.arange(state.keys.shape[1])[None] < state.length[:, None]
    return used[:, None, :] & (run == 0)[:, :, None]


def _extend(
    state: AttentionState,
    k: Float[Array, "B L H M"],
    v: Float[Array, "B L H K"],
    run: Int[Array, "B L"],
    real: Bool[Array, "B L"],
) -> AttentionState:
    """The cache after these tokens: real tokens of the last run only, behind the old ones if that run is the first."""
    slots = state.keys.shape[1]
    kept = real & (run == run[:, -1:])
    start = jnp.where(run[:, -1] == 0, state.length, 0)
    slot = jnp.where(kept, start[:, None] + jnp.cumsum(kept, axis=1) - 1, slots)
    row = jnp.arange(slot.shape[0])[:, None]
    # A slot past the end is out of bounds, and mode="drop" leaves the cache as it is there.
    keys = state.keys.at[row, slot].set(k, mode="drop")
    values = state.values.at[row, slot].set(v, mode="drop")
    return AttentionState(keys, values, start + kept.sum(axis=1, dtype=jnp.int32))
