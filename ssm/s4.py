"""S4's mixer: each channel has a state space model whose matrix is diagonal plus a rank of one (arXiv 2111.00396).

    A = diag(Lambda) - P P*,  Lambda = -exp(log_A_real) + i A_imag,  dt = exp(log_step)     each channel by itself
    h_t = Abar h_{t-1} + Bbar x_t                                    the bilinear transition of A, B and dt
    y_t = C* h_t + D x_t = 2 Re(sum_n conj(C_n) h_t[n]) + D x_t      one of each conjugate pair of states
    out = (W gelu(y) + ...) sigmoid(V gelu(y) + ...)                 `ssm.output`

A begins as HiPPO-LegS. The formulas are in `ssm.dplr` and `ssm.convolution`. A whole sequence from its beginning is
convolved with the kernel; a state, segments or a mask take the recurrence, token by token, which is exact for all of
them. The final state comes from the recurrence too: compiled, one that nobody reads costs nothing. The convolution is
causal up to the rounding of Fourier transforms, the recurrence exactly.

C is the readout itself, not that of the truncated generating function, which is made for the length at hand: so the
parameters mean the same at every length. P, B and C are stored as two reals each. The paper's H is `width` here, and D
in shapes; N numbers of state are N / 2 conjugate pairs. What describes the recurrence, states, kernel and convolution
are float32 at least.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.backbone import Capabilities, Mixer, partitioned
from lightnet.scan.recurrence import only_real, state_dtype, tokens_of
from lightnet.scan.states import stored_state
from lightnet.typing import Array
from ssm.checks import check_sequence, check_token
from ssm.convolution import causal_convolution, dplr_kernel
from ssm.dplr import DPLR, advance, bilinear_dplr, read, recurrence
from ssm.initializers import (
    as_complex,
    as_reals,
    check_step_range,
    complex_normal_init,
    constant_init,
    legs_pairs,
    log_step_init,
)
from ssm.output import OutputBlock


class S4(Mixer):
    """S4's mixer (Gu, Goel and Re, arXiv 2111.00396); see the module. Causal; it knows no positions.

    Attributes:
        width: channels D.
        state_size: numbers N of state of each channel, even.
        dt_min: smallest initial step.
        dt_max: largest initial step.
        output_activation: what follows, one of `ssm.output.OUTPUT_ACTIVATIONS`.
        out_scale: standard deviation of the output kernel's initial values.
        dtype: of the computation; None takes that of the inputs and parameters. The recurrence is float32 at least.

    Example:
        >>> mixer = S4(width=4, state_size=6)
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
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    output_activation: str = "full_glu"
    out_scale: float = 0.02
    dtype: Any = None

    def setup(self) -> None:
        """Declare the parameters."""
        check_step_range(self.dt_min, self.dt_max)
        legs = legs_pairs(self.state_size)
        shape = (self.width, len(legs.Lambda))
        steps = partitioned(log_step_init(self.dt_min, self.dt_max), "mlp")
        self.log_step = self.param("log_step", steps, (self.width,))
        rates = {"log_A_real": np.log(-legs.Lambda.real), "A_imag": legs.Lambda.imag}
        self.log_A_real, self.A_imag = (
            self.param(name, partitioned(constant_init(value), "mlp", None), shape) for name, value in rates.items()
        )
        vectors = {"P": constant_init(as_reals(legs.P)), "B": constant_init(as_reals(legs.B)), "C": complex_normal_init}
        self.P, self.B, self.C = (
            self.param(name, partitioned(init, "mlp", None, None), (*shape, 2)) for name, init in vectors.items()
        )
        self.D = self.param("D", partitioned(nn.initializers.normal(1.0), "mlp"), (self.width,))
        self.output = OutputBlock(self.width, self.output_activation, self.out_scale, self.dtype)

    @property
    def capabilities(self) -> Capabilities:
        """All of them; states, segments and masks by the recurrence."""
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
        tokens = tokens_of(segment_ids, mask)
        (x,) = only_real(tokens, x)
        u, model, step = self._operands(x)
        before = jnp.zeros((x.shape[0], *model.B.shape), model.B.dtype) if state is None else state
        y, after = recurrence(bilinear_dplr(model, step), u, before.astype(model.B.dtype), tokens)
        if state is None and segment_ids is None and mask is None:
            y = causal_convolution(u, dplr_kernel(model, step, u.shape[1]))
        (out,) = only_real(tokens, self._out(x, u, y))
        return out, stored_state(after, state)

    def step(self, x: Array, state: Array) -> tuple[Array, Array]:
        """Advance by one token (B, D).

        Raises:
            ValueError: an argument has another shape or kind than stated.
        """
        check_token(self, x, state)
        u, continuous, step = self._operands(x)
        model = bilinear_dplr(continuous, step)
        h = advance(model, state.astype(model.b.dtype), u)
        return self._out(x, u, read(model, h)), stored_state(h, state)

    def init_state(self, batch: int) -> Array:
        """The state before the first token."""
        dtype = jnp.result_type(float) if self.dtype is None else self.dtype
        return jnp.zeros((batch, self.width, self.state_size // 2), jnp.result_type(dtype, jnp.complex64))

    def _operands(self, x: Array) -> tuple[Array, DPLR, Array]:
        """The input, the continuous model and its steps, in the precision of the recurrence."""
        wide = state_dtype(*((x, self.C) if self.dtype is None else (jnp.zeros((), self.dtype),)))
        Lambda = jax.lax.complex(-jnp.exp(self.log_A_real.astype(wide)), self.A_imag.astype(wide))
        P, B, C = (as_complex(parameter.astype(wide)) for parameter in (self.P, self.B, self.C))
        return x.astype(wide), DPLR(Lambda, P, B, C), jnp.exp(self.log_step.astype(wide))

    def _out(self, x: Array, u: Array, y: Array) -> Array:
        """The skip and what follows it, from there on in the precision of the rest."""
        y = y + self.D.astype(u.dtype)[(None,) * (u.ndim - 1)] * u
        return self.output(y.astype(jnp.result_type(x, self.C) if self.dtype is None else self.dtype))
