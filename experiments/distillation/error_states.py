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
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from experiments.distillation.prefix_walks import Student

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


def trained(config: Config, key: Any, table: Any, weight: Any, returns: Any) -> Student:
    """The student after its training: SequenceMatch with the weight c, or at 0 maximum likelihood."""
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.descent import fitted
    from experiments.distillation.prefix_walks import Student, along, data, own_walks

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
        >>> from experiments.distillation.prefix_walks import source
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
    from experiments.distillation.prefix_walks import logits_of

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

    from experiments.distillation.prefix_walks import source

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
