"""Mamba's selective recurrence: a step size, an input and a readout that depend on the token."""

import jax

from lightnet.scan.checks import ArrayInput, as_arrays, check_array, check_per_token, check_values
from lightnet.scan.dispatch import dispatch
from lightnet.scan.linear.chunk import combine, enter
from lightnet.scan.recurrence import Axes, Kernel, Recurrence, check_state, only_real, state_dtype, tokens_of
from lightnet.scan.selective import pallas_gpu, pallas_tpu
from lightnet.scan.selective.chunk import Selective, advance, gated, one_token, read, step_of
from lightnet.scan.selective.reference import selective_reference
from lightnet.scan.selective.xla import selective_xla, summary
from lightnet.typing import Array

SELECTIVE = Recurrence(
    "selective_scan",
    Axes(Selective._make(("B L D", "B L D", "D N", "B L N", "B L N", "D", "B L D")), "B D N", "B L D"),
    selective_reference,
    selective_xla,
    kernels={
        "tpu": Kernel(pallas_tpu.selective_tpu, pallas_tpu.refusal),
        "cuda": Kernel(pallas_gpu.selective_gpu, pallas_gpu.refusal, picked=False),
    },
    summary=summary,
    combine=combine,
    enter=enter,
)


def selective_scan(
    x: ArrayInput,
    dt: ArrayInput,
    A: ArrayInput,
    B: ArrayInput,
    C: ArrayInput,
    D: ArrayInput = None,
    *,
    z: ArrayInput = None,
    initial_state: ArrayInput = None,
    segment_ids: ArrayInput = None,
    mask: ArrayInput = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Selective state space recurrence (Mamba, arXiv 2312.00752, algorithm 2), of each channel d with states n.

    h_t[d, n] = exp(dt_t[d] A[d, n]) h_{t-1}[d, n] + dt_t[d] x_t[d] B_t[n], and
    y_t[d] = (sum_n C_t[n] h_t[d, n] + D[d] x_t[d]) silu(z_t[d]).

    Steps so small that decay and input both change the state by less than 1e-7 of itself are lost in part to the
    rounding of a float32 state: up to 6e-8 of it per token, in the worst case.

    Args:
        x: inputs (B, L, D).
        dt: step sizes (B, L, D), at least 0: after the softplus.
        A: rates (D, N), negative for a state that fades.
        B: input weights (B, L, N).
        C: readout weights (B, L, N).
        D: (D,), what of the input goes straight to the output; None is 0.
        z: gates (B, L, D); None is no gate.
        initial_state: (B, D, N) in the precision of the state, float32 (float64 under x64); None is 0.
        segment_ids: (B, L); the state restarts at each new run of equal ids, `initial_state` enters the first.
        mask: (B, L), true at real tokens. A masked token leaves the state as it is and gives 0, whatever it contains.
        implementation: see `lightnet.scan`.

    Returns:
        y (B, L, D) in the dtype of x, and the last state (B, D, N).

    Raises:
        ValueError: a shape, dtype or name is another than stated, or a known step size is negative.

    Example:
        >>> one = jax.numpy.ones((1, 2, 1))
        >>> y, final = selective_scan(one, one, -jax.numpy.log(2 * one[0, :1]), one, one)
        >>> y[0, :, 0].tolist(), final.tolist()
        ([1.0, 1.5], [[[1.5]]])
    """
    x, dt, A, B, C, D, z, initial_state, segment_ids, mask = as_arrays(
        x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, initial_state=initial_state, segment_ids=segment_ids, mask=mask
    )
    sizes = _check("B L", Selective(x, dt, A, B, C, D, z))
    check_per_token(sizes, segment_ids, mask)
    check_values("dt", dt, at_least=0, mask=mask)
    shape = (sizes["B"], sizes["D"], sizes["N"])
    state = check_state("initial_state", initial_state, shape, state_dtype(x, dt, A, B, C, D, z))
    tokens = tokens_of(segment_ids, mask)
    # A masked token makes a step of size 0: the decay is 1 and nothing enters.
    x, dt, B, C, z = only_real(tokens, x, dt, B, C, z)
    y, final = dispatch(SELECTIVE, implementation, Selective(x, dt, A, B, C, D, z), state, tokens)
    (y,) = only_real(tokens, y)
    return y, final


def selective_step(
    x: ArrayInput,
    dt: ArrayInput,
    A: ArrayInput,
    B: ArrayInput,
    C: ArrayInput,
    D: ArrayInput,
    state: ArrayInput,
    *,
    z: ArrayInput = None,
) -> tuple[Array, Array]:
    """One token of `selective_scan`.

    Args:
        x: input (B, D).
        dt: step size (B, D), at least 0.
        A: rates (D, N).
        B: input weights (B, N).
        C: readout weights (B, N).
        D: (D,) or None.
        state: (B, D, N).
        z: gate (B, D) or None.

    Returns:
        y (B, D) in the dtype of x, and the state (B, D, N).

    Raises:
        ValueError: a shape or dtype is another than stated, or a known step size is negative.

    Example:
        >>> one = jax.numpy.ones((1, 1))
        >>> y, state = selective_step(one, one, -jax.numpy.log(2 * one), one, one, None, one[None])
        >>> y.tolist(), state.tolist()
        ([[1.5]], [[[1.5]]])
    """
    x, dt, A, B, C, D, state, z = as_arrays(x=x, dt=dt, A=A, B=B, C=C, D=D, state=state, z=z)
    sizes = _check("B", Selective(x, dt, A, B, C, D, z))
    check_values("dt", dt, at_least=0)
    dtype = state_dtype(x, dt, A, B, C, D, z)
    state = check_state("state", state, (sizes["B"], sizes["D"], sizes["N"]), dtype, required=True)
    D = None if D is None else D[None, None]
    token = one_token(jax.tree.map(lambda v: v.astype(dtype), Selective(x, dt, A.T[None], B, C, D, z)))
    h = advance(state.swapaxes(1, 2), step_of(token))
    return gated(read(token.C, h), token)[:, 0].astype(x.dtype), h.swapaxes(1, 2)


def _check(per_token: str, operands: Selective) -> dict[str, int]:
    """Refuse other shapes than stated; the sizes by their letters."""
    sizes: dict[str, int] = {}
    channels, states = f"{per_token} D", f"{per_token} N"
    axes = (channels, channels, "D N", states, states, "D", channels)
    for name, x, letters in zip(Selective._fields, operands, axes, strict=True):
        if x is not None or name not in ("D", "z"):
            check_array(name, x, letters, sizes)
    return sizes
