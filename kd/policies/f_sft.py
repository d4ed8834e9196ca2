"""Supervised fine-tuning as the matching of an f-divergence to the data, with the reference as the other side.

With u = pi / ref and f* the convex conjugate, f*(f'(u)) = u f'(u) - f(u),

    J_f = E_data f'(u) - E_ref (u f'(u) - f(u))

is largest at u = data / ref, that is at pi = data, for every f: it is the variational form of D_f(data || ref) with the
implicit reward f'(u) as the witness. For f = u log u the second term is E_ref u, which is 1 for every normalised pi, so
that what is left is E_data log u: maximum likelihood, and nothing in it holds pi near the reference. Nothing of this is
quoted: it follows from the definitions, and the tests check it on tables. What arXiv 2507.00018 states of the implicit
reward of fine-tuning has another form, in the logits as a soft Q function, of which only the abstract was read: it is
taken to be `sequence_match` of the data alone, linear or chi2, and that is not verified.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_counted, as_floats, check_number
from kd.divergences import LARGEST_LOG_RATIO, reduce_tokens
from kd.generators import Generator, as_generator
from kd.typing import Array, Number


def f_sft_loss(
    data: ArrayInput,
    data_reference: ArrayInput,
    drawn: ArrayInput,
    drawn_reference: ArrayInput,
    *,
    generator: str | Generator = "reverse_kl",
    data_mask: ArrayInput = None,
    drawn_mask: ArrayInput = None,
    largest_log_ratio: Number = LARGEST_LOG_RATIO,
) -> Array:
    """-J_f from responses of the data and responses of the reference; see the module.

    Args:
        data: log probabilities of the data's responses (B) under the policy.
        data_reference: under the reference (B), held fixed.
        drawn: log probabilities of the reference's own responses (R) under the policy.
        drawn_reference: under the reference (R), held fixed.
        generator: f, a name in `GENERATORS` or one's own.
        data_mask: (B), true at responses that count.
        drawn_mask: (R), likewise.
        largest_log_ratio: clips log u on both sides; outside of it there is no gradient.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> zero = jnp.zeros(2)
        >>> print(f"{f_sft_loss(zero + 0.1, zero, zero, zero):.4f}")
        -0.1000
    """
    f, derivative = as_generator(generator)
    check_number("largest_log_ratio", largest_log_ratio, above=0)
    as_floats("B", data=data, data_reference=data_reference)
    as_floats("R", drawn=drawn, drawn_reference=drawn_reference)
    data_mask, of_data = as_counted(data_mask, data=data, data_reference=data_reference)
    drawn_mask, of_drawn = as_counted(drawn_mask, drawn=drawn, drawn_reference=drawn_reference)

    def log_ratio(log_pi: Array, log_reference: Array) -> Array:
        d = log_pi - jax.lax.stop_gradient(log_reference)
        return jnp.clip(d, -largest_log_ratio, largest_log_ratio)

    x, y = log_ratio(*of_data), log_ratio(*of_drawn)
    conjugate = jnp.exp(y) * derivative(y) - f(y)
    return reduce_tokens(conjugate, drawn_mask) - reduce_tokens(derivative(x), data_mask)
