"""S4's formulas: state space models whose matrix is diagonal plus a rank of one (arXiv 2111.00396).

    h' = A h + B u,  y = C* h,  A = diag(Lambda) - P P*

Lambda, P, B and C are (D, N), one of each conjugate pair for each channel by itself: with its conjugates, which are not
stored, a sum over all states is 2 Re of the sum over these. The real parts of Lambda are negative; then A is
dissipative, and no power of its bilinear transition is larger than 1 in norm.

One model, four forms: the recurrence (`advance`, `read`), the kernel from powers (`kernel_by_powers`), the kernel from
its generating function at the roots of unity (`dplr_kernel`), and the convolution with it (`causal_convolution`). The
last two need the readout of the truncated function, which depends on the length: `truncated_readout` makes it from C
for the length at hand, and `untruncated_readout` takes a readout learned for one length back to C. The last two forms
transform by `jnp.fft`, and on TPUs by products of matrices (`ssm.fourier`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lightnet.scan.dispatch import by_platform
from lightnet.scan.mesh import lie
from lightnet.scan.placement import placement, spec, with_letters
from lightnet.scan.recurrence import Axes, Tokens
from lightnet.typing import Array
from ssm import fourier

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


def dplr_kernel(model: DPLR, step: Array, length: int) -> Array:
    """The kernel K[l] = C* Abar^l Bbar, l < L, from its generating function (arXiv 2111.00396, algorithm 1).

    At a root of unity z = exp(-2 i phi), phi = pi k / L, the function is

        c (k_CB - k_CP k_PB / (1 + k_PP)),  k_vw = sum_n v_n* w_n / (g - Lambda_n),  C being the truncated readout

    with g = (2 / dt) (1 - z) / (1 + z) = (2 / dt) i tan(phi) and c = 2 / (1 + z), which have no value at z = -1. So all
    is multiplied by cos(phi) first: T_vw = sum_n v_n* w_n / (i sin(phi) - (dt / 2) Lambda_n cos(phi)) is finite for all
    phi, and the function is (dt / 2) exp(i phi) (T_CB - r T_CP T_PB / (1 + r T_PP)) with r = (dt / 2) cos(phi).

    Args:
        model: continuous.
        step: dt (D,).
        length: L.

    Returns:
        (D, L), real.

    Example:
        >>> one = jnp.ones((1, 1), jnp.complex64)
        >>> kernel = dplr_kernel(DPLR(-one, 0 * one, one, one), jnp.array([0.5]), 3)
        >>> [round(float(entry), 4) for entry in kernel[0]]
        [0.8, 0.48, 0.288]
    """
    letters = jax.tree.map(lambda x: "D N", model), "D"
    return _on_each_device(_kernel_by_fft, _kernel_by_products, length, letters, "D T", model, step)


def _kernel_by_fft(length: int, model: DPLR, step: Array) -> Array:
    # The kernel is real, so that half of the circle is enough.
    values = _generating_function(model, step, length, np.arange(length // 2 + 1), _weighted_by_product)
    return jnp.fft.irfft(values, length)


def _kernel_by_products(length: int, model: DPLR, step: Array) -> Array:
    over = fourier.grid(length)
    values = _generating_function(model, step, over.length, over.frequencies.ravel(), _weighted_by_reduction)
    spectrum = jnp.stack([values.real.T, values.imag.T]).reshape(1, 2, *over.frequencies.shape, -1)
    return fourier.inverse_transform(spectrum, over, length)[0].T


def _generating_function(model: DPLR, step: Array, length: int, k: np.ndarray, weighted: Callable) -> Array:
    """That of a kernel of this length, at frequencies k (F,) of its transform: (D, F), complex."""
    C = truncated_readout(bilinear_dplr(model, step), length)
    phi = np.pi / length * k  # in double precision: the angles are constants
    sin, cos = (jnp.asarray(f, step.dtype)[None] for f in (np.sin(phi), np.cos(phi)))
    half = step[:, None] / 2
    products = (C.conj() * model.B, C.conj() * model.P, model.P.conj() * model.B, model.P.conj() * model.P)
    CB, CP, PB, PP = _cauchy_sums(jnp.stack(products), half * model.Lambda, sin, cos, weighted)
    return half * jax.lax.complex(cos, sin) * (CB - half * cos * CP * PB / (1 + half * cos * PP))


def _cauchy_sums(products: Array, zeta: Array, sin: Array, cos: Array, weighted: Callable) -> Array:
    """sum_n v_n / (i sin - zeta_n cos) over all states: products v (K, D, N), zeta (D, N), angles (1, F) -> (K, D, F).

    Each pair of states gives 2 (i sin Re v - cos Re(v conj(zeta))) / (|zeta|^2 cos^2 - sin^2 - 2 i sin cos Re zeta).
    All numbers are real: a complex division costs digits and time, and a product of complex matrices cannot be stored
    for the gradient.
    """
    real, size = zeta.real[..., None], (zeta.real**2 + zeta.imag**2)[..., None]
    a, b = size * (cos * cos)[None] - (sin * sin)[None], (2 * sin * cos)[None] * real  # the divisor is a - i b
    scale = 1 / (a * a + b * b)
    weights = jnp.stack([products.real, (products * zeta.conj()[None]).real])
    (v, vz), (iv, ivz) = weighted(weights, a * scale), weighted(weights, b * scale)
    sin, cos = sin[None], cos[None]
    return 2 * jax.lax.complex(-sin * iv - cos * vz, sin * v - cos * ivz)


def _weighted_by_product(weights: Array, x: Array) -> Array:
    """Sums over states: (2, K, D, N) and (D, N, F) -> (2, K, D, F)."""
    return _einsum("ikdn,dnf->ikdf", weights, x)


def _weighted_by_reduction(weights: Array, x: Array) -> Array:
    """The same for TPUs, whose products would be of eight rows; XLA for CPUs stores all that is summed here."""
    return jnp.sum(weights[..., None] * x[None, None], axis=-2)


def causal_convolution(u: Array, kernel: Array) -> Array:
    """y[t] = sum of kernel[s] u[t - s] over s <= t, by Fourier transforms of 2 L or more, so that nothing wraps around.

    Args:
        u: (B, L, D).
        kernel: (D, L).

    Returns:
        (B, L, D).

    Example:
        >>> causal_convolution(jnp.array([[[1.0], [2.0]]]), jnp.array([[1.0, 0.5]])).round(4).ravel().tolist()
        [1.0, 2.5]
    """
    length = u.shape[1]
    return _on_each_device(_convolution_by_fft, _convolution_by_products, length, ("B T D", "D T"), "B T D", u, kernel)


def _convolution_by_products(length: int, u: Array, kernel: Array) -> Array:
    over = fourier.grid(2 * length)
    spectra = fourier.transform(u, over), fourier.transform(kernel.T[None], over)
    return fourier.inverse_transform(fourier.multiplied(*spectra), over, length)


def _convolution_by_fft(length: int, u: Array, kernel: Array) -> Array:
    spectrum = jnp.fft.rfft(u, 2 * length, axis=1) * jnp.fft.rfft(kernel, 2 * length).T[None]
    return jnp.fft.irfft(spectrum, 2 * length, axis=1)[:, :length]


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


def _on_each_device(
    by_fft: Callable[..., Array],
    by_products: Callable[..., Array],
    length: int,
    letters: tuple,
    output: str,
    *arrays: Any,
) -> Array:
    """One of two forms, by products of matrices on TPUs, of the arrays where no mesh is set; else each device does its
    part, as XLA would gather what it transforms.

    Args:
        by_fft: length and arrays -> array.
        by_products: the same with Fourier transforms from `ssm.fourier`.
        length: L.
        letters: of the axes of the arrays; T is never split.
        output: letters of the axes of the result.
        *arrays: pytrees of whole arrays.

    Returns:
        The whole result.
    """
    forms = partial(by_fft, length), partial(by_products, length)
    placed = placement(Axes(letters, None, output), arrays)
    if placed is None:
        return by_platform(*arrays, default=forms[0], tpu=forms[1])
    inputs = with_letters(lambda x, names: spec(x.shape, names, placed), letters, arrays)
    outputs = PartitionSpec(*(placed.names.get(letter) or None for letter in output.split()))
    split = partial(jax.shard_map, in_specs=inputs, out_specs=outputs, axis_names=placed.manual, check_vma=False)
    # Outside of `jit`, `shard_map` cannot leave axes to the compiler.
    default, tpu = (jax.jit(split(form)) if placed.automatic else split(form) for form in forms)
    return by_platform(*jax.tree.map(lie, arrays, inputs), default=default, tpu=tpu)


def _like(model: DiscreteDPLR, h: Array) -> DiscreteDPLR:
    """With the leading axes of a state."""
    return DiscreteDPLR(*(x[(None,) * (h.ndim - x.ndim)] for x in model))
