"""S4D's mixer: each channel has a diagonal state space model of its own (arXiv 2206.11893).

    A = -exp(log_A_real) + i A_imag,  dt = exp(log_step)             each channel by itself
    h_t = a h_{t-1} + b x_t,  a and b from A, B and dt               zero-order hold or bilinear
    y_t = 2 Re(sum_n C_n h_t[n]) + D x_t                             one of each conjugate pair of states
    out = (W gelu(y) + ...) sigmoid(V gelu(y) + ...)                 `ssm.output`

N numbers of state are N / 2 conjugate pairs, or N real states for transitions "real", whose readout has no 2 Re. The
paper's H is `width` here, and D in shapes. The recurrence is `lightnet.scan.diagonal_ssm`, so that states, segments and
masks are exact; transitions, steps, skip and states are float32 at least. B, C are stored as two reals each.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.backbone import Capabilities, Mixer, partitioned
from lightnet.scan import diagonal_ssm, diagonal_step
from lightnet.scan.recurrence import only_real, state_dtype, tokens_of
from lightnet.scan.states import stored_state
from lightnet.typing import Array
from ssm.checks import check_sequence, check_token
from ssm.initializers import (
    as_complex,
    as_reals,
    check_step_range,
    complex_normal_init,
    constant_init,
    log_step_init,
    s4d_transitions,
)
from ssm.output import OutputBlock

DISCRETISATIONS = ("zoh", "bilinear")


class Diagonal(NamedTuple):
    """Discrete coefficients, each (D, N), of h' = a h + b x and y = Re(sum c h): c has the 2 of conjugate pairs."""

    a: Array
    b: Array
    c: Array


def discretise(name: str, A: Array, step: Array) -> tuple[Array, Array]:
    """The transition of one step, and the factor that B gets (arXiv 2206.11893, section 3.1).

    "zoh", exact for an input that is constant in each step: exp(dt A) and (exp(dt A) - 1) / A. "bilinear":
    (1 + dt A / 2) / (1 - dt A / 2) and dt / (1 - dt A / 2).

    Args:
        name: "zoh" or "bilinear".
        A: continuous transitions, real or complex, not 0.
        step: dt, of a shape that broadcasts against A.

    Returns:
        Two arrays like A.

    Raises:
        ValueError: there is no such name.

    Example:
        >>> [round(float(x), 4) for x in discretise("zoh", jnp.array(-1.0), jnp.array(0.5))]
        [0.6065, 0.3935]
        >>> [round(float(x), 4) for x in discretise("bilinear", jnp.array(-1.0), jnp.array(0.5))]
        [0.6, 0.4]
    """
    if name not in DISCRETISATIONS:
        raise ValueError(f"discretisation: got {name!r}, expected one of {', '.join(DISCRETISATIONS)}")
    if name == "zoh":
        return jnp.exp(step * A), jnp.expm1(step * A) / A
    half = step * A / 2
    return (1 + half) / (1 - half), step / (1 - half)


def diagonal_kernel(diagonal: Diagonal, length: int) -> Array:
    """The response to an impulse, K[d, l] = Re(sum_n c b a^l), for plots and tests.

    Args:
        diagonal: coefficients (D, N).
        length: L.

    Returns:
        (D, L).

    Example:
        >>> one = jnp.ones((1, 1))
        >>> diagonal_kernel(Diagonal(0.5 * one, one, one), 3).tolist()
        [[1.0, 0.5, 0.25]]
    """
    powers = diagonal.a[..., None] ** jnp.arange(length)[None, None]
    return jnp.einsum("dn,dnl->dl", diagonal.c * diagonal.b, powers).real


class S4D(Mixer):
    """S4D's mixer (Gu, Gupta, Goel and Re, arXiv 2206.11893); see the module. Causal; it knows no positions.

    Attributes:
        width: channels D.
        state_size: numbers N of state of each channel; even but for transitions "real".
        transitions: initial transitions, "lin", "inv", "legs" or "real"; the last has real states.
        discretisation: "zoh" or "bilinear".
        dt_min: smallest initial step.
        dt_max: largest initial step.
        output_activation: what follows, one of `ssm.output.OUTPUT_ACTIVATIONS`.
        out_scale: standard deviation of the output kernel's initial values.
        dtype: of the computation; None takes that of the inputs and parameters. The recurrence is float32 at least.

    Example:
        >>> mixer = S4D(width=4, state_size=6)
        >>> x = jnp.ones((1, 5, 4))
        >>> (y, state), variables = jax.jit(mixer.init_with_output)(jax.random.key(0), x)
        >>> y.shape, state.shape, state.dtype
        ((1, 5, 4), (1, 4, 3), dtype('complex64'))
        >>> y_next, state = mixer.apply(variables, x[:, 0], state, method="step")
        >>> y_next.shape
        (1, 4)
    """

    width: int
    state_size: int = 64
    transitions: str = "lin"
    discretisation: str = "zoh"
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    output_activation: str = "full_glu"
    out_scale: float = 0.02
    dtype: Any = None

    def setup(self) -> None:
        """Declare the parameters."""
        check_step_range(self.dt_min, self.dt_max)
        A = s4d_transitions(self.transitions, self.state_size)
        shape = (self.width, len(A))
        steps = partitioned(log_step_init(self.dt_min, self.dt_max), "mlp")
        self.log_step = self.param("log_step", steps, (self.width,))
        self.log_A_real = self.param("log_A_real", partitioned(constant_init(np.log(-A.real)), "mlp", None), shape)
        if self.real:
            ones, normal = partitioned(nn.initializers.ones, "mlp", None), nn.initializers.normal(1.0)
            self.B = self.param("B", ones, shape)
            self.C = self.param("C", partitioned(normal, "mlp", None), shape)
        else:
            self.A_imag = self.param("A_imag", partitioned(constant_init(A.imag), "mlp", None), shape)
            ones = partitioned(constant_init(as_reals(1.0)), "mlp", None, None)
            self.B = self.param("B", ones, (*shape, 2))
            self.C = self.param("C", partitioned(complex_normal_init, "mlp", None, None), (*shape, 2))
        self.D = self.param("D", partitioned(nn.initializers.normal(1.0), "mlp"), (self.width,))
        self.output = OutputBlock(self.width, self.output_activation, self.out_scale, self.dtype)

    @property
    def real(self) -> bool:
        """Whether states are real."""
        return self.transitions == "real"

    @property
    def capabilities(self) -> Capabilities:
        """All of them."""
        return Capabilities(causal=True, state=True, step=True, segments=True, mask=True)

    def __call__(
        self, x: Array, state: Array | None = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array]:
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
        tokens = tokens_of(None, mask)
        (x,) = only_real(tokens, x)
        u, diagonal = self._operands(x)
        before = None if state is None else state.astype(diagonal.a.dtype)
        y, after = diagonal_ssm(u, *diagonal, before, segment_ids=segment_ids, mask=mask)
        (out,) = only_real(tokens, self._out(x, u, y))
        return out, stored_state(after, state)

    def step(self, x: Array, state: Array) -> tuple[Array, Array]:
        """Advance by one token (B, D).

        Raises:
            ValueError: an argument has another shape or kind than stated.
        """
        check_token(self, x, state)
        u, diagonal = self._operands(x)
        y, after = diagonal_step(u, *diagonal, state.astype(diagonal.a.dtype))
        return self._out(x, u, y), stored_state(after, state)

    def init_state(self, batch: int) -> Array:
        """The state before the first token."""
        dtype = jnp.result_type(float) if self.dtype is None else self.dtype
        kind, states = (jnp.float32, self.state_size) if self.real else (jnp.complex64, self.state_size // 2)
        return jnp.zeros((batch, self.width, states), jnp.result_type(dtype, kind))

    def _operands(self, x: Array) -> tuple[Array, Diagonal]:
        """The input and the coefficients in the precision of the recurrence."""
        wide = state_dtype(*((x, self.C) if self.dtype is None else (jnp.zeros((), self.dtype),)))
        A, B, C = -jnp.exp(self.log_A_real.astype(wide)), self.B.astype(wide), self.C.astype(wide)
        if not self.real:
            A, B, C = jax.lax.complex(A, self.A_imag.astype(wide)), as_complex(B), 2 * as_complex(C)
        a, factor = discretise(self.discretisation, A, jnp.exp(self.log_step.astype(wide))[:, None])
        return x.astype(wide), Diagonal(a, factor * B, C)

    def _out(self, x: Array, u: Array, y: Array) -> Array:
        """The skip and what follows it, from there on in the precision of the rest."""
        y = y + self.D.astype(u.dtype)[(None,) * (u.ndim - 1)] * u
        return self.output(y.astype(jnp.result_type(x, self.C) if self.dtype is None else self.dtype))
