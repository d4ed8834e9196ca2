"""Diagonal state space model: each channel has states of its own, with the same coefficients at every token."""

import jax.numpy as jnp

from lightnet.scan.checks import ArrayInput, as_arrays, check_array, check_per_token
from lightnet.scan.diagonal.chunk import Diagonal, advance, real_products, sum_over_states
from lightnet.scan.diagonal.pallas_tpu import diagonal_tpu, refusal
from lightnet.scan.diagonal.reference import diagonal_reference
from lightnet.scan.diagonal.xla import diagonal_xla, summary, weights_of
from lightnet.scan.dispatch import dispatch
from lightnet.scan.linear.chunk import combine, enter
from lightnet.scan.recurrence import Axes, Kernel, Recurrence, check_state, only_real, state_dtype, tokens_of
from lightnet.typing import Array

DIAGONAL = Recurrence(
    "diagonal_ssm",
    Axes(Diagonal._make(("B L D", "D N", "D N", "D N")), "B D N", "B L D"),
    diagonal_reference,
    diagonal_xla,
    kernels={"tpu": Kernel(diagonal_tpu, refusal)},
    summary=summary,
    combine=combine,
    enter=enter,
)


def diagonal_ssm(
    x: ArrayInput,
    a: ArrayInput,
    b: ArrayInput,
    c: ArrayInput,
    initial_state: ArrayInput = None,
    *,
    segment_ids: ArrayInput = None,
    mask: ArrayInput = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Diagonal state space model with its readout (S4D, arXiv 2206.11893, after discretisation).

    h_t[d, n] = a[d, n] h_{t-1}[d, n] + b[d, n] x_t[d] and y_t[d] = Re sum_n c[d, n] h_t[d, n].

    Args:
        x: inputs (B, L, D).
        a: decays (D, N), real or complex.
        b: input weights (D, N), real or complex.
        c: readout weights (D, N), real or complex; with one of each conjugate pair of states, twice the weight.
        initial_state: (B, D, N) in the precision of the state, float32 or complex64 (double under x64); None is 0.
        segment_ids: (B, L); the state restarts at each new run of equal ids, `initial_state` enters the first.
        mask: (B, L), true at real tokens. A masked token leaves the state as it is and gives 0, whatever it contains.
        implementation: see `lightnet.scan`.

    Returns:
        y (B, L, D) in the dtype of x, and the last state (B, D, N).

    Raises:
        ValueError: a shape, dtype or name is another than stated.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.ones((1, 1))
        >>> y, final = diagonal_ssm(jnp.ones((1, 3, 1)), 0.5j * one, one, one)
        >>> y[0, :, 0].tolist(), final.tolist()
        ([1.0, 1.0, 0.75], [[[(0.75+0.5j)]]])
    """
    x, a, b, c, initial_state, segment_ids, mask = as_arrays(
        x=x, a=a, b=b, c=c, initial_state=initial_state, segment_ids=segment_ids, mask=mask
    )
    sizes = _check("B L D", x, a, b, c)
    check_per_token(sizes, segment_ids, mask)
    shape = (sizes["B"], sizes["D"], sizes["N"])
    state = check_state("initial_state", initial_state, shape, state_dtype(x, a, b, c))
    tokens = tokens_of(segment_ids, mask)
    (x,) = only_real(tokens, x)
    y, final = dispatch(DIAGONAL, implementation, Diagonal(x, a, b, c), state, tokens)
    (y,) = only_real(tokens, y)
    return y, final


def diagonal_step(x: ArrayInput, a: ArrayInput, b: ArrayInput, c: ArrayInput, state: ArrayInput) -> tuple[Array, Array]:
    """One token of `diagonal_ssm`.

    Args:
        x: input (B, D).
        a: decays (D, N).
        b: input weights (D, N).
        c: readout weights (D, N).
        state: (B, D, N).

    Returns:
        y (B, D) in the dtype of x, and the state (B, D, N).

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.ones((1, 1))
        >>> y, state = diagonal_step(one, 0.5 * one, one, 2 * one, jnp.ones((1, 1, 1)))
        >>> y.tolist(), state.tolist()
        ([[3.0]], [[[1.5]]])
    """
    x, a, b, c, state = as_arrays(x=x, a=a, b=b, c=c, state=state)
    sizes = _check("B D", x, a, b, c)
    dtype = state_dtype(x, a, b, c)
    state = check_state("state", state, (sizes["B"], sizes["D"], sizes["N"]), dtype, required=True)
    weights = weights_of(Diagonal(x, a, b, c), dtype)
    (h,) = advance((state.swapaxes(1, 2),), x[:, None].astype(jnp.finfo(dtype).dtype), weights)
    return sum_over_states(real_products(weights.c, (h,)))[:, 0].astype(x.dtype), h.swapaxes(1, 2)


def _check(axes: str, x: ArrayInput, a: ArrayInput, b: ArrayInput, c: ArrayInput) -> dict[str, int]:
    """Refuse other shapes than stated; the sizes by their letters."""
    sizes: dict[str, int] = {}
    check_array("x", x, axes, sizes)
    for name, weights in (("a", a), ("b", b), ("c", c)):
        check_array(name, weights, "D N", sizes, complex_allowed=True)
    return sizes
