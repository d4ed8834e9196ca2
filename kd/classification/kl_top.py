"""KL of the teacher's largest logits only (KL-Top of OSTQuant, arXiv 2501.13987)."""

import jax

from kd.checks import ArrayInput, as_mask, check_count
from kd.divergences import as_logits, reduce_tokens
from kd.sparse import sparse_divergence
from kd.typing import Array, Number


def kl_top(
    s: ArrayInput, t: ArrayInput, *, k: int, mask: ArrayInput = None, denominator: Number | None = None
) -> Array:
    """The token mean of KL(p || q) where both are renormalised on the teacher's k largest logits.

    What the student does outside of them is invisible, and gets no gradient. The published k is about 1,000.

    Args:
        s: student logits (..., V).
        t: teacher logits (..., V), in the paper those of the unquantised model.
        k: logits that are kept.
        mask: (...), true at tokens that count.
        denominator: see `reduce_tokens`.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([[1.0, 1.0, 9.0]]), jnp.array([[2.0, 1.0, 0.0]])
        >>> print(f"{kl_top(s, t, k=2):.4f}")
        0.1109
    """
    s, t = as_logits(s, t)
    check_count("k", k, at_most=t.shape[-1])
    mask = as_mask(mask, s.shape[:-1])
    values, ids = jax.lax.top_k(jax.lax.stop_gradient(t), k)
    value = sparse_divergence("forward_kl", s, ids, values, convention="renorm", mask=mask)
    return reduce_tokens(value, mask, denominator)
