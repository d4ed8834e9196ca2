"""Every registered divergence, with arguments of its family, against what the textbook says of it."""

import jax
import numpy as np


def kl(a, b):
    return a * np.log(a / b)


def alpha_beta(p, q, a, b):
    return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)) / (a * b)


def jsd(p, q, b):
    m = b * p + (1 - b) * q
    return b * kl(p, m) + (1 - b) * kl(q, m)


# kind, its arguments, phi(p, q)
CASES = [
    ("forward_kl", {}, kl),
    ("reverse_kl", {}, lambda p, q: kl(q, p)),
    ("jsd", {"beta": 0.3}, lambda p, q: jsd(p, q, 0.3)),
    ("jsd", {"beta": 0.3, "normalize": True}, lambda p, q: jsd(p, q, 0.3) / 0.21),
    ("skew_kl", {"alpha": 0.1}, lambda p, q: kl(p, 0.1 * p + 0.9 * q)),
    ("skew_reverse_kl", {"alpha": 0.1}, lambda p, q: kl(q, 0.9 * p + 0.1 * q)),
    ("alpha_beta", {"alpha": 0.2, "beta": 0.7}, lambda p, q: alpha_beta(p, q, 0.2, 0.7)),
    ("alpha_beta", {"alpha": -0.6, "beta": 0.3}, lambda p, q: alpha_beta(p, q, -0.6, 0.3)),
    ("alpha_beta", {"alpha": 0.3, "beta": 0.0}, lambda p, q: (kl(p**0.3, q**0.3) - p**0.3 + q**0.3) / 0.09),
    ("alpha_beta", {"alpha": 0.0, "beta": 0.7}, lambda p, q: (kl(q**0.7, p**0.7) - q**0.7 + p**0.7) / 0.49),
    ("alpha_beta", {"alpha": 2.0, "beta": -2.0}, lambda p, q: ((p / q) ** 2 - 1 - 2 * np.log(p / q)) / 4),
    ("alpha_beta", {"alpha": 0.0, "beta": 0.0}, lambda p, q: np.log(p / q) ** 2 / 2),
    ("alpha", {"alpha": 0.4}, lambda p, q: alpha_beta(p, q, 0.4, 0.6)),
    ("total_variation", {}, lambda p, q: np.abs(p - q) / 2),
    ("squared_hellinger", {}, lambda p, q: (np.sqrt(p) - np.sqrt(q)) ** 2),
    ("chi2_pq", {}, lambda p, q: (p - q) ** 2 / q),
    ("chi2_qp", {}, lambda p, q: (p - q) ** 2 / p),
    ("l2", {}, lambda p, q: (p - q) ** 2 / 2),
    ("f_divergence", {"generator": "jensen_shannon"}, lambda p, q: 2 * jsd(p, q, 0.5)),
]


def name(case) -> str:
    return "-".join([case[0], *(str(value) for value in case[1].values())])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def in_float64(f, *operands):
    """f of NumPy arrays, compiled with float64, as NumPy arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(f)(*operands))
