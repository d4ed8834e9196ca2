"""Drawing tokens: by temperature, from the likeliest alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lightnet.scan.checks import ArrayInput, as_arrays
from lightnet.typing import Array


class Sampling(NamedTuple):
    """How a token is drawn; see `sample`."""

    temperature: float | int = 1.0
    top_k: float | int = 0
    top_p: float | int = 1.0

    def check(self) -> None:
        """Raise a ValueError if something is out of range."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: got {self.temperature}, expected a number from 0")
        if not isinstance(self.top_k, int | np.integer) or self.top_k < 0:
            raise ValueError(f"top_k: got {self.top_k}, expected an integer from 0, where 0 keeps all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, expected a number above 0 and up to 1, where 1 keeps all")


def sample(
    key: Array, logits: ArrayInput, *, temperature: float | int = 1.0, top_k: float | int = 0, top_p: float | int = 1.0
) -> Array:
    """Draw tokens from softmax(logits / temperature), of which only the likeliest may be kept.

    The `top_k` likeliest tokens are kept (Fan et al. 2018, arXiv 1805.04833), and of these, their probabilities made to
    sum to 1, the fewest likeliest that reach `top_p` (Holtzman et al. 2020, arXiv 1904.09751). Of equally likely tokens
    those with the smaller ids are kept first. A token of probability 0 is never drawn.

    Args:
        key: random key.
        logits: (V,) or (B, V), -inf for probability 0.
        temperature: 0 takes the likeliest token.
        top_k: 0, or V and more, keeps all.
        top_p: above 0; 1 keeps all.

    Returns:
        Ids, () or (B,) int32; -1 where the largest logit is not finite, or one is NaN.

    Raises:
        ValueError: a setting is out of range, or the logits have another shape.

    Example:
        >>> logits = jnp.log(jnp.array([0.1, 0.6, 0.3]))
        >>> [int(sample(jax.random.key(seed), logits, top_p=0.5)) for seed in range(3)]
        [1, 1, 1]
    """
    sampling = Sampling(temperature, top_k, top_p)
    sampling.check()
    (logits,) = as_arrays(logits=logits)
    if logits.ndim not in (1, 2) or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits: got {logits.dtype}{list(logits.shape)}, expected floats (V,) or (B, V)")
    return drawn(key, jnp.atleast_2d(logits), sampling).reshape(logits.shape[:-1])


def drawn(key: Array, logits: Float[Array, "B V"], sampling: Sampling) -> Int[Array, " B"]:
    """Draw tokens from checked settings.

    Args:
        key: random key.
        logits: (B, V), -inf for probability 0.
        sampling: how.

    Returns:
        Ids as `sample` gives them.

    Example:
        >>> drawn(jax.random.key(0), jnp.array([[0.0, 9.0]]), Sampling(temperature=0)).tolist()
        [1]
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    largest = logits.max(axis=-1, keepdims=True)
    if sampling.temperature == 0:
        token = logits.argmax(axis=-1)
    else:
        token = _from_likeliest(key, (logits - largest) / sampling.temperature, sampling)
    return jnp.where(jnp.isfinite(largest[:, 0]), token, -1).astype(jnp.int32)


def _from_likeliest(key: Array, logits: Float[Array, "B V"], sampling: Sampling) -> Int[Array, " B"]:
    size = min(int(sampling.top_k) or logits.shape[-1], logits.shape[-1])
    if size == logits.shape[-1] and sampling.top_p == 1:
        return _inverted(key, logits)
    logits, ids = jax.lax.top_k(logits, size)
    probabilities = jax.nn.softmax(logits)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The first is kept whatever rounding does; one of the following if those before it do not reach top_p.
    kept = (before < sampling.top_p) | (jnp.arange(size) == 0)[None]
    choice = _inverted(key, jnp.where(kept, logits, -jnp.inf))
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0]


def _inverted(key: Array, logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The token at which the sum of probabilities passes a random number; the largest logit is 0.

    One random number per row: the V of `jax.random.categorical` and their logarithms take as long as a small model.
    """
    weights = jnp.exp(logits)
    sums = jnp.cumsum(weights, axis=-1)
    passed = sums > jax.random.uniform(key, (len(logits), 1), logits.dtype) * sums[:, -1:]
    passed &= weights > 0  # rounding need not leave the sum of a token of probability 0 as it was
    return jnp.where(passed.any(axis=-1), passed.argmax(axis=-1), weights.argmax(axis=-1))
