"""The residual stack and the heads around any mixer, and the contract that a mixer keeps.

A **mixer** moves information between positions: attention, a recurrence, a convolution. Everything else of a sequence
model is here, once. A mixer is a linen module with

    mixer(x, state=None, *, segment_ids=None, mask=None) -> (y, state)      x, y (B, L, D)
    mixer.step(x_t, state) -> (y_t, state)                                 x_t, y_t (B, D)
    mixer.init_state(batch) -> state
    mixer.capabilities -> Capabilities

and `Backbone(mixer=...)` takes a constructor of mixers, so that models which differ only in their mixer differ in one
field. A mixer that cannot do something says so in its capabilities, and asking for it raises.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.scan.checks import check_per_token
from lightnet.segments import run_index, token_positions
from lightnet.typing import Array

State = Any
REMAT_POLICIES = ("nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")


def partitioned(init: Callable, *axes: str | None) -> Callable:
    """An initializer whose parameter carries logical axis names; a training mesh maps them to its axes."""
    return nn.with_logical_partitioning(init, axes)


class Capabilities(NamedTuple):
    """What a mixer can do beyond mixing a whole sequence. Asking for the rest raises."""

    causal: bool
    state: bool
    step: bool
    segments: bool
    mask: bool


class Mixer(nn.Module):
    """Base of every mixer: the contract, and the refusal of what a mixer does not support."""

    @property
    def capabilities(self) -> Capabilities:
        """What this mixer, as configured, can do."""
        raise NotImplementedError

    def init_state(self, batch: int) -> State:
        """The state before the first token."""
        raise NotImplementedError

    def require(self, **asked: bool) -> None:
        """Raise a ValueError that names everything asked for and not supported.

        Args:
            **asked: names of `Capabilities` fields; true where the call needs that capability.
        """
        able = self.capabilities._asdict()
        missing = [name for name, needed in asked.items() if needed and not able[name]]
        if missing:
            supported = ", ".join(name for name, ok in able.items() if ok) or "nothing beyond whole sequences"
            raise ValueError(f"{type(self).__name__}: {', '.join(missing)} not supported; it supports {supported}")


class MLP(nn.Module):
    """Two dense layers with an activation between, applied to each position by itself.

    Attributes:
        hidden: width of the hidden layer.
        activation: element-wise function.
        use_bias: whether the dense layers have biases.
        out_scale: standard deviation of the second kernel's initial values.
        dtype: of the computation; None takes that of the parameters it is given, float32 as they are initialised.
    """

    hidden: int
    activation: Callable[[Array], Array]
    use_bias: bool
    out_scale: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (..., D) to (..., D)."""
        up = partitioned(nn.initializers.normal(0.02), "embed", "mlp")
        down = partitioned(nn.initializers.normal(self.out_scale), "mlp", "embed")
        h = nn.Dense(self.hidden, use_bias=self.use_bias, kernel_init=up, dtype=self.dtype, name="up")(x)
        h = self.activation(h)
        return nn.Dense(x.shape[-1], use_bias=self.use_bias, kernel_init=down, dtype=self.dtype, name="down")(h)


class Block(nn.Module):
    """Pre-norm residual block: x + mixer(norm(x)), then x + mlp(norm(x))."""

    mixer: Callable[..., Mixer]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    def setup(self) -> None:
        """Declare the two sublayers and their norms."""
        self.mix_norm = self.norm()
        self.mix = self.mixer()
        self.mlp_norm = self.norm()
        self.feed_forward = self.mlp()

    def __call__(
        self, x: Array, state: State = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, State]:
        """Mix a whole sequence (B, L, D)."""
        y, state = self.mix(self.mix_norm(x), state, segment_ids=segment_ids, mask=mask)
        x = x + y
        return x + self.feed_forward(self.mlp_norm(x)), state

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Advance by one token (B, D)."""
        y, state = self.mix.step(self.mix_norm(x), state)
        x = x + y
        return x + self.feed_forward(self.mlp_norm(x)), state


class Backbone(nn.Module):
    """A stack of pre-norm residual blocks around any mixer, with a final norm.

    Attributes:
        mixer: constructor of mixers, for example `functools.partial(SoftmaxAttention, num_heads=4)`. It is called
            with `width`, `dtype` and `out_scale`, the initial standard deviation of a projection that ends in the
            residual stream: 0.02 / sqrt(2 num_layers), as in GPT-2, so that its variance does not grow with depth.
        num_layers: number of blocks.
        width: channels D of the residual stream.
        mlp_ratio: hidden width of the MLP over D.
        activation: of the MLP.
        use_bias: biases in the MLP and the norms.
        dtype: of the computation, but for the statistics of norms; parameters are initialised in float32. None computes
            in the precision of the parameters that are passed in.
        remat: what the backward pass finds stored of each block: "none" stores all; else a policy of
            `jax.checkpoint_policies` by name, "nothing_saveable" for the block's input alone, "dots_saveable" or
            "dots_with_no_batch_dims_saveable" for products of matrices too. The rest is computed again.
        channel_mixer: constructor of what acts on each position, such as `functools.partial(GLU, hidden=64)`, called
            with `dtype` and `out_scale`; None is the MLP.
        norm: constructor of norms, such as `functools.partial(flax.linen.RMSNorm, epsilon=1e-6)`, called with
            `scale_init` and `dtype`; None is LayerNorm.

    Example:
        >>> from functools import partial
        >>> import jax
        >>> from lightnet.mixers import SoftmaxAttention
        >>> backbone = Backbone(mixer=partial(SoftmaxAttention, num_heads=2), num_layers=2, width=8)
        >>> x = jnp.ones((1, 5, 8))
        >>> (y, state), variables = backbone.init_with_output(jax.random.key(0), x)
        >>> y.shape
        (1, 5, 8)
    """

    mixer: Callable[..., Mixer]
    num_layers: int
    width: int
    mlp_ratio: int = 4
    activation: Callable[[Array], Array] = nn.gelu
    use_bias: bool = False
    dtype: Any = None
    remat: str = "none"
    channel_mixer: Callable[..., nn.Module] | None = None
    norm: Callable[..., nn.Module] | None = None

    def setup(self) -> None:
        """Declare the blocks and the final norm."""
        if self.num_layers < 1:
            raise ValueError(f"num_layers: got {self.num_layers}, expected at least 1")
        if self.remat not in ("none", *REMAT_POLICIES):
            raise ValueError(f"remat: got {self.remat!r}, expected none, {', '.join(REMAT_POLICIES)}")
        out_scale = 0.02 / (2 * self.num_layers) ** 0.5

        def mixer() -> Mixer:
            return self.mixer(width=self.width, out_scale=out_scale, dtype=self.dtype)

        def mlp() -> nn.Module:
            if self.channel_mixer is not None:
                return self.channel_mixer(out_scale=out_scale, dtype=self.dtype)
            hidden = self.mlp_ratio * self.width
            return MLP(hidden, self.activation, self.use_bias, out_scale=out_scale, dtype=self.dtype)

        def norm() -> nn.Module:
            scale = partitioned(nn.initializers.ones, "embed")
            kind = self.norm or partial(nn.LayerNorm, epsilon=1e-5, use_bias=self.use_bias)
            return kind(scale_init=scale, dtype=self.dtype)

        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=getattr(jax.checkpoint_policies, self.remat))
        self.blocks = [block(mixer, mlp, norm) for _ in range(self.num_layers)]
        self.final_norm = norm()

    def __call__(
        self, x: Array, state: State = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, State]:
        """Apply the stack to a sequence.

        Args:
            x: (B, L, D).
            state: from `init_state` or an earlier call; None at the start of a sequence.
            segment_ids: (B, L); tokens of different runs do not see each other.
            mask: (B, L), true at real tokens. What a masked token contains has no effect, NaN included.

        Returns:
            (B, L, D) and the state after the last token.

        Raises:
            ValueError: an argument has another shape or kind than stated, or a mixer cannot do what is asked.
        """
        self._check(x, segment_ids, mask)
        states = []
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        for i, block in enumerate(self.blocks):
            x, after = block(x, None if state is None else state[i], segment_ids=segment_ids, mask=mask)
            states.append(after)
        return self.final_norm(x), tuple(states)

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Advance by one token: (B, D) to (B, D), in the memory of the state."""
        states = []
        for block, before in zip(self.blocks, state, strict=True):
            x, after = block.step(x, before)
            states.append(after)
        return self.final_norm(x), tuple(states)

    def _check(self, x: Array, segment_ids: Array | None, mask: Array | None) -> None:
        if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != self.width:
            raise ValueError(f"x: got shape {list(x.shape)}, expected (B, L, {self.width}) with L from 1")
        check_per_token({"B": x.shape[0], "L": x.shape[1]}, segment_ids, mask)

    def require(self, **asked: bool) -> None:
        """Raise a ValueError unless every block's mixer has the capabilities asked for; see `Mixer.require`."""
        for block in self.blocks:
            block.mix.require(**asked)

    def init_state(self, batch: int) -> State:
        """The state before the first token, one entry per block."""
        return tuple(block.mix.init_state(batch) for block in self.blocks)


class DecodingState(NamedTuple):
    """What a causal language model carries from token to token."""

    position: Array  # (B,) real tokens read in the current run
    backbone: State
    input_positions: State = None


class CausalLM(nn.Module):
    """A causal language model: token embedding, learned positions if asked for, a backbone, tied or untied logits.

    With softmax attention, `max_length` positions and tied embeddings this is the GPT-2 architecture.

    Attributes:
        backbone: the stack.
        vocab_size: number of tokens V that can be predicted.
        num_input_only: further ids, from `vocab_size` on, that can be read but are never predicted (a start token).
        max_length: number of learned positions; 0 for a mixer that knows positions by itself.
        tied: whether the output kernel is the embedding.
        head_bias: whether the logits have a bias.
        input_positions: constructor of an encoding of embedded tokens, such as `lightnet.positions.MDTPE`, called with
            `width` and `dtype`; None has none.

    Example:
        >>> from functools import partial
        >>> import jax
        >>> from lightnet.mixers import SoftmaxAttention
        >>> mixer = partial(SoftmaxAttention, num_heads=2, max_length=16)
        >>> model = CausalLM(Backbone(mixer=mixer, num_layers=1, width=8), vocab_size=5, max_length=16)
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> variables = model.init(jax.random.key(0), tokens)
        >>> logits, state = model.apply(variables, tokens)
        >>> logits.shape
        (1, 3, 5)
        >>> next_logits, state = model.apply(variables, jnp.array([4]), state, method="step")
        >>> next_logits.shape
        (1, 5)
    """

    backbone: Backbone
    vocab_size: int
    num_input_only: int = 0
    max_length: int = 0
    tied: bool = True
    head_bias: bool = False
    input_positions: Callable[..., nn.Module] | None = None

    def setup(self) -> None:
        """Declare the embeddings and the output layer."""
        width, init = self.backbone.width, nn.initializers.normal(0.02)
        num_embeddings = self.vocab_size + self.num_input_only
        self.embedding = self.param("embedding", partitioned(init, "vocab", "embed"), (num_embeddings, width))
        if self.max_length:
            self.positions = self.param("positions", partitioned(init, None, "embed"), (self.max_length, width))
        if not self.tied:
            self.head = self.param("head", partitioned(init, "vocab", "embed"), (self.vocab_size, width))
        if self.head_bias:
            zeros = partitioned(nn.initializers.zeros, "vocab")
            self.bias = self.param("head_bias", zeros, (self.vocab_size,))
        if self.input_positions is not None:
            self.places = self.input_positions(width=width, dtype=self.backbone.dtype)

    def __call__(
        self,
        tokens: Array,
        state: DecodingState | None = None,
        *,
        segment_ids: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, DecodingState]:
        """Logits of the token after each position.

        Args:
            tokens: (B, L) ids.
            state: from an earlier call or `init_state`; None at the start.
            segment_ids: (B, L); positions restart and nothing is seen across runs.
            mask: (B, L), true at real tokens; padding may stand anywhere.

        Returns:
            Logits (B, L, V), float32 at least, and the state after the last token, ready for `step`.

        Raises:
            ValueError: `tokens` is not a (B, L) array of integers, more than `max_length` of them are read, those of a
                concrete state included, or the mixer is not causal.
        """
        # Where tokens are masked or start a new run, fewer than L of them follow the state's.
        self._check(tokens, state if segment_ids is None and mask is None else None, ndim=2)
        check_per_token({"B": tokens.shape[0], "L": tokens.shape[1]}, segment_ids, mask)
        real = jnp.ones(tokens.shape, bool) if mask is None else mask
        run = jnp.zeros(tokens.shape, jnp.int32) if segment_ids is None else run_index(segment_ids, mask)
        offset = jnp.zeros(tokens.shape[0], jnp.int32) if state is None else state.position
        position = token_positions(run, real, offset)
        _, before, placed = (None, None, None) if state is None else state
        x = self._embed(tokens, position)
        if self.input_positions is not None:
            x, placed = self.places(x, placed, segment_ids=segment_ids, mask=mask)
        x, after = self.backbone(x, before, segment_ids=segment_ids, mask=mask)
        return self._logits(x), DecodingState(position[:, -1] + real[:, -1], after, placed)

    def step(self, token: Array, state: DecodingState) -> tuple[Array, DecodingState]:
        """Read one token per row.

        Args:
            token: (B,) ids.
            state: from `init_state`, a whole sequence or an earlier step.

        Returns:
            Logits (B, V) of the next token, float32 at least, and the new state. Under jit, where the position cannot
            be checked, logits beyond the learned positions are NaN rather than plausible.

        Raises:
            ValueError: as for a whole sequence.
        """
        self._check(token, state, ndim=1)
        x, placed = self._embed(token, state.position), state.input_positions
        if self.input_positions is not None:
            x, placed = self.places.step(x, placed)
        x, after = self.backbone.step(x, state.backbone)
        return self._logits(x), DecodingState(state.position + 1, after, placed)

    def init_state(self, batch: int) -> DecodingState:
        """The state before the first token."""
        places = None if self.input_positions is None else self.places.init_state(batch)
        return DecodingState(jnp.zeros(batch, jnp.int32), self.backbone.init_state(batch), places)

    def _check(self, tokens: Array, state: DecodingState | None, ndim: int) -> None:
        self.backbone.require(causal=True)
        if tokens.ndim != ndim or not jnp.issubdtype(tokens.dtype, jnp.integer):
            expected = "(B, L)" if ndim == 2 else "(B,)"
            raise ValueError(f"tokens: got {tokens.dtype}{list(tokens.shape)}, expected an integer array {expected}")
        length = tokens.shape[1] if ndim == 2 else 1
        if state is not None and not isinstance(state.position, jax.core.Tracer):
            length += int(state.position.max())
        if 0 < self.max_length < length:
            raise ValueError(f"tokens: got length {length}, expected at most max_length={self.max_length}")

    def _embed(self, tokens: Array, position: Array) -> Array:
        x = self.embedding[tokens]
        if self.max_length:
            x = x + self.positions.at[position].get(mode="fill", fill_value=jnp.nan)
        return x if self.backbone.dtype is None else x.astype(self.backbone.dtype)

    def _logits(self, x: Array) -> Array:
        kernel = self.embedding[: self.vocab_size] if self.tied else self.head
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = jnp.einsum("...d,vd->...v", x, kernel.astype(x.dtype), preferred_element_type=wide)
        return logits + jnp.broadcast_to(self.bias, logits.shape) if self.head_bias else logits
