"""Multiplicative vector decay: the recurrence whose order LightNet removes, with 1, 2 or more scans.

    S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T,    o_t = S_t^T q_t,    f_t = sigmoid(W_f x_t + c)

for each head: HGRN2's tied gates (Qin et al. 2024, arXiv 2404.07904) without its lower bounds. Scans see the tokens
before them only. To see all tokens, a model of this kind scans forwards and backwards, on images along rows and along
columns, and sums what the scans read; projections are shared between scans.
"""

from functools import reduce

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lightnet.backbone import Capabilities
from lightnet.mixers.gated import GatedMixer, LinearState, PerToken
from lightnet.mixers.parts import precision_of_states
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


class MultiplicativeDecay(GatedMixer):
    """Gated linear attention with a forget gate per key channel, in one or more scans; see the module.

    A token meets itself once in each scan. With relative encodings keys have twice the channels, and decays are
    duplicated for the two halves.

    Attributes:
        num_scans: see `scan_orders`; with more than 1, every token sees all.
        decay_bias: c, added to the logits of the forget gates; 2 forgets 12 % in a step at the start.
        activation: of the queries. This field and the others: see `GatedMixer`.

    Example:
        >>> import jax
        >>> mixer = MultiplicativeDecay(width=4, num_heads=2, num_scans=4, grid=(2, 3))
        >>> (y, state), variables = jax.jit(mixer.init_with_output)(jax.random.key(0), jnp.ones((1, 6, 4)))
        >>> y.shape, state
        ((1, 6, 4), None)
    """

    num_scans: int = 1
    decay_bias: float = 2.0

    @property
    def capabilities(self) -> Capabilities:
        """Masks always, segments of sequences; a state and steps on sequences with one scan."""
        sequence, causal = self.grid is None, self.num_scans == 1
        recurrent = causal and sequence
        return Capabilities(causal=causal, state=recurrent, step=recurrent, segments=sequence, mask=True)

    def init_state(self, batch: int) -> LinearState:
        """The state before the first token."""
        self.require(state=True)
        keys = self.head_size if self.relative is None else 2 * self.head_size
        shape = (batch, self.num_heads, keys, self.head_size)
        return LinearState(jnp.zeros(batch, jnp.int32), jnp.zeros(shape, precision_of_states(self.dtype)))

    def _read(
        self, x: Array, coordinates: Array, state: LinearState | None, per_token: PerToken
    ) -> tuple[Array, tuple]:
        operands = self._gated(x, coordinates)
        orders = scan_orders(x.shape[1], self.num_scans, self.grid, self.num_extra)
        if len(orders) > 1:
            return reduce(jnp.add, [_read_in(order, operands, **per_token) for order in orders]), ()
        before = None if state is None else state.matrix
        o, matrix = gated_linear_attention(*operands, initial_state=before, **per_token)
        return o, (matrix,)

    def _read_one(self, x: Array, coordinates: Array, state: LinearState) -> tuple[Array, tuple]:
        o, matrix = gated_linear_step(*self._gated(x, coordinates), state.matrix)
        return o, (matrix,)

    def _gated(self, x: Array, coordinates: Array) -> tuple[Array, Array, Array, Array]:
        """Queries, keys, values and log decays; the logits of the forget gates are in the place of the keys."""
        q, f, v = self._parts(x)
        logits = f.astype(precision_of_states(f.dtype)) + self.decay_bias
        q, k, log_decay = self.activation(q), nn.sigmoid(-logits).astype(v.dtype), nn.log_sigmoid(logits)
        if self.relative is not None:
            factor = self.encoding(coordinates)
            q, k = self.encoding.queries(q, factor), self.encoding.keys(k, factor)
            log_decay = jnp.concatenate([log_decay] * 2, axis=-1)
        return q, k, v, log_decay


def _read_in(order: np.ndarray, operands: tuple[Array, ...], segment_ids: Array | None, mask: Array | None) -> Array:
    """What one scan in this order reads, at the places of the tokens."""
    per_token = [None if x is None else x[:, order] for x in (segment_ids, mask)]
    o, _ = gated_linear_attention(*(x[:, order] for x in operands), segment_ids=per_token[0], mask=per_token[1])
    return o[:, np.argsort(order)]
