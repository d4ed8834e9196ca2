"""S4 as a convolution: its kernel from the generating function at the roots of unity (arXiv 2111.00396), and y = K * u.

Both transform by `jnp.fft`, and on TPUs by products of matrices (`ssm.fourier`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lightnet.scan.dispatch import by_platform
from lightnet.scan.mesh import lie
from lightnet.scan.placement import placement, spec, with_letters
from lightnet.scan.recurrence import Axes
from lightnet.typing import Array
from ssm import fourier
from ssm.dplr import DPLR, bilinear_dplr, truncated_readout


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
    return jnp.einsum("ikdn,dnf->ikdf", weights, x, precision=jax.lax.Precision.HIGHEST)


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
