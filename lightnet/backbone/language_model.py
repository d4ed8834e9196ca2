"""The causal language model around a backbone, and what it carries from token to token."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.backbone.mixer import State, partitioned
from lightnet.backbone.stack import Backbone
from lightnet.scan.checks import check_per_token, known
from lightnet.scan.placement import spread
from lightnet.segments import run_index, token_positions
from lightnet.typing import Array


class DecodingState(NamedTuple):
    """What a causal language model carries from token to token."""

    position: Array  # (B,) real tokens read in the current run
    backbone: State
    input_positions: State = None


def check_ids(name: str, tokens: Array, size: int, mask: Array | None = None) -> None:
    """Refuse ids that a model does not have, where they are known; indexing would take the nearest.

    Args:
        name: of the argument.
        tokens: ids.
        size: how many there are, from 0.
        mask: like the tokens, true at real ones.

    Raises:
        ValueError: there is one.

    Example:
        >>> check_ids("tokens", jnp.array([1, 5]), 5)
        Traceback (most recent call last):
        ...
        ValueError: tokens: got the id 5, expected ids from 0 to 4
    """
    if not known(tokens) or not known(mask):
        return
    ids = np.asarray(tokens)
    wrong = (ids < 0) | (ids >= size)
    if mask is not None and mask.shape == ids.shape:
        wrong &= np.asarray(mask)
    if wrong.any():
        raise ValueError(f"{name}: got the id {ids[wrong][0]}, expected ids from 0 to {size - 1}")


def embedded(table: Array, tokens: Array) -> Array:
    """The rows of a table, on a mesh each device those of its own tokens.

    Rows that are cut over the axis `fsdp` are gathered first. Otherwise each device would look up its part of the rows
    for the tokens of all others, and everything would be sent to everyone to be cut anew.

    Args:
        table: (V, D).
        tokens: (...) ids.

    Returns:
        (..., D).

    Example:
        >>> embedded(jnp.eye(3), jnp.array([2, 0])).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    return spread(table, "vocabulary W")[tokens]


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
        >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
        >>> model.apply(variables, tokens).shape
        (1, 3, 5)
        >>> logits, state = model.apply(variables, tokens, method="extend")
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

    def __call__(self, tokens: Array, *, segment_ids: Array | None = None, mask: Array | None = None) -> Array:
        """Logits of the token after each position: `extend` from the start, without the state.

        Args:
            tokens: (B, L) ids.
            segment_ids: (B, L); positions restart and nothing is seen across runs.
            mask: (B, L), true at real tokens; padding may stand anywhere.

        Returns:
            Logits (B, L, V), float32 at least.

        Raises:
            ValueError: as for `extend`.
        """
        return self.extend(tokens, segment_ids=segment_ids, mask=mask)[0]

    def extend(
        self,
        tokens: Array,
        state: DecodingState | None = None,
        *,
        segment_ids: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, DecodingState]:
        """Read tokens behind those of a state.

        Args:
            tokens: (B, L) ids.
            state: from an earlier call or `init_state`; None at the start.
            segment_ids: (B, L); positions restart and nothing is seen across runs.
            mask: (B, L), true at real tokens; padding may stand anywhere.

        Returns:
            Logits (B, L, V) of the token after each position, float32 at least, and the state after the last token,
            ready for `step`.

        Raises:
            ValueError: `tokens` is not a (B, L) array of integers, or has ids, where they are known, that the model
                does not have; more than `max_length` of them are read, those of a concrete state included; or the mixer
                is not causal.
        """
        x, after = self._read(tokens, state, segment_ids, mask)
        return self._logits(x), after

    def logit_factors(
        self, tokens: Array, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array]:
        """Hidden states and output kernel, whose products are the logits: what a loss takes that never holds them.

        Args:
            tokens: (B, L) ids.
            segment_ids: (B, L); positions restart and nothing is seen across runs.
            mask: (B, L), true at real tokens; padding may stand anywhere.

        Returns:
            h (B, L, D) and W (V, D) in the precision of h, of logits h W^T as `__call__` gives them.

        Raises:
            ValueError: as for `extend`, or the logits have a bias.

        Example:
            >>> from functools import partial
            >>> from lightnet.mixers import LightNetAttention
            >>> model = CausalLM(Backbone(partial(LightNetAttention, num_heads=2), num_layers=1, width=8), vocab_size=5)
            >>> variables = jax.jit(model.init)(jax.random.key(0), tokens := jnp.array([[1, 2, 3]]))
            >>> h, W = model.apply(variables, tokens, method="logit_factors")
            >>> h.shape, W.shape
            ((1, 3, 8), (5, 8))
        """
        if self.head_bias:
            raise ValueError("head_bias: got True, expected logits that are a product of two factors")
        x, _ = self._read(tokens, None, segment_ids, mask)
        return x, self._kernel(x.dtype)

    def step(self, token: Array, state: DecodingState) -> tuple[Array, DecodingState]:
        """Read one token per row.

        Args:
            token: (B,) ids.
            state: from `init_state`, `extend` or an earlier step.

        Returns:
            Logits (B, V) of the next token, float32 at least, and the new state. Under jit, where the position cannot
            be checked, logits beyond the learned positions are NaN rather than plausible.

        Raises:
            ValueError: as for `extend`.
        """
        self._check(token, state, ndim=1)
        check_ids("tokens", token, self.vocab_size + self.num_input_only)
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
        if self.max_length and state is not None and not isinstance(state.position, jax.core.Tracer):
            length += int(state.position.max())
        if 0 < self.max_length < length:
            raise ValueError(f"tokens: got length {length}, expected at most max_length={self.max_length}")

    def _read(
        self, tokens: Array, state: DecodingState | None, segment_ids: Array | None, mask: Array | None
    ) -> tuple[Array, DecodingState]:
        """The hidden states (B, L, D) behind the backbone, and the state; see `extend`."""
        # Where tokens are masked or start a new run, fewer than L of them follow the state's.
        self._check(tokens, state if segment_ids is None and mask is None else None, ndim=2)
        check_ids("tokens", tokens, self.vocab_size + self.num_input_only, mask)
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
        return x, DecodingState(position[:, -1] + real[:, -1], after, placed)

    def _embed(self, tokens: Array, position: Array) -> Array:
        x = embedded(self.embedding, tokens)
        if self.max_length:
            x = x + spread(self.positions, "position W").at[position].get(mode="fill", fill_value=jnp.nan)
        return x if self.backbone.dtype is None else x.astype(self.backbone.dtype)

    def _logits(self, x: Array) -> Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = jnp.einsum("...d,vd->...v", x, self._kernel(x.dtype), preferred_element_type=wide)
        return logits + jnp.broadcast_to(self.bias, logits.shape) if self.head_bias else logits

    def _kernel(self, dtype: Any) -> Array:
        """The output kernel (V, D)."""
        kernel = self.embedding[: self.vocab_size] if self.tied else self.head
        return kernel.astype(dtype)
