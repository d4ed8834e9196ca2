"""Sequences of a source with errors, and students that may take one back: walks over prefixes, with their logits.

A prefix has a first symbol, which is given, and up to T more; actions are the symbols, the backspace (A) and the end
(A + 1), which is possible at depth T only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kd

if TYPE_CHECKING:
    from experiments.distillation.error_states import Config

NEVER = -1e9  # logit of an action that is not possible


class Student(NamedTuple):
    """Parameters of a student.

    Attributes:
        left: by the last symbol (A, rank).
        right: by the next (rank, A).
        bias: of the next (A).
        back: logit of the backspace by the last two symbols, the older first (A, A).
        level: value of prefixes by depth, whether they have left the support, and the last symbol (T + 1, 2, A).
    """

    left: Any
    right: Any
    bias: Any
    back: Any
    level: Any


def source(config: Config, seed: int) -> np.ndarray:
    """Transitions (A, A), of which each row has some that are not 0.

    Example:
        >>> from experiments.distillation.error_states import Config
        >>> table = source(Config(), 0)
        >>> (table > 0).sum(1).tolist(), bool(np.allclose(table.sum(1), 1))
        ([2, 2, 2, 2, 2, 2], True)
    """
    random = np.random.default_rng(seed)
    table = np.zeros((config.symbols, config.symbols))
    for row in table:
        row[random.permutation(config.symbols)[: config.successors]] = random.dirichlet(np.ones(config.successors))
    return table


def logits_of(student: Student, older: Any, last: Any, depth: Any, returns: Any) -> jax.Array:
    """Logits of the next symbols, the backspace and the end, without a level.

    Args:
        student: its parameters.
        older: the last symbol but one (...); any where there is none.
        last: the last symbol (...).
        depth: symbols after the first (...).
        returns: whether it has a backspace.

    Returns:
        (..., A + 2).
    """
    final = depth == len(student.level) - 1
    onward = (student.left @ student.right + student.bias[None])[last]
    onward = jnp.where(final[..., None], NEVER, onward)
    back = jnp.where(returns & (depth > 0), student.back[older, last], NEVER)
    end = jnp.where(final, 0.0, NEVER)
    return jnp.concatenate([onward, back[..., None], end[..., None]], axis=-1)


def along(student: Student, table: Any, actions: Any, returns: Any) -> jax.Array:
    """Logits with levels (B, N, A + 2) before each of the actions but the first (B, N + 1), which is given."""
    symbols = len(student.bias)
    # the end is no symbol: nothing comes after it
    walk = kd.apply_backspace(jnp.where(actions[:, :-1] > symbols, 0, actions[:, :-1]), symbols)
    below = walk.attend & (walk.positions[:, None] == walk.positions[:, :, None] - 1)
    older = jnp.sum(jnp.where(below, walk.inputs[:, None], 0), axis=2)
    depth = jnp.minimum(walk.positions, len(student.level) - 1)  # what is beyond the end is masked
    errors = (depth > 0) & (jnp.asarray(table)[older, walk.inputs] == 0)
    left = (walk.attend & errors[:, None]).any(axis=2).astype(int)
    return logits_of(student, older, walk.inputs, depth, returns) + student.level[depth, left, walk.inputs][..., None]


def data(config: Config, key: Any, table: Any, returns: Any) -> tuple[jax.Array, jax.Array]:
    """Actions (B, N + 1) of the source, the second half with mistakes if there is a backspace, and what is imitated.

    Returns:
        Actions; and a mask of those after the first (B, N).
    """
    keys = jax.random.split(key, 3)
    first = jax.random.randint(keys[0], (config.batch,), 0, config.symbols)

    def step(last: Any, key: Any) -> Any:
        symbol = jax.random.categorical(key, jnp.log(table)[last])
        return symbol, symbol

    rest = jax.lax.scan(step, first, jax.random.split(keys[1], config.length))[1]
    tokens = jnp.concatenate([first[None], rest]).T
    width = config.actions + 1
    noised = kd.insert_mistakes(keys[2], tokens, config.symbols, rate=config.noise, vocab=config.symbols, length=width)
    with_noise = (returns & (jnp.arange(config.batch) >= config.batch // 2))[:, None]
    clean = jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
    actions = jnp.where(with_noise, noised.actions, clean)
    mistakes = noised.mistakes & with_noise
    size = tokens.shape[1] + 2 * mistakes.sum(1, keepdims=True)
    places = jnp.arange(width)[None]
    actions = jnp.where(places == size, config.symbols + 1, actions)
    begin = jnp.max(jnp.where(mistakes, places, 0), axis=1, keepdims=True)
    # a sequence that was cut off has no end, and is left out
    finished = (actions == config.symbols + 1).any(1, keepdims=True)
    return actions, ((places > begin) & (places <= size) & finished)[:, 1:]


def own_walks(config: Config, key: Any, student: Student, returns: Any) -> tuple[jax.Array, jax.Array]:
    """Actions (B, N + 1) of the student from any symbol, and a mask of those after the first (B, N)."""
    begin, rest = jax.random.split(key)
    first = jax.random.randint(begin, (config.batch,), 0, config.symbols)
    rows = jnp.arange(config.batch)
    stack = jnp.zeros((config.batch, config.length + 1), first.dtype).at[:, 0].set(first)

    def step(carry: Any, key: Any) -> Any:
        stack, depth, runs = carry
        older = stack[rows, jnp.maximum(depth - 1, 0)]
        action = jax.random.categorical(key, logits_of(student, older, stack[rows, depth], depth, returns))
        grows, falls = runs & (action < config.symbols), runs & (action == config.symbols)
        after = depth + grows - falls
        stack = stack.at[rows, after].set(jnp.where(grows, action, stack[rows, after]))
        return (stack, after, runs & (action <= config.symbols)), (jnp.where(runs, action, 0), runs)

    start = stack, jnp.zeros_like(first), jnp.ones(config.batch, bool)
    _, (actions, runs) = jax.lax.scan(step, start, jax.random.split(rest, config.actions))
    return jnp.concatenate([first[None], actions]).T, runs.T
