"""Knowledge distillation and reinforcement learning as one loss (KDRL, arXiv 2506.02208).

    L = (sum over tokens of -A log pi + beta k2) / number of tokens,    k2 = (log pi - log teacher)^2 / 2

of the policy's own samples, with GRPO's advantage A. k2 has the gradient of KL(pi || teacher) at the states that were
sampled; with k1 in its place the teacher would teach nothing (see `kd.policies.estimators`), and with k3 it would be
KL(teacher || pi). No official code is known.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_counted, as_floats, as_mask, check_number, known
from kd.divergences import reduce_tokens
from kd.policies.estimators import kl_surrogate
from kd.policies.grpo import clipped_policy_loss
from kd.typing import Array, Number


def kdrl_loss(
    log_pi: ArrayInput,
    log_teacher: ArrayInput,
    advantage: ArrayInput,
    *,
    beta: Number,
    kind: str = "k2",
    distilled: ArrayInput = None,
    mask: ArrayInput = None,
    denominator: Number | None = None,
) -> Array:
    """The joint loss; see the module.

    Args:
        log_pi: log probabilities of the sampled tokens (B, T) under the policy that drew them.
        log_teacher: under the teacher (B, T), held fixed.
        advantage: of each response (B); see `grpo_advantage`.
        beta: weight of the teacher; see `kdrl_beta`.
        kind: see `kl_surrogate`, which refuses k1.
        distilled: (B), true at responses that the teacher corrects; see `guided_mask`. None is all of them.
        mask: (B, T), true at tokens that count.
        denominator: see `reduce_tokens`; both terms are over all tokens that count.

    Returns:
        One number. Its gradient means something, its value does not.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_pi, log_teacher = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.9]]))
        >>> gradient = jax.jit(jax.grad(kdrl_loss))(log_pi, log_teacher, jnp.array([1.0]), beta=0.5)
        >>> print(f"{gradient[0, 0]:.4f}")
        -1.2939
    """
    as_floats("B T", log_pi=log_pi, log_teacher=log_teacher)
    check_number("beta", beta, at_least=0)
    chosen = as_mask(distilled, log_pi.shape[:1])
    mask, (log_pi, log_teacher) = as_counted(mask, log_pi=log_pi, log_teacher=log_teacher)
    taught = kl_surrogate(log_pi, log_teacher, kind=kind, mask=mask)
    if chosen is not None:
        taught = jnp.where(chosen[:, None], taught, 0)
    reinforced = clipped_policy_loss(log_pi, jax.lax.stop_gradient(log_pi), advantage, mask=mask)
    return reduce_tokens(reinforced + beta * taught, mask, denominator)


def kdrl_beta(step: Number, *, start: Number = 5e-3, least: Number = 1e-3, decrement: Number = 5e-5) -> Array:
    """max(start - decrement step, least): the weight of the teacher, which falls.

    Args:
        step: from 0.
        start: of the first step.
        least: what it ends at, at most the start.
        decrement: of each step.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> [f"{kdrl_beta(step):.4f}" for step in (0, 40, 80, 280)]
        ['0.0050', '0.0030', '0.0010', '0.0010']
    """
    check_number("step", step, at_least=0)
    check_number("start", start, at_least=0)
    check_number("least", least, at_least=0, at_most=float(start) if known(start) else None)
    check_number("decrement", decrement, above=0)
    return jnp.maximum(start - decrement * jnp.asarray(step, jnp.float32), least)
