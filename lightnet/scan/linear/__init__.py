"""h_t = a_t h_{t-1} + b_t, element by element: the recurrence that the others are made of."""

import jax.numpy as jnp

from lightnet.scan.checks import ArrayInput, as_arrays, check_array, check_per_token
from lightnet.scan.dispatch import dispatch
from lightnet.scan.linear import pallas_gpu, pallas_tpu
from lightnet.scan.linear.chunk import combine, enter
from lightnet.scan.linear.reference import linear_reference
from lightnet.scan.linear.xla import linear_xla, summary
from lightnet.scan.recurrence import Axes, Kernel, Recurrence, check_state, only_real, state_dtype, tokens_of
from lightnet.typing import Array

LINEAR = Recurrence(
    "linear_scan",
    Axes(("B L D", "B L D"), "B D", "B L D"),
    linear_reference,
    linear_xla,
    kernels={
        "tpu": Kernel(pallas_tpu.linear_tpu, pallas_tpu.refusal),
        "cuda": Kernel(pallas_gpu.linear_gpu, pallas_tpu.refusal, picked=False),
    },
    summary=summary,
    combine=combine,
    enter=enter,
)


def linear_scan(
    a: ArrayInput,
    b: ArrayInput,
    initial_state: ArrayInput = None,
    *,
    reverse: bool = False,
    segment_ids: ArrayInput = None,
    mask: ArrayInput = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Linear recurrence h_t = a_t h_{t-1} + b_t for each channel by itself.

    Args:
        a: decays (B, L, D), or with size 1 in the place of B or L: then it is never written out. Real or complex.
        b: inputs (B, L, D), real or complex.
        initial_state: (B, D) in the precision of the state, float32 or complex64 (double under x64); None is 0.
        reverse: run from the last token to the first.
        segment_ids: (B, L); the state restarts at each new run of equal ids, `initial_state` enters the first.
        mask: (B, L), true at real tokens. A masked token leaves the state as it is and gives 0, whatever it contains.
        implementation: see `lightnet.scan`.

    Returns:
        h (B, L, D) in the dtype of a b, and the last state (B, D): the first token's with `reverse`.

    Raises:
        ValueError: a shape, dtype or name is another than stated.

    Example:
        >>> h, final = linear_scan(jnp.full((1, 1, 1), 0.5), jnp.ones((1, 3, 1)))
        >>> h[0, :, 0].tolist(), final.tolist()
        ([1.0, 1.5, 1.75], [[1.75]])
    """
    a, b, initial_state, segment_ids, mask = as_arrays(
        a=a, b=b, initial_state=initial_state, segment_ids=segment_ids, mask=mask
    )
    sizes: dict[str, int] = {}
    check_array("b", b, "B L D", sizes, complex_allowed=True)
    check_array("a", a, "1|B 1|L D", sizes, complex_allowed=True)
    check_per_token(sizes, segment_ids, mask)
    dtype = state_dtype(a, b)
    state = check_state("initial_state", initial_state, (sizes["B"], sizes["D"]), dtype)
    tokens = tokens_of(segment_ids, mask, reverse=reverse)
    # No `only_real` here: it would copy a and b, and every implementation selects what it uses as it goes.
    h, final = dispatch(LINEAR, implementation, (a, b), state, tokens, reverse=reverse)
    (h,) = only_real(tokens, h.astype(jnp.result_type(a, b)))
    return h, final


def linear_step(a: ArrayInput, b: ArrayInput, state: ArrayInput) -> tuple[Array, Array]:
    """One token of `linear_scan`.

    Args:
        a: decays (B, D) or (1, D).
        b: inputs (B, D).
        state: (B, D).

    Returns:
        h (B, D) in the dtype of a b, and the state, which is h in its own precision.

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> linear_step(jnp.full((1, 1), 0.5), jnp.ones((1, 1)), jnp.ones((1, 1)))[0].tolist()
        [[1.5]]
    """
    a, b, state = as_arrays(a=a, b=b, state=state)
    sizes: dict[str, int] = {}
    check_array("b", b, "B D", sizes, complex_allowed=True)
    check_array("a", a, "1|B D", sizes, complex_allowed=True)
    state = check_state("state", state, b.shape, state_dtype(a, b), required=True)
    state = a * state + b
    return state.astype(jnp.result_type(a, b)), state
