"""Decoding with a causal language model: read a prompt, draw tokens, continue from a state.

Functions around any model with the calls of `lightnet.backbone.CausalLM`. All that it remembers is a `DecodingState`,
whose leaves have the batch as first axis. With a recurrent mixer the state has a fixed size, so that memory and time
per token do not grow with the number of tokens read.

Token number n is drawn with the key `fold_in(key, n)`, so one key gives the same tokens in `generate` and `stream`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.backbone import DecodingState
from lightnet.backbone.language_model import check_ids
from lightnet.sampling import Sampling, drawn, sample
from lightnet.scan.checks import ArrayInput, as_arrays, known
from lightnet.typing import Array

__all__ = ["generate", "prefill", "reorder", "sample", "stream"]

Variables = Any
_PIECE = 512  # tokens of a prompt that are read at once: there are logits for each of them


def prefill(
    model: nn.Module,
    variables: Variables,
    tokens: ArrayInput,
    state: DecodingState | None = None,
    *,
    mask: ArrayInput | None = None,
) -> tuple[Array, DecodingState]:
    """Read several tokens per row.

    Args:
        model: a causal language model.
        variables: of the model.
        tokens: (B, L) ids.
        state: from an earlier call, whose tokens these follow; None at the start.
        mask: (B, L), true at real tokens, for rows of different lengths; padding may stand on either side.

    Returns:
        Logits (B, V) of the token after each row's last real one, NaN where a row has none; and the state, ready for
        the model's `step`.

    Raises:
        ValueError: as the model raises it; or the model has no such token.

    Example:
        >>> from lightnet.backbone import Backbone, CausalLM
        >>> from lightnet.mixers import SoftmaxAttention
        >>> model = CausalLM(Backbone(partial(SoftmaxAttention, num_heads=2, max_length=9), 1, width=8), vocab_size=5)
        >>> tokens, real = jnp.array([[1, 2, 3], [4, 0, 0]]), jnp.array([[True] * 3, [True, False, False]])
        >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
        >>> logits, state = jax.jit(partial(prefill, model))(variables, tokens, mask=real)
        >>> logits.shape, state.position.tolist()
        ((2, 5), [3, 1])
    """
    tokens, mask = as_arrays(tokens=tokens, mask=mask)
    outputs: Any = model.apply(variables, tokens, state, mask=mask, method="extend")
    logits, after = outputs
    if mask is None:
        return logits[:, -1], after
    length = tokens.shape[1]
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    ends = jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0]
    return jnp.where(mask.any(axis=1, keepdims=True), ends, jnp.nan), after


def reorder(state: Any, indices: ArrayInput | Sequence[int]) -> Any:
    """The state of other rows: row i continues what row `indices[i]` has read, as in a beam search.

    Args:
        state: a `DecodingState`, or the state of any mixer.
        indices: (B',) rows from 0, in any order and number.

    Returns:
        The state of B' rows.

    Raises:
        ValueError: `indices` is not a list of rows that there are, or there is no state.

    Example:
        >>> reorder({"h": jnp.array([[1.0], [2.0]])}, [1, 1, 0])["h"].ravel().tolist()
        [2.0, 2.0, 1.0]
    """
    indices = jnp.asarray(indices)
    leaves = jax.tree.leaves(state)
    if not leaves or not indices.size:
        raise ValueError(
            "state: got none, expected arrays" if not leaves else "indices: got none, expected a row or more"
        )
    rows = min(leaf.shape[0] for leaf in leaves)
    if indices.ndim != 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"indices: got {indices.dtype}{list(indices.shape)}, expected integers (B,)")
    # In NumPy: while a program is traced an operation of JAX on known values gives unknown ones.
    if known(indices) and not ((given := np.asarray(indices)).min() >= 0 and given.max() < rows):
        raise ValueError(f"indices: got {given.tolist()}, expected rows from 0 to {rows - 1}")
    return jax.tree.map(lambda leaf: leaf[indices], state)


def generate(
    model: nn.Module,
    variables: Variables,
    prompt: ArrayInput,
    steps: int,
    key: Array,
    *,
    mask: ArrayInput | None = None,
    temperature: float | int = 1.0,
    top_k: float | int = 0,
    top_p: float | int = 1.0,
) -> Array:
    """Continue prompts by a fixed number of tokens, in one compiled loop.

    Args:
        model: a causal language model; its mixers need a step.
        variables: of the model.
        prompt: (B, P) ids, P from 1.
        steps: tokens to draw.
        key: random key.
        mask: (B, P), true at real tokens; each row needs one.
        temperature: see `sample`.
        top_k: see `sample`.
        top_p: see `sample`.

    Returns:
        (B, steps) int32. Inside `jit`, -1 from where the logits are not finite.

    Raises:
        ValueError: a setting is out of range, a mixer has no step, or the logits are not finite, as those of a full
            cache are not.

    Example:
        >>> from lightnet.backbone import Backbone, CausalLM
        >>> from lightnet.mixers import SoftmaxAttention
        >>> model = CausalLM(Backbone(partial(SoftmaxAttention, num_heads=2, max_length=9), 1, width=8), vocab_size=5)
        >>> prompt = jnp.array([[1, 2, 3]])
        >>> variables = jax.jit(model.init)(jax.random.key(0), prompt)
        >>> generate(model, variables, prompt, 4, jax.random.key(1)).shape
        (1, 4)
    """
    sampling = Sampling(temperature, top_k, top_p)
    prompt, mask = _checked(model, sampling, prompt, mask, steps)
    token, state = _begun(model, variables, prompt, mask, key, sampling)
    if steps > 1:
        _, _, following = _continued(model, variables, token, state, key, jnp.int32(1), sampling, steps - 1)
        tokens = jnp.concatenate([token[None], following]).T
    else:
        tokens = token[:, None]
    if known(tokens):
        _refuse_failed(np.asarray(tokens).T, 0)
    return tokens


def stream(
    model: nn.Module,
    variables: Variables,
    prompt: ArrayInput,
    key: Array,
    *,
    steps: int | None = None,
    mask: ArrayInput | None = None,
    temperature: float | int = 1.0,
    top_k: float | int = 0,
    top_p: float | int = 1.0,
    chunk: int = 1,
) -> Iterator[np.ndarray]:
    """Continue prompts token by token, as long as the caller asks for more.

    One program is compiled for the step. It overwrites the state, so memory does not grow, and it works on the next
    tokens while the caller is given the last ones.

    Args:
        model: a causal language model; its mixers need a step.
        variables: of the model.
        prompt: (B, P) ids, P from 1.
        key: random key.
        steps: tokens to draw; None never ends.
        mask: (B, P), true at real tokens; each row needs one.
        temperature: see `sample`.
        top_k: see `sample`.
        top_p: see `sample`.
        chunk: tokens that are drawn in one call of the device and come out together, but for the first: more for a
            small model, whose step takes no longer than the call.

    Returns:
        Iterator over tokens, (B,) int32 each: what `generate` returns, column by column.

    Raises:
        ValueError: as `generate` raises it; while iterating where logits are not finite.

    Example:
        >>> from lightnet.backbone import Backbone, CausalLM
        >>> from lightnet.mixers import SoftmaxAttention
        >>> model = CausalLM(Backbone(partial(SoftmaxAttention, num_heads=2, max_length=9), 1, width=8), vocab_size=5)
        >>> prompt = jnp.array([[1, 2, 3]])
        >>> variables = jax.jit(model.init)(jax.random.key(0), prompt)
        >>> len([token for token in stream(model, variables, prompt, jax.random.key(1), steps=4)])
        4
    """
    sampling = Sampling(temperature, top_k, top_p)
    prompt, mask = _checked(model, sampling, prompt, mask, steps)
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}, expected at least 1")
    start = _begun(model, variables, prompt, mask, key, sampling)
    return _streamed(model, variables, *start, key, sampling, steps, chunk)


def _streamed(
    model: nn.Module,
    variables: Variables,
    token: Array,
    state: DecodingState,
    key: Array,
    sampling: Sampling,
    steps: int | None,
    chunk: int,
) -> Iterator[np.ndarray]:
    """The first token, then chunks of which the next is begun before the last is given out."""
    drawn, index = np.array(token)[None], jnp.int32(1)
    _refuse_failed(drawn, 0)
    yield drawn[0]
    asked, given, waiting = 1, 1, None
    while steps is None or given < steps:
        following = None
        if steps is None or asked < steps:
            token, state, following = _continued(model, variables, token, state, key, index, sampling, chunk)
            asked, index = asked + chunk, index + chunk
        if waiting is not None:
            drawn = np.array(waiting)[: None if steps is None else steps - given]
            _refuse_failed(drawn, given)
            yield from drawn
            given += len(drawn)
        waiting = following


def _begun(
    model: nn.Module, variables: Variables, prompt: Array, mask: Array | None, key: Array, sampling: Sampling
) -> tuple[Array, DecodingState]:
    """The first token, and the state behind the prompt."""
    # A mixer without a state refuses here, before anything is computed.
    jax.eval_shape(lambda: model.apply(variables, prompt.shape[0], method="init_state"))
    logits: Any = None
    state: Any = None
    for start in range(0, prompt.shape[1], _PIECE):
        piece = slice(start, start + _PIECE)
        real = None if mask is None else mask[:, piece]
        ends, state = _prefilled(model, variables, prompt[:, piece], state, real)
        # A row without real tokens in this piece goes on from where an earlier one ended.
        logits = ends if real is None or logits is None else jnp.where(real.any(axis=1, keepdims=True), ends, logits)
    return _first(key, logits, sampling), state


@partial(jax.jit, static_argnames="model")
def _prefilled(model: nn.Module, variables: Variables, tokens: Array, state: Any, mask: Array | None) -> Any:
    return prefill(model, variables, tokens, state, mask=mask)


@partial(jax.jit, static_argnames="sampling")
def _first(key: Array, logits: Array, sampling: Sampling) -> Array:
    return drawn(jax.random.fold_in(key, 0), logits, sampling)


@partial(jax.jit, static_argnames=("model", "sampling", "count"), donate_argnames="state")
def _continued(
    model: nn.Module,
    variables: Variables,
    token: Array,
    state: DecodingState,
    key: Array,
    index: Array,
    sampling: Sampling,
    count: int,
) -> tuple[Array, DecodingState, Array]:
    """Read a token and draw the next, `count` times: the last token, the state behind those read, all (count, B)."""

    def body(carry: Any, index: Array) -> Any:
        logits, state = model.apply(variables, *carry, method="step")
        token = drawn(jax.random.fold_in(key, index), logits, sampling)
        return (token, state), token

    (token, state), tokens = jax.lax.scan(body, (token, state), index + jnp.arange(count))
    return token, state, tokens


def _checked(
    model: nn.Module, sampling: Sampling, prompt: ArrayInput, mask: ArrayInput | None, steps: int | None
) -> tuple[Array, Array | None]:
    """The prompt and the mask as arrays; the model itself checks the rest."""
    sampling.check()
    prompt, mask = as_arrays(prompt=prompt, mask=mask)
    if prompt.ndim != 2 or prompt.shape[1] < 1:
        raise ValueError(f"prompt: got shape {list(prompt.shape)}, expected (B, P) with P from 1")
    if hasattr(model, "vocab_size"):
        check_ids("prompt", prompt, model.vocab_size + getattr(model, "num_input_only", 0), mask)
    if steps is not None and steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    return prompt, mask


def _refuse_failed(tokens: np.ndarray, before: int) -> None:
    """Raise if a token (N, B) could not be drawn."""
    if (failed := np.argwhere(tokens < 0)).size:
        number, row = failed[0]
        raise ValueError(
            f"logits: not finite at token {before + number} of row {row}; the prompt's row is empty, the model's "
            "positions or cache are full, or its weights are not finite"
        )
