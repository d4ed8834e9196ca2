"""The memory tasks with their sizes: what is drawn, how long it is, and what is right by chance.

Importing this module imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.training.config import require

if TYPE_CHECKING:
    import jax

    from experiments.sources.listops import ListOps
    from experiments.sources.recall import Recall

COPYING, INDUCTION, ASSOCIATIVE = "selective copying", "induction heads", "associative recall"
LISTOPS, DISTANT = "ListOps", "distant recall"


@dataclass(frozen=True)
class MemoryTask:
    """A task.

    Attributes:
        name: of the task.
        vocabulary: tokens.
        length: of a sequence.
        chance: share of the answers that are right without reading.
        draw: (key, rows) -> sequences to train on.
        held_out: (key, rows) -> sequences to evaluate on.
        data: what is generated beforehand -> SHA-256.
    """

    name: str
    vocabulary: int
    length: int
    chance: float
    draw: Callable[[jax.Array, int], Recall]
    held_out: Callable[[jax.Array, int], Recall]
    data: dict[str, str]


@dataclass(frozen=True)
class CopyingConfig:
    """Sizes of selective copying, see `experiments.sources.memory.selective_copying`."""

    noise: int = 16
    """Noise tokens."""
    data: int = 4
    """Tokens to be copied."""
    alphabet: int = 8
    """Tokens, noise and marker among them."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("noise", self.noise, 0)
        require("data", self.data, 1)
        require("alphabet", self.alphabet, 4)

    def task(self) -> MemoryTask:
        """The task."""
        from experiments.sources.memory import selective_copying

        length = self.noise + 2 * self.data
        return _fresh(COPYING, selective_copying, self, self.alphabet, length, 1 / (self.alphabet - 2))


@dataclass(frozen=True)
class InductionConfig:
    """Sizes of induction heads, see `experiments.sources.memory.induction_heads`."""

    length: int = 32
    """Tokens of a sequence."""
    alphabet: int = 16
    """Tokens, the trigger among them."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("length", self.length, 3)
        require("alphabet", self.alphabet, 3)

    def task(self) -> MemoryTask:
        """The task."""
        from experiments.sources.memory import induction_heads

        return _fresh(INDUCTION, induction_heads, self, self.alphabet, self.length, 1 / (self.alphabet - 1))


@dataclass(frozen=True)
class AssociativeConfig:
    """Sizes of associative recall, see `experiments.sources.memory.associative_recall`."""

    length: int = 32
    """Tokens of a sequence."""
    pairs: int = 8
    """Keys with a value."""
    alphabet: int = 32
    """Tokens, half of them keys."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("pairs", self.pairs, 1)
        require("length", self.length, 4 * self.pairs)
        require("alphabet", self.alphabet, 2 * self.pairs)

    def task(self) -> MemoryTask:
        """The task."""
        from experiments.sources.memory import associative_recall

        values = self.alphabet - self.alphabet // 2
        return _fresh(ASSOCIATIVE, associative_recall, self, self.alphabet, self.length, 1 / values)


@dataclass(frozen=True)
class DistantConfig:
    """Sizes of distant recall, see `experiments.sources.memory.distant_recall`."""

    length: int = 16_384
    """Tokens of a sequence."""
    payloads: int = 4
    """Tokens that may have to be remembered."""
    alphabet: int = 12
    """Tokens, payloads and the question among them."""
    shown: int = 1
    """How often the token to be remembered is read."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("payloads", self.payloads, 2)
        require("alphabet", self.alphabet, self.payloads + 2)
        require("shown", self.shown, 1)
        require("length", self.length, self.shown + 1)

    def task(self) -> MemoryTask:
        """The task."""
        from experiments.sources.memory import distant_recall

        return _fresh(DISTANT, distant_recall, self, self.alphabet, self.length, 1 / self.payloads)


@dataclass(frozen=True)
class ListOpsConfig:
    """Sizes of ListOps, see `experiments.sources.listops.listops`."""

    depth: int = 3
    """Most operators inside of each other."""
    arguments: int = 4
    """Most arguments of an operator."""
    shortest: int = 8
    """Fewest tokens of an expression."""
    longest: int = 31
    """Most tokens of an expression."""
    pool: int = 16_384
    """Expressions that training draws from; a quarter as many others are evaluated on."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("depth", self.depth, 1)
        require("arguments", self.arguments, 2)
        require("longest", self.longest, 4)
        require("shortest", self.shortest, 4, self.longest)
        require("pool", self.pool, 4)

    def task(self) -> MemoryTask:
        """Rows of two pools of expressions, drawn with replacement; no seed of a training enters the pools."""
        from experiments.sources.listops import SYMBOLS, listops
        from experiments.training.data import fingerprint

        sizes = {name: size for name, size in asdict(self).items() if name != "pool"}
        fit, held_out = (listops(np.random.default_rng(part), self.pool // (1, 4)[part], **sizes) for part in (0, 1))
        most_frequent = float(np.bincount(held_out.values).max() / len(held_out.values))
        data = {"ListOps expressions": fingerprint([array for pool in (fit, held_out) for array in pool])}
        length = self.longest + 1
        return MemoryTask(LISTOPS, len(SYMBOLS), length, most_frequent, _rows_of(fit), _rows_of(held_out), data)


def _fresh(
    name: str, function: Callable[..., Recall], sizes: Any, alphabet: int, length: int, chance: float
) -> MemoryTask:
    draw = partial(function, **asdict(sizes))
    return MemoryTask(name, alphabet, length, chance, draw, draw, {})


def _rows_of(pool: ListOps) -> Callable[[jax.Array, int], Recall]:
    import jax
    import jax.numpy as jnp

    from experiments.sources.recall import Recall

    def draw(key: jax.Array, rows: int) -> Recall:
        chosen = jax.random.randint(key, (rows,), 0, len(pool.tokens))
        tokens = jnp.asarray(pool.tokens)[chosen].astype(jnp.int32)
        asked = jnp.arange(tokens.shape[1])[None] == jnp.asarray(pool.lengths)[chosen][:, None]
        return Recall(tokens, jnp.where(asked, jnp.asarray(pool.values)[chosen][:, None], 0), asked)

    return draw
