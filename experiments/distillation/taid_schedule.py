"""TAID's schedule: where lambda goes, and what it is worth beside fixed mixtures and forward KL.

A teacher of order 2, a student of the last symbol, exact losses on the teacher's sequences (`chains.py`), Adam with a
rate that falls to 0. The target moves from student to teacher as TAID's update says, along its straight line alone, or
stays: fixed mixtures, of which lambda 1 is forward KL.

The update adds at most a sigmoid(m) (1 - lambda) in a step, with m near 0 and a = 5e-4 as released, and the line
(1 - lambda_0) / steps: only a training of more than about 2 / a = 4,000 steps can leave the line, which is tested with
a short and a long one.
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

    from experiments.distillation.chains import Measures

ABOUT = About(
    paper="TAID (arXiv 2501.16937)",
    source="its schedule against fixed mixtures",
    minutes={"smoke": 0.05, "cpu": 0.1},
)
TAID, LINE, FORWARD = "TAID", "straight line", "forward KL"
FIXED = (0.2, 0.4, 0.6, 0.8)
SCHEDULES = (TAID, LINE, *(f"fixed {share}" for share in FIXED), FORWARD)
START = 0.4


@dataclass(frozen=True)
class Config(results.Config):
    """The teachers and the trainings."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One teacher each."""
    symbols: int = 6
    """Of a teacher."""
    concentration: float = 0.15
    """Of the Dirichlet law of its rows."""
    length: int = 16
    """Of the sequences."""
    steps: int = 1000
    """Of the short training, that claims are about unless they say otherwise."""
    long_steps: int = 12_000
    """Of the long one."""
    rate: float = 0.1
    """Of Adam's first step."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("symbols", self.symbols, 2)
        require("concentration", self.concentration, 0.05)
        for name in ("length", "steps", "long_steps"):
            require(name, getattr(self, name), 1)
        require("rate", self.rate, 1e-6)


PRESETS = {"smoke": Config(seeds=(0,), symbols=3, length=4, steps=3, long_steps=6), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, expected: float, kind: Any = "ours") -> Claim:
    return Claim(f"distillation/taid-{id}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim("interpolation", "KL(teacher, student), TAID minus the best fixed mixture, nats", "below", 0.0, "paper"),
    _claim(
        "over-forward-kl",
        "total variation of visited contexts, TAID minus forward KL",
        "below",
        0.0,
        "paper",
    ),
    _claim("over-forward-kl-reverse", "KL(student, teacher), TAID minus forward KL, nats", "below", 0.0),
    _claim("no-cost", "KL(teacher, student), TAID minus forward KL, nats", "below", 0.01),
    _claim("on-the-line", "how far lambda gets ahead of the straight line, short training", "below", 1e-6),
    _claim("off-the-line", "how far lambda gets ahead of the straight line, long training", "above", 0.01),
    _claim("over-line", "KL(teacher, student), TAID minus the straight line, long training, nats", "below", 0.0),
)


def trained(config: Config, steps: int, teacher: Any, adaptive: Any, fixed: Any) -> tuple[Measures, Any]:
    """One student and the lambdas of its steps.

    Args:
        config: of the teacher and the training.
        steps: how many.
        teacher: a `chains.Teacher`.
        adaptive: 1 for TAID's update, 0 for its line.
        fixed: lambda throughout; below 0 it moves.

    Returns:
        Measures, and lambda (steps).
    """
    import jax
    import jax.numpy as jnp
    import optax

    import kd
    from experiments.distillation.chains import by_context, measures, visited

    weights = visited(teacher.log_p, teacher.start, config.length)[:-1].mean(0)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.rate, steps))

    def loss(table: Any, share: Any) -> Any:
        return weights @ kd.taid(by_context(table), teacher.log_p, share)

    def step(carry: Any, number: Any) -> Any:
        table, state, schedule = carry
        line = START + (1 - START) * number / steps
        moving = jnp.where(adaptive > 0, schedule.interpolation, line)
        share = jnp.where(fixed < 0, moving, fixed)
        value, gradient = jax.value_and_grad(loss)(table, share)
        changes, state = optimizer.update(gradient, state, table)
        schedule = kd.taid_update(schedule, value, number + 1, steps=steps, start=START)
        return (optax.apply_updates(table, changes), state, schedule), share

    table = jnp.zeros((config.symbols, config.symbols))
    start: Any = table, optimizer.init(table), kd.taid_start(START)
    (table, *_), shares = jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.float32))
    return measures(by_context(table), teacher, config.length), shares


@cache
def _program(config: Config, steps: int) -> Any:
    """Teachers -> measures (schedules, seeds), lambda (schedules, seeds, steps)."""
    import jax
    import jax.numpy as jnp

    def one(teacher: Any, adaptive: Any, fixed: Any) -> Any:
        return trained(config, steps, teacher, adaptive, fixed)

    adaptive = jnp.array([float(name == TAID) for name in SCHEDULES])
    fixed = jnp.array([-1.0, -1.0, *FIXED, 1.0])
    every = jax.vmap(jax.vmap(one, (0, None, None)), (None, 0, 0))
    return jax.jit(lambda teachers: every(teachers, adaptive, fixed))


def run(config: Config, run_dir: Path) -> Result:
    """Train under every schedule, for a short and a long time."""
    import jax

    from experiments.distillation.chains import Measures, dirichlet_teacher, stacked

    drawn = stacked([dirichlet_teacher(seed, config.symbols, config.concentration) for seed in config.seeds])
    teachers = jax.tree.map(np.float32, drawn)
    table: dict[str, list] = {name: [] for name in ("steps", "schedule", "seed", *Measures._fields)}
    found, series = {}, {}
    for steps in (config.steps, config.long_steps):
        values, shares = jax.tree.map(np.asarray, _program(config, steps)(teachers))
        found[steps] = {name: Measures(*(np.float64(f[i]) for f in values)) for i, name in enumerate(SCHEDULES)}
        line = START + (1 - START) * np.arange(steps) / steps
        ahead = (shares[0] - line).max(1)
        found[steps]["ahead"] = ahead
        when = np.unique(np.linspace(0, steps - 1, 200).astype(int))
        series[f"{steps} steps"] = {"step": when, "TAID": shares[0][:, when], "line": line[when]}
        for name in SCHEDULES:
            for seed, *numbers in zip(config.seeds, *found[steps][name], strict=True):
                row = (steps, name, seed, *(float(number) for number in numbers))
                for column, entry in zip(table.values(), row, strict=True):
                    column.append(entry)
    measured = compared(found[config.steps], found[config.long_steps])
    return Result({f"distillation/taid-{id}": x.tolist() for id, x in measured.items()}, {"students": table}, series)


def compared(short: dict[str, Any], long: dict[str, Any]) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed.

    Args:
        short: schedule -> measures, each (seeds), and how far lambda got ahead (seeds), of the short training.
        long: of the long one.

    Returns:
        Claim, without its folder and prefix -> (seeds).
    """
    best = np.min([short[f"fixed {share}"].forward for share in FIXED], axis=0)
    return {
        "interpolation": short[TAID].forward - best,
        "over-forward-kl": short[TAID].distance - short[FORWARD].distance,
        "over-forward-kl-reverse": short[TAID].reverse - short[FORWARD].reverse,
        "no-cost": short[TAID].forward - short[FORWARD].forward,
        "on-the-line": short["ahead"],
        "off-the-line": long["ahead"],
        "over-line": long[TAID].forward - long[LINE].forward,
    }


def plot(result: StoredResult) -> Figure:
    """Lambda of both trainings beside its line, and KL(teacher, student) of all students of the short one."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for axis, (name, series) in zip(axes, result.series.items(), strict=False):
        axis.plot(series["step"], series["TAID"].T, color="C0", linewidth=1)
        axis.plot(series["step"], series["line"], "k--", linewidth=1, label="straight line")
        axis.set(xlabel="step", ylabel="lambda", title=name)
        axis.legend()
    table = {name: np.array(column) for name, column in result.tables["students"].items()}
    for place, name in enumerate(SCHEDULES):
        rows = (table["schedule"] == name) & (table["steps"] == table["steps"].min())
        axes[2].plot(table["forward"][rows], np.full(rows.sum(), -place), "o", markersize=4, alpha=0.6)
    axes[2].set_yticks(-np.arange(len(SCHEDULES)), SCHEDULES)
    axes[2].set(xlabel="KL(teacher, student), nats")
    return figure
