"""S5: one state space model with many inputs and many outputs, diagonal and scanned (arXiv 2208.04933).

    x'(t) = Lambda x(t) + B u(t),    y(t) = C x(t) + D u(t),    D channels in and out, P complex states

with u constant over steps of length dt, each state with its own (zero-order hold, section 3.1):

    x_k = Lbar x_{k-1} + Bbar u_k,    Lbar = exp(dt Lambda),    Bbar = Lambda^{-1} (Lbar - 1) B.

Lambda starts from the normal part of HiPPO-LegS, in J blocks (section 3.3 and appendix B). With conjugate symmetry, one
of each pair of states is held, and y is 2 Re(C x). In both directions, a second scan runs from the end, and C reads the
states of both. What follows y is in `ssm.output`.

A complex parameter is two reals on the last axis; the state is complex. Lambda, dt, D, the discretisation and the state
are float32 at least, whatever the precision of the rest.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.backbone import Capabilities, Mixer, partitioned
from lightnet.scan import linear_scan, linear_step
from lightnet.scan.states import stored_state
from lightnet.typing import Array
from ssm.checks import check_sequence, check_token
from ssm.initializers import (
    as_complex,
    as_reals,
    check_step_range,
    complex_normal_init,
    constant_init,
    legs_dplr,
    legs_pairs,
    log_step_init,
)
from ssm.mamba import at_least_float32, zero_masked
from ssm.output import OutputBlock
from ssm.s4d import discretise

LARGEST_REAL_PART = -1e-4  # of an eigenvalue, where they are clipped
READOUTS = ("lecun_normal", "complex_normal")


def legs_blocks(states: int, num_blocks: int, conj_sym: bool) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of HiPPO-LegS's normal part, in equal blocks (arXiv 2208.04933, section 3.3).

    Args:
        states: P, a multiple of the number of blocks.
        num_blocks: J.
        conj_sym: whether to give one of each conjugate pair only; blocks are of even size then.

    Returns:
        Lambda (P or P / 2,) and V (P, P or P / 2), complex128.

    Example:
        >>> Lambda, V = legs_blocks(8, num_blocks=2, conj_sym=True)
        >>> Lambda.round(2).tolist(), V.shape
        ([(-0.5+0.56j), (-0.5+4.6j), (-0.5+0.56j), (-0.5+4.6j)], (8, 4))
    """
    block = (legs_pairs if conj_sym else legs_dplr)(states // num_blocks)
    return np.tile(block.Lambda, num_blocks), np.kron(np.eye(num_blocks), block.V)


def input_init(V: np.ndarray) -> Callable[..., Array]:
    """Initializer of B (states, D, 2) as V* B with a real B (P, D), of variance 1 / P as in the published code.

    Example:
        >>> B = as_complex(input_init(np.eye(2, dtype=complex))(jax.random.key(0), (2, 3, 2)))
        >>> B.shape, float(jnp.abs(B.imag).max())
        ((2, 3), 0.0)
    """
    draw = nn.initializers.lecun_normal(in_axis=0, out_axis=1)

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return as_reals(jnp.asarray(V.conj().T) @ draw(key, (V.shape[0], shape[1]), dtype)).astype(dtype)

    return init


def readout_init(V: np.ndarray) -> Callable[..., Array]:
    """Initializer of C (D, n states, 2) as n matrices C V side by side, C (D, P) complex with parts of variance 1 / P.

    Example:
        >>> readout_init(np.eye(4, dtype=complex)[:, :2])(jax.random.key(0), (3, 4, 2)).shape
        (3, 4, 2)
    """
    draw = nn.initializers.lecun_normal(in_axis=1, out_axis=0, batch_axis=2)

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        states, kept = V.shape
        keys = jax.random.split(key, shape[1] // kept)
        parts = [as_complex(draw(k, (shape[0], states, 2), dtype)) @ jnp.asarray(V) for k in keys]
        return as_reals(jnp.concatenate(parts, axis=1)).astype(dtype)

    return init


class S5(Mixer):
    """S5's mixer (Smith, Warrington and Linderman, arXiv 2208.04933); see the module. It knows no positions.

    Initial values are those of the published code.

    Attributes:
        width: channels D.
        state_size: states P, those of both of each conjugate pair.
        num_blocks: blocks J of the initial Lambda; it divides P.
        conj_sym: whether one of each conjugate pair is held only, so that P is even in each block.
        bidirectional: whether states of a scan from the end are read too. Then it is not causal and has no state.
        discretisation: "zoh" or "bilinear".
        readout: initial values of C: "lecun_normal", a random readout of the states of HiPPO, or "complex_normal".
        clip_eigs: whether real parts of Lambda are at most -1e-4, so that states cannot grow.
        dt_min: smallest initial step.
        dt_max: largest initial step.
        output_activation: what follows, one of `ssm.output.OUTPUT_ACTIVATIONS`.
        out_scale: standard deviation of the output kernel's initial values, where the activation has one.
        dtype: of the computation; None takes that of the inputs and parameters. The recurrence is float32 at least.

    Example:
        >>> mixer = S5(width=4, state_size=6)
        >>> x = jnp.ones((1, 5, 4))
        >>> (y, state), variables = jax.jit(mixer.init_with_output)(jax.random.key(0), x)
        >>> y.shape, state.shape
        ((1, 5, 4), (1, 3))
        >>> y_next, state = mixer.apply(variables, x[:, 0], state, method="step")
        >>> y_next.shape
        (1, 4)
    """

    width: int
    state_size: int = 64
    num_blocks: int = 1
    conj_sym: bool = True
    bidirectional: bool = False
    discretisation: str = "zoh"
    readout: str = "lecun_normal"
    clip_eigs: bool = False
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    output_activation: str = "half_glu1"
    out_scale: float = 0.02
    dtype: Any = None

    @property
    def held(self) -> int:
        """Number of states that are held in one direction."""
        return self.state_size // 2 if self.conj_sym else self.state_size

    def setup(self) -> None:
        """Declare the parameters."""
        self._check()
        Lambda, V = legs_blocks(self.state_size, self.num_blocks, self.conj_sym)
        states, read = self.held, self.held * (1 + self.bidirectional)
        steps = log_step_init(self.dt_min, self.dt_max)
        self.Lambda_re = self.param("Lambda_re", partitioned(constant_init(Lambda.real), "mlp"), (states,))
        self.Lambda_im = self.param("Lambda_im", partitioned(constant_init(Lambda.imag), "mlp"), (states,))
        self.log_step = self.param("log_step", partitioned(steps, "mlp"), (states,))
        self.B = self.param("B", partitioned(input_init(V), "mlp", "embed", None), (states, self.width, 2))
        drawn = readout_init(V) if self.readout == "lecun_normal" else complex_normal_init
        self.C = self.param("C", partitioned(drawn, "embed", "mlp", None), (self.width, read, 2))
        self.D = self.param("D", partitioned(nn.initializers.normal(1.0), "embed"), (self.width,))
        self.output = OutputBlock(self.width, self.output_activation, self.out_scale, self.dtype)

    @property
    def capabilities(self) -> Capabilities:
        """All of them, or neither order nor state in both directions."""
        one_way = not self.bidirectional
        return Capabilities(causal=one_way, state=one_way, step=one_way, segments=True, mask=True)

    def __call__(
        self, x: Array, state: Array | None = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Mix a sequence.

        Args:
            x: (B, L, D).
            state: from an earlier call, complex (B, states); None at the start.
            segment_ids: (B, L); a token sees its own run only.
            mask: (B, L), true at real tokens. A masked token is not seen, gives 0 and gets no gradient.

        Returns:
            (B, L, D), and the state behind the last token; None in both directions.

        Raises:
            ValueError: an argument has another shape or kind than stated, or a state is given in both directions.
        """
        self.require(state=state is not None)
        check_sequence(self, x, state, segment_ids, mask)
        per_token: dict[str, Any] = {"segment_ids": segment_ids, "mask": mask}
        x = zero_masked(x, mask)
        decay, driven = self._driven(x)
        before = None if state is None else state.astype(driven.dtype)
        states, after = linear_scan(decay[None, None], driven, before, **per_token)
        if self.bidirectional:
            reverse, _ = linear_scan(decay[None, None], driven, reverse=True, **per_token)
            states = jnp.concatenate([states, reverse], axis=-1)
        y = zero_masked(self._read(states, x), mask)
        return y, None if self.bidirectional else stored_state(after, state)

    def step(self, x: Array, state: Array) -> tuple[Array, Array]:
        """Advance by one token (B, D).

        Raises:
            ValueError: an argument has another shape or kind than stated, or both directions are read.
        """
        self.require(step=True)
        check_token(self, x, state)
        decay, driven = self._driven(x)
        _, after = linear_step(decay[None], driven, state.astype(driven.dtype))
        return self._read(after, x), stored_state(after, state)

    def init_state(self, batch: int) -> Array:
        """The state before the first token."""
        self.require(state=True)
        wide = jnp.result_type(float) if self.dtype is None else jnp.promote_types(self.dtype, jnp.float32)
        return jnp.zeros((batch, self.held), jnp.result_type(wide, jnp.complex64))

    def _check(self) -> None:
        for name in ("state_size", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.state_size % (self.num_blocks * (1 + self.conj_sym)):
            even = "even " if self.conj_sym else ""
            expected = f"{self.num_blocks} blocks of the same {even}size"
            raise ValueError(f"state_size: got {self.state_size}, expected {expected}")
        check_step_range(self.dt_min, self.dt_max)
        if self.readout not in READOUTS:
            raise ValueError(f"readout: got {self.readout!r}, expected one of {', '.join(READOUTS)}")

    def _precision(self, x: Array) -> Any:
        """Of the products with B and C."""
        return jnp.result_type(x, self.B) if self.dtype is None else self.dtype

    def _driven(self, x: Array) -> tuple[Array, Array]:
        """Lbar (states,), and Bbar u of the inputs (..., D), (..., states); complex, and of the same precision."""
        real = at_least_float32(self.Lambda_re)
        real = jnp.minimum(real, LARGEST_REAL_PART) if self.clip_eigs else real
        Lambda = jax.lax.complex(real, at_least_float32(self.Lambda_im))
        decay, gain = discretise(self.discretisation, Lambda, jnp.exp(at_least_float32(self.log_step)))
        weights = as_reals(gain[:, None] * as_complex(self.B))
        driven = as_complex(_product("...d,pdc->...pc", x, weights, self._precision(x)))
        dtype = jnp.result_type(decay, driven)
        return decay.astype(dtype), driven.astype(dtype)

    def _read(self, states: Array, x: Array) -> Array:
        """(2) Re(C x) + D u, and what follows."""
        scale = 2 if self.conj_sym else 1
        # Re(C x) is Re C Re x - Im C Im x.
        signed = self.C * jnp.array([scale, -scale], self.C.dtype)[None, None]
        y = _product("...pc,dpc->...d", as_reals(states), signed, self._precision(x))
        y = y + jnp.broadcast_to(at_least_float32(self.D), x.shape) * x
        return self.output(y.astype(self._precision(x)))


def _product(equation: str, x: Array, weights: Array, dtype: Any) -> Array:
    """A product of real arrays in the precision of the computation, summed and given in float32 at least."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.einsum(equation, x.astype(dtype), weights.astype(dtype), preferred_element_type=wide)
