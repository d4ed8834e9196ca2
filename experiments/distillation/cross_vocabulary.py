"""Distillation between two vocabularies of one Markov source: sorted probabilities (ULD), its hybrid, and what is lost.

Teacher and student have all symbols, one merged pair in common and four of their own, and take the longest match from
the left. Their tokens are then Markov chains whose probabilities are known: the teacher says them, and the student, a
table by its last token, is measured by them. It has few labels, and the teacher at those positions at which both have
read the same text. Losses are weighted by how often two contexts meet in the text. Weights of the losses are chosen
for each alike, on sources of other seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="ULD (arXiv 2402.12030) and GOLD",
    source="method, where everything can be computed",
    minutes={"smoke": 0.05, "cpu": 0.5},
)
LABELS, ALONE = "labels", "ULD alone"
SMOOTHED, SORTED, HYBRID, SHIFTED, SAME_SORTED, SAME = TERMS = (
    "labels, smoothed",
    "ULD",
    "hybrid",
    "hybrid, not aligned",
    "ULD, one vocabulary",
    "KL, one vocabulary",
)
STUDENTS = (LABELS, *TERMS, ALONE)
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)
OTHER_SEEDS = 1000  # added to a seed: where weights are chosen
OWN_MERGES = 4
FLOOR = 1e-9  # probability of what cannot follow, so that logarithms are finite


@dataclass(frozen=True)
class Config(results.Config):
    """The sources, the text and the fits."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One source and text each."""
    symbols: int = 5
    """Of the source."""
    concentration: float = 0.5
    """Of the Dirichlet law of its rows."""
    length: int = 150
    """Of the text, symbols."""
    steps: int = 400
    """Of Adam."""
    rate: float = 0.05
    """Of its first step; it falls to 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("symbols", self.symbols, 4)
        require("concentration", self.concentration, 0.05)
        require("length", self.length, 20)
        require("steps", self.steps, 1)
        require("rate", self.rate, 1e-6)


PRESETS = {"smoke": Config(seeds=(0,), symbols=4, length=30, steps=3), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, kind: Any = "ours") -> Claim:
    return Claim(f"distillation/uld-{id}", f"ln of the KL from the source, {quantity}", test, 0.0, kind=kind)


CLAIMS = (
    _claim("different-vocabularies", "labels and ULD minus labels alone", "below", "paper"),
    _claim("over-smoothing", "labels and ULD minus smoothed labels", "below"),
    _claim("hybrid", "labels and the hybrid minus labels and ULD", "below", "paper"),
    _claim("alignment", "labels and the hybrid, aligned minus position by position", "below"),
    _claim("one-vocabulary", "labels with the teacher of the same vocabulary, ULD minus forward KL", "above"),
    _claim("price", "labels and the hybrid minus labels and forward KL to a teacher of the same vocabulary", "above"),
    _claim("alone", "ULD without labels minus labels alone", "above"),
)


class Setting(NamedTuple):
    """A source in two vocabularies, and a text in both.

    Attributes:
        log_s: of the student's tokens under the source, by the last (V, V).
        log_t: of the teacher's, likewise.
        law: how often each of the student's tokens is the last (V), in the source.
        tokens: of the student per symbol of the source.
        labels: of the text, how often tokens follow each other (V, V), shares.
        aligned: how often last tokens of student and teacher (V, V) meet where both have read the same, shares.
        shifted: the same at equal positions, whatever was read.
    """

    log_s: Any
    log_t: Any
    law: Any
    tokens: Any
    labels: Any
    aligned: Any
    shifted: Any


def vocabularies(law: np.ndarray) -> tuple[list, list]:
    """Tokens of student and teacher: the symbols, the most frequent pair, and the next pairs in turns.

    Args:
        law: probabilities of pairs (A, A).

    Returns:
        Two lists of tuples of symbols; the entries in common come first.

    Example:
        >>> [vocabulary[2:4] for vocabulary in vocabularies(np.array([[0.4, 0.3], [0.2, 0.1]]))]
        [[(0, 0), (0, 1)], [(0, 0), (1, 0)]]
    """
    order = np.argsort(-law, axis=None, kind="stable")
    ranked = [(int(at) // len(law), int(at) % len(law)) for at in order]
    common: list[tuple[int, ...]] = [*((symbol,) for symbol in range(len(law))), ranked[0]]
    rest = ranked[1 : 1 + 2 * OWN_MERGES]
    return common + rest[::2], common + rest[1::2]


def token_chain(vocabulary: list, table: np.ndarray) -> np.ndarray:
    """Probabilities of the next token by the last, of a source of order 1 read by the longest match from the left.

    After a single symbol the next one is known not to make a pair of the vocabulary with it.

    Args:
        vocabulary: all symbols and some pairs.
        table: transitions of the symbols (A, A).

    Returns:
        (V, V).

    Example:
        >>> token_chain([(0,), (1,), (0, 1)], np.full((2, 2), 0.5)).tolist()
        [[0.5, 0.0, 0.5], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25]]
    """
    merged = np.zeros(table.shape, bool)
    for token in vocabulary:
        if len(token) == 2:
            merged[token] = True
    chain = np.zeros((len(vocabulary),) * 2)
    for row, last in zip(chain, vocabulary, strict=True):
        begin = table[last[-1]] * (~merged[last[-1]] if len(last) == 1 else 1)
        begin = begin / max(begin.sum(), 1e-300)
        for place, token in enumerate(vocabulary):
            rest = table[token] if len(token) == 2 else table[token[0]] @ ~merged[token[0]]
            row[place] = begin[token[0]] * rest
    return chain


def read(vocabulary: list, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a text by the longest match from the left, and where they end.

    Example:
        >>> [x.tolist() for x in read([(0,), (1,), (0, 1)], np.array([0, 0, 1, 1]))]
        [[0, 2, 1], [1, 3, 4]]
    """
    numbers = {token: place for place, token in enumerate(vocabulary)}
    tokens, ends, at = [], [], 0
    while at < len(text):
        pair = tuple(int(x) for x in text[at : at + 2])
        token = pair if pair in numbers else pair[:1]
        at += len(token)
        tokens.append(numbers[token])
        ends.append(at)
    return np.array(tokens), np.array(ends)


def setting(config: Config, seed: int) -> Setting:
    """The source of a seed and its text."""
    import kd
    from experiments.sources.markov import stationary_distribution

    random = np.random.default_rng(seed)
    size = config.symbols
    table = np.maximum(random.dirichlet(np.full(size, config.concentration), size), 0.01)
    table /= table.sum(1, keepdims=True)
    vocabulary_s, vocabulary_t = vocabularies(stationary_distribution(table)[:, None] * table)
    text = [int(random.integers(size))]
    while len(text) < config.length:
        text.append(int(random.choice(size, p=table[text[-1]])))
    (read_s, ends_s), (read_t, ends_t) = (read(x, np.array(text)) for x in (vocabulary_s, vocabulary_t))
    spans = kd.align_spans(ends_s, ends_t)
    chain_s, chain_t = (token_chain(x, table) for x in (vocabulary_s, vocabulary_t))
    law = stationary_distribution(chain_s)
    both = min(len(read_s), len(read_t)) - 1
    met = read_s[spans.starts_s[1:] - 1], read_t[spans.starts_t[1:] - 1]
    log_s, log_t = (np.log(np.maximum(chain, FLOOR)) for chain in (chain_s, chain_t))
    at_starts, at_places = np.stack(met, 1), np.stack([read_s[:both], read_t[:both]], 1)
    labels, aligned, shifted = (shares(len(law), x) for x in (np.array(list(pairwise(read_s))), at_starts, at_places))
    tokens = 1 / (law @ [len(token) for token in vocabulary_s])
    return Setting(log_s, log_t, law, tokens, labels, aligned, shifted)


def shares(size: int, pairs: np.ndarray) -> np.ndarray:
    """How often each pair is among pairs (N, 2), as shares (size, size).

    Example:
        >>> shares(2, np.array([[0, 1], [0, 1], [1, 1], [1, 0]])).tolist()
        [[0.0, 0.5], [0.25, 0.25]]
    """
    counts = np.zeros((size, size))
    np.add.at(counts, tuple(pairs.T), 1)
    return counts / len(pairs)


def losses(s: Any, given: Setting) -> jax.Array:
    """Cross-entropy of the labels and the six terms that may be added to it (7), of a student's table (V, V)."""
    import jax
    import jax.numpy as jnp

    import kd

    size = len(s)
    common = jnp.arange(size - OWN_MERGES)
    log_q = jax.nn.log_softmax(s)
    last_s, last_t = (x.ravel() for x in np.indices((size, size)))

    def each(loss: Any, *ids: Any) -> jax.Array:
        pairs = jax.vmap(lambda a, b: loss(a[None], b[None], *ids))(s[last_s], given.log_t[last_t])
        return pairs.reshape(size, size)

    sorted_, hybrid = each(kd.uld), each(kd.hybrid_uld, common, common)
    same_sorted = jax.vmap(lambda a, b: kd.uld(a[None], b[None]))(s, given.log_s)
    read = given.labels.sum(1)
    return jnp.stack(
        [
            -jnp.sum(given.labels * log_q),
            -jnp.sum(read * log_q.mean(1)),
            jnp.sum(given.aligned * sorted_),
            jnp.sum(given.aligned * hybrid),
            jnp.sum(given.shifted * hybrid),
            jnp.sum(read * same_sorted),
            jnp.sum(read * kd.token_divergence("forward_kl", s, given.log_s)),
        ]
    )


def students() -> list[tuple[str, float, np.ndarray]]:
    """Name, weight and weights of all seven losses of every student that is trained.

    Example:
        >>> [(name, weight, share.tolist()) for name, weight, share in students()][2]
        ('labels, smoothed', 0.3, [1.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
    """
    unit = np.eye(1 + len(TERMS))
    made = [(LABELS, 0.0, unit[0])]
    made += [(name, weight, unit[0] + weight * unit[1 + k]) for k, name in enumerate(TERMS) for weight in WEIGHTS]
    return [*made, (ALONE, 1.0, unit[1 + TERMS.index(SORTED)])]


@cache
def _program(config: Config) -> Any:
    """Keys and settings (seeds) -> KL from the source, nats per symbol (students, seeds)."""
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.descent import fitted

    def one(weights: Any, key: Any, given: Setting) -> jax.Array:
        start = 0.1 * jax.random.normal(key, given.log_s.shape)
        s, _ = fitted(lambda s, _: weights @ losses(s, given), start, steps=config.steps, rate=config.rate)
        return given.tokens * (given.law @ kd.token_divergence("forward_kl", s, given.log_s))

    every = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))
    weights = np.stack([weights for *_, weights in students()])
    return jax.jit(lambda keys, given: every(jnp.asarray(weights, jnp.float32), keys, given))


def distances(config: Config, seeds: list[int]) -> np.ndarray:
    """KL from the source, nats per symbol, of all students (students, seeds)."""
    import jax
    import jax.numpy as jnp

    settings = [setting(config, seed) for seed in seeds]
    given = Setting(*(np.stack(leaves).astype(np.float32) for leaves in zip(*settings, strict=True)))
    return np.asarray(_program(config)(jnp.stack([jax.random.key(seed) for seed in seeds]), given))


def run(config: Config, run_dir: Path) -> Result:
    """Choose weights on other sources, and compare with them on these."""
    seeds = list(config.seeds)
    other = distances(config, [seed + OTHER_SEEDS for seed in seeds]).mean(1)
    found = distances(config, seeds)
    made = students()
    table: dict[str, list] = {name: [] for name in ("student", "weight", "seed", "KL", "chosen")}
    chosen = {}
    for name in STUDENTS:
        places = [place for place, (other_name, *_) in enumerate(made) if other_name == name]
        best = min(places, key=lambda place: other[place])
        chosen[name] = np.log(found[best])
        for place in places:
            for seed, value in zip(seeds, found[place], strict=True):
                row = (name, made[place][1], seed, float(value), place == best)
                for column, entry in zip(table.values(), row, strict=True):
                    column.append(entry)
    measured = {f"distillation/uld-{id}": x.tolist() for id, x in compared(chosen).items()}
    return Result({claim.id: measured[claim.id] for claim in CLAIMS}, {"students": table})


def compared(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed, from student -> ln of its KL (seeds).

    Example:
        >>> found = compared({name: np.array([float(place)]) for place, name in enumerate(STUDENTS)})
        >>> {name: float(x[0]) for name, x in found.items()}["hybrid"]
        1.0
    """
    return {
        "different-vocabularies": found[SORTED] - found[LABELS],
        "over-smoothing": found[SORTED] - found[SMOOTHED],
        "hybrid": found[HYBRID] - found[SORTED],
        "alignment": found[HYBRID] - found[SHIFTED],
        "one-vocabulary": found[SAME_SORTED] - found[SAME],
        "price": found[HYBRID] - found[SAME],
        "alone": found[ALONE] - found[LABELS],
    }


def plot(result: StoredResult) -> Figure:
    """KL from the source against the weight of the loss, means over sources."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["students"].items()}
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, name in enumerate(STUDENTS):
        here = table["student"] == name
        weights = np.unique(table["weight"][here])
        means = [table["KL"][here & (table["weight"] == weight)].mean() for weight in weights]
        if name in (LABELS, ALONE):
            axis.axhline(means[0], color=f"C{number}", linestyle="--", linewidth=1, label=name)
        else:
            axis.plot(weights, means, "o-", color=f"C{number}", markersize=3, label=name)
    axis.set(xscale="log", yscale="log", xlabel="weight beside the labels", ylabel="KL from the source, nats a symbol")
    axis.legend(fontsize=7)
    return figure
