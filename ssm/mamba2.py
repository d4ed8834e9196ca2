"""Mamba-2's mixer: Mamba with one decay per head, so that its recurrence is linear attention (arXiv 2405.21060).

    [z, x] = W_in u,  [B, C] = W_bc u               D -> 2 E and 2 G N, with E = expand D = H P
    x, B, C = silu(conv(x)), silu(conv([B, C]))     causal, each channel by itself
    dt = clip(softplus(W_dt u + dt_bias))           D -> H
    S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T,     S (N, P) for each head, A = -exp(A_log)
    y_t = S_t^T C_t + D x_t
    out = W_out (norm(y silu(z)))                   RMS over each of the G groups of E / G channels

Head h has the B and the C of group h // (H / G). The recurrence is that of `ssm.ssd`, in chunks.

Parameters have the names of the checkpoints on Hugging Face. Their `in_proj` is `in_proj`, `bc_proj` and `dt_proj`
here, in this order, and their `conv1d` is `conv1d` and `conv1d_bc`: what is split over devices stands apart from what
every device needs. Step, A, D, the norm's statistics and the state are float32 at least, whatever the precision of the
rest.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.backbone import Capabilities, Mixer, partitioned
from lightnet.scan import causal_conv, causal_conv_step, gated_linear_attention, gated_linear_step
from lightnet.scan.recurrence import state_dtype
from lightnet.scan.states import computing_state, stored_state
from lightnet.typing import Array
from ssm.checks import check_sequence, check_token
from ssm.initializers import check_step_range, step_bias_init, uniform_init
from ssm.mamba import DepthwiseTaps, at_least_float32, step_sizes, zero_masked


class Mamba2State(NamedTuple):
    """The last inputs of the two convolutions and the recurrence's state.

    Attributes:
        conv: of x, (B, conv_width - 1, E).
        conv_bc: of B and C, (B, conv_width - 1, 2 G N).
        ssm: (B, H, N, P), as the scan core has it; other implementations have (B, H, P, N).
    """

    conv: Array
    conv_bc: Array
    ssm: Array


def log_uniform_rate_init(low: float, high: float) -> Callable[..., Array]:
    """Initializer of A_log: the rates exp(A_log) are uniform in [low, high].

    Example:
        >>> rates = jnp.exp(log_uniform_rate_init(1.0, 16.0)(jax.random.key(0), (100,)))
        >>> bool((rates > 0.99).all() and (rates < 16.01).all())
        True
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jnp.log(jax.random.uniform(key, shape, dtype, low, high))

    return init


def gated_rms_norm(y: Array, z: Array, scale: Array, num_groups: int, epsilon: float) -> Array:
    """The norm behind the gate: v / sqrt(mean(v^2) + epsilon) scale with v = y silu(z) (arXiv 2405.21060, section 7.1).

    Args:
        y: (..., E).
        z: gate before its activation (..., E).
        scale: (E,).
        num_groups: G, which divides E; the mean is over each group of E / G channels.
        epsilon: what is added to the mean square.

    Returns:
        (..., E), float32 at least.

    Example:
        >>> one = jnp.ones(4)
        >>> y = gated_rms_norm(jnp.array([3.0, 3.0, 0.5, -0.5]), one, one, num_groups=2, epsilon=0.0)
        >>> y.round(5).tolist()
        [1.0, 1.0, 1.0, -1.0]
    """
    y, z, scale = (at_least_float32(x) for x in (y, z, scale))
    gated = (y * nn.silu(z)).reshape(*y.shape[:-1], num_groups, -1)
    mean_square = jnp.square(gated).mean(axis=-1, keepdims=True)
    return (gated * jax.lax.rsqrt(mean_square + epsilon)).reshape(y.shape) * jnp.broadcast_to(scale, y.shape)


class GatedRMSNorm(nn.Module):
    """`gated_rms_norm` with its parameter `scale` (E,).

    Attributes:
        num_groups: G.
        epsilon: what is added to the mean square.

    Example:
        >>> y, variables = GatedRMSNorm(num_groups=2, epsilon=1e-5).init_with_output(
        ...     jax.random.key(0), jnp.ones((3, 4)), jnp.ones((3, 4))
        ... )
        >>> y.shape, variables["params"]["scale"].unbox().shape
        ((3, 4), (4,))
    """

    num_groups: int
    epsilon: float

    @nn.compact
    def __call__(self, y: Array, z: Array) -> Array:
        """Gate, then norm (..., E)."""
        scale = self.param("scale", partitioned(nn.initializers.ones, "mlp"), y.shape[-1:])
        return gated_rms_norm(y, z, scale, self.num_groups, self.epsilon)


class Mamba2(Mixer):
    """Mamba-2's mixer (Dao and Gu, arXiv 2405.21060); see the module. Causal; it knows no positions.

    Initial values are those of the published models; those of `out_proj` are so only with an `out_init`.

    Attributes:
        width: channels D.
        state_size: states N of each channel of a head.
        head_size: channels P of a head; it divides E, and H = E / P.
        expand: inner channels E over D.
        num_groups: groups G of heads with the same B and C; it divides H.
        conv_width: taps of the convolutions.
        dt_min: smallest initial step.
        dt_max: largest initial step.
        dt_limit: the interval that steps are clipped to.
        A_range: the interval that initial decay rates -A are uniform in.
        use_bias: biases of the first and the last projections.
        conv_bias: biases of the convolutions.
        norm_eps: of the norm.
        out_scale: standard deviation of the output kernel's initial values.
        out_init: initializer of the output kernel in place of that; None draws from a normal distribution.
        dtype: of the computation; None takes that of the inputs and parameters. The recurrence is float32 at least.

    Example:
        >>> mixer = Mamba2(width=4, state_size=3, head_size=2)
        >>> x = jnp.ones((1, 5, 4))
        >>> (y, state), variables = jax.jit(mixer.init_with_output)(jax.random.key(0), x)
        >>> y.shape, state.conv.shape, state.conv_bc.shape, state.ssm.shape
        ((1, 5, 4), (1, 3, 8), (1, 3, 6), (1, 4, 3, 2))
        >>> y_next, state = mixer.apply(variables, x[:, 0], state, method="step")
        >>> y_next.shape
        (1, 4)
    """

    width: int
    state_size: int = 128
    head_size: int = 64
    expand: int = 2
    num_groups: int = 1
    conv_width: int = 4
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_limit: tuple[float, float] = (0.0, math.inf)
    A_range: tuple[float, float] = (1.0, 16.0)
    use_bias: bool = False
    conv_bias: bool = True
    norm_eps: float = 1e-5
    out_scale: float = 0.02
    out_init: Callable[..., Array] | None = None
    dtype: Any = None

    @property
    def inner(self) -> int:
        """Channels E of the recurrence."""
        return self.expand * self.width

    @property
    def num_heads(self) -> int:
        """Heads H."""
        return self.inner // self.head_size

    def setup(self) -> None:
        """Declare the parameters."""
        self._check()
        inner, heads, selected = self.inner, self.num_heads, self.num_groups * self.state_size
        uniform = uniform_init(self.width**-0.5)

        def into(features: int | tuple[int, ...], dtype: Any, *axes: str | None) -> nn.DenseGeneral:
            init = partitioned(uniform, "embed", *axes)
            return nn.DenseGeneral(features, use_bias=self.use_bias, kernel_init=init, dtype=dtype)

        self.in_proj = into((2, inner), self.dtype, None, "mlp")
        self.bc_proj = into((2, selected), self.dtype, None, None)  # every head of a group reads all of it
        self.dt_proj = into(heads, None, "heads")
        self.conv1d = DepthwiseTaps(self.conv_width, inner, self.conv_bias)
        self.conv1d_bc = DepthwiseTaps(self.conv_width, 2 * selected, self.conv_bias, axis=None)
        self.dt_bias = self.param("dt_bias", partitioned(step_bias_init(self.dt_min, self.dt_max), "heads"), (heads,))
        self.A_log = self.param("A_log", partitioned(log_uniform_rate_init(*self.A_range), "heads"), (heads,))
        self.D = self.param("D", partitioned(nn.initializers.ones, "heads"), (heads,))
        self.norm = GatedRMSNorm(self.num_groups, self.norm_eps)
        out = partitioned(self.out_init or nn.initializers.normal(self.out_scale), "mlp", "embed")
        self.out_proj = nn.Dense(self.width, use_bias=self.use_bias, kernel_init=out, dtype=self.dtype)

    @property
    def capabilities(self) -> Capabilities:
        """All of them."""
        return Capabilities(causal=True, state=True, step=True, segments=True, mask=True)

    def __call__(
        self,
        x: Array,
        state: Mamba2State | None = None,
        *,
        segment_ids: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, Mamba2State]:
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
        check_sequence(self, x, state, segment_ids, mask)
        per_token: dict[str, Any] = {"segment_ids": segment_ids, "mask": mask}
        conv, conv_bc, ssm = (None,) * 3 if state is None else self._computing(state, x)
        x = zero_masked(x, mask)
        z, u, bc = self._projected(x)
        u, conv = causal_conv(u, *self.conv1d(u.dtype), initial_state=conv, **per_token)
        bc, conv_bc = causal_conv(bc, *self.conv1d_bc(bc.dtype), initial_state=conv_bc, **per_token)
        u, operands = self._operands(x, u, bc)
        y, ssm = gated_linear_attention(*operands, initial_state=ssm, **per_token)
        return zero_masked(self._out(y, u, z), mask), stored_state(Mamba2State(conv, conv_bc, ssm), state)

    def step(self, x: Array, state: Mamba2State) -> tuple[Array, Mamba2State]:
        """Advance by one token (B, D).

        Raises:
            ValueError: an argument has another shape or kind than stated.
        """
        check_token(self, x, state)
        before = self._computing(state, x)
        z, u, bc = self._projected(x)
        u, conv = causal_conv_step(u, *self.conv1d(u.dtype), before.conv)
        bc, conv_bc = causal_conv_step(bc, *self.conv1d_bc(bc.dtype), before.conv_bc)
        u, operands = self._operands(x, u, bc)
        y, ssm = gated_linear_step(*operands, before.ssm)
        return self._out(y, u, z), stored_state(Mamba2State(conv, conv_bc, ssm), state)

    def init_state(self, batch: int) -> Mamba2State:
        """The state before the first token."""
        selected = 2 * self.num_groups * self.state_size
        conv, conv_bc = (jnp.zeros((batch, self.conv_width - 1, n), self._wide) for n in (self.inner, selected))
        shape = (batch, self.num_heads, self.state_size, self.head_size)
        return Mamba2State(conv, conv_bc, jnp.zeros(shape, self._wide))

    @property
    def _wide(self) -> Any:
        """The precision of the recurrence and of states."""
        return jnp.result_type(float) if self.dtype is None else jnp.promote_types(self.dtype, jnp.float32)

    def _check(self) -> None:
        for name in ("state_size", "head_size", "expand", "num_groups", "conv_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.inner % self.head_size:
            raise ValueError(f"head_size: got {self.head_size}, expected a divisor of expand * width = {self.inner}")
        if self.num_heads % self.num_groups:
            raise ValueError(f"num_groups: got {self.num_groups}, expected a divisor of the {self.num_heads} heads")
        check_step_range(self.dt_min, self.dt_max)
        if not 0 <= self.dt_limit[0] < self.dt_limit[1]:
            raise ValueError(f"dt_limit: got {self.dt_limit}, expected 0 <= low < high")
        if not 0 < self.A_range[0] <= self.A_range[1]:
            raise ValueError(f"A_range: got {self.A_range}, expected 0 < low <= high")

    def _computing(self, state: Mamba2State, x: Array) -> Mamba2State:
        return computing_state(state, self.dtype, x, self.variables.get("params", {}))

    def _projected(self, x: Array) -> tuple[Array, Array, Array]:
        """z and x of the module's equations (..., E), and B with C behind it (..., 2 G N)."""
        z, u = jnp.unstack(self.in_proj(x), axis=-2)
        return z, u, self.bc_proj(x).reshape(*x.shape[:-1], -1)

    def _operands(self, x: Array, u: Array, bc: Array) -> tuple[Array, tuple[Array, Array, Array, Array]]:
        """The heads of silu(u), (..., H, P), and the recurrence's C, B (..., G, N), dt u and dt A (..., H, 1)."""
        u = nn.silu(u).reshape(*u.shape[:-1], self.num_heads, self.head_size)
        bc = nn.silu(bc).reshape(*bc.shape[:-1], 2, self.num_groups, self.state_size)
        B, C = jnp.unstack(bc, axis=-3)
        dt = jnp.clip(step_sizes(self.dt_proj(x.astype(state_dtype(u))), self.dt_bias), *self.dt_limit)[..., None]
        rate = -jnp.exp(at_least_float32(self.A_log))[:, None]
        return u, (C, B, dt * u, dt * jnp.broadcast_to(rate, dt.shape))

    def _out(self, y: Array, u: Array, z: Array) -> Array:
        """Skip, gate, norm and the last projection."""
        y = y + jnp.broadcast_to(at_least_float32(self.D)[:, None], u.shape) * u
        return self.out_proj(self.norm(y.reshape(z.shape), z).astype(z.dtype))
