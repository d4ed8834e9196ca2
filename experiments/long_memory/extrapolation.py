"""Answers at the end of sequences much longer than those of the training, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lightnet.backbone import CausalLM

Read = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]
"""(parameters, tokens (B, C), state or None) -> logits (B, V) behind the last of them, and the state there."""


def reader(model: CausalLM) -> Read:
    """A compiled function that reads further tokens of sequences.

    Args:
        model: what reads.

    Returns:
        The function; compiled once for each number of tokens.
    """

    @jax.jit
    def read(params: Any, tokens: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        logits, state = model.apply({"params": params}, tokens, state, method="extend")
        return logits[:, -1], state

    return read


def last_logits(read: Read, params: Any, tokens: jax.Array, state: Any, chunk: int) -> jax.Array:
    """Logits behind the last token of each sequence, read chunk by chunk.

    Args:
        read: of `reader`.
        params: of the model.
        tokens: (B, L).
        state: before the first token; None with a chunk of L reads whole sequences, for a model without a state.
        chunk: tokens that are read together. Those that are left over are read first.

    Returns:
        (B, V).

    Example:
        >>> import numpy as np
        >>> def read(params, tokens, state):
        ...     return tokens[:, -1:], [*state, tokens.shape[1]]
        >>> last_logits(read, None, np.array([[5, 6, 7]]), [], 2).tolist()
        [[7]]
    """
    first = tokens.shape[1] % chunk or chunk
    logits, state = read(params, tokens[:, :first], state)
    for start in range(first, tokens.shape[1], chunk):
        logits, state = read(params, tokens[:, start : start + chunk], state)
    return logits
