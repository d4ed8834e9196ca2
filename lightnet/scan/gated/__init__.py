"""Gated linear attention: a matrix state per head, with a decay per key channel or per head."""

import jax.numpy as jnp
from jax.lax import Precision

from lightnet.scan.checks import ArrayInput, as_arrays, check_array, check_per_token, check_values, got
from lightnet.scan.dispatch import dispatch
from lightnet.scan.gated import pallas_gpu, pallas_tpu
from lightnet.scan.gated.chunk import combine, enter
from lightnet.scan.gated.reference import gated_reference
from lightnet.scan.gated.xla import gated_xla, summary
from lightnet.scan.recurrence import Axes, Kernel, Recurrence, check_state, only_real, state_dtype, tokens_of
from lightnet.typing import Array

GATED = Recurrence(
    "gated_linear_attention",
    Axes(("B L G K", "B L G K", "B L H V", "B L H K"), "B H K V", "B L H V"),
    gated_reference,
    gated_xla,
    kernels={
        "tpu": Kernel(pallas_tpu.gated_tpu, pallas_tpu.refusal),
        "cuda": Kernel(pallas_gpu.gated_gpu, pallas_gpu.refusal, picked=False),
    },
    summary=summary,
    combine=combine,
    enter=enter,
)


def gated_linear_attention(
    q: ArrayInput,
    k: ArrayInput,
    v: ArrayInput,
    log_decay: ArrayInput,
    *,
    initial_state: ArrayInput = None,
    segment_ids: ArrayInput = None,
    mask: ArrayInput = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Gated linear attention S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t for each head.

    With one decay per key channel, Yang et al. 2023 (arXiv 2312.06635), eq. 3; with one per head it is the state-space
    dual of Mamba-2 (arXiv 2405.21060), with q, k, v for C, B, x.

    Args:
        q: queries (B, L, G, K); G divides H, and head h uses the query and the key h // (H / G). Not scaled.
        k: keys (B, L, G, K).
        v: values (B, L, H, V).
        log_decay: (B, L, H, K), or (B, L, H, 1) for one decay per head; at most 0. -inf is a reset: the state before it
            does not count, and the gradient of this log decay is exactly 0.
        initial_state: (B, H, K, V) in the precision of the state, float32 (float64 under x64); None is 0.
        segment_ids: (B, L); the state restarts at each new run of equal ids, `initial_state` enters the first.
        mask: (B, L), true at real tokens. A masked token leaves the state as it is and gives 0, whatever it contains.
        implementation: see `lightnet.scan`.

    Returns:
        o (B, L, H, V) in the dtype of q k v, and the last state (B, H, K, V).

    Raises:
        ValueError: a shape, dtype, value or name is another than stated.

    Example:
        >>> one = jnp.ones((1, 3, 1, 1))
        >>> o, final = gated_linear_attention(one, one, one, jnp.log(0.5 * one))
        >>> o[0, :, 0, 0].tolist(), final.shape
        ([1.0, 1.5, 1.75], (1, 1, 1, 1))
    """
    q, k, v, log_decay, initial_state, segment_ids, mask = as_arrays(
        q=q, k=k, v=v, log_decay=log_decay, initial_state=initial_state, segment_ids=segment_ids, mask=mask
    )
    sizes = _check(q, k, v, log_decay, "B L ")
    check_per_token(sizes, segment_ids, mask)
    check_values("log_decay", log_decay, at_most=0, mask=mask)
    state = _state("initial_state", initial_state, sizes, q, k, v, log_decay)
    tokens = tokens_of(segment_ids, mask)
    # Every implementation selects the real tokens as it goes: here, it would copy the operands.
    o, final = dispatch(GATED, implementation, (q, k, v, log_decay), state, tokens)
    (o,) = only_real(tokens, o.astype(jnp.result_type(q, k, v)))
    return o, final


def gated_linear_step(
    q: ArrayInput, k: ArrayInput, v: ArrayInput, log_decay: ArrayInput, state: ArrayInput
) -> tuple[Array, Array]:
    """One token of `gated_linear_attention`.

    Args:
        q: query (B, G, K).
        k: key (B, G, K).
        v: value (B, H, V).
        log_decay: (B, H, K) or (B, H, 1), at most 0.
        state: (B, H, K, V).

    Returns:
        o (B, H, V) in the dtype of q k v, and the state (B, H, K, V).

    Raises:
        ValueError: a shape, dtype or value is another than stated.

    Example:
        >>> one = jnp.ones((1, 1, 1))
        >>> o, state = gated_linear_step(one, one, one, jnp.log(0.5 * one), jnp.ones((1, 1, 1, 1)))
        >>> o.item(), state.item()
        (1.5, 1.5)
    """
    q, k, v, log_decay, state = as_arrays(q=q, k=k, v=v, log_decay=log_decay, state=state)
    sizes = _check(q, k, v, log_decay, "B ")
    check_values("log_decay", log_decay, at_most=0)
    before = _state("state", state, sizes, q, k, v, log_decay)
    by_group = (sizes["B"], sizes["G"], sizes["H"] // sizes["G"], -1)
    value, decay = (x.reshape(by_group).astype(before.dtype) for x in (v, jnp.exp(log_decay.astype(before.dtype))))
    grouped = decay[..., None] * before.reshape(*by_group, sizes["V"]) + k[:, :, None, :, None] * value[..., None, :]
    o = jnp.einsum("bgmkv,bgk->bgmv", grouped, q.astype(before.dtype), precision=Precision.HIGHEST)
    return o.reshape(v.shape).astype(jnp.result_type(q, k, v)), grouped.reshape(before.shape)


def _check(q: ArrayInput, k: ArrayInput, v: ArrayInput, log_decay: ArrayInput, per_token: str) -> dict[str, int]:
    """Refuse other shapes than stated; the sizes by their letters."""
    sizes: dict[str, int] = {}
    check_array("v", v, per_token + "H V", sizes)
    check_array("q", q, per_token + "G K", sizes)
    check_array("k", k, per_token + "G K", sizes)
    check_array("log_decay", log_decay, per_token + "H 1|K", sizes)
    if sizes["H"] % sizes["G"]:
        raise ValueError(f"q: got {got(q)}, expected a number of heads that divides the {sizes['H']} heads of v")
    return sizes


def _state(name: str, state: Array | None, sizes: dict[str, int], *operands: Array) -> Array:
    shape = tuple(sizes[letter] for letter in "BHKV")
    return check_state(name, state, shape, state_dtype(*operands), required=name == "state")
