"""The reverse KL of whole sequences by policy gradient (MiniLLM, arXiv 2306.08543).

With r_t = log p(y_t) - log q(y_t) along a sequence of the student, p the teacher, the gradient of KL(q || p) is

    -E sum_t (sum over t' >= t of r_t') grad log q(y_t)
        = E sum_t grad KL(q(. | state t) || p(. | state t))  -  E sum_t (sum over t' > t of r_t') grad log q(y_t)

The first sum, one step ahead, is exact over the vocabulary, and is all that `gkd` and KDRL have; the second is what an
action does to the states that come after it. Three things of the paper:

    length         the return of t is divided by the number of tokens after t, so that short answers are not preferred
    teacher-mixed  tokens are drawn from alpha p + (1 - alpha) q, alpha 0.2, and weighted by q / mixture
    importance     "token" takes that ratio at t for all of t, as the paper does; "prefix" the products that make both
                   sums unbiased, with a variance that grows with the length

The released code also scales the rewards by 0.5, clips them at 100, centres the teacher's logits, whitens the returns
(`whiten`), clips the policy's step (`clipped_policy_loss`) and adds a language-modelling loss; those are the caller's.
"""

import math

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_counted, as_mask, check_choice, check_number
from kd.divergences import LARGEST_LOG_RATIO, admitting, as_logits, reduce_tokens, token_divergence
from kd.policies.estimators import importance_weights
from kd.sequences.likelihood import token_log_probs
from kd.typing import Array, Number

IMPORTANCE = ("token", "prefix")


def teacher_mixed_logits(s: ArrayInput, t: ArrayInput, *, alpha: float | int = 0.2) -> Array:
    """log(alpha p + (1 - alpha) q): what MiniLLM samples the next token from.

    Args:
        s: student logits (..., V).
        t: teacher logits (..., V).
        alpha: the teacher's part, from 0 to 1.

    Returns:
        (..., V), normalised, without gradient.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.9, 0.1]]))
        >>> [f"{x:.2f}" for x in jnp.exp(teacher_mixed_logits(s, t, alpha=0.5))[0]]
        ['0.70', '0.30']
    """
    s, t = jax.lax.stop_gradient(as_logits(s, t))
    check_number("alpha", alpha, at_least=0, at_most=1)
    log_p, log_q = jax.nn.log_softmax(t), jax.nn.log_softmax(s)
    if alpha in (0, 1):
        return log_p if alpha else log_q
    return jnp.logaddexp(math.log(alpha) + log_p, math.log1p(-alpha) + log_q)


def returns_after(r: ArrayInput, *, normalize: bool = False, mask: ArrayInput = None) -> Array:
    """The sum of r over the tokens after each one, or their mean.

    Args:
        r: rewards (..., T).
        normalize: whether it is divided by the number of those tokens.
        mask: (..., T), true at tokens that count.

    Returns:
        (..., T); 0 after the last token.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> r = jnp.array([1.0, 2.0, 4.0])
        >>> returns_after(r).tolist(), returns_after(r, normalize=True).tolist()
        ([6.0, 4.0, 0.0], [3.0, 4.0, 0.0])
    """
    counted, (r,) = as_counted(mask, r=r)
    after = _after(r)
    if normalize:
        number = _after(jnp.ones_like(r) if counted is None else counted.astype(r.dtype))
        after = after / jnp.maximum(number, 1)
    return after if counted is None else jnp.where(counted, after, 0)


def minillm(
    s: ArrayInput,
    t: ArrayInput,
    tokens: ArrayInput,
    *,
    log_proposal: ArrayInput = None,
    importance: str = "token",
    length_normalized: bool = True,
    mask: ArrayInput = None,
    denominator: Number | None = None,
) -> Array:
    """The token mean of what has MiniLLM's gradient; see the module.

    Without the normalisation by length, with denominator = the number of sequences and importance "prefix", its
    expectation is the gradient of KL(q || p) of whole sequences. r is within -20 and 20, and an entry that the teacher
    alone excludes (a logit of -inf), which makes that KL infinite, has e^-20 of the student's probability.

    Args:
        s: student logits (B, T, V) along the samples.
        t: teacher logits (B, T, V), held fixed.
        tokens: the samples (B, T).
        log_proposal: log probabilities of the tokens under what they were drawn from (B, T); None is the student.
        importance: which weights, where there is a proposal.
        length_normalized: whether returns are means and not sums.
        mask: (B, T), true at tokens that count: up to the end of each sequence.
        denominator: see `reduce_tokens`.

    Returns:
        One number. Its gradient means something, its value does not.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2)).at[0, 1, 0].set(2.0)
        >>> gradient = jax.jit(jax.grad(minillm))(s, t, jnp.array([[1, 0]]))
        >>> [f"{x:.3f}" for x in gradient[0, 0]]
        ['0.142', '-0.142']
    """
    s, t = as_logits(s, t)
    check_choice("importance", importance, IMPORTANCE)
    mask = as_mask(mask, s.shape[:-1])
    log_q = token_log_probs(s, tokens, mask=mask)
    fixed = jax.lax.stop_gradient(log_q)
    r = token_log_probs(jax.lax.stop_gradient(t), tokens, mask=mask) - fixed
    r = jnp.clip(r, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    of_state, of_return, of_reward = _weights(fixed, log_proposal, importance, mask)
    step = token_divergence("reverse_kl", s, admitting(s, t), mask=mask) * of_state
    later = returns_after(of_reward * r, normalize=length_normalized, mask=mask) * of_return
    return reduce_tokens(step - later * log_q, mask, denominator)


def _weights(log_q: Array, log_proposal: ArrayInput, importance: str, mask: Array | None) -> tuple[Array, ...]:
    """Of the state of each token, of its return, and of its reward within the returns of the tokens before it."""
    if log_proposal is None:
        return (jnp.ones_like(log_q),) * 3
    if importance == "token":
        weight = importance_weights(log_q, log_proposal, mask=mask)
        return weight, weight, jnp.ones_like(weight)
    state, prefix = (importance_weights(log_q, log_proposal, over=over, mask=mask) for over in ("state", "prefix"))
    return state, jnp.ones_like(state), prefix


def _after(x: Array) -> Array:
    sums = jnp.cumsum(x[..., ::-1], axis=-1)[..., ::-1]
    return jnp.concatenate([sums[..., 1:], jnp.zeros_like(sums[..., :1])], axis=-1)
