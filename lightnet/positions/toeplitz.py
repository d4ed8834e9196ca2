"""TPE: a depthwise Toeplitz operator whose kernel is a sum of exponentials, run as a linear recurrence.

For one axis, with weights b[d, n] and decays λ[d, n] between 0 and 1,

    t_i[d] = sum_n b[d, n] λ[d, n]^i   (i >= 0),      y_s[d] = sum_{m<=s} t_{s-m}[d] x_m[d],

which is the state space model h_s = λ h_{s-1} + b x_s, y_s = sum_n h_s. On a grid each axis has an operator of its own
and the results are summed; `toeplitz_along` is one of them.

The name and the place (once, behind the embedding) are LightNet's (Qin et al., arXiv 2405.21022). The paper's own
equations could not be read. That decays are exp(-exp(p)) is quoted from them by others; this kernel, from a draft of
the first author's code, is taken to be theirs. N here is E there, A axes are k.
"""

import jax.numpy as jnp

from lightnet.scan import diagonal_ssm, diagonal_step
from lightnet.scan.checks import ArrayInput, as_arrays, check_array
from lightnet.scan.recurrence import state_dtype
from lightnet.typing import Array


def toeplitz_decays(p: ArrayInput) -> Array:
    """Decays λ = exp(-exp(p)) in (0, 1): the number of tokens that a kernel reaches back is about exp(-p).

    Args:
        p: any shape.

    Returns:
        The same shape; 0 or 1 only where rounding makes it so.

    Example:
        >>> f"{toeplitz_decays(jnp.log(jnp.array(0.5))):.4f}"
        '0.6065'
    """
    (p,) = as_arrays(p=p)
    return jnp.exp(-jnp.exp(p))


def toeplitz_kernel(weights: ArrayInput, decays: ArrayInput, length: int) -> Array:
    """Impulse response t_i[d] = sum_n b[d, n] λ[d, n]^i.

    Args:
        weights: b (D, N).
        decays: λ (D, N), or (1, N) for all channels.
        length: number of lags L.

    Returns:
        (L, D), lag 0 first.

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> toeplitz_kernel(jnp.array([[2.0]]), jnp.array([[0.5]]), 3)[:, 0].tolist()
        [2.0, 1.0, 0.5]
    """
    weights, decays = _parameters(weights, decays)
    lags = jnp.arange(length).reshape(length, 1, 1)
    return (weights[None] * decays[None] ** lags).sum(axis=-1)


def toeplitz_scan(
    x: ArrayInput,
    weights: ArrayInput,
    decays: ArrayInput,
    initial_state: ArrayInput = None,
    *,
    reverse: bool = False,
    segment_ids: ArrayInput = None,
    mask: ArrayInput = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """TPE along a sequence by linear recurrence, in time and memory linear in L.

    Args:
        x: (B, L, D).
        weights: b (D, N).
        decays: λ (D, N), or (1, N) for all channels.
        initial_state: (B, D, N); None is 0.
        reverse: y_s sums over m >= s with t_{m-s} instead.
        segment_ids: (B, L); a segment is filtered as if it were alone.
        mask: (B, L), true at real tokens. A masked token takes no position and gives 0, whatever it contains.
        implementation: see `lightnet.scan`.

    Returns:
        y (B, L, D) in the dtype of x, and the last state (B, D, N): the first token's with `reverse`.

    Raises:
        ValueError: a shape, dtype or name is another than stated.

    Example:
        >>> x = jnp.array([1.0, 0.0, 1.0]).reshape(1, 3, 1)
        >>> y, state = toeplitz_scan(x, jnp.array([[2.0]]), jnp.array([[0.5]]))
        >>> y[0, :, 0].tolist(), state.tolist()
        ([2.0, 1.0, 2.5], [[[2.5]]])
    """
    x, initial_state, segment_ids, mask = as_arrays(
        x=x, initial_state=initial_state, segment_ids=segment_ids, mask=mask
    )
    weights, decays = _parameters(weights, decays)
    check_array("x", x, "B L D", {"D": weights.shape[0]})
    if reverse:
        x, segment_ids, mask = (None if v is None else jnp.flip(v, axis=1) for v in (x, segment_ids, mask))
    ones = jnp.ones_like(weights)
    y, final = diagonal_ssm(
        x, decays, weights, ones, initial_state, segment_ids=segment_ids, mask=mask, implementation=implementation
    )
    return (jnp.flip(y, axis=1) if reverse else y), final


def toeplitz_step(x: ArrayInput, weights: ArrayInput, decays: ArrayInput, state: ArrayInput) -> tuple[Array, Array]:
    """One token of `toeplitz_scan`.

    Args:
        x: (B, D).
        weights: b (D, N).
        decays: λ (D, N) or (1, N).
        state: (B, D, N).

    Returns:
        y (B, D) in the dtype of x, and the state.

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> y, state = toeplitz_step(jnp.ones((1, 1)), jnp.array([[2.0]]), jnp.array([[0.5]]), jnp.ones((1, 1, 1)))
        >>> y.tolist()
        [[2.5]]
    """
    x, state = as_arrays(x=x, state=state)
    weights, decays = _parameters(weights, decays)
    return diagonal_step(x, decays, weights, jnp.ones_like(weights), state)


def toeplitz_along(
    x: ArrayInput,
    axis: int,
    weights: ArrayInput,
    decays: ArrayInput,
    *,
    reverse: bool = False,
    mask: ArrayInput = None,
) -> Array:
    """TPE along one axis of a grid, each line by itself; MD-TPE is the sum over the axes.

    Args:
        x: (B, n_1, ..., n_A, D).
        axis: which of the A axes, from 0.
        weights: b (D, N).
        decays: λ (D, N) or (1, N).
        reverse: as in `toeplitz_scan`.
        mask: (B, n_1, ..., n_A), true at real tokens. A masked token takes no position in its line: padding at the ends
            of an axis is exact, a hole closes up.

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: there is no such axis, or a shape or dtype is another than stated.

    Example:
        >>> x = jnp.ones((1, 2, 3, 1))
        >>> toeplitz_along(x, 0, jnp.ones((1, 1)), jnp.ones((1, 1)))[0, :, :, 0].tolist()
        [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
        >>> toeplitz_along(x, 1, jnp.ones((1, 1)), jnp.ones((1, 1)))[0, :, :, 0].tolist()
        [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    """
    x, mask = as_arrays(x=x, mask=mask)
    if not 0 <= axis < x.ndim - 2:
        raise ValueError(f"axis: got {axis}, expected one of the {max(x.ndim - 2, 0)} axes of x between B and D")
    if mask is not None and mask.shape != x.shape[:-1]:
        raise ValueError(f"mask: got shape {list(mask.shape)}, expected {list(x.shape[:-1])}")
    lines = jnp.moveaxis(x, axis + 1, -2)
    mask = None if mask is None else jnp.moveaxis(mask, axis + 1, -1).reshape(-1, x.shape[axis + 1])
    flat = lines.reshape(-1, *lines.shape[-2:])
    y, _ = toeplitz_scan(flat, weights, decays, reverse=reverse, mask=mask)
    return jnp.moveaxis(y.reshape(lines.shape), -2, axis + 1)


def toeplitz_fft(x: ArrayInput, weights: ArrayInput, decays: ArrayInput) -> Array:
    """TPE along a sequence by Fourier transforms of twice its length: L log L, and parallel over L.

    No segments, no mask, no state; rounding is relative to the largest token of the sequence.

    Args:
        x: (B, L, D).
        weights: b (D, N).
        decays: λ (D, N) or (1, N).

    Returns:
        y (B, L, D) in the dtype of x.

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> x = jnp.array([1.0, 0.0, 1.0]).reshape(1, 3, 1)
        >>> toeplitz_fft(x, jnp.array([[2.0]]), jnp.array([[0.5]])).round(4)[0, :, 0].tolist()
        [2.0, 1.0, 2.5]
    """
    (x,) = as_arrays(x=x)
    weights, decays = _parameters(weights, decays)
    check_array("x", x, "B L D", {"D": weights.shape[0]})
    length, dtype = x.shape[1], state_dtype(x, weights, decays)
    kernel = toeplitz_kernel(weights.astype(dtype), decays.astype(dtype), length)
    spectrum = jnp.fft.rfft(x.astype(dtype), 2 * length, axis=1) * jnp.fft.rfft(kernel, 2 * length, axis=0)[None]
    return jnp.fft.irfft(spectrum, 2 * length, axis=1)[:, :length].astype(x.dtype)


def toeplitz_matrix(forward: ArrayInput, backward: ArrayInput = None) -> Array:
    """The operator as matrices, y[:, d] = T[d] x[:, d], to look at or to test with; L^2 per channel.

    Args:
        forward: kernel (L, D) from `toeplitz_kernel`.
        backward: kernel of the reversed recurrence, if there is one. Both act at lag 0, where they are summed.

    Returns:
        T (D, L, L), lower triangular without `backward`.

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> toeplitz_matrix(jnp.array([[2.0], [1.0]]), jnp.array([[0.0], [5.0]]))[0].tolist()
        [[2.0, 5.0], [1.0, 2.0]]
    """
    forward, backward = as_arrays(forward=forward, backward=backward)
    sizes: dict[str, int] = {}
    check_array("forward", forward, "L D", sizes)
    index = jnp.arange(sizes["L"])
    lag = index[:, None] - index[None]
    matrix = jnp.where((lag >= 0)[..., None], forward[jnp.maximum(lag, 0)], 0)
    if backward is not None:
        check_array("backward", backward, "L D", sizes)
        matrix = matrix + jnp.where((lag <= 0)[..., None], backward[jnp.maximum(-lag, 0)], 0)
    return jnp.moveaxis(matrix, -1, 0)


def _parameters(weights: ArrayInput, decays: ArrayInput) -> tuple[Array, Array]:
    """Checked, and the decays for each channel."""
    weights, decays = as_arrays(weights=weights, decays=decays)
    sizes: dict[str, int] = {}
    check_array("weights", weights, "D N", sizes)
    check_array("decays", decays, "1|D N", sizes)
    return weights, jnp.broadcast_to(decays, weights.shape)
