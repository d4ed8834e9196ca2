"""LightNet: linear attention with keys normalised over tokens (Qin et al., "You Only Scan Once", arXiv 2405.21022)."""

from numbers import Integral

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lightnet.scan.additive import order_free_gpu, order_free_tpu, pallas_gpu, pallas_tpu
from lightnet.scan.additive.chunk import AdditiveState, AdditiveSummary, combine, enter, merge
from lightnet.scan.additive.compensated import Remainder, compensated_enter, compensated_update
from lightnet.scan.additive.order_free import global_split, global_xla
from lightnet.scan.additive.reference import additive_reference, additive_update, global_reference
from lightnet.scan.additive.xla import additive_xla, summary
from lightnet.scan.checks import ArrayInput, as_arrays, check_array, check_per_token, got, known
from lightnet.scan.dispatch import dispatch
from lightnet.scan.mesh import lie
from lightnet.scan.recurrence import Axes, Kernel, Recurrence, Tokens, check_state, only_real, state_dtype, tokens_of
from lightnet.segments import run_index
from lightnet.typing import Array

__all__ = [
    "ADDITIVE",
    "ADDITIVE_GLOBAL",
    "AdditiveState",
    "AdditiveSummary",
    "Remainder",
    "additive_global",
    "additive_recurrence",
    "additive_step",
    "compensated_end",
    "compensated_step",
    "merge",
]

_OPERANDS = ("B L H K", "B L H K", "B L H V", "B L H F K")
ADDITIVE = Recurrence(
    "additive_recurrence",
    Axes(_OPERANDS, AdditiveState._make(("B H K", "B H K", "B H K V")), "B L H V"),
    additive_reference,
    additive_xla,
    kernels={
        "tpu": Kernel(pallas_tpu.additive_tpu, pallas_tpu.refusal),
        "cuda": Kernel(pallas_gpu.additive_gpu, pallas_gpu.refusal, picked=False),
    },
    summary=summary,
    combine=combine,
    enter=enter,
)
ADDITIVE_GLOBAL = Recurrence(
    "additive_global",
    Axes((*_OPERANDS, "B L"), None, "B L H V"),
    global_reference,
    global_xla,
    kernels={
        "tpu": Kernel(order_free_tpu.global_tpu, order_free_tpu.refusal),
        "cuda": Kernel(order_free_gpu.global_gpu, order_free_gpu.refusal, picked=False),
    },
    split=global_split,
)


def additive_recurrence(
    q: ArrayInput,
    key_logits: ArrayInput,
    v: ArrayInput,
    *,
    key_factor: ArrayInput = None,
    initial_state: AdditiveState | None = None,
    segment_ids: ArrayInput = None,
    mask: ArrayInput = None,
    implementation: str | None = None,
) -> tuple[Array, AdditiveState]:
    """LightNet's attention, causal: keys are a softmax over the tokens so far, for each channel by itself.

    With logits a, key factors w and z_t = log sum_{j<=t} exp(a_j), all per key channel,

        o_t = sum_{j<=t} (q_t . w_j exp(a_j - z_t)) v_j,

    which is the recurrence with decay exp(z_{t-1} - z_t) and key exp(a_t - z_t).

    Args:
        q: queries (B, L, H, F*K).
        key_logits: (B, L, H, K); -inf is a token that this channel does not see.
        v: values (B, L, H, V).
        key_factor: (B or 1, L, H or 1, F, K): the normalised key is multiplied by each of the F factors, and the F
            products are concatenated. None is F = 1 and a factor of 1.
        initial_state: in the precision of the state, float32 (double under x64); None is the empty one.
        segment_ids: (B, L); the state restarts at each new run of equal ids, `initial_state` enters the first.
        mask: (B, L), true at real tokens. A masked token leaves the state as it is and gives 0, whatever it contains.
        implementation: see `lightnet.scan`.

    Returns:
        o (B, L, H, V) in the dtype of q, key_logits and v, and the last state.

    Raises:
        ValueError: a shape, dtype or name is another than stated.

    Example:
        >>> logits = jnp.log(jnp.array([1.0, 1.0, 2.0])).reshape(1, 3, 1, 1)
        >>> v = jnp.array([1.0, 3.0, 4.0]).reshape(1, 3, 1, 1)
        >>> o, final = additive_recurrence(jnp.ones((1, 3, 1, 1)), logits, v)
        >>> [round(x, 4) for x in o.ravel().tolist()]
        [1.0, 2.0, 3.0]
    """
    q, key_logits, v, key_factor, segment_ids, mask = as_arrays(
        q=q, key_logits=key_logits, v=v, key_factor=key_factor, segment_ids=segment_ids, mask=mask
    )
    sizes = _check("B L H", q, key_logits, v, key_factor)
    check_per_token(sizes, segment_ids, mask)
    state = _state("initial_state", initial_state, sizes, state_dtype(q, key_logits, v, key_factor))
    tokens = tokens_of(segment_ids, mask)
    dtype = jnp.result_type(q, key_logits, v)
    operands = _only_real(tokens, q, key_logits, v, key_factor)
    o, final = dispatch(ADDITIVE, implementation, operands, state, tokens)
    (o,) = only_real(tokens, o.astype(dtype))
    return o, final


def additive_step(
    q: ArrayInput, key_logits: ArrayInput, v: ArrayInput, state: ArrayInput, *, key_factor: ArrayInput = None
) -> tuple[Array, AdditiveState]:
    """One token of `additive_recurrence`.

    Args:
        q: (B, H, F*K).
        key_logits: (B, H, K).
        v: (B, H, V).
        state: behind the tokens so far.
        key_factor: (B or 1, H or 1, F, K).

    Returns:
        o (B, H, V) in the dtype of q, key_logits and v, and the state.

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> empty = AdditiveState(jnp.full((1, 1, 1), -jnp.inf), jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 1, 1)))
        >>> o, state = additive_step(jnp.ones((1, 1, 1)), jnp.ones((1, 1, 1)), jnp.full((1, 1, 1), 3.0), empty)
        >>> o.item(), state.maximum.item(), state.total.item()
        (3.0, 1.0, 1.0)
    """
    q, key_logits, v, key_factor = as_arrays(q=q, key_logits=key_logits, v=v, key_factor=key_factor)
    sizes = _check("B H", q, key_logits, v, key_factor)
    dtype = state_dtype(q, key_logits, v, key_factor)
    state = _state("state", state, sizes, dtype)
    factor = None if key_factor is None else key_factor.astype(dtype)
    o, state = additive_update(q.astype(dtype), key_logits.astype(dtype), v.astype(dtype), factor, state)
    return o.astype(jnp.result_type(q, key_logits, v)), state


def compensated_step(
    q: ArrayInput,
    key_logits: ArrayInput,
    v: ArrayInput,
    state: ArrayInput,
    remainder: ArrayInput,
    *,
    key_factor: ArrayInput = None,
) -> tuple[Array, AdditiveState, Remainder]:
    """`additive_step` whose sums do not drift; see `lightnet.scan.additive.compensated`.

    Args:
        q: (B, H, F*K).
        key_logits: (B, H, K).
        v: (B, H, V).
        state: behind the tokens so far.
        remainder: what rounding left out of it.
        key_factor: (B or 1, H or 1, F, K).

    Returns:
        o (B, H, V) in the dtype of q, key_logits and v; the state; and what rounding left out of it.

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> many = AdditiveState(jnp.zeros((1, 1, 1)), jnp.full((1, 1, 1), 2.0**24), jnp.zeros((1, 1, 1, 1)))
        >>> exact = Remainder(many.total * 0, many.state)
        >>> ones = jnp.ones((1, 1, 1))
        >>> o, state, remainder = compensated_step(ones, 0 * ones, ones, many, exact)
        >>> state.total.item() - 2**24, remainder.total.item()
        (0.0, 1.0)
    """
    q, key_logits, v, key_factor = as_arrays(q=q, key_logits=key_logits, v=v, key_factor=key_factor)
    sizes = _check("B H", q, key_logits, v, key_factor)
    dtype = state_dtype(q, key_logits, v, key_factor)
    state = _state("state", state, sizes, dtype)
    _check_remainder(remainder, state)
    factor = None if key_factor is None else key_factor.astype(dtype)
    operands = (q.astype(dtype), key_logits.astype(dtype), v.astype(dtype), factor)
    o, state, remainder = compensated_update(*operands, state, remainder)
    return o.astype(jnp.result_type(q, key_logits, v)), state, remainder


def compensated_end(
    key_logits: Array,
    v: Array,
    state: AdditiveState,
    remainder: Remainder,
    *,
    key_factor: Array | None = None,
    segment_ids: Array | None = None,
    mask: Array | None = None,
) -> tuple[AdditiveState, Remainder]:
    """The last state of `additive_recurrence` behind an initial one, without drift from call to call.

    The tokens are summed up by themselves, with one product of keys and values, and enter the sums at once.

    Args:
        key_logits: (B, L, H, K).
        v: (B, L, H, V); finite at masked tokens too.
        state: the initial one.
        remainder: what rounding left out of it.
        key_factor: (B or 1, L, H or 1, F, K).
        segment_ids: (B, L).
        mask: (B, L).

    Returns:
        The state, and what rounding left out of it.

    Raises:
        ValueError: the remainder is not one of this state.

    Example:
        >>> many = AdditiveState(jnp.zeros((1, 1, 1)), jnp.full((1, 1, 1), 2.0**24), jnp.zeros((1, 1, 1, 1)))
        >>> tokens = jnp.zeros((1, 3, 1, 1))
        >>> state, remainder = compensated_end(tokens, tokens, many, Remainder(many.total * 0, many.state))
        >>> state.total.item() - 2**24, remainder.total.item()
        (4.0, -1.0)
    """
    _check_remainder(remainder, state)
    queries = key_logits  # which a summary has no use for
    stretch = summary((queries, key_logits, v, key_factor), tokens_of(segment_ids, mask))
    return compensated_enter(stretch, state, remainder)


def _check_remainder(remainder: ArrayInput, state: AdditiveState) -> None:
    if not isinstance(remainder, Remainder):
        raise ValueError(f"remainder: got {got(remainder)}, expected a Remainder of arrays")
    for part, x in zip(Remainder._fields, remainder, strict=True):
        of = getattr(state, part)
        check_state(f"remainder.{part}", x, of.shape, of.dtype, required=True)


def additive_global(
    q: ArrayInput,
    key_logits: ArrayInput,
    v: ArrayInput,
    *,
    key_factor: ArrayInput = None,
    num_segments: int = 1,
    segment_ids: ArrayInput = None,
    mask: ArrayInput = None,
    implementation: str | None = None,
) -> Array:
    """LightNet's attention without an order: keys are a softmax over all tokens, for each channel by itself.

    With logits a, key factors w and z = log sum_j exp(a_j), all per key channel,

        o_i = sum_j (q_i . w_j exp(a_j - z)) v_j = S^T q_i,    S = sum_j w_j exp(a_j - z) v_j^T.

    Args:
        q: queries (B, L, H, F*K).
        key_logits: (B, L, H, K); -inf is a token that this channel does not see.
        v: values (B, L, H, V).
        key_factor: (B or 1, L, H or 1, F, K), as for `additive_recurrence`.
        num_segments: how many segments a row has at most; a static number. Time grows with it.
        segment_ids: (B, L); tokens see those of their own run of equal ids.
        mask: (B, L), true at real tokens. A masked token is seen by none and gives 0, whatever it contains.
        implementation: see `lightnet.scan`.

    Returns:
        o (B, L, H, V) in the dtype of q, key_logits and v; 0 where a token sees none. Under `jit`, 0 also in runs
        beyond `num_segments`.

    Raises:
        ValueError: a shape, dtype or name is another than stated; segment ids are concrete and have more runs than
            `num_segments`.

    Example:
        >>> v = jnp.array([1.0, 3.0, 5.0]).reshape(1, 3, 1, 1)
        >>> ones, ids = jnp.ones((1, 3, 1, 1)), jnp.array([[1, 1, 2]])
        >>> additive_global(ones, ones, v).ravel().tolist()
        [3.0, 3.0, 3.0]
        >>> additive_global(ones, ones, v, segment_ids=ids, num_segments=2).ravel().tolist()
        [2.0, 2.0, 5.0]
    """
    q, key_logits, v, key_factor, segment_ids, mask = as_arrays(
        q=q, key_logits=key_logits, v=v, key_factor=key_factor, segment_ids=segment_ids, mask=mask
    )
    sizes = _check("B L H", q, key_logits, v, key_factor)
    check_per_token(sizes, segment_ids, mask)
    tokens = tokens_of(None, mask)
    runs = _runs(segment_ids, tokens.real, num_segments)
    dtype = jnp.result_type(q, key_logits, v)
    operands = (*_only_real(tokens, q, key_logits, v, key_factor), runs)
    o = dispatch(ADDITIVE_GLOBAL, implementation, operands, None, tokens, num_segments=int(num_segments))
    (o,) = only_real(tokens, o.astype(dtype))
    return o


def _check(axes: str, q: ArrayInput, key_logits: ArrayInput, v: ArrayInput, key_factor: ArrayInput) -> dict[str, int]:
    """Sizes of the dimension letters, with F*K for the keys behind the factors."""
    sizes: dict[str, int] = {}
    check_array("key_logits", key_logits, f"{axes} K", sizes)
    check_array("v", v, f"{axes} V", sizes)
    if key_factor is not None:
        check_array("key_factor", key_factor, f"1|{axes[:-1]}1|H F K", sizes)
    sizes["F*K"] = sizes.get("F", 1) * sizes["K"]
    check_array("q", q, f"{axes} F*K", sizes)
    return sizes


def _state(name: str, state: ArrayInput, sizes: dict[str, int], dtype: jnp.dtype) -> AdditiveState:
    """The state, checked; the empty one if none is given, which a step does not accept."""
    per_channel = (sizes["B"], sizes["H"], sizes["K"])
    shapes = (per_channel, per_channel, (sizes["B"], sizes["H"], sizes["F*K"], sizes["V"]))
    if state is None and name != "state":
        return AdditiveState(*(jnp.full(s, x, dtype) for s, x in zip(shapes, (-jnp.inf, 0, 0), strict=True)))
    if not isinstance(state, AdditiveState) or any(part is None for part in state):
        raise ValueError(f"{name}: got {got(state)}, expected an AdditiveState of arrays")
    names = [f"{name}.{part}" for part in AdditiveState._fields]
    parts = zip(names, as_arrays(**dict(zip(names, state, strict=True))), shapes, strict=True)
    return AdditiveState(*(check_state(part, x, shape, dtype) for part, x, shape in parts))


def _only_real(
    tokens: Tokens, q: Array, key_logits: Array, v: Array, key_factor: Array | None
) -> tuple[Array, Array, Array, Array | None]:
    """Finite operands; a factor that rows share stays where one of them has a real token."""
    q, key_logits, v = only_real(tokens, q, key_logits, v)
    if key_factor is not None and tokens.real is not None:
        shared = key_factor.shape[0] < tokens.real.shape[0]
        real = tokens.real.any(axis=0, keepdims=True) if shared else tokens.real
        (key_factor,) = only_real(Tokens(None, real), key_factor)
    return q, key_logits, v, key_factor


def _runs(segment_ids: Array | None, mask: Array | None, num_segments: int) -> Array | None:
    """Number of each token's run, or None where there is one."""
    if isinstance(num_segments, bool) or not isinstance(num_segments, Integral) or num_segments < 1:
        raise ValueError(f"num_segments: got {num_segments!r}, expected an integer of at least 1")
    if segment_ids is None:
        return None
    runs = run_index(lie(segment_ids, PartitionSpec()), mask)
    if known(runs) and (most := int(runs.max()) + 1) > num_segments:
        raise ValueError(f"num_segments: got {num_segments}, expected at least {most}: so many runs a row has")
    return runs
