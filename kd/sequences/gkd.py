"""Generalised knowledge distillation (GKD, arXiv 2306.13649), and DistiLLM's schedule (arXiv 2402.03898).

GKD is a divergence along sequences of which some come from the student. The generalised Jensen-Shannon divergence

    JSD_beta = beta KL(p || m) + (1 - beta) KL(q || m),    m = beta p + (1 - beta) q,    p the teacher, q the student

**is 0 at beta 0 and 1**. What tends to KL(p || q) as beta goes to 0 is JSD_beta / beta, and to KL(q || p) as it goes to
1, JSD_beta / (1 - beta). Implementations put those two in at beta 0 and 1, so that their loss jumps there: at beta 1e-4
it is about 1e-4 of what it is at 0. `ends` says which is wanted:

    kl          the two KL at 0 and 1, as released: discontinuous
    limit       JSD_beta everywhere, 0 at the ends
    normalize   JSD_beta / (beta (1 - beta)), continuous, with the two KL at the ends; at beta 1/2 four times JSD

In some descriptions beta is what is 1 - beta here.

DistiLLM takes skew divergences, `token_divergence("skew_kl")` and `("skew_reverse_kl")`, and a schedule for how often
sequences are the student's own: never at first, 0.1 more often whenever the validation loss has risen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, check_choice, check_count, check_number
from kd.divergences import reduce_tokens, token_divergence
from kd.typing import Array, Number

ENDS = ("kl", "limit", "normalize")


def gkd(
    s: ArrayInput,
    t: ArrayInput,
    *,
    beta: float | int = 0.5,
    ends: str = "kl",
    temperature: Number = 1.0,
    mask: ArrayInput = None,
    denominator: Number | None = None,
    common_vocab: int | None = None,
) -> Array:
    """The token mean of the generalised Jensen-Shannon divergence; see the module for beta 0 and 1.

    No gradient goes through which sequences were generated: the change of the states that the student visits is left
    out (`minillm` has it).

    Args:
        s: student logits (..., V), along sequences of the data, the teacher or the student itself.
        t: teacher logits (..., V).
        beta: the teacher's part of the mixture.
        ends: what beta 0 and 1 mean.
        temperature: divides both, 0.9 in a popular implementation, which also samples at it; the loss is not multiplied
            by its square.
        mask: (...), true at tokens that count.
        denominator: see `reduce_tokens`.
        common_vocab: entries of the vocabulary that the two share, its first ones.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.9, 0.1]]))
        >>> [[f"{gkd(s, t, beta=b, ends=e):.4f}" for b in (0, 1e-4)] for e in ("kl", "normalize")]
        [['0.3681', '0.0000'], ['0.3681', '0.3681']]
    """
    check_choice("ends", ends, ENDS)
    whole = ends == "normalize" or (ends == "kl" and beta in (0, 1))
    value = token_divergence(
        "jsd", s, t, temperature=temperature, mask=mask, common_vocab=common_vocab, beta=beta, normalize=whole
    )
    return reduce_tokens(value, mask, denominator)


class DistiLLMState(NamedTuple):
    """Where DistiLLM's schedule stands.

    Attributes:
        fraction: how often sequences are the student's own, from 0 to 1.
        loss: the validation loss at the last rise, or the first one; not finite where there was none.
    """

    fraction: Array
    loss: Array


def distillm_start(fraction: Number = 0.0) -> DistiLLMState:
    """The state before the first validation.

    Example:
        >>> float(distillm_start().fraction)
        0.0
    """
    check_number("fraction", fraction, at_least=0, at_most=1)
    return DistiLLMState(*(jnp.asarray(x, jnp.float32) for x in (fraction, jnp.inf)))


def distillm_update(
    state: DistiLLMState, loss: Number, *, tolerance: Number = 0.1, increment: Number = 0.1
) -> DistiLLMState:
    """The state after a validation: the fraction rises by the increment where loss >= the one before + tolerance.

    As released, the loss that is compared with moves at a rise only, so that a slow one adds up.

    Args:
        state: before.
        loss: of the validation.
        tolerance: by how much it has to have risen, in nats.
        increment: of the fraction, which stays at most 1.

    Returns:
        The new state.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> state = distillm_start()
        >>> for loss in (2.0, 1.5, 2.05, 2.2):
        ...     state = distillm_update(state, loss)
        >>> print(f"{state.fraction:.1f}")
        0.1
    """
    check_number("tolerance", tolerance, at_least=0)
    check_number("increment", increment, above=0, at_most=1)
    loss = jnp.asarray(loss, jnp.float32)
    first = ~jnp.isfinite(state.loss)
    rose = ~first & (loss >= state.loss + tolerance)
    fraction = jnp.where(rose, jnp.minimum(state.fraction + increment, 1), state.fraction)
    return DistiLLMState(fraction, jnp.where(first | rose, loss, state.loss))


def replay_probability(step: Number, *, steps: int) -> Array:
    """1 - step / steps: how often DistiLLM takes the student's sequences from its store, of 1,000, and not anew.

    Args:
        step: from 0.
        steps: of the training.

    Returns:
        One number, from 0 to 1.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> [float(replay_probability(step, steps=4)) for step in (0, 1, 9)]
        [1.0, 0.75, 0.0]
    """
    check_number("step", step, at_least=0)
    check_count("steps", steps)
    return jnp.clip(1 - jnp.asarray(step, jnp.float32) / steps, 0, 1)


def own_sequences(key: Array, fraction: Number, batch: int) -> Array:
    """Which sequences of a batch are the student's own, each with the probability that GKD calls lambda.

    Args:
        key: of `jax.random`.
        fraction: from 0 to 1.
        batch: number of sequences.

    Returns:
        bool (batch).

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> own_sequences(jax.random.key(0), 1.0, 2).tolist(), own_sequences(jax.random.key(0), 0.0, 1).tolist()
        ([True, True], [False])
    """
    check_number("fraction", fraction, at_least=0, at_most=1)
    check_count("batch", batch)
    return jax.random.bernoulli(key, fraction, (batch,))
