"""Training a few-step student by DiDi-Instruct (arXiv 2509.25035), where the student is a table over all states.

A path is all masked, a state at a time, a sequence; `masked_states.py` has the numbers of states. Every part of the
method that can be left out is a switch of `Arm`, an array, so that one program is compiled for all arms.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import kd
from experiments.distillation.masked_states import numbers

if TYPE_CHECKING:
    from experiments.distillation.masked_diffusion import Config


class Arm(NamedTuple):
    """What of the method is used; each 0 or 1.

    Attributes:
        decomposed: paths have a state on the way.
        one_time: it has the time of the reward.
        weighted: omega is 1 / t, else constant.
        dense: so is pi.
        regularised: the regulariser.
    """

    decomposed: Any
    one_time: Any
    weighted: Any
    dense: Any
    regularised: Any


def by_chance(log_q: Any, u: Any) -> Any:
    """Symbols by their log probabilities (..., A) from uniform numbers (...).

    Example:
        >>> by_chance(np.log([[0.2, 0.3, 0.5]]), np.array([0.1, 0.4, 0.9])).tolist()
        [0, 1, 2]
    """
    reached = jnp.cumsum(jnp.exp(log_q), axis=-1) < u[..., None]
    return jnp.minimum(reached.sum(-1), log_q.shape[-1] - 1)  # a sum may round to less than u


class Batch(NamedTuple):
    """Samples of a step.

    Attributes:
        t: times of the rewards (groups, 1, 1).
        z: states on the student's paths (groups, G, L).
        x: what the paths end at (groups, G, L).
        told: numbers of x, masked at t (groups G).
        of_told: what is masked there (groups G, L).
        genuine: numbers of sequences of the source, masked at t.
        of_genuine: what is masked there.
    """

    t: Any
    z: Any
    x: Any
    told: Any
    of_told: Any
    genuine: Any
    of_genuine: Any


def sampled(config: Config, table: Any, cumulative: Any, arm: Arm, key: Any) -> Batch:
    """Draw a batch.

    Args:
        config: of the run.
        table: the student's log probabilities (S, L, A).
        cumulative: of the source's sequences, the sum of their probabilities up to each (A^L).
        arm: which.
        key: of the samples.

    Returns:
        The batch.
    """
    _, length, symbols = table.shape
    sequences = jnp.asarray(np.indices((symbols,) * length).reshape(length, -1).T)
    of_times, of_samples = jax.random.split(key)
    u = jax.random.uniform(of_times, (2, config.groups, 1, 1))
    even = config.earliest + (1 - config.earliest) * u
    on_path, other = jnp.where(arm.dense, config.earliest**u, even)
    uniform = jax.random.uniform(of_samples, (6, config.groups, config.group, length))
    of_mask, of_first, of_second, of_told, of_genuine, of_source = uniform
    hidden = (of_mask < on_path) | (arm.decomposed == 0)
    z = jnp.where(hidden, symbols, by_chance(table[None, None, -1], of_first))
    x = jnp.where(hidden, by_chance(table[numbers(z, symbols)], of_second), z)
    y = sequences[jnp.searchsorted(cumulative, of_source[..., 0] * cumulative[-1])]
    t = jnp.where(arm.one_time, on_path, other)
    masks = of_told < t, of_genuine < t
    told, genuine = (
        numbers(jnp.where(mask, symbols, w), symbols).ravel() for mask, w in zip(masks, (x, y), strict=True)
    )
    of_told, of_genuine = (mask.reshape(-1, length) for mask in masks)
    return Batch(t, z, x, told, of_told, genuine, of_genuine)


def student_loss(config: Config, logits: Any, teacher: Any, batch: Batch, reward: Any, arm: Arm) -> Any:
    """DiDi's loss of a batch's paths with their rewards (groups, G), and the regulariser."""
    symbols = logits.shape[-1]
    state, hidden = numbers(batch.z, symbols), batch.z == symbols
    log_q = jax.nn.log_softmax(jnp.where(hidden[..., None], logits[state], logits[None, None, -1]))
    log_prob = jnp.take_along_axis(log_q, batch.x[..., None], -1)[..., 0].sum(-1)
    of_bound = jnp.broadcast_to(1 / (math.log(1 / config.earliest) * batch.t[..., 0]), reward.shape)
    even = jnp.full(reward.shape, 1 / (1 - config.earliest))
    weight, density = (jnp.where(chosen, of_bound, even) for chosen in (arm.weighted, arm.dense))
    kinds = "forward_kl", "reverse_kl"
    forward, reverse = (kd.token_divergence(kind, logits[state], teacher[state], mask=hidden) for kind in kinds)
    held = (forward + reverse).sum(-1).mean() / 2
    main = kd.didi_loss(log_prob, reward, weight=weight, density=density)
    return main + arm.regularised * config.regularisation * held


def trained(config: Config, teacher: Any, cumulative: Any, arm: Arm, key: Any) -> Any:
    """The student's table after the training.

    Args:
        config: of the training.
        teacher: log probabilities of the exact denoiser (S, L, A).
        cumulative: as in `sampled`.
        arm: which.
        key: of the samples.

    Returns:
        Log probabilities (S, L, A).
    """
    rates = [optax.cosine_decay_schedule(rate, config.steps) for rate in (config.rate, config.discriminator_rate)]
    of_student, of_discriminator = map(optax.adam, rates)

    def telling(discriminator: Any, batch: Batch) -> Any:
        logits = discriminator[batch.told], discriminator[batch.genuine]
        return kd.didi_discriminator_loss(*logits, student_mask=batch.of_told, teacher_mask=batch.of_genuine)

    def step(carry: Any, key: Any) -> tuple[Any, None]:
        (logits, discriminator), (state, other) = carry
        batch = sampled(config, jax.nn.log_softmax(logits), cumulative, arm, key)
        reward = kd.didi_reward(discriminator[batch.told], batch.of_told).reshape(batch.z.shape[:2])
        by_logits = jax.grad(student_loss, argnums=1)(config, logits, teacher, batch, reward, arm)
        changes, state = of_student.update(by_logits, state)
        others, other = of_discriminator.update(jax.grad(telling)(discriminator, batch), other)
        return (optax.apply_updates((logits, discriminator), (changes, others)), (state, other)), None

    params = teacher, jnp.zeros(teacher.shape[:2])
    start = params, (of_student.init(params[0]), of_discriminator.init(params[1]))
    ((logits, _), _), _ = jax.lax.scan(step, start, jax.random.split(key, config.steps))
    return jax.nn.log_softmax(logits)
