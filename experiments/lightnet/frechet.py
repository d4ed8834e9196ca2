"""The Frechet distance between Gaussians with the moments of two samples."""

from __future__ import annotations

import numpy as np


def root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a symmetric positive semidefinite matrix, by its eigenvalues.

    Args:
        matrix: (d, d); eigenvalues below 0 are rounding and taken for 0.

    Returns:
        (d, d), whose square is the matrix.

    Example:
        >>> root(np.diag([4.0, 9.0])).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians with the moments of two samples, the "FID" of those features.

    d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)    (Dowson and Landau 1982; Heusel et al. 2017).

    Args:
        a: (n, d) features, n at least 2.
        b: (m, d) features.

    Returns:
        The distance, 0 for samples with the same moments.

    Raises:
        ValueError: the samples have other numbers of features, or one of them fewer than two rows.

    Example:
        >>> a = np.array([[0.0], [2.0]])
        >>> round(frechet_distance(a, a + 3.0), 6)
        9.0
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"a and b: got shapes {a.shape} and {b.shape}, expected (n, d) and (m, d), n and m at least 2")
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = (np.cov(sample, rowvar=False).reshape(a.shape[1], -1) for sample in (a, b))
    half = root(first)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(half @ second @ half), 0.0)).sum()
    difference = a.mean(axis=0) - b.mean(axis=0)
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2.0 * cross)
