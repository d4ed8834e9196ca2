"""What LightNet's mixer shares with the linear attentions that it is compared with: all but how tokens are weighted."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from lightnet.backbone import Capabilities, Mixer
from lightnet.mixers.parts import GatedOutput, Relative, into_heads, places, zero_masked
from lightnet.scan.states import computing_state, stored_state
from lightnet.typing import Array

PerToken = dict[str, Any]  # segment_ids and mask


class LinearState(NamedTuple):
    """What a recurrence with a matrix state carries: the next position (B,) and the state (B, H, M, K)."""

    position: Array
    matrix: Array


class GatedMixer(Mixer):
    """Three projections into heads, places of the tokens, a reading of them, then gate, norm and projection.

    A subclass defines `capabilities`, `init_state`, `_read` and `_read_one`; what the last two return beside the output
    are the fields of `state_type` behind the position.

    Attributes:
        width: channels D.
        num_heads: heads H; a divisor of D.
        activation: of the queries, and of keys that are features.
        gate_activation: of the gate.
        gate_position: "before" or "after" the norm.
        gate_rank: None is the head size.
        norm: constructor of the norm over all channels.
        use_bias: biases of the projections.
        relative: constructor of relative encodings, called with `head_size`, for example
            `functools.partial(MDLRPE, axes=2)`; None has none.
        grid: size along each axis where the tokens are cells of a grid; None is a sequence.
        num_extra: tokens before the grid.
        out_scale: standard deviation of the output kernel's initial values.
        dtype: of the computation; None takes that of the inputs and parameters. States are float32 at least.
    """

    width: int
    num_heads: int
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

    state_type: ClassVar[type] = LinearState

    def setup(self) -> None:
        """Declare the projections and the output."""
        self.qkv = into_heads(3, self.width, self.num_heads, self.use_bias, self.dtype)
        gate = (self.gate_rank or self.head_size, self.gate_activation, self.gate_position, self.norm)
        self.output = GatedOutput(self.width, *gate, self.use_bias, self.out_scale, self.dtype)
        if self.relative is not None:
            self.encoding = self.relative(head_size=self.head_size)

    @property
    def head_size(self) -> int:
        """Channels K of a head."""
        return self.width // self.num_heads

    @property
    def capabilities(self) -> Capabilities:
        """Masks always; segments, a state and steps where tokens are read in order, on sequences."""
        raise NotImplementedError

    def __call__(
        self, x: Array, state: Any = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Any]:
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
        before = computing_state(state, self.dtype, x, self.variables.get("params", {}))
        o, carried = self._read(x, coordinates, before, {"segment_ids": segment_ids, "mask": mask})
        y = zero_masked(self.output(o, x), mask)
        return y, stored_state(self.state_type(after, *carried), state) if self.capabilities.state else None

    def step(self, x: Array, state: Any) -> tuple[Array, Any]:
        """Advance by one token (B, D)."""
        self.require(step=True)
        o, carried = self._read_one(
            x, state.position[:, None], computing_state(state, self.dtype, x, self.variables.get("params", {}))
        )
        return self.output(o, x), stored_state(self.state_type(state.position + 1, *carried), state)

    def _read(self, x: Array, coordinates: Array, state: Any, per_token: PerToken) -> tuple[Array, tuple]:
        """What each token reads (B, L, H, K), and the state behind the last one but for the position."""
        raise NotImplementedError

    def _read_one(self, x: Array, coordinates: Array, state: Any) -> tuple[Array, tuple]:
        """The same of one token: (B, H, K)."""
        raise NotImplementedError

    def _parts(self, x: Array) -> tuple[Array, Array, Array]:
        """The three projections of (.., D), each (.., H, K)."""
        q, k, v = jnp.unstack(self.qkv(x), axis=-3)
        return q, k, v


def no_decay(v: Array) -> Array:
    """The log decays with which gated linear attention is plain: 0, one for each head of values (.., H, V)."""
    return jnp.zeros((*v.shape[:-1], 1), v.dtype)
