"""What kernels of several recurrences share: flags, derivatives, heads that fill rows of 128, products of matrices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.recurrence import Tokens, mapped_alike
from lightnet.typing import Array

KEEP, REAL = 1, 2  # bits of a token's flag
LANES = 128  # numbers of a row of the vector unit of a TPU
MOST_HEADS = 8  # beyond them a program would be too long
# Contracted axes of both factors: n is a factor as it is, t a transposed one.
FORMS = {"nn": (1, 0), "nt": (1, 1), "tn": (0, 0)}


def wrong_precision(operands: Any, able: tuple[Any, ...] = (jnp.float32, jnp.bfloat16)) -> str | None:
    """Why a kernel cannot run arrays of these dtypes; None if it can.

    Example:
        >>> wrong_precision((jnp.ones(1), jnp.ones(1, jnp.float16)))
        'float16 is not a precision of the kernel'
    """
    wrong = [x.dtype.name for x in operands if x is not None and x.dtype not in able]
    return f"{wrong[0]} is not a precision of the kernel" if wrong else None


def flags_of(tokens: Tokens, batch: int, length: int, padded: int) -> Array | None:
    """Both flags of a token as one number (B, padded), masked ones behind the sequence; None if all are alike.

    Example:
        >>> flags_of(Tokens(None, jnp.array([[True, False]])), 1, 2, 3).tolist()
        [[3, 1, 1]]
    """
    if tokens == (None, None) and padded == length:
        return None
    keep, real = (jnp.ones((batch, length), bool) if flag is None else flag for flag in tokens)
    flags = KEEP * keep.astype(jnp.int32) + REAL * real.astype(jnp.int32)
    return jnp.pad(flags, ((0, 0), (0, padded - length)), constant_values=KEEP)


def heads_of_program(heads: int, groups: int, key: int, value: int, wanted: int, *, joint: bool = False) -> int | None:
    """How many heads a program takes: next to `wanted`, in rows of 128 numbers or whole arrays.

    Args:
        heads: H.
        groups: of heads that share a query and a key.
        key: size of a query and a key.
        value: size of a value.
        wanted: at most so many if possible.
        joint: whether a program that has a part of a group makes one gradient of its key, beside those of the others.

    Returns:
        The number; None if it would be more than `MOST_HEADS`.

    Example:
        >>> heads_of_program(8, 8, 128, 128, 4), heads_of_program(3, 3, 5, 6, 1), heads_of_program(9, 9, 64, 64, 4)
        (4, 3, None)
        >>> heads_of_program(8, 1, 64, 64, 4), heads_of_program(8, 1, 64, 64, 4, joint=True)
        (4, 8)
    """
    members = heads // groups

    def fits(some: int) -> bool:
        whole = heads % some == 0 and (some % members == 0 or members % some == 0)
        whole_groups = 0 if joint and some < members else groups
        parts = ((some, key, heads), (some, value, heads), (max(some // members, 1), key, whole_groups))
        return whole and all(n * size % LANES == 0 or n == every for n, size, every in parts)

    return next((n for n in (*range(wanted, 0, -1), *range(wanted + 1, MOST_HEADS + 1)) if fits(n)), None)


def traced_once(function: Callable, static: tuple[int, ...]) -> Callable:
    """A function that runs a kernel, traced once for all arguments of the same shapes and the same static ones.

    A program for any platform holds what its kernels for others would do, and unrolled loops take long to trace.

    Example:
        >>> float(traced_once(lambda x, times: x * times, (1,))(jnp.ones(()), 3))
        3.0
    """

    def kernel(*arguments: Any) -> Any:
        return function(*arguments)

    return jax.jit(kernel, static_argnums=static, inline=True)


def differentiable(forward: Callable, backward: Callable, xla: Callable) -> Callable:
    """A recurrence by kernels in both directions, and by XLA's form where it is differentiated twice.

    Args:
        forward: (operands, initial state, tokens, store, interpret) -> (outputs, last state, [the states that enter the
            blocks] if they are stored, else []).
        backward: (operands, cotangents of outputs and last state, tokens, the states that enter, interpret) ->
            gradients of the operands and of the initial state.
        xla: (operands, initial state, tokens) -> (outputs, last state).

    Returns:
        (operands, initial state, tokens, interpret) -> (outputs, last state).
    """

    forward, backward = traced_once(forward, (3, 4)), traced_once(backward, (4,))

    @partial(jax.custom_vjp, nondiff_argnums=(3, 4))
    def scan(operands: Any, initial_state: Array, tokens: Tokens, interpret: bool, store: bool) -> Any:
        *found, entered = forward(operands, initial_state, tokens, store, interpret)
        return *mapped_alike(found, (operands, tokens, initial_state)), entered

    def scan_forward(operands: Any, initial_state: Array, tokens: Tokens, interpret: bool, store: bool) -> Any:
        y, final, entered = scan(operands, initial_state, tokens, interpret, True)
        return (y, final, entered if store else []), (operands, initial_state, tokens, entered)

    def scan_backward(interpret: bool, store: bool, residuals: Any, cotangents: Any) -> Any:
        operands, initial_state, tokens, entered = residuals
        return *gradient(operands, initial_state, cotangents[:2], tokens, entered, interpret), None

    @partial(jax.custom_vjp, nondiff_argnums=(5,))
    def gradient(
        operands: Any, initial_state: Array, cotangents: Any, tokens: Tokens, entered: Any, interpret: bool
    ) -> Any:
        return backward(operands, cotangents, tokens, entered[0], interpret)

    def gradient_forward(*given: Any) -> Any:
        return gradient(*given), given[:5]

    def gradient_backward(interpret: bool, residuals: Any, bars: Any) -> Any:
        """The states that enter are a function of the others."""
        operands, initial_state, cotangents, tokens, entered = residuals

        def of_xla(operands: Any, initial_state: Array, cotangents: Any) -> Any:
            return jax.vjp(lambda x, state: xla(x, state, tokens), operands, initial_state)[1](cotangents)

        pulled = jax.vjp(of_xla, operands, initial_state, cotangents)[1](bars)
        return *pulled, None, jax.tree.map(jnp.zeros_like, entered)

    scan.defvjp(scan_forward, scan_backward)
    gradient.defvjp(gradient_forward, gradient_backward)

    def without_entered(operands: Any, initial_state: Array, tokens: Tokens, interpret: bool) -> tuple[Any, Array]:
        return scan(operands, initial_state, tokens, interpret, False)[:2]

    return without_entered


def flat(x: Array) -> Array:
    """(B, L, heads, size) with the heads side by side, (B, L, heads size), as projections give and take them."""
    return x.reshape(*x.shape[:2], -1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(x: Array, y: Array, form: str, half: bool) -> Array:
    """x y ("nn"), x y^T ("nt") or x^T y ("tn") in float32, of factors rounded to bfloat16 (`half`) or exactly.

    Example:
        >>> matmul(jnp.ones((3, 2)), jnp.ones((3, 2)), "nt", False).shape
        (3, 3)
    """
    if half:
        x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    left, right = FORMS[form]
    precision = None if half else lax.Precision.HIGHEST
    contract = (((left,), (right,)), ((), ()))
    return lax.dot_general(x, y, contract, precision=precision, preferred_element_type=jnp.float32)


def _matmul_backward(form: str, half: bool, factors: tuple[Array, Array], bar: Array) -> tuple[Array, Array]:
    x, y = factors
    if form == "nn":
        return matmul(bar, y, "nt", half), matmul(x, bar, "tn", half)
    if form == "nt":
        return matmul(bar, y, "nn", half), matmul(bar, x, "tn", half)
    return matmul(y, bar, "nt", half), matmul(x, bar, "nn", half)


matmul.defvjp(lambda x, y, form, half: (matmul(x, y, form, half), (x, y)), _matmul_backward)
