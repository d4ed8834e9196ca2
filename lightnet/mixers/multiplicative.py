"""Multiplicative vector decay: the recurrence whose order LightNet removes, with 1, 2 or more scans.

    S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T,    o_t = S_t^T q_t,    f_t = sigmoid(W_f x_t + c)

for each head: HGRN2's tied gates (Qin et al. 2024, arXiv 2404.07904) without its lower bounds. Scans see the tokens
before them only. To see all tokens, a model of this kind scans forwards and backwards, on images along rows and along
columns, and sums what the scans read; projections are shared between scans.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lightnet.backbone import Capabilities, Mixer
from lightnet.mixers.linear import LinearState
from lightnet.mixers.parts import GatedOutput, Relative, into_heads, places, precision_of_states, zero_masked
from lightnet.scan import gated_linear_attention, gated_linear_step
from lightnet.typing import Array


def scan_orders(length: int, num_scans: int, grid: tuple[int, ...] | None = None, num_extra: int = 0) -> np.ndarray:
    """The orders in which scans read the tokens.

    1 reads them as they come; 2 reads them backwards too; 2A on a grid with A axes does both with each axis as the
    fastest, so that 4 on an image go along rows and along columns. Extra tokens stay in front, or behind if backwards.

    Args:
        length: number of tokens L.
        num_scans: 1, 2, or twice the number of axes.
        grid: size along each axis, the last one being the fastest of the flattened tokens.
        num_extra: tokens before the grid.

    Returns:
        (num_scans, L): what is read at each step.

    Raises:
        ValueError: `num_scans` is another.

    Example:
        >>> scan_orders(4, 4, (2, 2)).tolist()
        [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [3, 1, 2, 0]]
    """
    allowed = (1, 2) if grid is None else (1, 2, 2 * len(grid))
    if num_scans not in allowed:
        where = "on a sequence" if grid is None else f"on a grid of {len(grid)} axes"
        raise ValueError(f"num_scans: got {num_scans}, expected one of {', '.join(map(str, allowed))} {where}")
    orders = [np.arange(length)]
    if grid is not None and num_scans > 2:
        cells = num_extra + np.arange(length - num_extra).reshape(grid)
        extra = np.arange(num_extra)
        fastest = [np.moveaxis(cells, axis, -1).ravel() for axis in reversed(range(len(grid)))]
        orders = [np.concatenate([extra, order]) for order in fastest]
    if num_scans == 1:
        return np.stack(orders)
    return np.stack([order for forwards in orders for order in (forwards, forwards[::-1])])


class MultiplicativeDecay(Mixer):
    """Gated linear attention with a forget gate per key channel, in one or more scans; see the module.

    A token meets itself once in each scan. With relative encodings keys have twice the channels, and decays are
    duplicated for the two halves.

    Attributes:
        width: channels D.
        num_heads: heads H; a divisor of D.
        num_scans: see `scan_orders`; with more than 1, every token sees all.
        decay_bias: c, added to the logits of the forget gates; 2 forgets 12 % in a step at the start.
        activation: of the queries.
        gate_activation: of the output's gate.
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
        >>> mixer = MultiplicativeDecay(width=4, num_heads=2, num_scans=4, grid=(2, 3))
        >>> (y, state), variables = mixer.init_with_output(jax.random.key(0), jnp.ones((1, 6, 4)))
        >>> y.shape, state
        ((1, 6, 4), None)
    """

    width: int
    num_heads: int
    num_scans: int = 1
    decay_bias: float = 2.0
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
        self.qfv = into_heads(3, self.width, self.num_heads, self.use_bias, self.dtype)
        head_size = self.width // self.num_heads
        gate = (self.gate_rank or head_size, self.gate_activation, self.gate_position, self.norm)
        self.output = GatedOutput(self.width, *gate, self.use_bias, self.out_scale, self.dtype)
        if self.relative is not None:
            self.encoding = self.relative(head_size=head_size)

    @property
    def capabilities(self) -> Capabilities:
        """Masks always, segments of sequences; a state and steps on sequences with one scan."""
        sequence, causal = self.grid is None, self.num_scans == 1
        recurrent = causal and sequence
        return Capabilities(causal=causal, state=recurrent, step=recurrent, segments=sequence, mask=True)

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
        operands = self._projected(x, coordinates)
        orders = scan_orders(x.shape[1], self.num_scans, self.grid, self.num_extra)
        if len(orders) == 1:
            before = None if state is None else state.matrix
            o, matrix = gated_linear_attention(*operands, initial_state=before, segment_ids=segment_ids, mask=mask)
        else:
            o = reduce(jnp.add, [_read(order, operands, segment_ids, mask) for order in orders])
        y = zero_masked(self.output(o, x), mask)
        return y, LinearState(after, matrix) if self.capabilities.state else None

    def step(self, x: Array, state: LinearState) -> tuple[Array, LinearState]:
        """Advance by one token (B, D)."""
        self.require(step=True)
        o, matrix = gated_linear_step(*self._projected(x, state.position[:, None]), state.matrix)
        return self.output(o, x), LinearState(state.position + 1, matrix)

    def init_state(self, batch: int) -> LinearState:
        """The state before the first token."""
        self.require(state=True)
        size = self.width // self.num_heads
        shape = (batch, self.num_heads, size if self.relative is None else 2 * size, size)
        return LinearState(jnp.zeros(batch, jnp.int32), jnp.zeros(shape, precision_of_states(self.dtype)))

    def _projected(self, x: Array, coordinates: Array) -> tuple[Array, Array, Array, Array]:
        """Queries, keys, values and log decays."""
        q, f, v = jnp.unstack(self.qfv(x), axis=-3)
        logits = f.astype(precision_of_states(f.dtype)) + self.decay_bias
        q, k, log_decay = self.activation(q), nn.sigmoid(-logits).astype(v.dtype), nn.log_sigmoid(logits)
        if self.relative is not None:
            factor = self.encoding(coordinates)
            q, k = self.encoding.queries(q, factor), self.encoding.keys(k, factor)
            log_decay = jnp.concatenate([log_decay] * 2, axis=-1)
        return q, k, v, log_decay


def _read(order: np.ndarray, operands: tuple[Array, ...], segment_ids: Array | None, mask: Array | None) -> Array:
    """What one scan in this order reads, at the places of the tokens."""
    per_token = [None if x is None else x[:, order] for x in (segment_ids, mask)]
    o, _ = gated_linear_attention(*(x[:, order] for x in operands), segment_ids=per_token[0], mask=per_token[1])
    return o[:, np.argsort(order)]
