"""From readings to what a model is given: filter, differences, standardisation."""

from __future__ import annotations

import numpy as np

FILTER_ORDER = 3


def low_passed(x: np.ndarray, cutoff: float, rate: float) -> np.ndarray:
    """A causal Butterworth filter of order 3 along time, at rest in the first sample.

    The filter of the released code has the same order and runs forwards and backwards, so that it sees what comes
    later; this one runs forwards.

    Args:
        x: (n, L, C).
        cutoff: Hz; 0 leaves everything as it is.
        rate: of the samples, Hz.

    Returns:
        (n, L, C), in the precision of x.

    Example:
        >>> low_passed(np.ones((1, 5, 2)), cutoff=5.0, rate=50.0).round(6).min().item()
        1.0
    """
    if not cutoff:
        return x
    from scipy import signal

    sections = signal.butter(FILTER_ORDER, cutoff, fs=rate, output="sos")
    resting = signal.sosfilt_zi(sections)[:, None, :, None] * x[None, :, :1]
    return signal.sosfilt(sections, x, axis=1, zi=resting)[0].astype(x.dtype)


def with_differences(x: np.ndarray) -> np.ndarray:
    """Samples and their differences to the samples before, as in the published preparation; the first differs by 0.

    Args:
        x: (..., L, C).

    Returns:
        (..., L, 2 C).

    Example:
        >>> with_differences(np.array([[1.0], [4.0], [2.0]])).tolist()
        [[1.0, 0.0], [4.0, 3.0], [2.0, -2.0]]
    """
    return np.concatenate([x, np.diff(x, axis=-2, prepend=x[..., :1, :])], axis=-1)


def standardised(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Samples less the mean of a training part, over its deviation, channel by channel.

    Args:
        x: (..., C).
        like: (..., C), the training part.

    Returns:
        (..., C), in the precision of x.

    Example:
        >>> standardised(np.array([[3.0]]), np.array([[0.0], [2.0]])).tolist()
        [[2.0]]
    """
    axes = tuple(range(like.ndim - 1))
    deviation = like.std(axis=axes)
    return ((x - like.mean(axis=axes)) / np.where(deviation > 0, deviation, 1)).astype(x.dtype)
