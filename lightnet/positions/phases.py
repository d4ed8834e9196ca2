"""Relative encodings by phases: the cosine form of LRPE, any number of axes, and rotary (RoPE) beside it.

A token with coordinates (s_1, ..., s_A) has the angles Θ = concat(s_1 θ, ..., s_A θ), cut to the number that is needed:
the channels are split into A blocks, each driven by one coordinate with the same frequencies θ. Then

    LRPE:    x -> [x cos Θ, x sin Θ],            scores sum_c q_c k_c cos(Θ_c - Θ'_c)      (Qin et al., TMLR 2023)
    rotary:  (x_1, x_2) -> (x_1 cos Θ - x_2 sin Θ, x_1 sin Θ + x_2 cos Θ) for channels c and c + K/2
                                                                                           (Su et al., arXiv 2104.09864)

which depend on differences of coordinates only. `factor` is [cos Θ, sin Θ], (..., H or 1, 2, K): the `key_factor` of
`lightnet.scan.additive_recurrence` and `additive_global`, which multiply it into keys *after* their normalisation. In
that form rotary too keeps its relative property in the causal recurrence (`rotary_queries`); rotated in place, keys mix
two channels whose decays differ, and it is lost. Angles in the logits are lost in every form.

MD-LRPE is LightNet's (arXiv 2405.21022), read from its first author's operator, not from the paper: the shared θ, the
cut and the extra tokens at angle 0 are from there, the exponents of θ for several axes are our choice. A axes here are
k there, K is d.
"""

import jax.numpy as jnp
import numpy as np

from lightnet.scan.checks import ArrayInput, as_arrays, check_array, got
from lightnet.scan.recurrence import state_dtype
from lightnet.typing import Array

KINDS = ("geometric", "full", "high", "low")


def frequencies(size: int, kind: str = "geometric", base: float = 10000.0) -> Array:
    """Frequencies θ_i, i = 0 .. size - 1.

    Args:
        size: how many.
        kind: "geometric", base^(-i/size), as in RoPE with its pairs and our default for several axes; "full",
            base^(-2i/size), whose second half has periods of 2π base tokens and more, 62,832 with the default; "high",
            our default for one axis, the first half of "full" and 0 for the rest, which has no position; "low", the
            second half of "full" and 0 for the rest.
        base: what θ are powers of: "geometric" falls from 1 to base^(-1+1/size), "full" to base^(-2+2/size).

    Returns:
        (size,) in the default precision.

    Raises:
        ValueError: there is no such kind.

    Example:
        >>> [round(x, 4) for x in frequencies(4).tolist()]
        [1.0, 0.1, 0.01, 0.001]
        >>> [round(x, 4) for x in frequencies(4, "high").tolist()]
        [1.0, 0.01, 0.0, 0.0]
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    i = np.arange(size)
    theta = float(base) ** (-i / size if kind == "geometric" else -2 * i / size)
    if kind in ("high", "low"):
        theta = np.where((2 * i < size) == (kind == "high"), theta, 0.0)
    return jnp.asarray(theta, jnp.result_type(float))


def axial_angles(coordinates: ArrayInput, theta: ArrayInput, size: int) -> Array:
    """Θ = concat(s_1 θ, ..., s_A θ)[:size].

    Args:
        coordinates: (..., A) integers or floats.
        theta: (E,), or (H, E) with frequencies for each head; E = ceil(size / A).
        size: number of angles K.

    Returns:
        (..., H or 1, K), in float32 at least: angles of large coordinates need it.

    Raises:
        ValueError: theta has another number of frequencies.

    Example:
        >>> axial_angles(jnp.array([3, 5]), jnp.array([1.0, 0.5]), 3).tolist()
        [[3.0, 1.5, 5.0]]
    """
    coordinates, theta = as_arrays(coordinates=coordinates, theta=theta)
    axes = coordinates.shape[-1] if coordinates.ndim else 0
    if axes < 1:
        raise ValueError(f"coordinates: got {got(coordinates)}, expected (..., A) with at least one axis")
    needed = -(-size // axes)
    if theta.ndim not in (1, 2) or theta.shape[-1] != needed:
        raise ValueError(f"theta: got {got(theta)}, expected ({needed},) or (H, {needed}): {size} angles, {axes} axes")
    theta = theta.reshape(-1, needed)
    dtype = state_dtype(theta)
    leading = (1,) * (coordinates.ndim - 1)
    angles = coordinates.astype(dtype)[..., None, :, None] * theta.astype(dtype).reshape(*leading, -1, 1, needed)
    return angles.reshape(*angles.shape[:-2], -1)[..., :size]


def phase_factor(angles: ArrayInput) -> Array:
    """[cos Θ, sin Θ], the two factors of a key.

    Args:
        angles: (..., H or 1, K).

    Returns:
        (..., H or 1, 2, K).

    Example:
        >>> phase_factor(jnp.zeros((1, 3))).tolist()
        [[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]
    """
    (angles,) = as_arrays(angles=angles)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-2)


def cosine_features(x: ArrayInput, factor: ArrayInput) -> Array:
    """LRPE of queries or keys: [x cos Θ, x sin Θ], of the same norm.

    Args:
        x: (..., H, K).
        factor: (..., H or 1, 2, K) of the same rank but for the axis of 2; axes of size 1 are for all.

    Returns:
        (..., H, 2K) in the dtype of x.

    Raises:
        ValueError: a shape is another than stated.

    Example:
        >>> cosine_features(jnp.array([[2.0]]), phase_factor(jnp.zeros((1, 1)))).tolist()
        [[2.0, 0.0]]
    """
    x, cos, sin = _split(x, factor)
    return jnp.concatenate([x * cos, x * sin], axis=-1).astype(x.dtype)


def rotary_angles(coordinates: ArrayInput, theta: ArrayInput, size: int) -> Array:
    """Angles of `rotate`: channels c and c + K/2 share one, and the K/2 pairs are split among the axes.

    Args:
        coordinates: (..., A).
        theta: (E,) or (H, E), E = ceil(K / 2 / A).
        size: number of channels K, even.

    Returns:
        (..., H or 1, K).

    Raises:
        ValueError: size is odd, or theta has another number of frequencies.

    Example:
        >>> rotary_angles(jnp.array([3]), jnp.array([1.0, 0.5]), 4).tolist()
        [[3.0, 1.5, 3.0, 1.5]]
    """
    if size % 2:
        raise ValueError(f"size: got {size}, expected an even number of channels: rotary turns pairs")
    return jnp.concatenate([axial_angles(coordinates, theta, size // 2)] * 2, axis=-1)


def rotate(x: ArrayInput, factor: ArrayInput) -> Array:
    """Rotary of queries or keys: each pair of channels c and c + K/2 turned by its angle.

    Args:
        x: (..., H, K).
        factor: (..., H or 1, 2, K), from `rotary_angles`.

    Returns:
        (..., H, K) in the dtype of x.

    Raises:
        ValueError: a shape is another than stated.

    Example:
        >>> quarter = phase_factor(rotary_angles(jnp.array([1]), jnp.array([jnp.pi / 2]), 2))
        >>> rotate(jnp.array([[2.0, 0.0]]), quarter).round(4).tolist()
        [[-0.0, 2.0]]
    """
    x, cos, sin = _split(x, factor)
    return (x * cos + _quarter_turn(x) * sin).astype(x.dtype)


def rotary_queries(q: ArrayInput, factor: ArrayInput) -> Array:
    """Queries for keys in the form [k cos Θ, k sin Θ], with the scores of rotary.

    With R the rotation, R q . R' k = (R q) . (k cos Θ') - (J R q) . (k sin Θ'), J the turn of each pair by a quarter.

    Args:
        q: (..., H, K).
        factor: (..., H or 1, 2, K), from `rotary_angles`.

    Returns:
        (..., H, 2K) in the dtype of q.

    Raises:
        ValueError: a shape is another than stated.

    Example:
        >>> still = phase_factor(rotary_angles(jnp.array([0]), jnp.array([1.0]), 2))
        >>> rotary_queries(jnp.array([[2.0, 3.0]]), still).tolist()
        [[2.0, 3.0, 3.0, -2.0]]
    """
    turned = rotate(q, factor)
    return jnp.concatenate([turned, -_quarter_turn(turned)], axis=-1)


def _quarter_turn(x: Array) -> Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def _split(x: ArrayInput, factor: ArrayInput) -> tuple[Array, Array, Array]:
    """x, the cosines and the sines, checked."""
    x, factor = as_arrays(x=x, factor=factor)
    check_array("x", x, " ".join(f"n{i}" for i in range(x.ndim - 1)) + " K", {})
    expected = (*x.shape[:-1], 2, x.shape[-1])
    shared = [1 if n == 1 else m for n, m in zip(factor.shape[:-2], expected, strict=False)]
    if factor.shape != (*shared, *expected[-2:]) or factor.ndim != len(expected):
        raise ValueError(f"factor: got {got(factor)}, expected {list(expected)}, or 1 in place of all but the last two")
    return x, factor[..., 0, :], factor[..., 1, :]
