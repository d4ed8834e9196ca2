"""What a teacher of whom the k largest probabilities are stored does to a student, in four conventions and by samples.

Teachers are next-symbol distributions of a Markov source of order 2, softmax of a product of two random factors. A
student has as much capacity as its teacher: a table of logits, or the same two factors. Every context counts with its
share in the source, and Adam sees exact losses, except for the targets by samples: k symbols drawn from the teacher,
anew at every update.

Two starts. From the teacher itself: a convention that is right leaves the student there, and drift is its bias. From
nothing: all logits 0 (factors random), what is learnt of the teacher's tail, that is of the mass outside of the k.
"""

from __future__ import annotations

from collections.abc import Callable
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
    paper="Sparse teachers (DistillKit, TRL, EasyDeL, verl, NeMo, OSTQuant, MaxText, tunix)",
    source="four conventions for the mass outside of the largest k",
    minutes={"smoke": 0.1, "cpu": 3},
)
BUCKET, RENORM, TEACHER, PARTIAL = CONVENTIONS = ("bucket", "renorm", "teacher_renorm", "partial")
SAMPLED, DENSE = "sampled", "dense"
TARGETS = (*CONVENTIONS, SAMPLED, DENSE)
TABLE, FACTORS = STUDENTS = ("table", "factors")
EPS = 1e-4  # of Adam: with less it leaves an optimum along its own rounding
AT_TEACHER, FROM_NOTHING = STARTS = ("the teacher", "nothing")


@dataclass(frozen=True)
class Config(results.Config):
    """The source, the students and their fits."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One source each."""
    symbols: int = 16
    """Of the source."""
    rank: int = 8
    """Of the factors."""
    spread: float = 2.0
    """Standard deviation of the teacher's logits."""
    kept: tuple[int, ...] = (2, 4, 8)
    """Numbers of stored probabilities."""
    reported: int = 4
    """The one that claims are about."""
    steps: int = 1000
    """Of Adam."""
    rate: float = 0.03
    """Of its first step; it falls to 0."""
    pairs: int = 2000
    """Random students that the bucket is compared at."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("symbols", "rank", "steps", "pairs"):
            require(name, getattr(self, name), 1)
        require("the smallest of kept", min(self.kept, default=0), 1)
        require("the largest of kept", max(self.kept), 1, below=self.symbols)
        if self.reported not in self.kept:
            raise ValueError(f"reported: got {self.reported}, expected one of kept, {self.kept}")


PRESETS = {
    "smoke": Config(seeds=(0,), symbols=5, rank=2, kept=(2,), reported=2, steps=5, pairs=10),
    "cpu": Config(),
}


def _claim(name: str, quantity: str, test: Any, expected: float, tolerance: float = 0.0, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/topk-{name}", quantity, test, expected, tolerance, kind)


CLAIMS = (
    _claim(
        "renormalised",
        "size of ln(student's mass outside of the 4 / the teacher's), renormalised, table from nothing",
        "above",
        float(np.log(1.5)),
    ),
    _claim(
        "renormalised-inside",
        "KL on the 4 after that, renormalised, nats: what the convention does see is learnt",
        "below",
        1e-3,
        kind="control",
    ),
    _claim(
        "sharpening",
        "student's mass outside of the 4 over the teacher's, table from the teacher, larger of teacher_renorm, partial",
        "below",
        0.5,
    ),
    _claim(
        "bucket",
        "KL with a bucket minus KL of the whole vocabulary, the largest over random students and all k, nats",
        "below",
        1e-12,
    ),
    _claim(
        "bucket-mass",
        "student's mass outside of the 4 over the teacher's, bucket, table from nothing",
        "within",
        1.0,
        0.01,
        "ours",
    ),
    _claim(
        "random-sampling",
        "student's mass outside of the 4 over the teacher's, 4 sampled targets an update, table from nothing",
        "within",
        1.0,
        0.05,
    ),
    _claim(
        "bucket-drift",
        "KL(teacher, student) after training on from the teacher, bucket, factors, nats",
        "below",
        1e-6,
        kind="ours",
    ),
    _claim(
        "sharing",
        "KL(teacher, student) from nothing with a bucket, factors minus table, nats: what sharing says of the tail",
        "below",
        0.0,
        kind="ours",
    ),
)


class Teacher(NamedTuple):
    """A source's next-symbol distributions.

    Attributes:
        factors: (S, R) and (R, A), whose product has the logits of the S contexts.
        log_p: (S, A).
        share: of each context in the source (S,).
    """

    factors: tuple[np.ndarray, np.ndarray]
    log_p: np.ndarray
    share: np.ndarray


def teacher(config: Config, seed: int) -> Teacher:
    """A random teacher.

    Example:
        >>> drawn = teacher(Config(), 0)
        >>> drawn.log_p.shape, round(float(drawn.share.sum()), 6)
        ((256, 16), 1.0)
    """
    from experiments.sources import MarkovSource

    random = np.random.default_rng(seed)
    size, rank = config.symbols, config.rank
    factors = random.standard_normal((size**2, rank)), random.standard_normal((rank, size))
    left = factors[0] * config.spread / rank**0.5
    z = left @ factors[1]
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    share = MarkovSource(np.exp(log_p).reshape(size, size, size)).stationary.ravel()
    return Teacher((left, factors[1]), log_p, share)


def loss_of(target: str, k: int) -> Callable[[Any, Any, Any, jax.Array], jax.Array]:
    """The loss of a table of logits.

    Args:
        target: one of TARGETS.
        k: stored, or sampled, symbols.

    Returns:
        (logits, log_p, share, key) -> scalar.
    """
    import jax
    import jax.numpy as jnp

    import kd

    def loss(s: Any, log_p: Any, share: Any, key: jax.Array) -> jax.Array:
        if target == DENSE:
            return share @ kd.token_divergence("forward_kl", s, log_p)
        if target == SAMPLED:
            drawn = jax.random.categorical(key, log_p[:, None], shape=(len(log_p), k))
            return -share @ jnp.take_along_axis(jax.nn.log_softmax(s), drawn, 1).mean(1)
        largest, ids = jax.lax.top_k(log_p, k)
        return share @ kd.sparse_divergence("forward_kl", s, ids, largest, convention=target)

    return loss


@cache
def _program(config: Config, target: str, k: int, student: str) -> Any:
    """(teachers, keys) -> for each start the logits of the fitted students, compiled for all seeds."""
    import jax
    import jax.numpy as jnp

    from experiments.distillation.descent import fitted

    loss = loss_of(target, k)

    def logits(params: Any) -> Any:
        return params if student == TABLE else params[0] @ params[1]

    def begin(teacher: Teacher, key: jax.Array) -> Any:
        if student == TABLE:
            return jnp.stack([teacher.log_p, jnp.zeros_like(teacher.log_p)])
        keys = jax.random.split(key)
        drawn = [0.3 * jax.random.normal(key, f.shape) for key, f in zip(keys, teacher.factors, strict=True)]
        return tuple(jnp.stack(each) for each in zip(teacher.factors, drawn, strict=True))

    def one(given: tuple[Teacher, jax.Array]) -> Any:
        teacher, key = given

        def of(params: Any, key: jax.Array) -> jax.Array:
            return loss(logits(params), teacher.log_p, teacher.share, key)

        def end(params: Any) -> Any:
            return logits(fitted(of, params, steps=config.steps, rate=config.rate, key=key, eps=EPS)[0])

        return jax.lax.map(end, begin(teacher, jax.random.fold_in(key, 1)))

    return jax.jit(lambda teachers, keys: jax.lax.map(one, (teachers, keys)))


class Measured(NamedTuple):
    """What a student is measured by, means over the contexts.

    Attributes:
        kl: KL(teacher, student) over the whole vocabulary, nats.
        inside: of the two renormalised on the k largest.
        ratio: the student's mass outside of them over the teacher's.
    """

    kl: float
    inside: float
    ratio: float


def measure(teacher: Teacher, s: np.ndarray, k: int) -> Measured:
    """Measure the logits of a student (S, A).

    Example:
        >>> drawn = teacher(Config(), 0)
        >>> [round(x, 6) for x in measure(drawn, drawn.log_p, 4)]
        [0.0, 0.0, 1.0]
    """
    log_p, log_q = teacher.log_p, _normalised(s)
    ids = np.argsort(-log_p, axis=1)
    (in_p, out_p), (in_q, out_q) = (np.split(np.take_along_axis(x, ids, 1), [k], axis=1) for x in (log_p, log_q))
    top_p, top_q = _normalised(in_p), _normalised(in_q)
    masses = [teacher.share @ np.exp(out).sum(1) for out in (out_q, out_p)]
    return Measured(
        float(teacher.share @ (np.exp(log_p) * (log_p - log_q)).sum(1)),
        float(teacher.share @ (np.exp(top_p) * (top_p - top_q)).sum(1)),
        float(masses[0] / masses[1]),
    )


def _normalised(z: np.ndarray) -> np.ndarray:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def excess_of_bucket(config: Config, seed: int) -> float:
    """The largest of KL with a bucket minus the whole KL over random teachers, students and all k, in float64."""
    import jax

    import kd

    random = np.random.default_rng([seed, 2])
    s, t = random.uniform(0.1, 5.0, (2, config.pairs, 1)) * random.standard_normal((2, config.pairs, config.symbols))
    with jax.enable_x64(True):
        log_p = np.asarray(jax.nn.log_softmax(t))
        whole = kd.token_divergence("forward_kl", s, t)
        ids = np.argsort(-log_p, axis=1)
        largest = -np.inf
        for k in config.kept:
            stored = np.take_along_axis(log_p, ids[:, :k], 1)
            bucket = kd.sparse_divergence("forward_kl", s, ids[:, :k], stored)
            largest = max(largest, float((bucket - whole).max()))
    return largest


def run(config: Config, run_dir: Path) -> Result:
    """Fit every student to every target from both starts, in float64: at the teacher Adam would follow rounding."""
    import jax
    import jax.numpy as jnp

    teachers = [teacher(config, seed) for seed in config.seeds]
    columns = ("student", "start", "target", "k", "seed", *Measured._fields)
    table: dict[str, list] = {name: [] for name in columns}
    found: dict[tuple[str, str, str, int], list[Measured]] = {}
    for student, target, k in cells(config):
        with jax.enable_x64(True):
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *teachers)
            keys = jnp.stack([jax.random.key(seed) for seed in config.seeds])
            logits = np.asarray(_program(config, target, k, student)(stacked, keys))
        for place, start in enumerate(STARTS):
            each = [measure(one, s, k) for one, s in zip(teachers, logits[:, place], strict=True)]
            found[student, start, target, k] = each
            for seed, values in zip(config.seeds, each, strict=True):
                for column, entry in zip(table.values(), (student, start, target, k, seed, *values), strict=True):
                    column.append(entry)
    measured = _measured(found, config.reported)
    measured["distillation/topk-bucket"] = [excess_of_bucket(config, seed) for seed in config.seeds]
    return Result(measured, {"students": table})


def cells(config: Config) -> list[tuple[str, str, int]]:
    """Student, target and k of every fit; the dense target has no k, and stands at the reported one.

    Example:
        >>> cells(Config())[-2:]
        [('factors', 'teacher_renorm', 8), ('factors', 'dense', 4)]
    """
    targets = {TABLE: TARGETS, FACTORS: (BUCKET, TEACHER, DENSE)}
    return [
        (student, target, k)
        for student in STUDENTS
        for target in targets[student]
        for k in (config.kept if target != DENSE else (config.reported,))
    ]


def _measured(found: dict[tuple[str, str, str, int], list[Measured]], k: int) -> dict[str, Any]:
    def column(field: str, student: str, start: str, target: str) -> np.ndarray:
        return np.array([getattr(each, field) for each in found[student, start, target, k]])

    drifted = [column("ratio", TABLE, AT_TEACHER, target) for target in (TEACHER, PARTIAL)]
    learnt = {student: column("kl", student, FROM_NOTHING, BUCKET) for student in STUDENTS}
    values = {
        "renormalised": np.abs(np.log(column("ratio", TABLE, FROM_NOTHING, RENORM))),
        "renormalised-inside": column("inside", TABLE, FROM_NOTHING, RENORM),
        "sharpening": np.maximum(*drifted),
        "bucket-mass": column("ratio", TABLE, FROM_NOTHING, BUCKET),
        "random-sampling": column("ratio", TABLE, FROM_NOTHING, SAMPLED),
        "bucket-drift": column("kl", FACTORS, AT_TEACHER, BUCKET),
        "sharing": learnt[FACTORS] - learnt[TABLE],
    }
    return {f"distillation/topk-{name}": each.tolist() for name, each in values.items()}


def plot(result: StoredResult) -> Figure:
    """KL of the whole vocabulary and mass outside of the k against k, a row per start, both students."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["students"].items()}
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for row, start in zip(axes, STARTS, strict=True):
        for number, target in enumerate(TARGETS):
            for student, style in zip(STUDENTS, ("-", "--"), strict=True):
                here = (table["start"] == start) & (table["target"] == target) & (table["student"] == student)
                ks = np.unique(table["k"][here])  # none where there is no such student
                for axis, field in zip(row, ("kl", "ratio"), strict=True):
                    means = [max(table[field][here & (table["k"] == k)].mean(), 1e-8) for k in ks]
                    label = f"{target}, {student}" if student == TABLE else None
                    axis.plot(ks, means, "o" + style, color=f"C{number}", markersize=3, linewidth=1, label=label)
        row[0].set(ylabel=f"KL(teacher, student), nats\nfrom {start}", yscale="log")
        row[1].set(ylabel="tail mass, student / teacher", yscale="log")
    for axis in axes.flat:
        axis.set_xscale("log", base=2)
        axis.set_xlabel("k")
    axes[0, 0].legend(fontsize=7)
    figure.suptitle("solid: table, dashed: factors", fontsize=9)
    return figure
