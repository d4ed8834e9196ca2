"""MD-TPE as a module: the operators of `lightnet.positions.toeplitz` with a norm and a projection for each axis."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lightnet.backbone import partitioned
from lightnet.positions.inputs import InputPositions
from lightnet.positions.toeplitz import (
    toeplitz_along,
    toeplitz_decays,
    toeplitz_kernel,
    toeplitz_scan,
    toeplitz_step,
)
from lightnet.scan.checks import as_arrays
from lightnet.scan.recurrence import check_state
from lightnet.typing import Array

KINDS = ("general", "tied")


def state_precision(dtype: Any) -> Any:
    """The precision of kernels and states: float32 at least, and the default one where no dtype is given.

    It does not depend on the parameters, since `init_state` has to know it without them.
    """
    return jnp.result_type(float) if dtype is None else jnp.promote_types(dtype, jnp.float32)


class ToeplitzAxis(nn.Module):
    """One axis of `MDTPE`: norm and projection behind a Toeplitz operator.

    Attributes are those of `MDTPE`; in "general" there are D N weights, N values p of the decays, D scales of the norm
    and D^2 weights of the projection.
    """

    width: int
    kind: str
    rank: int
    num_heads: int
    bidirectional: bool
    out_gain: float
    dtype: Any = None

    def setup(self) -> None:
        """Declare the kernels of one or two directions, the norm and the projection."""
        if self.kind not in KINDS:
            raise ValueError(f"kind: got {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.kind == "tied" and self.width % self.num_heads:
            raise ValueError(f"num_heads: got {self.num_heads}, expected a divisor of the width {self.width}")
        directions = ("forward", "backward") if self.bidirectional else ("forward",)
        declare = self._general if self.kind == "general" else self._tied
        kernels = {name: declare(name) for name in directions}
        self.parameter_dtype = kernels["forward"][0].dtype
        precision = state_precision(self.dtype)
        self.kernels = {name: (b.astype(precision), decay.astype(precision)) for name, (b, decay) in kernels.items()}
        scale = partitioned(nn.initializers.ones, "embed")
        # Xavier uniform, times the gain.
        out = nn.initializers.variance_scaling(self.out_gain**2, "fan_avg", "uniform")
        self.norm = nn.RMSNorm(epsilon=1e-6, scale_init=scale, dtype=self.dtype)
        self.out = nn.Dense(self.width, use_bias=False, kernel_init=partitioned(out, "embed", None), dtype=self.dtype)

    def _general(self, direction: str) -> tuple[Array, Array]:
        """Weights (D, N) and decays (1, N) of a sum of N exponentials."""
        spread = np.log(np.linspace(0.03, 1.0, self.rank))
        weights = partitioned(nn.initializers.normal(0.5), "embed", None)
        p = self.param(f"{direction}_decay", lambda key: jnp.asarray(spread, jnp.result_type(float)))
        return self.param(f"{direction}_weights", weights, (self.width, self.rank)), toeplitz_decays(p)[None]

    def _tied(self, direction: str) -> tuple[Array, Array]:
        """Weights (D, 1) and decays (D, 1), one of each for a head: (q . k) times a moving sum."""
        ones = partitioned(nn.initializers.ones, "embed")
        q, k = (self.param(f"{direction}_{name}", ones, (self.width,)) for name in ("query", "key"))
        decay = nn.sigmoid(self.param(f"{direction}_decay", nn.initializers.zeros, (self.num_heads,)))
        head_size = self.width // self.num_heads
        weights = (q * k).reshape(self.num_heads, head_size).sum(axis=-1)
        return jnp.repeat(weights, head_size)[:, None], jnp.repeat(decay, head_size)[:, None]

    def __call__(
        self, x: Array, state: Array | None, segment_ids: Array | None, mask: Array | None
    ) -> tuple[Array, Array]:
        """Along a sequence (B, L, D); the state is that of the forward direction."""
        y, final = toeplitz_scan(x, *self.kernels["forward"], state, segment_ids=segment_ids, mask=mask)
        if self.bidirectional:
            y = y + toeplitz_scan(x, *self.kernels["backward"], reverse=True, segment_ids=segment_ids, mask=mask)[0]
        return self.out(self.norm(y)), final

    def along(self, x: Array, axis: int, mask: Array | None) -> Array:
        """Along one axis of a grid (B, n_1, ..., n_A, D)."""
        y = toeplitz_along(x, axis, *self.kernels["forward"], mask=mask)
        if self.bidirectional:
            y = y + toeplitz_along(x, axis, *self.kernels["backward"], reverse=True, mask=mask)
        return self.out(self.norm(y))

    def step(self, x: Array, state: Array) -> tuple[Array, Array]:
        """One token (B, D)."""
        y, state = toeplitz_step(x, *self.kernels["forward"], state)
        return self.out(self.norm(y)), state


class MDTPE(InputPositions):
    """MD-TPE, LightNet's encoding of embedded tokens; TPE on a sequence. See `lightnet.positions.toeplitz`.

    y = x + sum_r W_r RMSNorm_r(T_r x), T_r the Toeplitz operator along axis r. It mixes tokens as far as its decays
    reach, in one direction unless told otherwise, so that an order-free model can tell left from right. Norm and
    projection for each axis before the sum follow the first author's code; that the tokens are added, the initial
    values and the number of exponentials are our choices, the paper's being unknown.

    A token that is exactly 0, with only zeros before it, meets the norm at 0, whose gradient is 1/sqrt(1e-6) = 1000
    times larger than elsewhere: finite, but standardise blank pixels or give the patch embedding a bias.

    Attributes:
        kind: "general", `rank` exponentials with decays exp(-exp(p)) for all channels; "tied", the first author's later
            form, one decay sigmoid(p) and one weight q . k for each of `num_heads` heads.
        rank: number N of exponentials of "general".
        num_heads: heads of "tied".
        bidirectional: whether a second operator runs backwards, before the norm. No source describes it.
        residual: whether the tokens are added. Without, an `out_gain` of 0 makes everything 0 at the start.
        out_gain: of the projections' Xavier initial values.

    Example:
        >>> import jax
        >>> positions = MDTPE(width=4, grid=(2, 3), num_extra=1)
        >>> (y, _), variables = jax.jit(positions.init_with_output)(jax.random.key(0), jnp.ones((1, 7, 4)))
        >>> y.shape, bool((y[0, 0] == 1).all())
        ((1, 7, 4), True)
    """

    kind: str = "general"
    rank: int = 8
    num_heads: int = 1
    bidirectional: bool = False
    residual: bool = True
    out_gain: float = 0.1

    def setup(self) -> None:
        """Declare each axis."""
        options = (self.kind, self.rank, self.num_heads, self.bidirectional, self.out_gain, self.dtype)
        self.axis = [ToeplitzAxis(self.width, *options) for _ in self.grid or (0,)]

    def __call__(
        self, x: Array, state: Array | None = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array | None]:
        """See `InputPositions`. The state (B, D, N) has the precision of `dtype`, float32 at least."""
        if state is not None:
            self._require_state()
        x = self._checked(x, segment_ids, mask)
        if self.grid is None:
            state = None if state is None else self._checked_state(state, x.shape[0])
            y, final = self.axis[0](x, state, segment_ids, mask)
            return self._with_tokens(x, y), None if self.bidirectional else final
        cells = x[:, self.num_extra :]
        on_grid = cells.reshape(-1, *self.grid, self.width)
        real = None if mask is None else mask[:, self.num_extra :].reshape(-1, *self.grid)
        y = jnp.asarray(sum(axis.along(on_grid, r, real) for r, axis in enumerate(self.axis)))
        y = self._with_tokens(cells, y.reshape(cells.shape))
        return jnp.concatenate([x[:, : self.num_extra], y], axis=1), None

    def step(self, x: Array, state: Array) -> tuple[Array, Array]:
        """Give the next token (B, D) its position."""
        x = self._checked_token(x)
        y, state = self.axis[0].step(x, self._checked_state(state, x.shape[0]))
        return self._with_tokens(x, y), state

    def init_state(self, batch: int) -> Array:
        """The state before the first token, (B, D, N); N is 1 for "tied"."""
        self._require_state()
        return jnp.zeros(self._state_shape(batch), state_precision(self.dtype))

    def impulse_response(self, axis: int, length: int, direction: str = "forward") -> Array:
        """The kernel t_i of one axis, (length, D), before norm and projection."""
        return toeplitz_kernel(*self.axis[axis].kernels[direction], length)

    def _state_shape(self, batch: int) -> tuple[int, int, int]:
        return batch, self.width, self.rank if self.kind == "general" else 1

    def _checked_state(self, state: Array, batch: int) -> Array:
        (state,) = as_arrays(state=state)
        return check_state("state", state, self._state_shape(batch), state_precision(self.dtype))

    def _parameter_dtype(self) -> Any:
        return self.axis[0].parameter_dtype

    def _with_tokens(self, x: Array, y: Array) -> Array:
        return x + y if self.residual else y

    def _require_state(self) -> None:
        super()._require_state()
        if self.bidirectional:
            raise ValueError("state: a bidirectional MDTPE has no state and no step, only one with bidirectional=False")
