"""Log probabilities of given tokens, and sequence-level distillation, which is their mean (arXiv 1606.07947).

Logits of position i are those of the token at position i of `tokens`: shifting is the caller's job.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_floats, as_labels, as_mask, at_least_float32, check_number
from kd.divergences import reduce_tokens
from kd.typing import Array, Number


def token_log_probs(s: ArrayInput, tokens: ArrayInput, *, temperature: Number = 1.0, mask: ArrayInput = None) -> Array:
    """log softmax(s / temperature) at the given tokens: what every objective of samples is a function of.

    Args:
        s: logits (..., V).
        tokens: (...), integers.
        temperature: the one that they were drawn at.
        mask: (...), true at tokens that count; the others give 0, with gradient 0, whatever they contain.

    Returns:
        (...), float32 at least; a sum along the last axis is the log probability of a sequence.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, tokens = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]])), jnp.array([0, 1])
        >>> [f"{x:.4f}" for x in token_log_probs(s, tokens)]
        ['-0.6931', '-2.3026']
    """
    (s,) = as_floats("... V", s=s)
    check_number("temperature", temperature, above=0)
    mask = as_mask(mask, s.shape[:-1])
    tokens = as_labels(tokens, s.shape[:-1], s.shape[-1], name="tokens", mask=mask)
    s = at_least_float32(s)
    if mask is not None:
        s = jnp.where(mask[..., None], s, 0)
    log_q = jnp.take_along_axis(jax.nn.log_softmax(s / temperature), tokens[..., None], axis=-1)[..., 0]
    return log_q if mask is None else jnp.where(mask, log_q, 0)


def sequence_kd(
    s: ArrayInput,
    tokens: ArrayInput,
    *,
    weights: ArrayInput = None,
    mask: ArrayInput = None,
    denominator: Number | None = None,
) -> Array:
    """The cross-entropy of sequences that the teacher generated (Kim and Rush, arXiv 1606.07947).

    Of samples of the teacher it estimates KL(teacher || student) of whole sequences, up to the teacher's entropy, which
    has no gradient. Of the teacher's most likely sequences, which is what the paper takes, it is no such estimate.

    Args:
        s: student logits (B, T, V) along the teacher's sequences.
        tokens: the sequences (B, T).
        weights: of each sequence (B), held fixed, for example importance weights; None is 1.
        mask: (B, T), true at tokens that count.
        denominator: see `reduce_tokens`; 1, with one sequence, gives nats of the sequence.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s = jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1]]]))
        >>> print(f"{sequence_kd(s, jnp.array([[0, 0]])):.4f}")
        0.3993
    """
    as_floats("B T V", s=s)
    loss = -token_log_probs(s, tokens, mask=mask)
    if weights is not None:
        (weights,) = as_floats("B", weights=weights)
        if weights.shape != loss.shape[:1]:
            raise ValueError(f"weights: got {weights.dtype}{list(weights.shape)}, expected one for each of {len(loss)}")
        loss = loss * jax.lax.stop_gradient(weights)[:, None]
    return reduce_tokens(loss, mask, denominator)
