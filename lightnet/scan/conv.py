"""Short causal convolution along the sequence, each channel by itself, with state, segments and mask.

    y_t = bias + sum_{j=0}^{width-1} w_{width-1-j} x_{t-j}

The state is the last width - 1 real inputs, the newest last; zeros where the sequence has not been that long.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lightnet.scan.checks import ArrayInput, as_arrays, check_array, check_per_token
from lightnet.scan.dispatch import dispatch
from lightnet.scan.recurrence import Axes, Recurrence, Tokens, check_state, only_real, state_dtype, tokens_of
from lightnet.typing import Array


def causal_conv(
    x: ArrayInput,
    w: ArrayInput,
    bias: ArrayInput = None,
    *,
    initial_state: ArrayInput = None,
    segment_ids: ArrayInput = None,
    mask: ArrayInput = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Depthwise causal convolution y_t = bias + sum_j w_{width-1-j} x_{t-j}.

    Args:
        x: inputs (B, L, D), real or complex.
        w: taps (width, D); the last one is that of the current token.
        bias: (D,), or None.
        initial_state: the last width - 1 inputs before x, (B, width - 1, D) in the precision of the state: float32 at
            least. None is 0.
        segment_ids: (B, L); the taps do not reach into another run of equal ids, and only the first run's reach into
            `initial_state`.
        mask: (B, L), true at real tokens. A masked token does not exist, whatever it contains: the taps reach over it
            to the real tokens before it. It gives 0.
        implementation: see `lightnet.scan`.

    Returns:
        y (B, L, D) in the dtype of x w + bias, and the state behind the last token (B, width - 1, D).

    Raises:
        ValueError: a shape, dtype or name is another than stated.

    Example:
        >>> y, final = causal_conv(jnp.array([[[1.0], [2.0], [3.0]]]), jnp.array([[10.0], [1.0]]))
        >>> y[0, :, 0].tolist(), final.tolist()
        ([1.0, 12.0, 23.0], [[[3.0]]])
    """
    x, w, bias, initial_state, segment_ids, mask = as_arrays(
        x=x, w=w, bias=bias, initial_state=initial_state, segment_ids=segment_ids, mask=mask
    )
    sizes: dict[str, int] = {}
    check_array("x", x, "B L D", sizes, complex_allowed=True)
    _check_taps(w, bias, sizes)
    check_per_token(sizes, segment_ids, mask)
    state = check_state("initial_state", initial_state, _state_shape(sizes), state_dtype(x))
    tokens = tokens_of(segment_ids, mask)
    (x,) = only_real(tokens, x)
    y, final = dispatch(CONV, implementation, (x, w, bias), state, tokens)
    (y,) = only_real(tokens, y.astype(_output_dtype(x, w, bias)))
    return y, final


def causal_conv_step(x: ArrayInput, w: ArrayInput, bias: ArrayInput, state: ArrayInput) -> tuple[Array, Array]:
    """One token of `causal_conv`.

    Args:
        x: input (B, D).
        w: taps (width, D).
        bias: (D,), or None.
        state: the last width - 1 inputs (B, width - 1, D).

    Returns:
        y (B, D) in the dtype of x w + bias, and the state with x in it.

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> y, state = causal_conv_step(jnp.array([[2.0]]), jnp.array([[10.0], [1.0]]), None, jnp.array([[[1.0]]]))
        >>> y.tolist(), state.tolist()
        ([[12.0]], [[[2.0]]])
    """
    x, w, bias, state = as_arrays(x=x, w=w, bias=bias, state=state)
    sizes: dict[str, int] = {}
    check_array("x", x, "B D", sizes, complex_allowed=True)
    _check_taps(w, bias, sizes)
    state = check_state("state", state, _state_shape(sizes), state_dtype(x), required=True)
    y, state = _step(x, w, bias, state)
    return y.astype(_output_dtype(x, w, bias)), state


class Halo(NamedTuple):
    """What a stretch of the sequence does to the state that enters it.

    Attributes:
        inputs: (B, width - 1, D), the state behind the stretch when zeros enter it.
        decided: (B,) int32, how many of these rows, from the last on, do not depend on what enters.
    """

    inputs: Array
    decided: Array


def halo(operands: tuple[Array, Array, Array | None], tokens: Tokens) -> Halo:
    """The last width - 1 real inputs of a stretch's last run: what the stretch to its right needs.

    Args:
        operands: x (B, L, D), w (width, D), bias.
        tokens: which tokens begin a run, and which are real.

    Returns:
        The halo.

    Example:
        >>> ends = halo((jnp.array([[[1.0], [2.0]]]), jnp.ones((4, 1)), None), Tokens(None, None))
        >>> ends.inputs[0, :, 0].tolist(), ends.decided.tolist()
        ([0.0, 1.0, 2.0], [2])
    """
    x, w, _ = operands
    batch, length, _ = x.shape
    size = w.shape[0] - 1
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    if tokens.real is not None:
        index = jnp.where(tokens.real, index, -1)
    begins_run = jnp.zeros(batch, bool)
    if tokens.keep is not None:
        run = _runs(tokens.keep)
        index = jnp.where(run == run[:, -1:], index, -1)
        begins_run = run[:, -1] > 0
    newest, _ = jax.lax.top_k(jnp.pad(index, ((0, 0), (size, 0)), constant_values=-1), size)
    newest = newest[:, ::-1]
    rows = _rows(x, jnp.maximum(newest, 0)).astype(state_dtype(x))
    found = (newest >= 0).sum(axis=1, dtype=jnp.int32)
    return Halo(jnp.where((newest >= 0)[..., None], rows, 0), jnp.where(begins_run, size, found))


def enter(ends: Halo, state: Array) -> Array:
    """The state behind a stretch that `state` enters.

    Example:
        >>> ends = Halo(jnp.array([[[0.0], [0.0], [5.0]]]), jnp.array([1]))
        >>> enter(ends, jnp.array([[[1.0], [2.0], [3.0]]]))[0, :, 0].tolist()
        [2.0, 3.0, 5.0]
    """
    size = state.shape[1]
    place = jnp.arange(size)[None] + ends.decided[:, None]
    moved = _rows(state, jnp.minimum(place, max(size - 1, 0)))
    return jnp.where((place < size)[..., None], moved, ends.inputs)


def combine(earlier: Halo, later: Halo) -> Halo:
    """The halo of two stretches, one behind the other."""
    size = earlier.inputs.shape[1]
    return Halo(enter(later, earlier.inputs), jnp.minimum(earlier.decided + later.decided, size))


def _reference(
    operands: tuple[Array, Array, Array | None], initial_state: Array, tokens: Tokens
) -> tuple[Array, Array]:
    """Token by token: the definition."""
    x, w, bias = operands
    every = jnp.ones(x.shape[:2], bool)
    keep, real = (every if flag is None else flag for flag in tokens)

    def step(state: Array, token: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        x_t, keep_t, real_t = token
        y, after = _step(x_t, w, bias, jnp.where(keep_t[:, None, None], state, 0))
        return jnp.where(real_t[:, None, None], after, state), y

    over_time = jax.tree.map(lambda z: z.swapaxes(0, 1), (x, keep, real))
    final, y = jax.lax.scan(step, initial_state, over_time)
    return y.swapaxes(0, 1), final


def _xla(operands: tuple[Array, Array, Array | None], initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    """Sums of the shifted sequence. Real tokens are brought together first, and their outputs back to their places."""
    x, w, bias = operands
    final = enter(halo(operands, tokens), initial_state)
    if tokens.real is None:
        return _convolve(x, w, bias, initial_state, tokens.keep), final
    order = jnp.argsort(~tokens.real, axis=1, stable=True)
    keep = None if tokens.keep is None else jnp.take_along_axis(tokens.keep, order, axis=1)
    y = _convolve(_rows(x, order, unique=True), w, bias, initial_state, keep)
    return _rows(y, jnp.argsort(order, axis=1), unique=True), final


def _convolve(x: Array, w: Array, bias: Array | None, state: Array, keep: Array | None) -> Array:
    length, size, dtype = x.shape[1], w.shape[0] - 1, state_dtype(x, w, bias)
    padded = jnp.concatenate([state, x.astype(state.dtype)], axis=1)
    run = None if keep is None else _runs(keep)
    padded_run = None if run is None else jnp.pad(run, ((0, 0), (size, 0)))
    y = jnp.zeros((), dtype) if bias is None else bias.astype(dtype)[None, None]
    for j in range(size + 1):
        tap = padded[:, j : j + length].astype(dtype)
        if run is not None and padded_run is not None:
            tap = jnp.where((padded_run[:, j : j + length] == run)[..., None], tap, 0)
        y = y + w[None, None, j].astype(dtype) * tap
    return y.astype(_output_dtype(x, w, bias))


def _step(x: Array, w: Array, bias: Array | None, state: Array) -> tuple[Array, Array]:
    dtype = state_dtype(x, w, bias)
    window = jnp.concatenate([state, x[:, None].astype(state.dtype)], axis=1)
    y = (w[None].astype(dtype) * window.astype(dtype)).sum(axis=1)
    return y if bias is None else y + bias[None].astype(dtype), window[:, 1:]


def _rows(x: Array, index: Array, *, unique: bool = False) -> Array:
    """x[b, index[b]]; (B, L, D), (B, M) -> (B, M, D)."""
    return jax.vmap(lambda row, i: row.at[i].get(unique_indices=unique, mode="promise_in_bounds"))(x, index)


def _runs(keep: Array) -> Array:
    return jnp.cumsum(~keep, axis=1, dtype=jnp.int32)


def _state_shape(sizes: dict[str, int]) -> tuple[int, int, int]:
    return sizes["B"], sizes["width"] - 1, sizes["D"]


def _output_dtype(x: Array, w: Array, bias: Array | None) -> Any:
    return jnp.result_type(x, w) if bias is None else jnp.result_type(x, w, bias)


def _check_taps(w: ArrayInput, bias: ArrayInput, sizes: dict[str, int]) -> None:
    check_array("w", w, "width D", sizes, complex_allowed=True)
    if bias is not None:
        check_array("bias", bias, "D", sizes, complex_allowed=True)


CONV = Recurrence(
    "causal_conv",
    Axes(("B L D", "width D", "D"), "B width D", "B L D"),
    _reference,
    _xla,
    summary=halo,
    combine=combine,
    enter=enter,
)
