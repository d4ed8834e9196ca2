"""Losses of sampled sequences by an f-divergence: f-DPG and f-DPO.

Both need a generator's derivative at a ratio u only, as a function of log u; `kd.generators` has the table. They clip
log u, because the forward KL's is -1 / u. There is no gradient outside of that range.

**f-DPG** (arXiv 2302.08215), for a target p of known probabilities: grad D_f(pi || p) = E_pi f'(pi / p) grad log pi.

**f-DPO** (arXiv 2309.16240), pairs of a better and a worse response: -log sigmoid(beta (f'(u_w) - f'(u_l))) with
u = pi / pi_ref of whole responses. With the reverse KL it is DPO.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_counted, as_floats, at_least_float32, check_number
from kd.divergences import LARGEST_LOG_RATIO, reduce_tokens
from kd.generators import Generator, as_generator
from kd.typing import Array, Number

AS_LOG = ("reverse_kl", "jensen_shannon", "softened_kl")  # whose f' grows no faster than log u


def f_dpg_loss(
    log_pi: ArrayInput,
    log_p: ArrayInput,
    log_proposal: ArrayInput = None,
    *,
    generator: str | Generator = "jensen_shannon",
    baseline: Number = 0.0,
    largest_log_ratio: Number = LARGEST_LOG_RATIO,
    mask: ArrayInput = None,
) -> Array:
    """mean(w (f'(pi / p) - baseline) log pi), w = pi / proposal, whose gradient is that of D_f(pi || p).

    All but the last log pi is held fixed. The value means nothing.

    Args:
        log_pi: log probabilities of the samples (B) under the policy.
        log_p: under the target (B), normalised: log P - log Z.
        log_proposal: under what they were drawn from (B); None is the policy.
        generator: of the divergence, a name in `GENERATORS` or one's own.
        baseline: subtracted from f'(pi / p), see `f_dpg_cost`; of samples of the policy it changes the variance only.
        largest_log_ratio: clips log(pi / p).
        mask: (B), true at samples that count.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_pi, log_p = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> jax.grad(f_dpg_loss)(log_pi, log_p, generator="total_variation").tolist()
        [-0.25, 0.25]
    """
    given = {"log_pi": log_pi, "log_p": log_p} | ({} if log_proposal is None else {"log_proposal": log_proposal})
    as_floats("B", **given)
    check_number("baseline", baseline)
    mask, (log_pi, log_p, *proposal) = as_counted(mask, **given)
    cost = f_dpg_cost(log_pi, log_p, generator=generator, largest_log_ratio=largest_log_ratio) - baseline
    for log_q in proposal:
        cost = cost * jnp.exp(log_pi - log_q)
    return reduce_tokens(jax.lax.stop_gradient(cost) * log_pi, mask)


def f_dpg_cost(
    log_pi: ArrayInput,
    log_p: ArrayInput,
    *,
    generator: str | Generator = "jensen_shannon",
    largest_log_ratio: Number = LARGEST_LOG_RATIO,
) -> Array:
    """f'(pi / p) of each sample, the negative of f-DPG's reward: what a baseline is the mean of.

    Args:
        log_pi: log probabilities of the samples (B) under the policy.
        log_p: under the target (B), normalised.
        generator: of the divergence, a name in `GENERATORS` or one's own.
        largest_log_ratio: clips log(pi / p).

    Returns:
        (B), without gradient.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_pi, log_p = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> f_dpg_cost(log_pi, log_p, generator="total_variation").tolist()
        [-0.5, 0.5]
    """
    log_pi, log_p = (at_least_float32(x) for x in as_floats("B", log_pi=log_pi, log_p=log_p))
    check_number("largest_log_ratio", largest_log_ratio, above=0)
    return jax.lax.stop_gradient(_derivative(generator, log_pi - log_p, largest_log_ratio))


def f_dpo_loss(
    better: ArrayInput,
    worse: ArrayInput,
    better_reference: ArrayInput,
    worse_reference: ArrayInput,
    *,
    beta: Number = 0.1,
    generator: str | Generator = "reverse_kl",
    largest_log_ratio: Number = LARGEST_LOG_RATIO,
    mask: ArrayInput = None,
) -> Array:
    """Mean over the pairs of -log sigmoid(beta (f'(u_w) - f'(u_l))); see the module.

    Args:
        better: log probabilities of the better responses (B) under the policy, summed over their tokens.
        worse: of the worse ones (B).
        better_reference: of the better ones under the reference (B); no gradient goes into it.
        worse_reference: of the worse ones (B).
        beta: strength.
        generator: of the divergence from the reference, a name in `GENERATORS` or one's own.
        largest_log_ratio: clips log u where f' grows faster than it; for the reverse KL the loss is DPO's at any ratio.
        mask: (B), true at pairs that count.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> zero = jnp.zeros(1)
        >>> print(f"{f_dpo_loss(zero + 1.0, zero, zero, zero, beta=1.0):.4f}")
        0.3133
    """
    given = {"better": better, "worse": worse}
    given |= {"better_reference": better_reference, "worse_reference": worse_reference}
    as_floats("B", **given)
    check_number("beta", beta, above=0)
    check_number("largest_log_ratio", largest_log_ratio, above=0)
    mask, (of_better, of_worse, *reference) = as_counted(mask, **given)
    ratios = (x - jax.lax.stop_gradient(y) for x, y in zip((of_better, of_worse), reference, strict=True))
    largest = jnp.inf if generator in AS_LOG else largest_log_ratio
    u_w, u_l = (_derivative(generator, ratio, largest) for ratio in ratios)
    return reduce_tokens(jax.nn.softplus(-beta * (u_w - u_l)), mask)


def _derivative(generator: str | Generator, log_ratio: Array, largest: Number) -> Array:
    return as_generator(generator).derivative(jnp.clip(log_ratio, -largest, largest))
