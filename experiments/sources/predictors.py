"""Predictions of the next symbol from the symbols before it, in context: what a model of random chains can learn.

Every function returns laws (B, L, K): at position t the law of x_t given x_0..x_{t-1}, so at position 0 the one before
anything was read. The strategies are those of Edelman et al. (arXiv 2402.11004); the conditional k-gram is that of
Rajaraman et al. (arXiv 2407.17686, section 2).
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sources.in_context import stationary_contexts


def uniform_predictions(symbols: jax.Array, alphabet: int) -> jax.Array:
    """The strategy that has learnt nothing: Q(x_t) = 1 / K.

    Args:
        symbols: (B, L) integers.
        alphabet: K.

    Returns:
        (B, L, K).

    Example:
        >>> uniform_predictions(jnp.array([[0, 1]]), 4)[0, 1].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    return jnp.full((*symbols.shape, alphabet), 1.0 / alphabet)


def unigram_predictions(symbols: jax.Array, alphabet: int, pseudo_count: float = 1.0) -> jax.Array:
    """The in-context unigram: Q(x_t = x) = (n_t(x) + a) / (t + a K), n_t(x) the number of x before t.

    With a = 1 it is the optimal prediction (Bayes) if the symbols are independent with one law from Dir(1, ..., 1).

    Args:
        symbols: (B, L) integers.
        alphabet: K.
        pseudo_count: a, above 0.

    Returns:
        (B, L, K).

    Raises:
        ValueError: if `pseudo_count` is not above 0.

    Example:
        >>> unigram_predictions(jnp.array([[0, 0, 1]]), 2)[0].round(2).tolist()[2]
        [0.75, 0.25]
    """
    return kgram_predictions(symbols, alphabet, 0, pseudo_count)


def kgram_predictions(symbols: jax.Array, alphabet: int, order: int, pseudo_count: float = 1.0) -> jax.Array:
    """The in-context conditional k-gram: how often x followed the last k symbols so far.

    Q(x_t = x) = (n_t(c, x) + a) / (n_t(c) + a K),  c = x_{t-k}..x_{t-1}

    where n_t counts the earlier positions with the same k symbols before them; uniform while t < k. k = 1 is the
    in-context bigram. With a = 1 it is the optimal prediction (Bayes) of an order-k chain with rows from
    Dir(1, ..., 1) if its first k symbols tell nothing about the rows; from the stationary law they tell a little.

    Args:
        symbols: (B, L) integers.
        alphabet: K.
        order: k, 0 or more.
        pseudo_count: a, above 0.

    Returns:
        (B, L, K).

    Raises:
        ValueError: if `order` < 0 or `pseudo_count` is not above 0.

    Example:
        >>> np.asarray(kgram_predictions(jnp.array([[0, 0, 0, 1]]), 2, 1))[0, 3].tolist()
        [0.75, 0.25]
    """
    if order < 0:
        raise ValueError(f"order: got {order}; expected 0 or more")
    if not pseudo_count > 0:
        raise ValueError(f"pseudo_count: got {pseudo_count}; expected a number above 0")
    return _counted(symbols, alphabet, order, pseudo_count)


@partial(jax.jit, static_argnums=(1, 2))
def _counted(symbols: jax.Array, alphabet: int, order: int, pseudo_count: float) -> jax.Array:
    counts = _matches(symbols, order) @ jax.nn.one_hot(symbols, alphabet)
    return (counts + pseudo_count) / (counts.sum(axis=-1, keepdims=True) + pseudo_count * alphabet)


def _matches(symbols: jax.Array, order: int) -> jax.Array:
    """Whether the `order` symbols before i are those before t, for i < t: (B, L, L) float32 at [b, t, i]."""
    batch, length = symbols.shape
    whole = np.arange(length) >= order
    same = jnp.broadcast_to(np.tril(np.outer(whole, whole), -1), (batch, length, length))
    for lag in range(1, order + 1):
        before = jnp.roll(symbols, lag, axis=1)
        same &= before[:, :, None] == before[:, None, :]
    return same.astype(jnp.float32)


@jax.jit
def oracle_predictions(kernels: jax.Array, symbols: jax.Array) -> jax.Array:
    """What the chain itself says: P(x_t | x_{t-k}..x_{t-1}), from the stationary law while t < k.

    Args:
        kernels: (B, S, K), S = K**k, k at least 1.
        symbols: (B, L) integers.

    Returns:
        (B, L, K).

    Example:
        >>> kernels = jnp.array([[[0.25, 0.75], [0.75, 0.25]]])
        >>> oracle_predictions(kernels, jnp.array([[0, 1]]))[0].round(2).tolist()
        [[0.5, 0.5], [0.25, 0.75]]
    """
    batch, contexts, alphabet = kernels.shape
    length, order = symbols.shape[1], round(np.log(contexts) / np.log(alphabet))
    opening = stationary_contexts(kernels)
    laws, context = [], jnp.zeros((batch,), symbols.dtype)
    for t in range(min(order, length)):
        known = opening.reshape(batch, alphabet**t, alphabet, -1).sum(axis=-1)
        joint = jnp.take_along_axis(known, context[:, None, None], axis=1)
        laws.append(joint / joint.sum(axis=-1, keepdims=True))
        context = context * alphabet + symbols[:, t]
    digits = alphabet ** np.arange(order - 1, -1, -1)
    windows = sum(symbols[:, i : i + max(length - order, 0)] * int(digit) for i, digit in enumerate(digits))
    laws.append(jnp.take_along_axis(kernels, jnp.asarray(windows)[..., None], axis=1))
    return jnp.concatenate(laws, axis=1)


def mixture_predictions(predictions: Sequence[jax.Array], symbols: jax.Array, prior: Sequence[float]) -> jax.Array:
    """Several hypotheses, each weighted by how well it has predicted so far (Bayes).

    Q(x_t) = sum_h w_h Q_h(x_t | x_{<t}),  w_h proportional to prior_h Q_h(x_0) ... Q_h(x_{t-1} | x_{<t-1})

    If each Q_h is optimal on its part of a mixture of sources, this is optimal on the mixture.

    Args:
        predictions: from the functions above, each (B, L, K).
        symbols: (B, L) integers.
        prior: share of each hypothesis; normalised here.

    Returns:
        (B, L, K).

    Raises:
        ValueError: if there is not one non-negative share per hypothesis, with a positive sum.

    Example:
        >>> half, sure = jnp.full((1, 2, 2), 0.5), jnp.array([[[1.0, 0.0]] * 2])
        >>> mixture_predictions([half, sure], jnp.array([[0, 0]]), [2, 1])[0, 1].tolist()
        [0.75, 0.25]
    """
    if len(prior) != len(predictions) or not len(prior) or min(prior) < 0 or not sum(prior) > 0:
        raise ValueError(f"prior: got {list(prior)}; expected {len(predictions)} non-negative shares, not all 0")
    laws = jnp.stack(list(predictions))
    losses = jnp.stack([position_losses(law, symbols) for law in predictions])
    before = jnp.pad(jnp.cumsum(losses, axis=-1)[..., :-1], ((0, 0), (0, 0), (1, 0)))
    weights = jax.nn.softmax(jnp.log(jnp.asarray(prior))[:, None, None] - before, axis=0)
    return jnp.sum(weights[..., None] * laws, axis=0)


@jax.jit
def position_losses(predictions: jax.Array, symbols: jax.Array) -> jax.Array:
    """Loss of predictions at each position: -log Q(x_t) in nats.

    Args:
        predictions: (B, L, K).
        symbols: (B, L) integers.

    Returns:
        (B, L).

    Example:
        >>> position_losses(jnp.array([[[0.5, 0.5]]]), jnp.array([[1]])).shape
        (1, 1)
    """
    return -jnp.log(jnp.take_along_axis(predictions, symbols[..., None], axis=-1)[..., 0])
