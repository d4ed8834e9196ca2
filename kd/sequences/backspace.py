"""Sequences with a <backspace> action as inputs of a causal transformer (SequenceMatch, arXiv 2306.05426).

An action sequence is a walk over prefixes: a token appends itself and <backspace> removes the last one. So that one
pass of a causal transformer gives the logits after every action, each place is given the token that is last in its
prefix, the position of that token, and the places that it may attend to: one for each token of its prefix, the latest
place that stood for it. The logits at a place are then those of the prefix alone, at the cost of as many places as
there are actions. A recurrent model has no such mask: it has to be run on the prefixes. This construction is ours, for
exactness; the paper's is described there and was not compared.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_labels, as_mask, check_count, check_number, got
from kd.typing import Array, Number


class Backspaced(NamedTuple):
    """Inputs of a causal transformer that stand for prefixes.

    Attributes:
        inputs: the last token of the prefix after each action (B, T).
        positions: its position in that prefix (B, T).
        attend: which places (keys, last) each place (queries) attends to (B, T, T), itself among them.
    """

    inputs: Array
    positions: Array
    attend: Array


def apply_backspace(actions: ArrayInput, backspace: int, *, mask: ArrayInput = None) -> Backspaced:
    """Inputs whose logits at t are those after actions 0 to t; see the module.

    Args:
        actions: (B, T), integers of at least 0. The first is the start of the sequence: nothing removes it.
        backspace: the action that removes the last token.
        mask: (B, T), true up to the end of each sequence; what comes after attends to itself only.

    Returns:
        Inputs, positions and the mask of the attention.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> given = jax.jit(lambda actions: apply_backspace(actions, 9))(jnp.array([[5, 6, 9, 7]]))
        >>> given.inputs.tolist(), given.positions.tolist(), given.attend[0].astype(int).tolist()[2:]
        ([[5, 6, 5, 7]], [[0, 1, 0, 1]], [[0, 0, 1, 0], [0, 0, 1, 1]])
    """
    check_count("backspace", backspace, at_least=0)
    if getattr(actions, "ndim", 0) != 2:
        raise ValueError(f"actions: got {got(actions)}, expected integer (B, T)")
    counted = as_mask(mask, actions.shape)
    actions = as_labels(actions, actions.shape, jnp.iinfo(jnp.int32).max, name="actions", mask=counted)
    counted = jnp.ones(actions.shape, bool) if counted is None else counted
    return Backspaced(*jax.vmap(lambda a, m: _walk(a, m, backspace))(actions, counted))


def _walk(actions: Array, counted: Array, backspace: int) -> tuple[Array, Array, Array]:
    """Of one sequence; the stack holds the tokens of the prefix and the place that stands for each."""
    length = len(actions)
    places = jnp.arange(length)

    def step(stack: tuple[Array, Array, Array], at: tuple[Array, Array, Array]) -> tuple:
        tokens, stands, depth = stack
        place, action, counts = at
        removes = action == backspace
        depth = jnp.where(counts, jnp.where(removes, jnp.maximum(depth - 1, 1), depth + 1), depth)
        top = jnp.maximum(depth - 1, 0)
        tokens = tokens.at[top].set(jnp.where(counts & ~removes, action, tokens[top]))
        stands = stands.at[top].set(jnp.where(counts, place, stands[top]))
        seen = jnp.zeros(length, bool).at[jnp.where(places < depth, stands, length)].set(True, mode="drop")
        seen = jnp.where(counts, seen, places == place)
        return (tokens, stands, depth), (jnp.where(counts, tokens[top], 0), jnp.where(counts, top, 0), seen)

    start = (jnp.zeros_like(actions), jnp.zeros_like(places), jnp.zeros((), places.dtype))
    return jax.lax.scan(step, start, (places, actions, counted))[1]


class Noised(NamedTuple):
    """Sequences with mistakes that are taken back at once.

    Attributes:
        actions: (B, T).
        mistakes: (B, T), true at wrong tokens, which are not to be imitated.
        mask: (B, T), true up to the end.
    """

    actions: Array
    mistakes: Array
    mask: Array


def insert_mistakes(
    key: Array, tokens: ArrayInput, backspace: int, *, rate: Number, vocab: int, length: int | None = None
) -> Noised:
    """Before some tokens a wrong one and a <backspace>: demonstrations of how to take a mistake back.

    Args:
        key: of `jax.random`.
        tokens: (B, T), from 0 to vocab - 1.
        backspace: the action, not one of the tokens.
        rate: probability of a mistake before each token but the first.
        vocab: tokens that a mistake is drawn from, all but the right one.
        length: of the results, T by default; what does not fit is cut off.

    Returns:
        Actions, mistakes and mask, (B, length).

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> noise = jax.jit(lambda key, tokens: insert_mistakes(key, tokens, 4, rate=1.0, vocab=4, length=5))
        >>> given = noise(jax.random.key(0), jnp.array([[3, 1]]))
        >>> given.actions[0, jnp.array([0, 2, 3])].tolist(), given.mistakes.tolist(), given.mask.tolist()
        ([3, 4, 1], [[False, True, False, False, False]], [[True, True, True, True, False]])
    """
    if getattr(tokens, "ndim", 0) != 2:
        raise ValueError(f"tokens: got {got(tokens)}, expected integer (B, T)")
    check_count("vocab", vocab, at_least=2)
    check_count("backspace", backspace, at_least=vocab)
    check_number("rate", rate, at_least=0, at_most=1)
    tokens = as_labels(tokens, tokens.shape, vocab, name="tokens")
    # bytes have no place for an action beyond them
    tokens = tokens.astype(jnp.promote_types(tokens.dtype, jnp.int32))
    batch, size = tokens.shape
    length = size if length is None else length
    check_count("length", length)
    of_place, of_token = jax.random.split(key)
    wrong = jax.random.bernoulli(of_place, rate, tokens.shape) & (jnp.arange(size) > 0)[None]
    other = (tokens + jax.random.randint(of_token, tokens.shape, 1, vocab)) % vocab
    at = jnp.arange(size)[None] + 2 * jnp.cumsum(wrong, axis=1)
    # out of range is dropped: what is not there, and what does not fit
    skipped = jnp.full_like(at, length)
    rows = jnp.arange(batch)[:, None]
    actions = jnp.zeros((batch, length), tokens.dtype).at[rows, at].set(tokens, mode="drop")
    actions = actions.at[rows, jnp.where(wrong, at - 2, skipped)].set(other, mode="drop")
    actions = actions.at[rows, jnp.where(wrong, at - 1, skipped)].set(backspace, mode="drop")
    mistakes = jnp.zeros((batch, length), bool).at[rows, jnp.where(wrong, at - 2, skipped)].set(True, mode="drop")
    return Noised(actions, mistakes, jnp.arange(length)[None] <= at[:, -1:])
