"""Sequences that can be left for good: maximum likelihood and SequenceMatch, with and without a backspace.

In a source of order 1 each symbol is followed by few others. One that never follows it is an error, and as nothing
takes it back, the sequence is out of the support of the data from there on. A student has logits of low rank, so that
it makes errors; for SequenceMatch they have a level too, by depth, last symbol and whether the prefix has left the
support, which changes no probability: it is the value of the prefix. The backspace is a free function of the last two
symbols: here telling an error is easier than not making one, by design.

Students are trained on samples (`kd.sequence_match`; with a backspace half of the data have mistakes that are taken
back, imitated from the last backspace on) and measured exactly, on the tree of all prefixes. A sequence that is not
finished after the allowed number of actions counts as left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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
    paper="SequenceMatch (arXiv 2306.05426)",
    source="its motivation, where everything can be computed",
    minutes={"smoke": 0.05, "cpu": 2},
)
LIKELIHOOD, CLONING, MATCH, MATCH_BACK, _, _ = STUDENTS = (
    "maximum likelihood",
    "maximum likelihood, backspace",
    "SequenceMatch",
    "SequenceMatch, backspace",
    "SequenceMatch, c 0.01",
    "SequenceMatch, c 0.01, backspace",
)
WEIGHTS = np.array([0.0, 0.0, 0.25, 0.25, 0.01, 0.01])  # c; at 0 a student maximises the likelihood
RETURNS = np.array([False, True, False, True, False, True])
NEVER = -1e9  # logit of an action that is not possible


@dataclass(frozen=True)
class Config(results.Config):
    """The sources and the trainings."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One source and training each."""
    symbols: int = 6
    """Of the source."""
    successors: int = 2
    """Of each symbol."""
    length: int = 5
    """Symbols after the first, which is given."""
    rank: int = 2
    """Of the student's logits."""
    mistakes: int = 3
    """That there is time to take back."""
    noise: float = 0.2
    """Probability of a mistake before a symbol, in that half of the data which has them."""
    batch: int = 64
    """Sequences of the data in a step, and of the student's own."""
    steps: int = 1500
    """Of Adam."""
    rate: float = 0.03
    """Of its first step; it falls to 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("successors", self.successors, 1)
        require("symbols", self.symbols, self.successors + 1)
        for name in ("length", "rank", "steps"):
            require(name, getattr(self, name), 1)
        require("mistakes", self.mistakes, 0)
        require("batch", self.batch, 2)
        require("noise", self.noise, 0, below=1)
        require("rate", self.rate, 1e-6)

    @property
    def actions(self) -> int:
        """Of a walk after the first symbol, with the end."""
        return self.length + 1 + 2 * self.mistakes


PRESETS = {
    "smoke": Config(seeds=(0,), symbols=3, successors=1, length=2, rank=1, mistakes=1, batch=4, steps=3),
    "cpu": Config(),
}


def _claim(id: str, quantity: str, test: Any, kind: Any = "ours") -> Claim:
    return Claim(f"distillation/sequencematch-{id}", quantity, test, 0.0, kind=kind)


CLAIMS = (
    _claim(
        "backspace",
        "ln of the probability of leaving the support, SequenceMatch with backspace minus maximum likelihood",
        "below",
        "paper",
    ),
    _claim(
        "error-states",
        "ln of the probability of leaving the support, SequenceMatch without backspace minus maximum likelihood",
        "below",
        "paper",
    ),
    _claim(
        "backspace-gain",
        "ln of the probability of leaving the support, SequenceMatch with backspace minus without",
        "below",
    ),
    _claim(
        "beyond-cloning",
        "ln of the probability of leaving the support, SequenceMatch minus maximum likelihood, both with backspace",
        "below",
    ),
    _claim(
        "sequence-jsd",
        "Jensen-Shannon divergence of whole sequences, SequenceMatch with backspace minus maximum likelihood, nats",
        "below",
    ),
    _claim(
        "sequence-chi2",
        "chi^2 of whole sequences to the mixture, SequenceMatch without backspace minus maximum likelihood",
        "below",
    ),
    _claim(
        "price",
        "KL(data, own) of whole sequences, SequenceMatch without backspace minus maximum likelihood, nats",
        "above",
        "control",
    ),
)


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
    import jax.numpy as jnp

    final = depth == len(student.level) - 1
    onward = (student.left @ student.right + student.bias[None])[last]
    onward = jnp.where(final[..., None], NEVER, onward)
    back = jnp.where(returns & (depth > 0), student.back[older, last], NEVER)
    end = jnp.where(final, 0.0, NEVER)
    return jnp.concatenate([onward, back[..., None], end[..., None]], axis=-1)


def along(student: Student, table: Any, actions: Any, returns: Any) -> jax.Array:
    """Logits with levels (B, N, A + 2) before each of the actions but the first (B, N + 1), which is given."""
    import jax.numpy as jnp

    import kd

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
    import jax
    import jax.numpy as jnp

    import kd

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
    import jax
    import jax.numpy as jnp

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


def trained(config: Config, key: Any, table: Any, weight: Any, returns: Any) -> Student:
    """The student after its training: SequenceMatch with the weight c, or at 0 maximum likelihood."""
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.descent import fitted

    keys = jax.random.split(key, 3)
    size, rank = config.symbols, config.rank
    left, right = (jax.random.normal(k, shape) for k, shape in zip(keys[:2], ((size, rank), (rank, size)), strict=True))
    level = jnp.zeros((config.length + 1, 2, size))
    start = Student(left, right, jnp.zeros(size), jnp.zeros((size, size)), level)

    def loss(student: Student, key: Any) -> jax.Array:
        of_data, of_own = jax.random.split(key)
        actions, mask = data(config, of_data, table, returns)
        own, own_mask = own_walks(config, of_own, jax.lax.stop_gradient(student), returns)
        logits, own_logits = (along(student, table, x, returns) for x in (actions, own))
        likelihood = kd.sequence_match(logits, actions[:, 1:], regularizer="none", mask=mask)
        # sums along sequences: what is visited is what the divergence is of, however many actions there are
        sizes = {"denominator": jnp.maximum(mask.any(1).sum(), 1), "own_denominator": config.batch}
        given: dict[str, Any] = {"mask": mask, "own_mask": own_mask, **sizes}
        return jnp.where(
            weight > 0,
            kd.sequence_match(logits, actions[:, 1:], own_logits, own[:, 1:], weight=weight, **given),
            likelihood,
        )

    return fitted(loss, start, steps=config.steps, rate=config.rate, key=keys[2])[0]


@cache
def _program(config: Config) -> Any:
    """Keys, tables (seeds, A, A) -> students (kinds, seeds)."""
    import jax
    import jax.numpy as jnp

    def one(weight: Any, returns: Any, key: Any, table: Any) -> Student:
        return trained(config, key, table, weight, returns)

    every = jax.vmap(jax.vmap(one, (None, None, 0, 0)), (0, 0, None, None))
    return jax.jit(lambda keys, tables: every(jnp.asarray(WEIGHTS, jnp.float32), jnp.asarray(RETURNS), keys, tables))


def data_law(config: Config, table: np.ndarray) -> np.ndarray:
    """Probabilities of all sequences under the source, (A, ...) with T + 1 axes.

    Example:
        >>> law = data_law(Config(length=2), source(Config(), 0))
        >>> law.shape, round(float(law.sum()), 6)
        ((6, 6, 6), 1.0)
    """
    law = np.full(config.symbols, 1 / config.symbols)
    for _ in range(config.length):
        law = law[..., None] * table
    return law


def own_law(config: Config, student: Student, returns: bool) -> np.ndarray:
    """Probabilities of all finished sequences under a student, like `data_law`; what is missing to 1 is unfinished."""
    size, final = config.symbols, config.length
    older, last = np.indices((size, size))
    each = [np.asarray(logits_of(student, older, last, np.full_like(last, d), returns), float) for d in (0, 1, final)]
    begin, within, end = (np.exp(z - z.max(-1, keepdims=True)) for z in each)
    begin, within, end = (x / x.sum(-1, keepdims=True) for x in (begin, within, end))
    laws = [np.full((size,) * (d + 1), float(d == 0) / size) for d in range(final + 1)]
    finished = np.zeros((size,) * (final + 1))
    for _ in range(config.actions):
        after = [np.zeros_like(law) for law in laws]
        for depth, law in enumerate(laws):
            here = begin[0] if depth == 0 else end if depth == final else within
            if depth < final:
                after[depth + 1] += law[..., None] * here[..., :size]
            else:
                finished += law * here[..., size + 1]
            if depth > 0:
                after[depth - 1] += (law * here[..., size]).sum(-1)
        laws = after
    return finished


def measures(given: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """How far the law of finished sequences is from the data's.

    Args:
        given: probabilities of the data (any shape).
        own: of the student, whose missing mass is one outcome more.

    Returns:
        "left" the support, "JSD" and "KL" (data, own) in nats, and "chi2" to the mixture, sum (p - q)^2 / m.

    Example:
        >>> {name: round(x, 3) for name, x in measures(np.array([1.0, 0.0]), np.array([0.5, 0.25])).items()}
        {'left': 0.5, 'JSD': 0.216, 'chi2': 1.333, 'KL': 0.693}
    """
    p, q = (np.append(x.ravel(), max(0.0, 1 - x.sum())) for x in (given, own))
    p[-1] = 0.0
    m = (p + q) / 2

    def divergence(a: np.ndarray, b: np.ndarray) -> float:
        return float((a[a > 0] * np.log(a[a > 0] / np.maximum(b[a > 0], 1e-300))).sum())

    chi2 = float(((p - q)[m > 0] ** 2 / m[m > 0]).sum())
    shannon = (divergence(p, m) + divergence(q, m)) / 2
    return {"left": float(q[p == 0].sum()), "JSD": shannon, "chi2": chi2, "KL": divergence(p, q)}


def run(config: Config, run_dir: Path) -> Result:
    """Train every student on every source, and measure it."""
    import jax
    import jax.numpy as jnp

    tables = [source(config, seed) for seed in config.seeds]
    keys = jnp.stack([jax.random.key(seed) for seed in config.seeds])
    students = _program(config)(keys, jnp.asarray(np.stack(tables), jnp.float32))
    columns: dict[str, list] = {name: [] for name in ("student", "seed", "left", "JSD", "chi2", "KL")}
    found: dict[str, dict[str, np.ndarray]] = {}
    for kind, name in enumerate(STUDENTS):
        rows = []
        for place, table in enumerate(tables):
            student = jax.tree.map(lambda x, kind=kind, place=place: x[kind, place], students)
            rows.append(measures(data_law(config, table), own_law(config, student, bool(RETURNS[kind]))))
            for column, entry in zip(columns.values(), (name, config.seeds[place], *rows[-1].values()), strict=True):
                column.append(entry)
        found[name] = {measure: np.array([row[measure] for row in rows]) for measure in rows[0]}
    measured = {f"distillation/sequencematch-{id}": x.tolist() for id, x in compared(found).items()}
    return Result({claim.id: measured[claim.id] for claim in CLAIMS}, {"students": columns})


def compared(found: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed, from student -> measure -> (seeds).

    Example:
        >>> one = {"left": np.ones(1), "JSD": np.ones(1), "chi2": np.ones(1), "KL": np.ones(1)}
        >>> {float(x[0]) for x in compared(dict.fromkeys(STUDENTS, one)).values()}
        {0.0}
    """
    left = {name: np.log(np.maximum(rows["left"], 1e-12)) for name, rows in found.items()}
    return {
        "backspace": left[MATCH_BACK] - left[LIKELIHOOD],
        "error-states": left[MATCH] - left[LIKELIHOOD],
        "backspace-gain": left[MATCH_BACK] - left[MATCH],
        "beyond-cloning": left[MATCH_BACK] - left[CLONING],
        "sequence-jsd": found[MATCH_BACK]["JSD"] - found[LIKELIHOOD]["JSD"],
        "sequence-chi2": found[MATCH]["chi2"] - found[LIKELIHOOD]["chi2"],
        "price": found[MATCH]["KL"] - found[LIKELIHOOD]["KL"],
    }


def plot(result: StoredResult) -> Figure:
    """Probability of leaving the support and Jensen-Shannon divergence, one point per source."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["students"].items()}
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for axis, name, label in zip(
        axes, ("left", "JSD"), ("probability of leaving the support", "Jensen-Shannon divergence, nats"), strict=True
    ):
        for place, student in enumerate(STUDENTS):
            values = table[name][table["student"] == student]
            axis.plot(np.full(len(values), place), values, "o", markersize=3)
            axis.plot(place, values.mean(), "k_", markersize=16)
        axis.set(ylabel=label, xticks=range(len(STUDENTS)), ylim=(0, None))
        axis.set_xticklabels([name.replace("m l", "m\nl").replace(", ", "\n") for name in STUDENTS], fontsize=7)
    return figure
