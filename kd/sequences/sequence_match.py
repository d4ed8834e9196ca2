"""Imitation of sequences by a chi-squared divergence of occupancies (SequenceMatch, arXiv 2306.05426).

Logits are a soft Q function: of a state s (a prefix) and an action a (the next token, or <backspace>)

    V(s) = logsumexp of the logits,    r(s, a) = logit_a(s) - gamma V(s')

with V = 0 after the last token, and the loss, of the data and of the model's own sequences,

    -E_data r + E_data (V(s) - gamma V(s')) / 2 + E_own (V(s) - gamma V(s')) / 2 + c E r^2

    chi2            r^2 on the data:                 the divergence is chi^2(own || data)
    mixture         half on the data, half on own:   chi^2 to their mixture, with rewards within 1 / c
    none            without it

For any reward the supremum of E_data r - E_own r - c E r^2 is the divergence, times 1 / (4 c): `chi2_reward` is where
it is attained, bounded under the mixture and without bound where the data never go under plain chi^2. Without sequences
of the model the value term is the data's alone, and with "none" and gamma 1 everything cancels to -log softmax: maximum
likelihood. Verified against the released objective of IQ-Learn, of which this is a case; the exact weights of
SequenceMatch itself are from memory and not verified.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_floats, as_labels, as_mask, at_least_float32, check_choice, check_number
from kd.divergences import reduce_tokens
from kd.typing import Array, Number

REGULARIZERS = ("chi2", "mixture", "none")


def sequence_match(
    logits: ArrayInput,
    actions: ArrayInput,
    own_logits: ArrayInput = None,
    own_actions: ArrayInput = None,
    *,
    regularizer: str = "mixture",
    weight: Number = 0.25,
    gamma: Number = 1.0,
    mask: ArrayInput = None,
    own_mask: ArrayInput = None,
    denominator: Number | None = None,
    own_denominator: Number | None = None,
) -> Array:
    """The loss of the module, means over tokens.

    Args:
        logits: along sequences of the data (B, T, V).
        actions: of the data (B, T).
        own_logits: along sequences of the model (R, its T, V), or None.
        own_actions: of the model (R, its T), or None.
        regularizer: chi2, mixture (which needs the model's own sequences) or none.
        weight: c; 1 / 4 is phi(r) = r - r^2 / 4.
        gamma: discount, from 0 to 1.
        mask: (B, T), true from the first to the last token of each sequence, which is the end of it.
        own_mask: (R, its T), likewise.
        denominator: of the means over the data, see `reduce_tokens`.
        own_denominator: of those over the model's sequences.

    Returns:
        One number, with gradients through the logits at both; the samples are fixed.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> logits, actions = jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1]]])), jnp.array([[0, 0]])
        >>> loss = jax.jit(lambda z, a: sequence_match(z, a, regularizer="none"))
        >>> print(f"{loss(logits, actions):.4f}")
        0.3993
    """
    check_choice("regularizer", regularizer, REGULARIZERS)
    check_number("weight", weight, at_least=0)
    check_number("gamma", gamma, at_least=0, at_most=1)
    if (own_logits is None) != (own_actions is None) or (own_logits is None and regularizer == "mixture"):
        raise ValueError("own_logits: got None, expected the model's own sequences, logits and actions")
    alone = own_logits is None
    of_data = {"chi2": weight, "mixture": weight / 2, "none": 0.0}[regularizer]
    r, advantage, mask = _rewards(logits, actions, gamma, mask, "")
    loss = reduce_tokens((1.0 if alone else 0.5) * advantage - r + of_data * r * r, mask, denominator)
    if alone:
        return loss
    r, advantage, own_mask = _rewards(own_logits, own_actions, gamma, own_mask, "own_")
    of_own = of_data if regularizer == "mixture" else 0.0
    return loss + reduce_tokens(advantage / 2 + of_own * r * r, own_mask, own_denominator)


def chi2_reward(log_data: ArrayInput, log_own: ArrayInput, *, weight: Number = 0.25, mixture: bool = True) -> Array:
    """The r that attains the supremum of E_data r - E_own r - c E r^2, for known probabilities; see the module.

        mixture    (data - own) / (2 c m), m their mean:    tanh((log data - log own) / 2) / c, within 1 / c
        chi2       (1 - own / data) / (2 c):                without bound where data is 0

    and the supremum itself is sum (data - own)^2 / m, or / data, times 1 / (4 c).

    Args:
        log_data: log probabilities under the data (...).
        log_own: under the model (...).
        weight: c, above 0.
        mixture: whether the square is under the mixture, or under the data.

    Returns:
        (...).

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_data, log_own = jnp.log(jnp.array([0.5, 1e-3])), jnp.log(jnp.array([0.5, 0.5]))
        >>> [[f"{x:.0f}" for x in chi2_reward(log_data, log_own, mixture=m)] for m in (True, False)]
        [['0', '-4'], ['0', '-998']]
    """
    check_number("weight", weight, above=0)
    log_data, log_own = (at_least_float32(x) for x in as_floats("...", log_data=log_data, log_own=log_own))
    d = log_data - log_own
    return jnp.tanh(d / 2) / weight if mixture else -jnp.expm1(-d) / (2 * weight)


def _rewards(
    logits: ArrayInput, actions: ArrayInput, gamma: Number, mask: ArrayInput, which: str
) -> tuple[Array, Array, Array | None]:
    """r and V(s) - gamma V(s') at every token."""
    (logits,) = as_floats("B T V", **{f"{which}logits": logits})
    mask = as_mask(mask, logits.shape[:2])
    actions = as_labels(actions, logits.shape[:2], logits.shape[2], name=f"{which}actions", mask=mask)
    logits = at_least_float32(logits if mask is None else jnp.where(mask[..., None], logits, 0))
    V = jax.nn.logsumexp(logits, axis=-1)
    V = V if mask is None else jnp.where(mask, V, 0)
    later = gamma * jnp.concatenate([V[:, 1:], jnp.zeros_like(V[:, :1])], axis=1)
    chosen = jnp.take_along_axis(logits, actions[..., None], axis=-1)[..., 0]
    return chosen - later, V - later, mask
