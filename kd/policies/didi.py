"""A few-step student of a masked diffusion model by a discriminator's reward (DiDi-Instruct, arXiv 2509.25035).

The student q minimises the KL to the teacher p at all noise levels, the integral of omega(t) KL(q_t || p_t). At times
drawn with density pi(t) the gradient is the expectation of

    omega(t) / pi(t) R(z_t, t) grad log q(z),    R = log q_t(z_t) - log p_t(z_t)

where R is the logit of a discriminator that tells the student's samples, label 1, from the teacher's, averaged over the
masked positions, and normalised within groups of samples. log q(z) is the log probability of the whole sampled path; in
the paper it has two steps, from all masked to an intermediate state and from there on, and leaving out the second makes
the method fail. From the paper's text: its training code is not released. Of it the regularisers and the guided sampler
are not here; `token_divergence` at the intermediate states has the divergences that the former mixes.
"""

import jax
import jax.numpy as jnp
import optax

from kd.checks import ArrayInput, as_counted, as_floats, as_mask, at_least_float32, check_mass, check_number, known
from kd.divergences import reduce_tokens
from kd.policies.grpo import grpo_advantage
from kd.typing import Array, Number


def didi_reward(logits: ArrayInput, masked: ArrayInput) -> Array:
    """R of each sample: the mean of the discriminator's logits over its masked positions; see the module.

    Args:
        logits: of the discriminator (B, T).
        masked: (B, T), true at positions that are masked at this time; the logits elsewhere do not matter.

    Returns:
        (B), without gradient; 0 where nothing is masked.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> logits, masked = jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[True, True, False]])
        >>> didi_reward(logits, masked).tolist()
        [2.0]
    """
    (logits,) = as_floats("B T", logits=logits)
    masked = as_mask(masked, logits.shape, name="masked")
    if masked is None:
        raise ValueError(f"masked: got None, expected bool{list(logits.shape)}: what is visible says nothing")
    total = jnp.sum(jnp.where(masked, at_least_float32(logits), 0), axis=1)
    return jax.lax.stop_gradient(total / jnp.maximum(jnp.sum(masked, axis=1), 1))


def didi_discriminator_loss(
    student: ArrayInput,
    teacher: ArrayInput,
    *,
    smoothing: Number = 0.1,
    student_mask: ArrayInput = None,
    teacher_mask: ArrayInput = None,
) -> Array:
    """Binary cross-entropy of telling the student's positions, label 1, from the teacher's; see the module.

    Without smoothing its minimum is at the logit log q - log p; smoothing pulls the logit towards 0 and bounds it by
    log(2 / smoothing - 1). How the paper smooths is not verified; here a label y becomes y (1 - s) + s / 2.

    Args:
        student: logits at samples of the student (B, T).
        teacher: at samples of the teacher (B, T).
        smoothing: s, from 0 to below 1.
        student_mask: (B, T), true at positions that count.
        teacher_mask: likewise.

    Returns:
        One number, the mean of the two means.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> loss = jax.jit(lambda x, y: didi_discriminator_loss(x, y, smoothing=0.0))
        >>> print(f"{loss(jnp.ones((1, 2)), -jnp.ones((1, 2))):.4f}")
        0.3133
    """
    check_number("smoothing", smoothing, at_least=0, below=1)
    as_floats("B T", student=student, teacher=teacher)
    total = jnp.zeros(())
    for label, logits, mask in ((1.0, student, student_mask), (0.0, teacher, teacher_mask)):
        mask, (logits,) = as_counted(mask, logits=logits)
        target = jnp.full_like(logits, label * (1 - smoothing) + smoothing / 2)
        total = total + reduce_tokens(optax.sigmoid_binary_cross_entropy(logits, target), mask) / 2
    return total


def didi_loss(
    log_prob: ArrayInput,
    reward: ArrayInput,
    *,
    weight: ArrayInput = None,
    density: ArrayInput = None,
    mask: ArrayInput = None,
) -> Array:
    """The mean of omega / pi times the normalised reward times log q, whose gradient is that of the module.

    The normalisation within groups, (R - mean) / std, is `grpo_advantage`'s: a group without differences gives 0. It
    is a baseline and a step size of each group, and no longer the gradient of the integral exactly.

    Args:
        log_prob: log probabilities of the sampled paths (groups, G) under the student.
        reward: R of each (groups, G), held fixed; see `didi_reward`.
        weight: omega at their times (groups, G), at least 0; None is 1.
        density: pi at their times (groups, G), above 0; None is 1.
        mask: (groups, G), true at samples that count.

    Returns:
        One number. Its gradient means something, its value does not.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_prob, reward = jnp.zeros((1, 2)), jnp.array([[3.0, 1.0]])
        >>> jax.jit(jax.grad(didi_loss))(log_prob, reward).tolist()
        [[0.5, -0.5]]
    """
    given = {"log_prob": log_prob, "reward": reward, "weight": weight, "density": density}
    given = {name: x for name, x in given.items() if x is not None}
    as_floats("groups G", **given)
    mask, counted = as_counted(mask, **given)
    arrays = dict(zip(given, counted, strict=True))
    if "weight" in arrays:
        check_mass("weight", arrays["weight"])
    step = grpo_advantage(arrays["reward"], mask=mask) * arrays.get("weight", 1.0)
    if "density" in arrays:
        of_time = arrays["density"] if mask is None else jnp.where(mask, arrays["density"], 1)
        if known(of_time):
            check_number("the smallest of density", jnp.min(of_time), above=0)
        step = step / of_time
    return reduce_tokens(jax.lax.stop_gradient(step) * arrays["log_prob"], mask)
