"""Mamba's mixer without selection: the same block with a step, an input and a readout that no token changes.

    h_t = exp(dt A) h_{t-1} + dt B u_t,   y_t = W_out ((C h_t + D u_t) silu(z_t)),   A = -exp(A_log)

dt (E), B and C (E, N) are parameters. Projections, convolution, gate, skip and all initial values but those of B (1)
and C (normal, as in S4D) are Mamba's. B and C of each channel's own make it no weaker than Mamba with what W_x gives
replaced by constants, which the channels would share; it has about as many parameters as Mamba, 2 E N in the place of
E (R + 2 N) + R E.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.backbone import partitioned
from lightnet.scan import diagonal_ssm, diagonal_step
from lightnet.scan.states import computing_state, stored_state
from lightnet.typing import Array
from ssm.checks import check_token
from ssm.mamba import Mamba, MambaState, at_least_float32


class TimeInvariantMamba(Mamba):
    """Mamba's block around a time-invariant recurrence; see the module. Fields are those of `ssm.mamba.Mamba`.

    Example:
        >>> mixer = TimeInvariantMamba(width=4, state_size=3)
        >>> (y, state), variables = jax.jit(mixer.init_with_output)(jax.random.key(0), jnp.ones((1, 5, 4)))
        >>> y.shape, state.ssm.shape, sorted(variables["params"])[:4]
        ((1, 5, 4), (1, 8, 3), ['A_log', 'B', 'C', 'D'])
    """

    def setup(self) -> None:
        """Declare the parameters; what projects tokens to dt, B and C is never called and so has none."""
        super().setup()
        shape = (self.inner, self.state_size)
        self.B = self.param("B", partitioned(nn.initializers.ones, "mlp", None), shape)
        self.C = self.param("C", partitioned(nn.initializers.normal(1.0), "mlp", None), shape)

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
        y, ssm = diagonal_step(u, *self._coefficients(), before.ssm)
        return self.out_proj(self._gated(y, u, z)), stored_state(MambaState(conv, ssm), state)

    def _scanned(self, u: Array, z: Array | None, ssm: Array | None, **per_token: Any) -> tuple[Array, Array]:
        """What `out_proj` projects, and the state behind the last token."""
        y, ssm = diagonal_ssm(u, *self._coefficients(), ssm, **per_token)
        return self._gated(y, u, z), ssm

    def _coefficients(self) -> tuple[Array, Array, Array]:
        """a, b and c, each (E, N)."""
        dt = jax.nn.softplus(at_least_float32(self.dt_bias))[:, None]
        return jnp.exp(-dt * jnp.exp(at_least_float32(self.A_log))), dt * self.B, self.C

    def _gated(self, y: Array, u: Array, z: Array | None) -> Array:
        skip = self._skip()
        y = y if skip is None else y + jnp.expand_dims(skip, tuple(range(u.ndim - 1))) * u
        return (y if z is None else y * nn.silu(z)).astype(u.dtype)
