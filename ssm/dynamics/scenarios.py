"""What the input-output matrix M = S_C^T S_B decides in more than one dimension.

The first token follows x_d' = (x^T M x) D_d x_d with step sizes D_d > 0: all of its coordinates grow or all shrink, by
the sign of x^T M x, which only the symmetric part (M + M^T) / 2 sets. So `scenario` looks at that part (ours). The
paper (arXiv 2410.03292) has no theorem here but a conjecture by the eigenvalues of M, which is `eigenvalue_label`; the
two agree for symmetric M.

M is E x E with E the channels and of rank N at most, the states. From S_B and S_C (N, E) everything is computed without
it: its nonzero eigenvalues are those of S_B S_C^T (N x N), and those of the symmetric part come from a problem of size
2 N: with [S_B^T, S_C^T] = Q R, it is Q (R J R^T) Q^T, J = [[0, 1], [1, 0]] / 2 in blocks. All arrays are divided by a
power of two near their largest entry first, which is exact, so that labels and signs do not depend on the scale.
"""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ssm.dynamics.checks import Floats, Numbers, as_number, as_numbers

Scenario: TypeAlias = Literal["convergent", "divergent", "mixed"]


def scenario(M: Numbers, *, tolerance: Numbers | None = None) -> Scenario:
    """The scenario of an input-output matrix by its symmetric part, on the row space of M (ours).

    "convergent" if x^T M x < 0 for all x in the row space and never above 0; "divergent" if it is > 0 there and never
    below 0; else "mixed": then it has both signs, or is 0 on some of the row space. That is: the eigenvalues of the
    symmetric part that are not 0 have one sign, and are as many as the rank of M. For a regular M it is definiteness.
    A matrix of zeros, with which nothing moves, is "mixed".

    Args:
        M: (E, E).
        tolerance: eigenvalues and singular values up to this, relative to the largest singular value of M, are 0; None
            is E times the rounding of the precision that M is in.

    Returns:
        "convergent", "divergent" or "mixed".

    Raises:
        ValueError: M is not square, an argument is not of finite numbers, or the tolerance is negative.

    Example:
        >>> scenario([[-1.0, 0.0], [0.0, -0.5]]), scenario([[-1.0, 9.0], [0.0, -0.5]]), scenario([[2.0, 0], [0, 0]])
        ('convergent', 'mixed', 'divergent')
    """
    matrix, relative = _square(M, tolerance)
    singular = np.linalg.svd(matrix, compute_uv=False)
    return _by_sign(np.linalg.eigvalsh((matrix + matrix.T) / 2), singular, relative)


def projection_scenario(s_b: Numbers, s_c: Numbers, *, tolerance: Numbers | None = None) -> Scenario:
    """`scenario(S_C^T S_B)` from problems of the sizes 2 N and N.

    Args:
        s_b: S_B, (N, E).
        s_c: S_C, (N, E).
        tolerance: as for `scenario`.

    Returns:
        "convergent", "divergent" or "mixed".

    Raises:
        ValueError: an argument has another shape or range than stated.

    Example:
        >>> projection_scenario(np.eye(2, 5), -np.eye(2, 5))
        'convergent'
    """
    b, c, _ = _projections(s_b, s_c)
    relative = _relative(tolerance, b.shape[1], s_b, s_c)
    of_b, of_c = (_triangle(part.T) for part in (b, c))
    singular = np.linalg.svd(of_c @ of_b.T, compute_uv=False)
    return _by_sign(_symmetric(b, c), singular, relative)


def eigenvalue_label(M: Numbers, *, tolerance: Numbers | None = None) -> Scenario:
    """The label of an input-output matrix by its own eigenvalues, as in Figure 6 of arXiv 2410.03292.

    By the real parts of the eigenvalues on the row space: "convergent" if all are below 0, "divergent" if all are above
    0, else "mixed". The paper's simulations let the last diverge, too: one positive eigenvalue is enough. How it treats
    complex eigenvalues is not known; by their real parts is ours.

    Args:
        M: (E, E).
        tolerance: singular values of M up to this, relative to the largest, are 0, and so are real parts; None is E
            times the rounding of the precision that M is in.

    Returns:
        "convergent", "divergent" or "mixed".

    Raises:
        ValueError: M is not square, an argument is not of finite numbers, or the tolerance is negative.

    Example:
        >>> eigenvalue_label([[-1.0, 9.0], [0.0, -0.5]]), eigenvalue_label([[1.0, 0.0], [0.0, -0.5]])
        ('convergent', 'mixed')
    """
    matrix, relative = _square(M, tolerance)
    left, singular, right = np.linalg.svd(matrix)
    rank = _rank(singular, relative)
    # On the row space M is a matrix of full rank, and its zero eigenvalues, which rounding would scatter, are gone.
    real = np.linalg.eigvals((singular[:rank, None] * right[:rank]) @ left[:, :rank]).real
    return _by_sign(real, singular, relative)


def spectrum(s_b: Numbers, s_c: Numbers) -> NDArray[np.complex128]:
    """Eigenvalues of S_B S_C^T, among which are all of S_C^T S_B that are not 0.

    Args:
        s_b: S_B, (N, E).
        s_c: S_C, (N, E).

    Returns:
        (N,), by falling real part; infinite where they are too large for a float64.

    Raises:
        ValueError: an argument has another shape than stated.

    Example:
        >>> spectrum([[1.0, 0.0, 0.0]], [[2.0, 5.0, 0.0]]).real.tolist()
        [2.0]
    """
    b, c, exponent = _projections(s_b, s_c)
    eigenvalues = np.linalg.eigvals(b @ c.T).astype(np.complex128)
    falling = eigenvalues[np.argsort(-eigenvalues.real, kind="stable")]
    falling.real, falling.imag = _times_power(falling.real, exponent), _times_power(falling.imag, exponent)
    return falling


def symmetric_spectrum(s_b: Numbers, s_c: Numbers) -> Floats:
    """Eigenvalues of the symmetric part of S_C^T S_B, all that are not 0 among them.

    Args:
        s_b: S_B, (N, E).
        s_c: S_C, (N, E).

    Returns:
        (min(2 N, E),), falling; infinite where they are too large for a float64.

    Raises:
        ValueError: an argument has another shape than stated.

    Example:
        >>> symmetric_spectrum([[1.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]]).round(12).tolist()
        [1.0, -1.0]
    """
    b, c, exponent = _projections(s_b, s_c)
    return _times_power(_symmetric(b, c), exponent)


def inertia(s_b: Numbers, s_c: Numbers, *, tolerance: Numbers | None = None) -> tuple[int, int]:
    """How many eigenvalues of the symmetric part of S_C^T S_B are positive, and how many negative.

    If the 2 N rows of S_B and S_C are linearly independent, which needs N <= E / 2 and is generic then, these are N and
    N, by Sylvester's law of inertia (ours): such a layer is "mixed". Only projections tied to each other are not.

    Args:
        s_b: S_B, (N, E).
        s_c: S_C, (N, E).
        tolerance: eigenvalues up to this, relative to |S_B| |S_C| in the spectral norm, are 0; None is E times the
            rounding of the precision that they are in.

    Returns:
        Numbers of positive and of negative eigenvalues.

    Raises:
        ValueError: an argument has another shape or range than stated.

    Example:
        >>> random = np.random.default_rng(0)
        >>> inertia(random.standard_normal((3, 8)), random.standard_normal((3, 8)))
        (3, 3)
    """
    b, c, _ = _projections(s_b, s_c)
    limit = _relative(tolerance, b.shape[1], s_b, s_c) * np.linalg.norm(b, 2) * np.linalg.norm(c, 2)
    eigenvalues = _symmetric(b, c)
    return int((eigenvalues > limit).sum()), int((eigenvalues < -limit).sum())


def _square(M: Numbers, tolerance: Numbers | None) -> tuple[Floats, float]:
    matrix, _ = _normalised(as_numbers("M", M, "E E"))
    return matrix, _relative(tolerance, len(matrix), M)


def _projections(s_b: Numbers, s_c: Numbers) -> tuple[Floats, Floats, int]:
    """Both, normalised, and the exponent of the power of two by which their product was divided."""
    sizes: dict[str, int] = {}
    b, of_b = _normalised(as_numbers("s_b", s_b, "N E", sizes))
    c, of_c = _normalised(as_numbers("s_c", s_c, "N E", sizes))
    return b, c, of_b + of_c


def _normalised(matrix: Floats) -> tuple[Floats, int]:
    """A matrix over the power of two that leaves its largest entry between 1/2 and 1, and the exponent."""
    exponent = int(np.frexp(np.abs(matrix).max())[1])
    return _times_power(matrix, -exponent), exponent


def _times_power(values: Floats, exponent: int) -> Floats:
    with np.errstate(over="ignore"):
        return np.ldexp(values, exponent)


def _relative(tolerance: Numbers | None, size: int, *arrays: Numbers) -> float:
    """The tolerance that was given, or the size times the rounding of the coarsest of the arrays."""
    if tolerance is not None:
        number = as_number("tolerance", tolerance)
        if number < 0:
            raise ValueError(f"tolerance: got {number}, expected at least 0")
        return number
    return size * max(_rounding(np.asarray(array).dtype) for array in arrays)


def _rounding(dtype: np.dtype) -> float:
    if dtype.kind != "f":  # integers, or floats that NumPy itself does not know, as bfloat16
        return float(np.finfo(np.float64).eps if dtype.kind in "iub" else 2.0**-7)
    return float(np.finfo(dtype).eps)


def _triangle(matrix: Floats) -> Floats:
    """R of the QR decomposition."""
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _symmetric(b: Floats, c: Floats) -> Floats:
    """Eigenvalues of (S_C^T S_B + S_B^T S_C) / 2, falling, without those that are 0 for its rank."""
    of_b, of_c = np.split(_triangle(np.concatenate([b, c]).T), 2, axis=1)
    product = of_c @ of_b.T
    return np.linalg.eigvalsh((product + product.T) / 2)[::-1]


def _rank(singular: Floats, relative: float) -> int:
    return int((singular > relative * singular.max()).sum())


def _by_sign(eigenvalues: Floats, singular: Floats, relative: float) -> Scenario:
    """One sign, and as many as the rank."""
    limit, rank = relative * singular.max(), _rank(singular, relative)
    positive, negative = int((eigenvalues > limit).sum()), int((eigenvalues < -limit).sum())
    if rank and positive == rank and not negative:
        return "divergent"
    return "convergent" if rank and negative == rank and not positive else "mixed"
