"""Advantages of groups of responses, and the clipped loss of a policy (GRPO, arXiv 2402.03300; DAPO, 2503.14476)."""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_counted, as_floats, as_mask, check_choice, check_number, got
from kd.divergences import LARGEST_LOG_RATIO
from kd.typing import Array, Number

GUIDES = ("none", "response", "group")


def grpo_advantage(rewards: ArrayInput, *, scale: bool = True, mask: ArrayInput = None) -> Array:
    """(r_i - mean) / std over the responses of each prompt.

    The standard deviation is that of the group itself (divided by G; some implementations divide by G - 1). A group
    whose rewards are all the same has advantage 0 exactly, not a rounding error divided by another.

    Args:
        rewards: of G responses to each prompt (prompts, G).
        scale: whether it is divided by the standard deviation.
        mask: (prompts, G), true at responses that count; the others have advantage 0 and are in no mean.

    Returns:
        (prompts, G), without gradient.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> jax.jit(grpo_advantage)(jnp.array([[1.0, 0.0], [0.1, 0.1]])).tolist()
        [[1.0, -1.0], [0.0, 0.0]]
    """
    (rewards,) = as_floats("prompts G", rewards=rewards)
    mask, (rewards,) = as_counted(mask, rewards=rewards)
    rewards = jax.lax.stop_gradient(rewards)
    counted = jnp.ones(rewards.shape, bool) if mask is None else mask
    number = jnp.maximum(counted.sum(1, keepdims=True), 1)
    centred = jnp.where(counted, rewards - rewards.sum(1, keepdims=True) / number, 0)
    largest = jnp.max(rewards, axis=1, keepdims=True, where=counted, initial=-jnp.inf)
    differ = counted & (largest > jnp.min(rewards, axis=1, keepdims=True, where=counted, initial=jnp.inf))
    if scale:
        variance = jnp.sum(centred**2, axis=1, keepdims=True) / number
        centred = centred / jnp.sqrt(jnp.where(variance > 0, variance, 1))
    return jnp.where(differ, centred, 0)


def clipped_policy_loss(
    log_pi: ArrayInput,
    log_old: ArrayInput,
    advantage: ArrayInput,
    *,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    mask: ArrayInput = None,
) -> Array:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) at every token, rho = pi / old (PPO, arXiv 1707.06347).

    DAPO has clip_high 0.28. Where pi still is what drew the samples, pass log_pi itself as log_old: the gradient then
    is that of -A log pi.

    Args:
        log_pi: log probabilities of the tokens (..., T).
        log_old: under the policy that drew them (..., T), held fixed.
        advantage: (..., T), or (...) for a whole response; held fixed.
        clip_low: how far below 1 the ratio counts.
        clip_high: how far above.
        mask: (..., T), true at tokens that count; the others give 0, with gradient 0.

    Returns:
        (..., T), float32 at least.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> log_pi, advantage = jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([2.0])
        >>> jax.jit(jax.grad(lambda x: clipped_policy_loss(x, x, advantage).sum()))(log_pi).tolist()
        [[-2.0, -2.0]]
        >>> print(f"{clipped_policy_loss(log_pi, log_pi - 1.0, advantage)[0, 0]:.2f}")
        -2.40
    """
    (advantage,) = as_floats("...", advantage=advantage)
    if advantage.shape not in (shape := getattr(log_pi, "shape", ()), shape[:-1]):
        raise ValueError(f"advantage: got {got(advantage)}, expected {list(shape)} or {list(shape[:-1])}")
    if advantage.shape != shape:
        advantage = jnp.broadcast_to(advantage[..., None], shape)
    mask, (log_pi, log_old, advantage) = as_counted(mask, log_pi=log_pi, log_old=log_old, advantage=advantage)
    for name, x in (("clip_low", clip_low), ("clip_high", clip_high)):
        check_number(name, x, above=0)
    A, d = jax.lax.stop_gradient(advantage), log_pi - jax.lax.stop_gradient(log_old)
    rho = jnp.exp(jnp.clip(d, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    return -jnp.minimum(rho * A, jnp.clip(rho, 1 - clip_low, 1 + clip_high) * A)


def whiten(x: ArrayInput, mask: ArrayInput = None) -> Array:
    """(x - mean) / std over everything that counts; 0 where that does not differ.

    Args:
        x: (...).
        mask: (...), true at what counts; the rest gives 0.

    Returns:
        (...), without gradient.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> jax.jit(whiten)(jnp.array([[3.0], [1.0], [jnp.nan]]), jnp.array([[True], [True], [False]])).tolist()
        [[1.0], [-1.0], [0.0]]
    """
    mask, (x,) = as_counted(mask, x=x)
    flat = None if mask is None else mask.reshape(1, -1)
    return grpo_advantage(x.reshape(1, -1), mask=flat).reshape(x.shape)


def guided_mask(correct: ArrayInput, guide: str = "response") -> Array:
    """The responses that are distilled, by what their rewards say (reward-guided masking of KDRL, arXiv 2506.02208).

    Args:
        correct: (prompts, G), true at responses that solve their prompt.
        guide: none distils all, response those that fail, group those of prompts of which every response fails.

    Returns:
        bool (prompts, G).

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> correct = jnp.array([[True, False], [False, False]])
        >>> [guided_mask(correct, x).tolist() for x in ("response", "group")]
        [[[False, True], [True, True]], [[False, False], [True, True]]]
    """
    check_choice("guide", guide, GUIDES)
    solved = _solved(correct)
    if guide == "none":
        return jnp.ones_like(solved)
    return ~solved if guide == "response" else jnp.broadcast_to(~solved.any(1, keepdims=True), solved.shape)


def mastered(correct: ArrayInput) -> Array:
    """The prompts of which every response is right: those that DPH-RL (arXiv 2509.07430) anchors and does not train on.

    Args:
        correct: (prompts, G), true at responses of the base model that solve their prompt.

    Returns:
        bool (prompts).

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> mastered(jnp.array([[True, False], [True, True]])).tolist()
        [False, True]
    """
    return _solved(correct).all(axis=1)


def _solved(correct: ArrayInput) -> Array:
    if getattr(correct, "ndim", 0) != 2:
        raise ValueError(f"correct: got {got(correct)}, expected bool (prompts, G)")
    as_mask(correct, correct.shape)
    return jnp.asarray(correct)
