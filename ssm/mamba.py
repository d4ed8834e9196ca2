"""Mamba's mixer: a state space model whose step, input and readout depend on the token (arXiv 2312.00752, section 3).

    [u, z] = W_in x                      D -> 2 E, with E = expand D
    u = silu(conv(u))                    causal, each channel by itself
    [r, B, C] = W_x u                    E -> R + 2 N
    dt = softplus(W_dt r + dt_bias)      R -> E
    h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t,    A = -exp(A_log)
    y_t = W_out ((C_t h_t + D u_t) silu(z_t))

The paper's B, L, D and N are this module's batch, length, E and N; its D is `width` here and the skip is its D too.
Parameters have the names of the checkpoints on Hugging Face, but for `dt_bias`, their `dt_proj.bias`: it belongs to the
recurrence and is trained with A_log and D, and is added in the precision of the step. Step, A, D and the state are
float32 at least, whatever the precision of the rest. `in_proj` keeps the parts apart: its kernel is (D, 2, E).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.backbone import Capabilities, Mixer, partitioned
from lightnet.scan import causal_conv, causal_conv_step, selective_scan, selective_step
from lightnet.scan.states import computing_state, stored_state
from lightnet.typing import Array
from ssm.checks import check_sequence, check_token
from ssm.initializers import check_step_range, s4d_real_init, step_bias_init, uniform_init


class MambaState(NamedTuple):
    """The last inputs of the convolution (B, conv_width - 1, E), and the recurrence's state (B, E, N)."""

    conv: Array
    ssm: Array


def step_sizes(projected: Array, bias: Array) -> Array:
    """dt = softplus(projected + bias), float32 at least.

    Args:
        projected: W_dt r, (..., E).
        bias: dt_bias (E,).

    Returns:
        (..., E), positive.

    Example:
        >>> from ssm.initializers import inverse_softplus
        >>> step_sizes(jnp.zeros(2, jnp.bfloat16), inverse_softplus(jnp.array([0.5, 2.0]))).round(5).tolist()
        [0.5, 2.0]
    """
    wide = jnp.promote_types(projected.dtype, jnp.float32)
    shifted = projected.astype(wide) + bias.astype(wide).reshape((1,) * (projected.ndim - 1) + bias.shape)
    return jax.nn.softplus(shifted)


class DepthwiseTaps(nn.Module):
    """Parameters of a causal convolution of each channel by itself: `kernel` (width, E) and `bias` (E,) or None.

    Attributes:
        width: number of taps.
        channels: E.
        use_bias: whether there is a bias.
        axis: logical name of the axis of channels.

    Example:
        >>> (kernel, bias), _ = DepthwiseTaps(width=4, channels=6).init_with_output(jax.random.key(0), jnp.float32)
        >>> kernel.shape, bias.shape
        ((4, 6), (6,))
    """

    width: int
    channels: int
    use_bias: bool = True
    axis: str | None = "mlp"

    @nn.compact
    def __call__(self, dtype: Any) -> tuple[Array, Array | None]:
        """The kernel and the bias, in the given precision."""
        init = uniform_init(self.width**-0.5)  # what both start from in the published models
        kernel = self.param("kernel", partitioned(init, None, self.axis), (self.width, self.channels)).astype(dtype)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", partitioned(init, self.axis), (self.channels,)).astype(dtype)


class Mamba(Mixer):
    """Mamba's mixer (Gu and Dao, arXiv 2312.00752); see the module. Causal; it has no heads and knows no positions.

    Initial values are those of the published models; those of `out_proj` are so only with an `out_init`.

    Attributes:
        width: channels D.
        state_size: states N of each inner channel.
        expand: inner channels E over D.
        conv_width: taps of the convolution.
        dt_rank: rank R of the step's projection; None is D / 16 rounded up.
        dt_min: smallest initial step.
        dt_max: largest initial step.
        use_bias: biases of the first and the last projection.
        conv_bias: bias of the convolution.
        out_scale: standard deviation of the output kernel's initial values.
        out_init: initializer of the output kernel in place of that; None draws from a normal distribution.
        kernel_init: initializer of the kernels of all projections, in place of the published ones; `out_init` precedes.
        dtype: of the computation; None takes that of the inputs and parameters. The recurrence is float32 at least.

    Example:
        >>> mixer = Mamba(width=4, state_size=3)
        >>> x = jnp.ones((1, 5, 4))
        >>> (y, state), variables = jax.jit(mixer.init_with_output)(jax.random.key(0), x)
        >>> y.shape, state.conv.shape, state.ssm.shape
        ((1, 5, 4), (1, 3, 8), (1, 8, 3))
        >>> y_next, state = mixer.apply(variables, x[:, 0], state, method="step")
        >>> y_next.shape
        (1, 4)
    """

    width: int
    state_size: int = 16
    expand: int = 2
    conv_width: int = 4
    dt_rank: int | None = None
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    use_bias: bool = False
    conv_bias: bool = True
    out_scale: float = 0.02
    out_init: Callable[..., Array] | None = None
    kernel_init: Callable[..., Array] | None = None
    dtype: Any = None

    @property
    def inner(self) -> int:
        """Channels E of the recurrence."""
        return self.expand * self.width

    @property
    def rank(self) -> int:
        """Rank R of the step's projection."""
        return -(-self.width // 16) if self.dt_rank is None else self.dt_rank

    def setup(self) -> None:
        """Declare the parameters."""
        self._check()
        inner, rank, states = self.inner, self.rank, self.state_size
        into = partitioned(self._projected_from(self.width), "embed", None, "mlp")
        parts = (self._parts, inner)
        self.in_proj = nn.DenseGeneral(parts, use_bias=self.use_bias, kernel_init=into, dtype=self.dtype)
        self.conv1d = DepthwiseTaps(self.conv_width, inner, self.conv_bias)
        select = partitioned(self._projected_from(inner), "mlp", None)
        self.x_proj = self._selection(rank + 2 * states, select)
        step = partitioned(self._projected_from(rank), None, "mlp")
        self.dt_proj = nn.Dense(inner, use_bias=False, kernel_init=step)
        self.dt_bias = self.param("dt_bias", partitioned(step_bias_init(self.dt_min, self.dt_max), "mlp"), (inner,))
        self.A_log = self.param("A_log", partitioned(s4d_real_init, "mlp", None), (inner, states))
        self.D = self._declared_skip()
        out_init = self.out_init or self.kernel_init or nn.initializers.normal(self.out_scale)
        out = partitioned(out_init, "mlp", "embed")
        self.out_proj = nn.Dense(self.width, use_bias=self.use_bias, kernel_init=out, dtype=self.dtype)

    @property
    def capabilities(self) -> Capabilities:
        """All of them."""
        return Capabilities(causal=True, state=True, step=True, segments=True, mask=True)

    def __call__(
        self,
        x: Array,
        state: MambaState | None = None,
        *,
        segment_ids: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, MambaState | None]:
        """Mix a sequence.

        Args:
            x: (B, L, D).
            state: from an earlier call; None at the start.
            segment_ids: (B, L); a token sees its own run only.
            mask: (B, L), true at real tokens. A masked token is not seen, gives 0 and gets no gradient.

        Returns:
            (B, L, D), and the state behind the last token.

        Raises:
            ValueError: an argument has another shape or kind than stated.
        """
        self.require(state=state is not None, segments=segment_ids is not None)
        check_sequence(self, x, state, segment_ids, mask)
        per_token: dict[str, Any] = {"segment_ids": segment_ids, "mask": mask}
        conv, ssm = (
            (None, None) if state is None else computing_state(state, self.dtype, x, self.variables.get("params", {}))
        )
        x = zero_masked(x, mask)
        u, z = self._branches(x)
        u, conv = self._convolved(u, conv, **per_token)
        y, ssm = self._scanned(u, z, ssm, **per_token)
        after = MambaState(conv, ssm) if self.capabilities.state else None
        return zero_masked(self.out_proj(y), mask), stored_state(after, state)

    def step(self, x: Array, state: MambaState) -> tuple[Array, MambaState]:
        """Advance by one token (B, D).

        Raises:
            ValueError: an argument has another shape or kind than stated.
        """
        self.require(step=True)
        check_token(self, x, state)
        before = computing_state(state, self.dtype, x, self.variables.get("params", {}))
        u, z = self._branches(x)
        u, conv = self._convolved_token(u, before.conv)
        y, ssm = selective_step(u, *self._selected(u), self._skip(), before.ssm, z=z)
        return self.out_proj(y), stored_state(MambaState(conv, ssm), state)

    def init_state(self, batch: int) -> MambaState:
        """The state before the first token."""
        conv = jnp.zeros((batch, self.conv_width - 1, self.inner), self._wide)
        return MambaState(conv, jnp.zeros((batch, self.inner, self.state_size), self._wide))

    @property
    def _wide(self) -> Any:
        """The precision of the recurrence and of states."""
        return jnp.result_type(float) if self.dtype is None else jnp.promote_types(self.dtype, jnp.float32)

    def _projected_from(self, features: int) -> Callable[..., Array]:
        """Initializer of a kernel of so many inputs."""
        return self.kernel_init or uniform_init(features**-0.5)

    def _check(self) -> None:
        for name in ("state_size", "expand", "conv_width", "rank"):
            if getattr(self, name) < 1:
                given = "dt_rank" if name == "rank" else name
                raise ValueError(f"{given}: got {getattr(self, name)}, expected at least 1")
        check_step_range(self.dt_min, self.dt_max)

    # What follows is what `ssm.refinements` changes.

    @property
    def _parts(self) -> int:
        """What `in_proj` projects to: the input of the recurrence, and its gate."""
        return 2

    def _selection(self, features: int, kernel_init: Callable[..., Array]) -> nn.Module:
        """The projection to r, B and C."""
        return nn.Dense(features, use_bias=False, kernel_init=kernel_init, dtype=self.dtype)

    def _declared_skip(self) -> Array | None:
        return self.param("D", partitioned(nn.initializers.ones, "mlp"), (self.inner,))

    def _branches(self, x: Array) -> tuple[Array, Array | None]:
        """u and z, both (..., E)."""
        u, z = jnp.unstack(self.in_proj(x), axis=-2)
        return u, z

    def _convolved(self, u: Array, conv: Array | None, **per_token: Any) -> tuple[Array, Array]:
        """silu(conv(u)), and the window behind the last token."""
        u, conv = causal_conv(u, *self.conv1d(u.dtype), initial_state=conv, **per_token)
        return nn.silu(u), conv

    def _convolved_token(self, u: Array, conv: Array) -> tuple[Array, Array]:
        u, conv = causal_conv_step(u, *self.conv1d(u.dtype), conv)
        return nn.silu(u), conv

    def _scanned(self, u: Array, z: Array | None, ssm: Array | None, **per_token: Any) -> tuple[Array, Array]:
        """What `out_proj` projects, and the state behind the last token."""
        return selective_scan(u, *self._selected(u), self._skip(), z=z, initial_state=ssm, **per_token)

    def _selected(self, u: Array) -> tuple[Array, Array, Array, Array]:
        """dt (..., E), A (E, N), B and C (..., N)."""
        selected = self.x_proj(u)
        low, B, C = jnp.split(selected, (self.rank, self.rank + self.state_size), axis=-1)
        dt = step_sizes(self.dt_proj(at_least_float32(low)), self.dt_bias)
        return dt, -jnp.exp(at_least_float32(self.A_log)), B, C

    def _skip(self) -> Array | None:
        return None if self.D is None else at_least_float32(self.D)


def at_least_float32(x: Array) -> Array:
    """In float32, or as it is if that is wider.

    Example:
        >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
        dtype('float32')
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def zero_masked(x: Array, mask: Array | None) -> Array:
    """0 in the place of whatever a masked token (B, L) of x (B, L, D) contains.

    Example:
        >>> zero_masked(jnp.array([[[jnp.nan], [2.0]]]), jnp.array([[False, True]])).ravel().tolist()
        [0.0, 2.0]
    """
    return x if mask is None else jnp.where(mask[..., None], x, 0)
