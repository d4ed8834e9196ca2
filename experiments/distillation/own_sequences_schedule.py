"""DistiLLM's schedule: when the student's own sequences come in, and what they are worth, with little data.

A teacher of order 2 and a student that adds what each of the last two symbols says. Data are a few sequences of the
teacher. The student is fine-tuned on their symbols, as far as the validation loss falls, and then distilled by skew KL
on their contexts and, as often as the schedule says, on the contexts that it visits itself (`chains.py`; its law, not
samples, and no store of old ones). The validation loss is the exact cross-entropy per symbol on the teacher's law.

Schedules: none and all of them throughout, a straight line from none to all, DistiLLM's rule as released (up by 0.1
where the loss is at least 0.1 above that of the last rise, or of the first validation), and the same rule with the
validation before as what is compared with.
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
    from matplotlib.figure import Figure

ABOUT = About(
    paper="DistiLLM (arXiv 2402.03898)",
    source="its adaptive schedule, traced",
    minutes={"smoke": 0.05, "cpu": 0.1},
)
NONE, ALL, LINE, RELEASED, LAST = SCHEDULES = ("none", "all", "straight line", "released", "validation before")
LEAST, MOST = 4, 64  # sequences, that claims are about
TOLERANCE = 0.1


@dataclass(frozen=True)
class Config(results.Config):
    """The teachers, the data and the trainings."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One teacher and its data each."""
    symbols: int = 6
    """Of a teacher."""
    concentration: float = 0.15
    """Of the Dirichlet law of its rows."""
    length: int = 16
    """Of the sequences."""
    sequences: tuple[int, ...] = (LEAST, 16, MOST)
    """Of the data."""
    tuning: int = 200
    """Steps of fine-tuning."""
    steps: int = 1000
    """Of distillation."""
    every: int = 25
    """Steps between validations."""
    rate: float = 0.05
    """Of Adam's first step; it falls to 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("symbols", self.symbols, 2)
        require("concentration", self.concentration, 0.05)
        for name in ("length", "tuning", "steps", "every"):
            require(name, getattr(self, name), 1)
        require("rate", self.rate, 1e-6)
        if not {LEAST, MOST} <= set(self.sequences):
            raise ValueError(f"sequences: got {self.sequences}, expected {LEAST} and {MOST} among them")


PRESETS = {
    "smoke": Config(seeds=(0,), symbols=3, length=4, sequences=(LEAST, MOST), tuning=2, steps=4, every=2),
    "cpu": Config(),
}


def _claim(id: str, quantity: str, test: Any, expected: float = 0.0, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/distillm-{id}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim(
        "adaptive-schedule",
        "validations at which the share rose though the loss was not 0.1 above that of the last rise, released rule",
        "below",
        0.5,
        "control",
    ),
    _claim(
        "schedule-starts",
        "share of own sequences at the end, released rule, 4 sequences",
        "above",
        0.05,
    ),
    _claim(
        "schedule-follows-data",
        "share of own sequences at the end, released rule, 64 sequences minus 4",
        "below",
    ),
    _claim(
        "schedule-over-none",
        "validation loss at the end, released rule minus no own sequences, 4 sequences, nats",
        "below",
    ),
    _claim(
        "schedule-over-all",
        "validation loss at the end, released rule minus all own sequences from the first step, 4 sequences, nats",
        "below",
    ),
)


def drawn(config: Config, seed: int, count: int, teacher: Any) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the contexts in sequences of the teacher (A A), and of contexts with the next symbol (A A, A)."""
    random, size = np.random.default_rng([seed, count]), config.symbols
    pi = np.exp(teacher.log_p)
    counts = np.zeros(pi.shape)
    for context in random.choice(len(pi), count, p=teacher.start):
        for _ in range(config.length):
            symbol = random.choice(size, p=pi[context])
            counts[context, symbol] += 1
            context = context % size * size + symbol
    counts /= counts.sum()
    return counts.sum(1), counts


def trained(config: Config, teacher: Any, contexts: Any, followed: Any, which: Any) -> dict[str, Any]:
    """One student, fine-tuned and distilled.

    Args:
        config: of the training.
        teacher: a `chains.Teacher`.
        contexts: shares in the data (A A).
        followed: shares with the next symbol (A A, A).
        which: place of the schedule in SCHEDULES.

    Returns:
        Share of own sequences and validation loss at every step (steps), and the last validation loss.
    """
    import jax
    import jax.numpy as jnp
    import optax

    import kd
    from experiments.distillation.chains import by_both, visited
    from experiments.distillation.descent import fitted

    law = visited(teacher.log_p, teacher.start, config.length)[:-1].mean(0)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.rate, config.steps))

    def validation(tables: Any) -> Any:
        return -law @ jnp.sum(jnp.exp(teacher.log_p) * jax.nn.log_softmax(by_both(tables)), axis=1)

    def likelihood(tables: Any, _: Any) -> Any:
        return -jnp.sum(followed * jax.nn.log_softmax(by_both(tables)))

    def loss(tables: Any, share: Any) -> Any:
        s = by_both(tables)
        own = jax.lax.stop_gradient(visited(jax.nn.log_softmax(s), teacher.start, config.length)[:-1].mean(0))
        return ((1 - share) * contexts + share * own) @ kd.token_divergence("skew_kl", s, teacher.log_p, alpha=0.1)

    def step(carry: Any, number: Any) -> Any:
        tables, state, released, last = carry
        value = validation(tables)
        now = number % config.every == 0
        ahead = kd.distillm_update(released, value, tolerance=TOLERANCE)
        beside = kd.distillm_update(last, value, tolerance=TOLERANCE)._replace(loss=value)
        released, last = (
            jax.tree.map(lambda a, b: jnp.where(now, a, b), *pair) for pair in ((ahead, released), (beside, last))
        )
        share = jnp.stack([0.0, 1.0, number / config.steps, released.fraction, last.fraction])[which]
        changes, state = optimizer.update(jax.grad(loss)(tables, share), state, tables)
        return (optax.apply_updates(tables, changes), state, released, last), (share, value)

    zeros = jnp.zeros((2, config.symbols, config.symbols))

    def kept(tables: Any) -> Any:
        return tables, validation(tables)

    _, (path, values) = fitted(likelihood, zeros, steps=config.tuning, rate=config.rate, record=kept)
    tables = path[jnp.argmin(values)]
    start: Any = tables, optimizer.init(tables), kd.distillm_start(), kd.distillm_start()
    (tables, *_), (shares, losses) = jax.lax.scan(step, start, jnp.arange(config.steps, dtype=jnp.float32))
    return {"share": shares, "loss": losses, "end": validation(tables)}


@cache
def _program(config: Config) -> Any:
    """(teachers, contexts, followed) -> what `trained` gives (seeds, sequences, schedules, ..)."""
    import jax
    import jax.numpy as jnp

    def one(teacher: Any, contexts: Any, followed: Any, which: Any) -> Any:
        return trained(config, teacher, contexts, followed, which)

    over_schedules = jax.vmap(one, (None, None, None, 0))
    every: Any = jax.vmap(jax.vmap(over_schedules, (None, 0, 0, None)), (0, 0, 0, None))
    return jax.jit(lambda *given: every(*given, jnp.arange(len(SCHEDULES))))


def run(config: Config, run_dir: Path) -> Result:
    """Train under every schedule with every amount of data."""
    import jax

    from experiments.distillation.chains import dirichlet_teacher, stacked

    teachers = [dirichlet_teacher(seed, config.symbols, config.concentration) for seed in config.seeds]
    data = [
        [drawn(config, seed, count, teacher) for count in config.sequences]
        for seed, teacher in zip(config.seeds, teachers, strict=True)
    ]
    contexts, followed = (np.array([[pair[i] for pair in row] for row in data], np.float32) for i in (0, 1))
    given = jax.tree.map(np.float32, stacked(teachers)), contexts, followed
    found = {name: np.asarray(x, np.float64) for name, x in _program(config)(*given).items()}
    table: dict[str, list] = {name: [] for name in ("sequences", "schedule", "seed", "loss", "share")}
    for (row, amount, place), end in np.ndenumerate(found["end"]):
        entries = config.sequences[amount], SCHEDULES[place], config.seeds[row], float(end)
        for column, entry in zip(
            table.values(), (*entries, float(found["share"][row, amount, place, -1])), strict=True
        ):
            column.append(entry)
    values = compared(config, found)
    measured: dict[str, Any] = {f"distillation/distillm-{id}": x.tolist() for id, x in values.items()}
    kept = slice(None, None, config.every)
    series = {
        f"{count} sequences": {name: found[name][:, i, :, kept] for name in ("share", "loss")}
        for i, count in enumerate(config.sequences)
    }
    return Result(measured, {"ends": table}, series)


def compared(config: Config, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed.

    Args:
        config: of the run.
        found: share, loss (seeds, sequences, schedules, steps) and end (seeds, sequences, schedules).

    Returns:
        Claim, without its folder and prefix -> (seeds).
    """
    least, most = (config.sequences.index(count) for count in (LEAST, MOST))
    place = SCHEDULES.index(RELEASED)
    shares = found["share"][:, :, place, -1]
    end = found["end"][:, least]
    return {
        "adaptive-schedule": np.array(
            [
                sum(unfounded(*pair) for pair in zip(*rows, strict=True))
                for rows in zip(found["share"][:, :, place], found["loss"][:, :, place], strict=True)
            ],
            float,
        ),
        "schedule-starts": shares[:, least],
        "schedule-follows-data": shares[:, most] - shares[:, least],
        "schedule-over-none": end[:, place] - end[:, SCHEDULES.index(NONE)],
        "schedule-over-all": end[:, place] - end[:, SCHEDULES.index(ALL)],
    }


def unfounded(share: np.ndarray, loss: np.ndarray) -> int:
    """How often a share (steps) rose though the loss (steps) was less than the tolerance above that of the last rise.

    Example:
        >>> unfounded(np.array([0.0, 0.1, 0.1, 0.2]), np.array([1.0, 1.2, 1.0, 1.25]))
        1
    """
    reference, times = loss[0], 0
    for before, now, value in zip(share[:-1], share[1:], loss[1:], strict=True):
        if now > before:
            times += value < reference + TOLERANCE - 1e-6  # of float32
            reference = value
    return int(times)


def plot(result: StoredResult) -> Figure:
    """Share of own sequences under the two rules, and validation loss of all schedules, a column per amount of data."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(result.series), figsize=(12, 6), layout="constrained", squeeze=False)
    for column, (name, series) in zip(axes.T, result.series.items(), strict=True):
        steps = result.config["every"] * np.arange(series["share"].shape[-1])
        for place, schedule in enumerate(SCHEDULES):
            column[0].plot(steps, series["share"][:, place].mean(0), label=schedule)
            column[1].plot(steps, series["loss"][:, place].mean(0), label=schedule)
        column[0].set(title=name, ylabel="share of own sequences")
        column[1].set(xlabel="step", ylabel="validation loss, nats")
    axes[0, 0].legend(fontsize=7)
    return figure
