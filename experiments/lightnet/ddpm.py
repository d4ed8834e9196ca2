"""Denoising diffusion as functions of arrays: noise, loss, and sampling with any share of fresh noise.

Ho, Jain and Abbeel 2020 (arXiv 2006.11239), "DDPM"; Song, Meng and Ermon 2021 (arXiv 2010.02502), "DDIM". `level` is
their alpha-bar (DDPM) or alpha (DDIM): the share of the variance that is signal, 1 without noise.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Predict = Callable[[jax.Array, jax.Array], jax.Array]


def noise_levels(steps: int, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """Levels prod_{s <= t} (1 - beta_s) with beta on a line (DDPM, section 4, whose 1000 steps are from 1e-4 to 0.02).

    Args:
        steps: T.
        first: beta_1.
        last: beta_T; for other T both are scaled by 1000 / T, so that the last level stays about the same.

    Returns:
        (T + 1,) float64, beginning with the 1 of clean data.

    Raises:
        ValueError: too few steps, with which beta_T would not be below 1.

    Example:
        >>> levels = noise_levels(1000)
        >>> float(levels[0]), float(levels[1]), bool(levels[-1] < 1e-4)
        (1.0, 0.9999, True)
    """
    scale = 1000 / steps
    if scale * last >= 1:
        raise ValueError(f"steps: got {steps}, expected more than {1000 * last:g}")
    betas = np.linspace(scale * first, scale * last, steps)
    return np.concatenate([[1.0], np.cumprod(1.0 - betas)])


def noised(x: jax.Array, noise: jax.Array, level: jax.Array) -> jax.Array:
    """A draw of q(x_t | x_0) = N(sqrt(level) x_0, 1 - level) (DDPM, eq. 4).

    Args:
        x: (B, ...) clean.
        noise: (B, ...) standard normal.
        level: (B,).

    Returns:
        (B, ...).

    Example:
        >>> noised(jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.array([0.25])).tolist()
        [[0.5, 0.5]]
    """
    level = level.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.sqrt(level) * x + jnp.sqrt(1.0 - level) * noise


def denoising_loss(predict: Predict, x: jax.Array, key: jax.Array, levels: jax.Array) -> jax.Array:
    """Mean of |noise - predicted noise|^2 over times from 1 to T (DDPM, eq. 14).

    Args:
        predict: (noisy (B, ...), times (B,)) -> noise.
        x: (B, ...) clean.
        key: of the times and the noise.
        levels: (T + 1,).

    Returns:
        A scalar.

    Example:
        >>> loss = denoising_loss(lambda x, t: 0 * x, jnp.zeros((500, 9)), jax.random.key(0), jnp.linspace(1, 0.1, 9))
        >>> bool(abs(loss - 1) < 0.1)
        True
    """
    of_time, of_noise = jax.random.split(key)
    time = jax.random.randint(of_time, (len(x),), 1, len(levels))
    noise = jax.random.normal(of_noise, x.shape)
    return jnp.mean((noise - predict(noised(x, noise, levels[time]), time)) ** 2)


def clean_estimate(x: jax.Array, noise: jax.Array, level: jax.Array) -> jax.Array:
    """x_0 from x_t and its noise (DDPM, eq. 15; DDIM, eq. 9).

    Args:
        x: noisy.
        noise: predicted.
        level: of x.

    Returns:
        The estimate.
    """
    return (x - jnp.sqrt(1.0 - level) * noise) / jnp.sqrt(level)


def fresh_noise(level: jax.Array, before: jax.Array, eta: float) -> jax.Array:
    """Standard deviation sigma of the noise added in a step (DDIM, eq. 16); eta = 1 is DDPM's posterior (eq. 7).

    Args:
        level: of x_t.
        before: of x_s, s < t.
        eta: 0 adds none.

    Returns:
        sigma.
    """
    return eta * jnp.sqrt((1.0 - before) / (1.0 - level) * (1.0 - level / before))


def reverse_step(
    x: jax.Array, clean: jax.Array, level: jax.Array, before: jax.Array, noise: jax.Array, eta: float
) -> jax.Array:
    """x_s from x_t, s < t, and an estimate of x_0 (DDIM, eq. 12).

    sqrt(before) x_0 + sqrt(1 - before - sigma^2) (x_t - sqrt(level) x_0) / sqrt(1 - level) + sigma noise.

    Args:
        x: at t.
        clean: estimate of x_0.
        level: at t.
        before: at s.
        noise: standard normal.
        eta: see `fresh_noise`; 0 is DDIM, 1 the ancestral sampling of DDPM (Algorithm 2).

    Returns:
        x at s.
    """
    sigma = fresh_noise(level, before, eta)
    direction = (x - jnp.sqrt(level) * clean) / jnp.sqrt(1.0 - level)
    return jnp.sqrt(before) * clean + jnp.sqrt(jnp.maximum(1.0 - before - sigma**2, 0.0)) * direction + sigma * noise


def guided(with_class: jax.Array, without: jax.Array, strength: float) -> jax.Array:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6, strength 1 + w).

    Args:
        with_class: noise predicted for the class.
        without: noise predicted for no class.
        strength: 1 is no guidance.

    Returns:
        The noise to use.

    Example:
        >>> guided(jnp.array(3.0), jnp.array(1.0), 1.5).item()
        4.0
    """
    return without + strength * (with_class - without)


def sample(
    predict: Predict, shape: tuple[int, ...], key: jax.Array, levels: np.ndarray, *, steps: int, eta: float = 0.0
) -> jax.Array:
    """Pictures in [-1, 1] from noise, over `steps` of the T times; the estimate of x_0 is clipped to that range.

    Args:
        predict: (noisy, times (B,)) -> noise.
        shape: (B, ...).
        key: random key.
        levels: (T + 1,).
        steps: calls of the model, at most T.
        eta: see `reverse_step`.

    Returns:
        The pictures.

    Raises:
        ValueError: more steps than times, or none.

    Example:
        >>> sample(lambda x, t: 0 * x, (2, 3), jax.random.key(0), noise_levels(50), steps=5).shape
        (2, 3)
    """
    if not 1 <= steps < len(levels):
        raise ValueError(f"steps: got {steps}, expected from 1 to {len(levels) - 1}")
    times = np.round(np.linspace(len(levels) - 1, 0, steps + 1)).astype(np.int32)
    start, rest = jax.random.split(key)

    def step(x: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        time, level, before, own = now
        noise = predict(x, jnp.full(len(x), time))
        clean = jnp.clip(clean_estimate(x, noise, level), -1.0, 1.0)
        return reverse_step(x, clean, level, before, jax.random.normal(own, x.shape), eta), None

    level, before = (jnp.asarray(levels[at], jnp.float32) for at in (times[:-1], times[1:]))
    schedule = (jnp.asarray(times[:-1]), level, before, jax.random.split(rest, steps))
    return jax.lax.scan(step, jax.random.normal(start, shape), schedule)[0]
