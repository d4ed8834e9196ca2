"""Memory tasks drawn on the device: what was read has to be told later, and nothing else in the sequence tells it.

All are pure functions of a random key. Fresh sequences for every update leave nothing to be learnt by heart, at any
length. `experiments.sources.listops` has a fifth task, which has to be computed.
"""

import jax
import jax.numpy as jnp

from experiments.sources.recall import Recall
from lightnet.typing import Array


def selective_copying(key: Array, rows: int, *, noise: int, data: int, alphabet: int) -> Recall:
    """Tell the data tokens of a sequence in their order, wherever they stood (Mamba, arXiv 2312.00752, section 4.1.1).

    `data` tokens among `noise` noise tokens, then a marker for each answer. Where the data stand differs from row to
    row, so that no fixed filter over the past finds them. Token 0 is noise, `alphabet` - 1 the marker; the others are
    data, independent and uniform, so that 1 / (`alphabet` - 2) of all answers are right by chance.

    Args:
        key: random key.
        rows: sequences N.
        noise: noise tokens of a sequence, at least 0.
        data: data tokens, at least 1.
        alphabet: tokens, at least 4.

    Returns:
        Tokens (N, noise + 2 data); the answers stand at the markers.

    Raises:
        ValueError: a number is too small.

    Example:
        >>> task = selective_copying(jax.random.key(0), 2, noise=5, data=3, alphabet=16)
        >>> task.tokens[:, -3:].tolist(), task.asked[0].sum().item()
        ([[15, 15, 15], [15, 15, 15]], 3)
    """
    _at_least({"noise": (noise, 0), "data": (data, 1), "alphabet": (alphabet, 4)})
    where, what = jax.random.split(key)
    places = jnp.sort(_distinct(where, rows, noise + data, data), axis=1)
    values = jax.random.randint(what, (rows, data), 1, alphabet - 1)
    read = jnp.zeros((rows, noise + data), jnp.int32).at[jnp.arange(rows)[:, None], places].set(values)
    tokens = jnp.concatenate([read, jnp.full((rows, data), alphabet - 1)], axis=1)
    targets = jnp.concatenate([jnp.zeros_like(read), values], axis=1)
    return Recall(tokens, targets, jnp.broadcast_to(jnp.arange(noise + 2 * data) >= noise + data, tokens.shape))


def induction_heads(key: Array, rows: int, *, length: int, alphabet: int) -> Recall:
    """Tell what followed a special token when that is read again (Mamba, arXiv 2312.00752, section 4.1.2).

    The trigger, `alphabet` - 1, stands somewhere and at the end; the token behind its first place is asked for at its
    second. All others are independent and uniform: 1 / (`alphabet` - 1) of all answers are right by chance.

    Args:
        key: random key.
        rows: sequences N.
        length: tokens of a sequence, at least 3.
        alphabet: tokens, at least 3.

    Returns:
        Tokens (N, length); the only answer stands at the last.

    Raises:
        ValueError: a number is too small.

    Example:
        >>> task = induction_heads(jax.random.key(0), 1, length=9, alphabet=5)
        >>> place = task.tokens[0].tolist().index(4)
        >>> task.targets[0, -1].item() == task.tokens[0, place + 1].item()
        True
    """
    _at_least({"length": (length, 3), "alphabet": (alphabet, 3)})
    where, what = jax.random.split(key)
    place = jax.random.randint(where, (rows, 1), 0, length - 2)
    tokens = jax.random.randint(what, (rows, length), 0, alphabet - 1)
    answer = jnp.take_along_axis(tokens, place + 1, axis=1)
    at = jnp.arange(length)[None]
    return _asked_last(jnp.where((at == place) | (at == length - 1), alphabet - 1, tokens), answer)


def associative_recall(key: Array, rows: int, *, length: int, pairs: int, alphabet: int, power: float = 0.01) -> Recall:
    """Tell the value of each key that is read again: multi-query associative recall (Zoology, arXiv 2312.04927).

    `pairs` keys, each with its value behind it, then the keys again in another order, among tokens that ask nothing.
    The lower half of the ids are keys and the upper half values, which have one id more if the alphabet is odd, each at
    most once in the pairs: 2 / `alphabet` of all answers are right by chance, if it is even. A query is as many slots
    of two tokens behind the pairs as a power law says, as in the paper's data; its exponent is from memory, as are the
    names.

    Args:
        key: random key.
        rows: sequences N.
        length: tokens of a sequence, at least 4 `pairs`.
        pairs: keys with a value, at least 1.
        alphabet: tokens, at least 2 `pairs`.
        power: a of the law: slot i has a weight of i^(a - 1).

    Returns:
        Tokens (N, length); the answers stand at the repeated keys.

    Raises:
        ValueError: a number is too small.

    Example:
        >>> task = associative_recall(jax.random.key(0), 1, length=16, pairs=3, alphabet=8)
        >>> answers = dict(task.tokens[0, :6].reshape(3, 2).tolist())
        >>> [answers[key] for key in task.tokens[0][task.asked[0]].tolist()] == task.targets[0][task.asked[0]].tolist()
        True
    """
    _at_least({"pairs": (pairs, 1), "length": (length, 4 * pairs), "alphabet": (alphabet, 2 * pairs)})
    keys_at, values_at, slots_at, rest_at = jax.random.split(key, 4)
    half, slots = alphabet // 2, (length - 2 * pairs) // 2
    keys, values = _distinct(keys_at, rows, half, pairs), half + _distinct(values_at, rows, alphabet - half, pairs)
    weights = (power - 1) * jnp.log(jnp.arange(1, slots + 1))
    queries = 2 * (pairs + _distinct(slots_at, rows, slots, pairs, weights))
    row = jnp.arange(rows)[:, None]
    tokens = jax.random.randint(rest_at, (rows, length), 0, alphabet)
    tokens = tokens.at[:, : 2 * pairs].set(jnp.stack([keys, values], axis=2).reshape(rows, -1))
    asked = jnp.zeros((rows, length), bool).at[row, queries].set(True)
    targets = jnp.zeros((rows, length), jnp.int32).at[row, queries].set(values)
    return Recall(tokens.at[row, queries].set(keys), targets, asked)


def distant_recall(key: Array, rows: int, *, length: int, payloads: int, alphabet: int, shown: int = 1) -> Recall:
    """Tell the first token of a sequence at its last: memory over a whole sequence, as Path-X of 16,384 steps needs it.

    One of the first `payloads` ids fills the first `shown` places, `alphabet` - 1 asks at the end, the ids between are
    noise, independent and uniform: 1 / `payloads` of all answers are right by chance. Ours; there is no picture in it.

    Args:
        key: random key.
        rows: sequences N.
        length: tokens of a sequence, at least 2.
        payloads: tokens to be remembered, at least 2.
        alphabet: tokens, at least `payloads` + 2.
        shown: how often the token to be remembered is read, at least 1 and less than `length`.

    Returns:
        Tokens (N, length); the only answer stands at the last.

    Raises:
        ValueError: a number is too small.

    Example:
        >>> task = distant_recall(jax.random.key(0), 3, length=7, payloads=2, alphabet=5)
        >>> task.tokens[:, 0].tolist() == task.targets[:, -1].tolist(), task.tokens[:, -1].tolist()
        (True, [4, 4, 4])
    """
    _at_least({"payloads": (payloads, 2), "alphabet": (alphabet, payloads + 2), "shown": (shown, 1)})
    _at_least({"length": (length, shown + 1)})
    what, rest = jax.random.split(key)
    payload = jax.random.randint(what, (rows, 1), 0, payloads)
    between = jax.random.randint(rest, (rows, length - 1 - shown), payloads, alphabet - 1)
    read = [jnp.broadcast_to(payload, (rows, shown)), between, jnp.full((rows, 1), alphabet - 1)]
    return _asked_last(jnp.concatenate(read, axis=1), payload)


def _asked_last(tokens: Array, answer: Array) -> Recall:
    last = jnp.broadcast_to(jnp.arange(tokens.shape[1]) == tokens.shape[1] - 1, tokens.shape)
    return Recall(tokens, jnp.where(last, answer, 0), last)


def _distinct(key: Array, rows: int, count: int, chosen: int, log_weights: Array | None = None) -> Array:
    """(rows, chosen) of the numbers below `count`, in random order and none twice in a row.

    With weights, as if drawn one after the other in proportion to them: the largest of log weight + Gumbel noise.
    """
    noise = jax.random.gumbel(key, (rows, count))
    return jax.lax.top_k(noise if log_weights is None else noise + log_weights[None], chosen)[1].astype(jnp.int32)


def _at_least(given: dict[str, tuple[int, int]]) -> None:
    for name, (value, least) in given.items():
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
