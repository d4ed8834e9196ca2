"""The layer that the theory is about (arXiv 2410.03292, section on the model): a selective recurrence and nothing else.

    D_d(x) = softplus(S_Delta,d . x + b_d)                                      step sizes, one for each channel d
    h_{d,l} = exp(-a_d D_d(x_l)) h_{d,l-1} + D_d(x_l) x_{d,l} S_B x_l,    y_{d,l} = (S_C x_l) . h_{d,l}

There is no convolution, gate, norm or skip, and the state matrix is -a_d times the identity. Unrolled, the output is a
sum over tokens with the hidden attention as weights, y_{d,l} = sum_{j <= l} P_{d,l,j} x_{d,j}. The formulas are from
summaries of the paper, which was not available; its bias b is ours. Here x is one sequence (L, D), S_Delta is (D, D),
S_B and S_C are (N, D), a and b (D,).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lightnet.scan import selective_scan
from lightnet.scan.checks import ArrayInput, as_arrays, check_array, known
from lightnet.typing import Array

_product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def input_output_matrix(s_b: ArrayInput, s_c: ArrayInput) -> Array:
    """M = S_C^T S_B, through which token j acts on token l: x_l^T M x_j.

    Args:
        s_b: S_B, (N, D).
        s_c: S_C, (N, D).

    Returns:
        (D, D), of rank N at most.

    Raises:
        ValueError: an argument has another shape than stated.

    Example:
        >>> input_output_matrix(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 0.0]])).tolist()
        [[3.0, 6.0], [0.0, 0.0]]
    """
    s_b, s_c = as_arrays(s_b=s_b, s_c=s_c)
    sizes: dict[str, int] = {}
    check_array("s_b", s_b, "N D", sizes)
    check_array("s_c", s_c, "N D", sizes)
    return _product("nd,ne->de", s_c, s_b)


def step_sizes_of(x: Array, s_delta: Array, bias: Array | None) -> Array:
    """D_d(x_l) = softplus(S_Delta,d . x_l + b_d), (L, D).

    Example:
        >>> step_sizes_of(jnp.zeros((1, 1)), jnp.ones((1, 1)), None).round(3).tolist() == [[jnp.log(2.0).round(3)]]
        True
    """
    projected = _product("le,de->ld", x, s_delta)
    return jax.nn.softplus(projected if bias is None else projected + bias[None])


def hidden_attention(
    x: ArrayInput, s_b: ArrayInput, s_c: ArrayInput, s_delta: ArrayInput, a: ArrayInput, bias: ArrayInput = None
) -> Array:
    """P_{d,l,j} = (x_l^T M x_j) D_d(x_j) exp(-a_d sum_{k = j+1..l} D_d(x_k)), 0 for j > l.

    Args:
        x: tokens (L, D).
        s_b: S_B, (N, D).
        s_c: S_C, (N, D).
        s_delta: S_Delta, (D, D).
        a: (D,), positive.
        bias: (D,); None is 0.

    Returns:
        (D, L, L).

    Raises:
        ValueError: an argument has another shape or range than stated.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> weights = hidden_attention(jnp.ones((2, 1)), one, one, 0 * one, jnp.ones(1))[0]
        >>> (weights / jnp.log(2.0)).tolist()
        [[1.0, 0.0], [0.5, 1.0]]
    """
    x, s_b, s_c, s_delta, a, bias = _checked(x, s_b, s_c, s_delta, a, bias)
    steps = step_sizes_of(x, s_delta, bias)
    passed = _sums_between(steps)
    earlier = jnp.tril(jnp.ones((len(x), len(x)), bool))
    decay = jnp.where(earlier[None], jnp.exp(-a[:, None, None] * passed), 0)
    acting = _product("ln,jn->lj", x @ s_c.T, x @ s_b.T)
    return acting[None] * decay * steps.T[:, None, :]


def s6_layer(
    x: ArrayInput, s_b: ArrayInput, s_c: ArrayInput, s_delta: ArrayInput, a: ArrayInput, bias: ArrayInput = None
) -> Array:
    """The layer's output y, by the recurrence of the module.

    Args:
        x: tokens (L, D).
        s_b: S_B, (N, D).
        s_c: S_C, (N, D).
        s_delta: S_Delta, (D, D).
        a: (D,), positive.
        bias: (D,); None is 0.

    Returns:
        (L, D).

    Raises:
        ValueError: an argument has another shape or range than stated.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> (s6_layer(jnp.ones((2, 1)), one, one, 0 * one, jnp.ones(1)) / jnp.log(2.0)).ravel().tolist()
        [1.0, 1.5]
    """
    x, s_b, s_c, s_delta, a, bias = _checked(x, s_b, s_c, s_delta, a, bias)
    states = s_b.shape[0]
    rates = jnp.tile(-a[:, None], (1, states))
    written, read = _product("ld,nd->ln", x, s_b), _product("ld,nd->ln", x, s_c)
    y, _ = selective_scan(x[None], step_sizes_of(x, s_delta, bias)[None], rates, written[None], read[None])
    return y[0]


def residual_stack(
    x: ArrayInput,
    s_b: ArrayInput,
    s_c: ArrayInput,
    s_delta: ArrayInput,
    a: ArrayInput,
    bias: ArrayInput = None,
    *,
    step: float,
    depth: int,
) -> Array:
    """Tokens behind each of `depth` layers with the same weights, x <- x + step S6(x).

    With step -> 0 and step times depth fixed it tends to the continuous limit, for which it is Euler's method.

    Args:
        x: tokens (L, D).
        s_b: S_B, (N, D).
        s_c: S_C, (N, D).
        s_delta: S_Delta, (D, D).
        a: (D,), positive.
        bias: (D,); None is 0.
        step: what a layer's output is multiplied with, finite.
        depth: number of layers, at least 1.

    Returns:
        (depth, L, D).

    Raises:
        ValueError: an argument has another shape or range than stated.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> stack = residual_stack(one, one, one, 0 * one, jnp.ones(1), step=2 / float(jnp.log(2.0)), depth=2)
        >>> [round(token, 3) for token in stack.ravel().tolist()]
        [3.0, 57.0]
    """
    x, *weights = _checked(x, s_b, s_c, s_delta, a, bias)
    if depth < 1:
        raise ValueError(f"depth: got {depth}, expected at least 1")
    if known(step) and not np.isfinite(step):
        raise ValueError(f"step: got {step}, expected a finite number")

    def layer(tokens: Array, _: None) -> tuple[Array, Array]:
        after = tokens + step * s6_layer(tokens, *weights)
        return after, after

    return jax.lax.scan(layer, x, None, length=depth)[1]


def _checked(*arguments: ArrayInput) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """The arguments of a layer as arrays of the stated shapes; the range of `a` is checked where it is known."""
    shapes = {"x": "L D", "s_b": "N D", "s_c": "N D", "s_delta": "D D", "a": "D", "bias": "D"}
    arrays = dict(zip(shapes, as_arrays(**dict(zip(shapes, arguments, strict=True))), strict=True))
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        if array is not None or name != "bias":
            check_array(name, array, shapes[name], sizes)
    if known(arrays["a"]) and not (np.asarray(arrays["a"]) > 0).all():  # a NaN is not above 0
        raise ValueError(f"a: got {np.asarray(arrays['a']).min()} among them, expected above 0")
    return tuple(arrays.values())


def _sums_between(steps: Array) -> Array:
    """sum_{k = j+1..l} of steps (L, D) at [d, l, j], summed by itself for each j: a difference of sums would cancel."""
    length = len(steps)
    after = jnp.arange(length)[:, None] > jnp.arange(length)[None]  # [k, j]: k comes after j
    return jnp.cumsum(jnp.where(after[None], steps.T[:, :, None], 0), axis=1)
