"""S4's formulas: state space models whose matrix is diagonal plus a rank of one (arXiv 2111.00396).

    h' = A h + B u,  y = C* h,  A = diag(Lambda) - P P*

Lambda, P, B and C are (D, N), one of each conjugate pair for each channel by itself: with its conjugates, which are not
stored, a sum over all states is 2 Re of the sum over these. The real parts of Lambda are negative; then A is
dissipative, and no power of its bilinear transition is larger than 1 in norm.

One model, three forms: the recurrence (`advance`, `read`), the kernel from powers (`kernel_by_powers`), and the
convolution with a kernel from its generating function (`ssm.convolution`). That function ends after some length with
another readout: `truncated_readout` makes it from C for the length at hand, and `untruncated_readout` takes a readout
learned for one length back to C.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

CHUNK = 32  # tokens whose states are made anew for the gradient
_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class DPLR(NamedTuple):
    """A continuous model, each field (D, N), complex; see the module."""

    Lambda: Array
    P: Array
    B: Array
    C: Array


class DiscreteDPLR(NamedTuple):
    """h' = diag(a) h - left (right* h) + b u, y = C* h; each field (D, N), complex, one of each conjugate pair."""

    a: Array
    left: Array
    right: Array
    b: Array
    C: Array


def paired(x: Array, axis: int = -1) -> Array:
    """The sum over all states of which x holds one of each conjugate pair: 2 Re(sum x).

    Example:
        >>> float(paired(jnp.array([1 + 2j, 3.0])))
        8.0
    """
    return 2 * x.real.sum(axis=axis)


def bilinear_dplr(model: DPLR, step: Array) -> DiscreteDPLR:
    """The bilinear transition (1 - dt A / 2)^-1 (1 + dt A / 2) and (1 - dt A / 2)^-1 dt B without a matrix.

    The transition is 2 (1 - dt A / 2)^-1 - 1, and by Woodbury (1 - dt A / 2)^-1 = q - rho q P P* q with
    q = 1 / (1 - dt Lambda / 2) and rho = (dt / 2) / (1 + (dt / 2) P* q P): again diagonal plus a rank of one.

    Args:
        model: continuous (arXiv 2111.00396, appendix C.2).
        step: dt (D,).

    Returns:
        The discrete model.

    Example:
        >>> one = jnp.ones((1, 1), jnp.complex64)
        >>> model = bilinear_dplr(DPLR(-one, 0 * one, one, one), jnp.array([0.5]))
        >>> round(float(model.a[0, 0].real), 4), round(float(model.b[0, 0].real), 4)
        (0.6, 0.4)
    """
    half = step[:, None] / 2
    q = 1 / (1 - half * model.Lambda)
    rho = half / (1 + half * paired(jnp.abs(model.P) ** 2 * q)[:, None])
    left = q * model.P
    b = q * model.B - rho * left * paired(model.P.conj() * q * model.B)[:, None]
    return DiscreteDPLR((1 + half * model.Lambda) * q, 2 * rho * left, q.conj() * model.P, 2 * half * b, model.C)


def advance(model: DiscreteDPLR, h: Array, u: Array) -> Array:
    """The state (..., D, N) behind an input (..., D): of order N, the rank of one by 2 Re over the pairs.

    Example:
        >>> one = jnp.ones((1, 1), jnp.complex64)
        >>> advance(DiscreteDPLR(0.5 * one, 0 * one, one, one, one), 2 * one, jnp.ones(1)).tolist()
        [[(2+0j)]]
    """
    a, left, right, b, _ = _like(model, h)
    return a * h - left * paired(right.conj() * h)[..., None] + b * u[..., None]


def read(model: DiscreteDPLR, h: Array) -> Array:
    """C* h of states (..., D, N).

    Example:
        >>> one = jnp.ones((1, 1), jnp.complex64)
        >>> read(DiscreteDPLR(one, one, one, one, 1j * one), one + 3j).tolist()
        [6.0]
    """
    return paired(_like(model, h).C.conj() * h)


def recurrence(model: DiscreteDPLR, u: Array, state: Array, tokens: Tokens) -> tuple[Array, Array]:
    """The model token by token; for the gradient, the states within a chunk are made anew.

    Args:
        model: discrete.
        u: inputs (B, L, D), 0 at masked tokens.
        state: (B, D, N), complex.
        tokens: which tokens begin a run, and which are real.

    Returns:
        y (B, L, D), anything at masked tokens, and the last state (B, D, N).

    Example:
        >>> one = jnp.ones((1, 1), jnp.complex64)
        >>> model = DiscreteDPLR(0.5 * one, 0 * one, one, one, one / 2)
        >>> y, last = recurrence(model, jnp.ones((1, 3, 1)), jnp.zeros((1, 1, 1), jnp.complex64), Tokens(None, None))
        >>> y.ravel().tolist(), last.ravel().tolist()
        ([1.0, 1.5, 1.75], [(1.75+0j)])
    """

    def one(h: Array, token: tuple) -> tuple[Array, Array]:
        u, keep, real = token
        new = advance(model, h if keep is None else jnp.where(keep[:, None, None], h, 0), u)
        h = new if real is None else jnp.where(real[:, None, None], new, h)
        return h, read(model, h)

    @jax.checkpoint
    def chunk(h: Array, part: tuple) -> tuple[Array, Array]:
        return jax.lax.scan(one, h, part)

    count, rest = divmod(u.shape[1], CHUNK)
    over_time = jax.tree.map(lambda x: x.swapaxes(0, 1), (u, *tokens))
    outputs = []
    if count:
        chunks = jax.tree.map(lambda x: x[: count * CHUNK].reshape(count, CHUNK, *x.shape[1:]), over_time)
        state, y = jax.lax.scan(chunk, state, chunks)
        outputs.append(y.reshape(count * CHUNK, *y.shape[2:]))
    if rest:
        state, y = chunk(state, jax.tree.map(lambda x: x[count * CHUNK :], over_time))
        outputs.append(y)
    return jnp.concatenate(outputs).swapaxes(0, 1), state


def truncated_readout(model: DiscreteDPLR, length: int) -> Array:
    """(1 - Abar^L)* C, the readout with which the generating function ends after L terms.

    Blocks of m steps, m near sqrt(L), go at once: Abar^m is diagonal plus a rank of m,

        Abar^m = diag(a)^m - sum_j (diag(a)^(m - 1 - j) left) (Abar*^j right)*,  j < m

    so that about 2 sqrt(L) operations follow one another. Only products of the transition enter: repeated squaring
    would multiply the rounding of the first by L.

    Args:
        model: discrete.
        length: L.

    Returns:
        (D, N), complex.

    Example:
        >>> one = jnp.ones((1, 1), jnp.complex64)
        >>> truncated_readout(DiscreteDPLR(0.5 * one, 0 * one, one, one, one), 3).tolist()
        [[(0.875+0j)]]
    """
    backwards = DiscreteDPLR(model.a.conj(), model.right, model.left, jnp.zeros_like(model.b), model.C)
    idle = jnp.zeros(model.a.shape[0], model.a.real.dtype)
    size = math.isqrt(length)

    def powers(carry: tuple, _: None) -> tuple[tuple, tuple]:
        power, left, right = carry
        return (power * backwards.a, left * model.a, advance(backwards, right, idle)), (left, right)

    (power, *_), (lefts, rights) = jax.lax.scan(
        powers, (jnp.ones_like(model.a), model.left, model.right), None, length=size
    )

    def block(w: Array, _: None) -> tuple[Array, None]:
        weights = 2 * _einsum("jdn,dn->jd", lefts[::-1].conj(), w).real
        return power * w - _einsum("jd,jdn->dn", weights, rights), None

    w, _ = jax.lax.scan(block, model.C, None, length=length // size)
    if rest := length % size:
        w, _ = jax.lax.scan(lambda w, _: (advance(backwards, w, idle), None), w, None, length=rest)
    return model.C - w


def untruncated_readout(model: DiscreteDPLR, truncated: Array, length: int) -> Array:
    """The C whose `truncated_readout` for this length is given, as in models that learn that instead of C.

    Args:
        model: discrete; its C is not read.
        truncated: (D, N), complex.
        length: L.

    Returns:
        C (D, N), complex.

    Example:
        >>> one = jnp.ones((1, 1), jnp.complex64)
        >>> untruncated_readout(DiscreteDPLR(0.5 * one, 0 * one, one, one, one), 0.875 * one, 3).tolist()
        [[(1+0j)]]
    """
    channels, states = model.a.shape
    identity = jnp.eye(2 * states, dtype=model.a.real.dtype)
    units = jnp.broadcast_to(
        jax.lax.complex(identity[:, :states], identity[:, states:])[:, None], (2 * states, channels, states)
    )
    images = jax.vmap(lambda C: truncated_readout(model._replace(C=C), length))(units)
    matrix = jnp.moveaxis(jnp.concatenate([images.real, images.imag], -1), 0, -1)
    C = jnp.linalg.solve(matrix, jnp.concatenate([truncated.real, truncated.imag], -1)[..., None])[..., 0]
    return jax.lax.complex(C[:, :states], C[:, states:])


def dense_matrices(model: DPLR) -> tuple[Array, Array, Array]:
    """A (D, 2 N, 2 N), B and C (D, 2 N) of all states, the conjugates behind the stored ones.

    Example:
        >>> one = jnp.ones((1, 1), jnp.complex64)
        >>> A, B, C = dense_matrices(DPLR((-1 + 2j) * one, 1j * one, one, one))
        >>> A.real.tolist(), A.imag.diagonal(axis1=1, axis2=2).tolist()
        ([[[-2.0, 1.0], [1.0, -2.0]]], [[2.0, -2.0]])
    """
    Lambda, P, B, C = (jnp.concatenate([x, x.conj()], -1) for x in model)
    return jnp.eye(Lambda.shape[1])[None] * Lambda[:, None] - P[:, :, None] * P[:, None].conj(), B, C


def dense_bilinear(A: Array, B: Array, step: Array) -> tuple[Array, Array]:
    """The bilinear transition (1 - dt A / 2)^-1 (1 + dt A / 2) and (1 - dt A / 2)^-1 dt B, by solving.

    Args:
        A: (..., N, N).
        B: (..., N).
        step: dt (...).

    Returns:
        Two arrays like A and B.

    Example:
        >>> a, b = dense_bilinear(jnp.array([[-1.0]]), jnp.ones(1), jnp.array(0.5))
        >>> round(float(a[0, 0]), 4), round(float(b[0]), 4)
        (0.6, 0.4)
    """
    half = step[..., None, None] * A / 2
    identity = jnp.eye(A.shape[-1])[(None,) * (A.ndim - 2)]
    right = jnp.concatenate([identity + half, (step[..., None] * B)[..., None]], -1)
    solved = jnp.linalg.solve(identity - half, right)
    return solved[..., :-1], solved[..., -1]


def kernel_by_powers(transition: Array, b: Array, C: Array, length: int) -> Array:
    """K[l] = C* Abar^l b by the definition, for tests: (..., N, N), (..., N) and (..., N) -> (..., L), real.

    Example:
        >>> kernel_by_powers(jnp.array([[0.5]]), jnp.ones(1), jnp.ones(1), 3).tolist()
        [1.0, 0.5, 0.25]
    """

    def power(h: Array, _: None) -> tuple[Array, Array]:
        return _einsum("...mn,...n->...m", transition, h), _einsum("...n,...n->...", C.conj(), h).real

    return jnp.moveaxis(jax.lax.scan(power, b, None, length=length)[1], 0, -1)


def _like(model: DiscreteDPLR, h: Array) -> DiscreteDPLR:
    """With the leading axes of a state."""
    return DiscreteDPLR(*(x[(None,) * (h.ndim - x.ndim)] for x in model))
