"""A single-layer transformer on a binary chain, reduced to two numbers: "Attention with Markov" (arXiv 2402.04161).

With tied weights along one direction the logit of the next symbol after x in {0, 1} is

    f_x = A x + b - e^2 / 2,    A = e^2 (1 + 2 w |w|),

e the size of the embedding, w that of the hidden layer. The bias b is always the best one for the other two, so that
(e, w) alone move. The chain goes from 0 to 1 with probability p and back with q. All functions are NumPy in float64 and
take arrays of any shape that fit together. The canonical form is that of the authors' code for "Local to Global"
(arXiv 2406.03072).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SADDLE = -1 / np.sqrt(2)
"""w of the saddle on the line e = 0."""

SADDLE_ENERGY = -(1 + np.log(2)) / 2
"""Energy of the level that passes through the saddle and separates the basins."""


def slope(e: ArrayLike, w: ArrayLike) -> Array:
    """How much the logit depends on the last symbol: A = e^2 (1 + 2 w |w|).

    Args:
        e: embedding.
        w: hidden layer.

    Returns:
        A.

    Example:
        >>> slope([1.0, 2.0], [0.5, SADDLE]).round(6).tolist()
        [1.5, 0.0]
    """
    e, w = np.asarray(e, float), np.asarray(w, float)
    return e**2 * (1 + 2 * w * np.abs(w))


def logits(a: ArrayLike, p: ArrayLike, q: ArrayLike) -> tuple[Array, Array]:
    """Logits f_0 and f_1 = f_0 + A after 0 and 1 with the best bias.

    f_0 = log [ (p - q + sqrt((p - q)^2 + 4 p q e^A)) / (2 q e^A) ]

    Where p < q the numerator is a difference of nearly equal numbers, and 2 p / (sqrt(...) + q - p) is the same.

    Args:
        a: A.
        p: probability of 0 -> 1, in (0, 1).
        q: probability of 1 -> 0, in (0, 1).

    Returns:
        f_0 and f_1.

    Example:
        >>> f0, f1 = logits(0.0, 0.2, 0.3)
        >>> round(float(1 / (1 + np.exp(-f0))), 6) == 0.4, bool(f0 == f1)
        (True, True)
    """
    a, p, q = np.asarray(a, float), np.asarray(p, float), np.asarray(q, float)
    root = np.sqrt((p - q) ** 2 + 4 * p * q * np.exp(a))
    f0 = np.where(p < q, np.log(2 * p) - np.log(root + np.abs(q - p)), np.log(root + np.abs(p - q)) - np.log(2 * q) - a)
    return f0, f0 + a


def loss(e: ArrayLike, w: ArrayLike, p: ArrayLike, q: ArrayLike) -> Array:
    """Expected loss with the best bias, in nats per symbol.

    L = - pi_1 [q log sig(-f_1) + (1 - q) log sig(f_1)] - pi_0 [p log sig(f_0) + (1 - p) log sig(-f_0)]

    Args:
        e: embedding.
        w: hidden layer.
        p: probability of 0 -> 1.
        q: probability of 1 -> 0.

    Returns:
        L, between H_inf and H(pi) on every path of the gradient flow that ends.

    Example:
        >>> round(float(loss(0.0, 0.3, 0.2, 0.3)), 6)
        0.673012
    """
    p, q = np.asarray(p, float), np.asarray(q, float)
    f0, f1 = logits(slope(e, w), p, q)
    after_one = q * np.logaddexp(0, f1) + (1 - q) * np.logaddexp(0, -f1)
    after_zero = p * np.logaddexp(0, -f0) + (1 - p) * np.logaddexp(0, f0)
    return (p * after_one + q * after_zero) / (p + q)


def gradient(e: ArrayLike, w: ArrayLike, p: ArrayLike, q: ArrayLike) -> tuple[Array, Array]:
    """Derivatives of the loss by e and w.

    The bias is optimal, so that only A matters: dL/dA = pi_1 (sig(f_1) - (1 - q)), dA/de = 2 e (1 + 2 w |w|) and
    dA/dw = 4 e^2 |w|.

    Args:
        e: embedding.
        w: hidden layer.
        p: probability of 0 -> 1.
        q: probability of 1 -> 0.

    Returns:
        dL/de and dL/dw.

    Example:
        >>> [abs(float(part)) for part in gradient(0.0, 0.3, 0.2, 0.3)]
        [0.0, 0.0]
    """
    e, w, p, q = (np.asarray(value, float) for value in (e, w, p, q))
    _, f1 = logits(slope(e, w), p, q)
    by_slope = p / (p + q) * (1 / (1 + np.exp(-f1)) - (1 - q))
    return by_slope * 2 * e * (1 + 2 * w * np.abs(w)), by_slope * 4 * e**2 * np.abs(w)


def energy(e: ArrayLike, w: ArrayLike) -> Array:
    """What the gradient flow conserves: E = e^2 - w^2 - sign(w) log |w|.

    Args:
        e: embedding.
        w: hidden layer, not 0.

    Returns:
        E.

    Example:
        >>> bool(np.isclose(energy(0.0, SADDLE), SADDLE_ENERGY))
        True
    """
    e, w = np.asarray(e, float), np.asarray(w, float)
    return e**2 - w**2 - np.sign(w) * np.log(np.abs(w))


def trapped(e: ArrayLike, w: ArrayLike, p: ArrayLike, q: ArrayLike) -> NDArray[np.bool_]:
    """Whether the gradient flow ends on the line e = 0, where the model predicts the stationary law.

    p + q < 1: iff w < -1/sqrt(2) and E < E_s.  p + q > 1: iff w > -1/sqrt(2), and w >= 0 or E < E_s.

    Args:
        e: where it starts.
        w: where it starts.
        p: probability of 0 -> 1.
        q: probability of 1 -> 0.

    Returns:
        The prediction.

    Example:
        >>> trapped(0.01, [0.01, -0.9], 0.2, 0.3).tolist(), trapped(0.01, [0.01, -0.9], 0.5, 0.8).tolist()
        ([False, True], [True, False])
    """
    w = np.asarray(w, float)
    below = energy(e, w) < SADDLE_ENERGY
    slow = np.asarray(p, float) + np.asarray(q, float) < 1
    return np.where(slow, (w < SADDLE) & below, (w > SADDLE) & ((w >= 0) | below))


def descend(e: ArrayLike, w: ArrayLike, p: ArrayLike, q: ArrayLike, *, rate: float, steps: int) -> tuple[Array, Array]:
    """Gradient descent with a constant rate.

    Args:
        e: where it starts.
        w: where it starts.
        p: probability of 0 -> 1.
        q: probability of 1 -> 0.
        rate: step size.
        steps: number of steps.

    Returns:
        e and w at the end.

    Example:
        >>> e, w = descend(0.5, 0.1, 0.2, 0.3, rate=0.01, steps=5000)
        >>> round(float(loss(e, w, 0.2, 0.3)), 4)
        0.5446
    """
    e, w = np.broadcast_arrays(np.asarray(e, float), np.asarray(w, float))
    for _ in range(steps):
        by_e, by_w = gradient(e, w, p, q)
        e, w = e - rate * by_e, w - rate * by_w
    return e, w
