"""What state space models start from: HiPPO-LegS and its diagonal forms, S4D's transitions, step sizes.

HiPPO-LegS (arXiv 2008.07669) is a matrix A and a vector B whose state holds the Legendre coefficients of the past. It
is normal but for a rank of one (arXiv 2111.00396, theorem 1): A = S - p p^T, where S + 1/2 is skew. In the unitary
basis V of S that is diagonal plus low-rank, A = V (Lambda - P P*) V*, from which S4 starts; S4D and S5 take Lambda
alone. All of that is made in NumPy, in double precision. Initializers, functions of a key, a shape and a dtype, or
functions that make one, have names that end in `_init`.

A complex parameter is stored as two reals on a last axis: optimisers and checkpoints then see real numbers only.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lightnet.typing import Array

STEP_FLOOR = 1e-4  # the smallest initial step of Mamba and Mamba-2
S4D_TRANSITIONS = ("lin", "inv", "legs", "real")


class DiagonalPlusLowRank(NamedTuple):
    """A = V (diag(Lambda) - P P*) V* and B in that basis: Lambda, P, B (N,), complex, and V (N, N), unitary."""

    Lambda: np.ndarray
    P: np.ndarray
    B: np.ndarray
    V: np.ndarray


def hippo_legs(states: int) -> tuple[np.ndarray, np.ndarray]:
    """HiPPO-LegS: h' = A h + B u keeps the Legendre coefficients of the past (arXiv 2008.07669, theorem 2).

    A[n, k] = -sqrt((2 n + 1) (2 k + 1)) below the diagonal, -(n + 1) on it, 0 above it; B[n] = sqrt(2 n + 1).

    Args:
        states: N.

    Returns:
        A (N, N) and B (N,), float64.

    Example:
        >>> A, B = hippo_legs(3)
        >>> A[2].round(2).tolist(), B.round(2).tolist()
        ([-2.24, -3.87, -3.0], [1.0, 1.73, 2.24])
    """
    B = np.sqrt(2 * np.arange(states) + 1.0)
    A = np.tril(np.outer(-B, B), -1) - np.diag(np.arange(states) + 1.0)
    return A, B


def legs_normal_part(states: int) -> tuple[np.ndarray, np.ndarray]:
    """HiPPO-LegS as A = S - p p^T with a normal S, S + S^T = -1 (arXiv 2111.00396, appendix C.1): p[n] = sqrt(n + 1/2).

    Args:
        states: N.

    Returns:
        S (N, N) and p (N,), float64.

    Example:
        >>> S, p = legs_normal_part(3)
        >>> bool(np.allclose(S + S.T, -np.eye(3))), bool(np.allclose(S - np.outer(p, p), hippo_legs(3)[0]))
        (True, True)
    """
    p = np.sqrt(np.arange(states) + 0.5)
    return hippo_legs(states)[0] + np.outer(p, p), p


@cache
def legs_dplr(states: int) -> DiagonalPlusLowRank:
    """HiPPO-LegS in the eigenbasis V of its normal part: A = V (Lambda - P P*) V* with P = V* p (arXiv 2111.00396, 3).

    S + 1/2 is skew, so that -i (S + 1/2) is Hermitian: its eigenvalues are the imaginary parts of Lambda, in ascending
    order, and the real parts are all -1/2. Conjugate pairs stand mirrored, the first with the last. Eigenvectors have
    the phases that make P positive.

    Args:
        states: N.

    Returns:
        Lambda, P and B (N,) and V (N, N), complex128, which cannot be written to: every layer asks for the same.

    Example:
        >>> Lambda, P, B, V = legs_dplr(4)
        >>> A = V @ (np.diag(Lambda) - np.outer(P, P.conj())) @ V.conj().T
        >>> bool(np.allclose(A, hippo_legs(4)[0])), bool(np.allclose(Lambda, Lambda[::-1].conj()))
        (True, True)
    """
    S, p = legs_normal_part(states)
    frequencies, V = np.linalg.eigh(-1j * (S - np.diag(np.diag(S))))
    V = V * np.exp(1j * np.angle(V.conj().T @ p))
    Lambda = np.mean(np.diag(S)) + 1j * frequencies
    found = DiagonalPlusLowRank(Lambda, V.conj().T @ p, V.conj().T @ hippo_legs(states)[1], V)
    for array in found:
        array.flags.writeable = False
    return found


def legs_pairs(state_size: int) -> DiagonalPlusLowRank:
    """`legs_dplr` with one of each conjugate pair, that of positive frequency, in ascending order.

    A real vector h = V x is 2 Re(V x) of the half, and a readout of it 2 Re(sum c x).

    Args:
        state_size: N, even.

    Returns:
        Lambda, P and B (N / 2,) and V (N, N / 2), complex128.

    Raises:
        ValueError: N is not even.

    Example:
        >>> half = legs_pairs(4)
        >>> p = legs_normal_part(4)[1]
        >>> half.Lambda.round(3).tolist(), bool(np.allclose(2 * (half.V @ half.P).real, p))
        ([(-0.5+0.557j), (-0.5+4.603j)], True)
    """
    half = _pairs(state_size)
    Lambda, P, B, V = legs_dplr(state_size)
    return DiagonalPlusLowRank(Lambda[half:], P[half:], B[half:], V[:, half:])


def s4d_transitions(transitions: str, state_size: int) -> np.ndarray:
    """The continuous transitions that a channel of S4D starts from (arXiv 2206.11893, section 4).

    With n = 0, ..., N/2 - 1 and one of each pair: "lin" -1/2 + i pi n; "inv" -1/2 + i (N / pi) (N / (2 n + 1) - 1);
    "legs" the diagonal of `legs_dplr`. "real" -(n + 1) with n = 0, ..., N - 1: N numbers of state, as the others.

    Args:
        transitions: one of "lin", "inv", "legs", "real".
        state_size: N, even but for "real".

    Returns:
        (N / 2,) complex128, or (N,) float64 for "real".

    Raises:
        ValueError: there is no such name, or N is odd where it counts pairs.

    Example:
        >>> s4d_transitions("lin", 4).round(3).tolist(), s4d_transitions("real", 3).tolist()
        ([(-0.5+0j), (-0.5+3.142j)], [-1.0, -2.0, -3.0])
    """
    if transitions not in S4D_TRANSITIONS:
        raise ValueError(f"transitions: got {transitions!r}, expected one of {', '.join(S4D_TRANSITIONS)}")
    if transitions == "real":
        if state_size < 1:
            raise ValueError(f"state_size: got {state_size}, expected at least 1")
        return -(np.arange(state_size) + 1.0)
    n = np.arange(_pairs(state_size))
    if transitions == "legs":
        return legs_pairs(state_size).Lambda[::-1]
    return -0.5 + 1j * (np.pi * n if transitions == "lin" else state_size / np.pi * (state_size / (2 * n + 1) - 1))


def as_reals(z: Any) -> Array:
    """A complex array (...) as the parameter that stores it, (..., 2).

    Example:
        >>> as_reals(np.array([1 + 2j])).tolist()
        [[1.0, 2.0]]
    """
    z = jnp.asarray(z)
    return jnp.stack([z.real, z.imag], axis=-1)


def as_complex(parameter: Array) -> Array:
    """The complex array (...) that a parameter (..., 2) stores, complex64 at least.

    Example:
        >>> as_complex(jnp.array([[1.0, 2.0]])).tolist()
        [(1+2j)]
    """
    wide = parameter.astype(jnp.promote_types(parameter.dtype, jnp.float32))
    return jax.lax.complex(wide[..., 0], wide[..., 1])


def complex_normal_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initial values of a complex parameter (..., 2): standard complex normal, each part of variance 1/2.

    Example:
        >>> z = as_complex(complex_normal_init(jax.random.key(0), (10000, 2)))
        >>> round(float(jnp.mean(jnp.abs(z) ** 2)), 1)
        1.0
    """
    return math.sqrt(0.5) * jax.random.normal(key, shape, dtype)


def constant_init(value: Any) -> Callable[..., Array]:
    """Initializer of a parameter whose last axes are those of `value`, which each entry of the axes before them gets.

    Example:
        >>> constant_init(np.array([1.0, 2.0]))(jax.random.key(0), (3, 2)).tolist()
        [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        del key
        return jnp.broadcast_to(jnp.asarray(value, dtype), shape)

    return init


def check_step_range(dt_min: float, dt_max: float) -> None:
    """Raise a ValueError unless 0 < dt_min <= dt_max.

    Example:
        >>> check_step_range(0.2, 0.1)
        Traceback (most recent call last):
        ValueError: dt_min, dt_max: got 0.2 and 0.1, expected 0 < dt_min <= dt_max
    """
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"dt_min, dt_max: got {dt_min} and {dt_max}, expected 0 < dt_min <= dt_max")


def log_step_init(low: float, high: float) -> Callable[..., Array]:
    """Initializer of log_step: uniform in [log low, log high] (S4, S4D and S5).

    Args:
        low: smallest step.
        high: largest step.

    Returns:
        (key, shape, dtype) -> array.

    Example:
        >>> steps = jnp.exp(log_step_init(1e-3, 1e-1)(jax.random.key(0), (1000,)))
        >>> bool((steps > 0.99e-3).all() and (steps < 1.01e-1).all())
        True
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, math.log(low), math.log(high))

    return init


def inverse_softplus(x: Array) -> Array:
    """The y with softplus(y) = x, for x > 0, as x + log(1 - exp(-x)), which is exact for small x too.

    Example:
        >>> float(jax.nn.softplus(inverse_softplus(jnp.float32(1e-3)))).__round__(7)
        0.001
    """
    return x + jnp.log(-jnp.expm1(-x))


def step_bias_init(low: float, high: float) -> Callable[..., Array]:
    """Initializer of dt_bias: steps softplus(dt_bias) are log-uniform in [low, high], and `STEP_FLOOR` at least.

    Args:
        low: smallest step.
        high: largest step.

    Returns:
        (key, shape, dtype) -> array.

    Example:
        >>> bias = step_bias_init(1e-3, 1e-1)(jax.random.key(0), (1000,))
        >>> steps = jax.nn.softplus(bias)
        >>> bool((steps > 0.99e-3).all() and (steps < 1.01e-1).all())
        True
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        steps = jnp.exp(log_step_init(low, high)(key, shape, dtype))
        return inverse_softplus(jnp.maximum(steps, STEP_FLOOR))

    return init


def s4d_real_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initial A_log (E, N): log 1, ..., log N in each channel, so that A = -(1, ..., N) as in S4D-Real.

    Example:
        >>> jnp.exp(s4d_real_init(jax.random.key(0), (2, 3))).round(4).tolist()
        [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    """
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype))[None], shape)


def uniform_init(bound: float) -> Callable[..., Array]:
    """Initializer of entries uniform in [-bound, bound].

    Example:
        >>> bool(jnp.abs(uniform_init(0.5)(jax.random.key(0), (100,))).max() <= 0.5)
        True
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _pairs(state_size: int) -> int:
    if state_size < 2 or state_size % 2:
        raise ValueError(f"state_size: got {state_size}, expected an even number of at least 2")
    return state_size // 2
