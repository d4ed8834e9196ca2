"""Dynamic logits fusion (arXiv 2406.15480): small experts steer a large model while it decodes.

P_alpha = softmax(M_L + sum_k alpha_k (M_k - M_S)) of a large and a small base model and small experts, of one
vocabulary. alpha = 1 throughout is proxy tuning. Here alpha is chosen at every step, so that the large model moves as
far as the small one did:

    alpha = argmin sum_k (KL(P_alpha || P) - KL(Q_k || Q))^2 + (KL(P || P_alpha) - KL(Q || Q_k))^2

P = softmax(M_L), Q = softmax(M_S), Q_k = softmax(M_k). One expert is active at a step. An entry that all models exclude
(a logit of -inf) stays excluded.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_floats, at_least_float32, check_count, check_number, got
from kd.divergences import present, token_divergence
from kd.rows import times
from kd.typing import Array, Number


def fuse_logits(M_L: ArrayInput, M_S: ArrayInput, M_experts: ArrayInput, alpha: ArrayInput) -> Array:
    """M_L + sum_k alpha_k (M_k - M_S).

    Args:
        M_L: logits of the large model (..., V).
        M_S: of the small one (..., V).
        M_experts: of the small experts (K, ..., V).
        alpha: (K, ...), or (K) for all alike.

    Returns:
        (..., V).

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> M_L, M_S, expert = jnp.array([1.0, 0.0]), jnp.zeros(2), jnp.array([[0.0, 2.0]])
        >>> fuse_logits(M_L, M_S, expert, jnp.array([0.5])).tolist()
        [1.0, 1.0]
    """
    M_L, M_S, M_experts = _models(M_L, M_S, M_experts)
    (alpha,) = as_floats("K ...", alpha=alpha)
    if alpha.shape not in (M_experts.shape[:1], M_experts.shape[:-1]):
        expected = f"{list(M_experts.shape[:-1])}, one number for each expert, or {list(M_experts.shape[:1])}"
        raise ValueError(f"alpha: got {got(alpha)}, expected {expected}")
    alpha = alpha.reshape(alpha.shape + (1,) * (M_experts.ndim - alpha.ndim))
    return M_L + jnp.sum(times(alpha, _moved(M_experts, M_S[None])), axis=0)


def solve_alpha(
    M_L: ArrayInput, M_S: ArrayInput, M_experts: ArrayInput, *, largest: Number = 2.0, points: int = 21
) -> Array:
    """The alpha of each step, by trying all experts at all points of a grid; see the module.

    Args:
        M_L: logits of the large model (..., V).
        M_S: of the small one (..., V).
        M_experts: of the small experts (K, ..., V).
        largest: the grid goes from 0 to this.
        points: of the grid, both ends included.

    Returns:
        (K, ...), 0 but for one expert; no gradient goes through it.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> M, expert = jnp.array([1.0, 0.0, -1.0]), jnp.array([[0.0, 2.0, 0.0]])
        >>> jax.jit(solve_alpha)(M, M, expert).tolist()
        [1.0]
    """
    M_L, M_S, M_experts = jax.lax.stop_gradient(_models(M_L, M_S, M_experts))
    check_number("largest", largest, above=0)
    check_count("points", points, at_least=2)
    experts, grid = len(M_experts), jnp.linspace(0.0, largest, points)
    moved, back = jax.vmap(_both_ways, (0, None))(M_experts, M_S)

    def regret(k: Array, alpha: Array) -> Array:
        P = M_L + times(alpha, _moved(M_experts[k], M_S))
        forward, reverse = _both_ways(P, M_L)
        return jnp.sum((forward[None] - moved) ** 2 + (reverse[None] - back) ** 2, axis=0)

    choices = [jnp.repeat(jnp.arange(experts), points), jnp.tile(grid, experts)]
    # one candidate after the other: each is as large as the logits
    best = jnp.argmin(jax.lax.map(lambda choice: regret(*choice), tuple(choices)), axis=0)
    active = jnp.arange(experts).reshape((-1,) + (1,) * best.ndim) == choices[0][best][None]
    return jnp.where(active, choices[1][best][None], 0)


def _moved(expert: Array, M_S: Array) -> Array:
    """What an expert adds to the small model; nothing where both exclude an entry."""
    expert, M_S = jnp.broadcast_arrays(expert, M_S)
    return present(jnp.subtract, expert, M_S)


def _both_ways(a: Array, b: Array) -> tuple[Array, Array]:
    """KL(a || b) and KL(b || a) of logits."""
    return token_divergence("forward_kl", b, a), token_divergence("forward_kl", a, b)


def _models(M_L: ArrayInput, M_S: ArrayInput, M_experts: ArrayInput) -> tuple[Array, Array, Array]:
    M_L, M_S = as_floats("... V", M_L=M_L, M_S=M_S)
    (M_experts,) = as_floats("K ... V", M_experts=M_experts)
    if M_experts.shape[1:] != M_L.shape:
        raise ValueError(f"M_experts: got {got(M_experts)}, expected (K, ...) of models like M_L, {got(M_L)}")
    return at_least_float32(M_L), at_least_float32(M_S), at_least_float32(M_experts)
