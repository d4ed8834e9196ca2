"""GKD over divergences and shares of the student's own sequences, exactly, with and without the gradient of its visits.

A teacher of order 2 over six symbols, a student that sees one symbol, sequences of 16 from any two symbols alike:
expected losses, gradients and measures by dynamic programming (`chains.py`). A per-token loss on the student's own
sequences takes the sequences as given. The column "whole gradient" differentiates what the student visits too: for
reverse KL that is the gradient of KL(student, teacher) of whole sequences, which MiniLLM estimates by policy gradient.

What a student is worth to a user is no number here; the total variation between the laws of visited contexts stands
for it, since neither objective is that.
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
    paper="GKD, on-policy distillation (arXiv 2306.13649); MiniLLM (arXiv 2306.08543)",
    source="main figures, where everything can be computed",
    minutes={"smoke": 0.05, "cpu": 1},
)
FORWARD, JSD, SKEW, REVERSE = "forward KL", "JSD 0.5", "skew KL 0.1", "reverse KL"
KINDS: dict[str, tuple[str, dict[str, float]]] = {
    FORWARD: ("forward_kl", {}),
    "JSD 0.1": ("jsd", {"beta": 0.1}),
    JSD: ("jsd", {"beta": 0.5}),
    "JSD 0.9": ("jsd", {"beta": 0.9}),
    SKEW: ("skew_kl", {"alpha": 0.1}),
    "skew reverse KL 0.1": ("skew_reverse_kl", {"alpha": 0.1}),
    REVERSE: ("reverse_kl", {}),
}
WHOLE = "whole gradient"
FRACTIONS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Config(results.Config):
    """The teachers and the fits."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One teacher each."""
    symbols: int = 6
    """Of a teacher."""
    concentration: float = 0.15
    """Of the Dirichlet law of its rows."""
    length: int = 16
    """Of the sequences."""
    steps: int = 1500
    """Of Adam."""
    rate: float = 0.1
    """Of its first step; it falls to 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("symbols", self.symbols, 2)
        require("concentration", self.concentration, 0.05)
        require("length", self.length, 1)
        require("steps", self.steps, 1)
        require("rate", self.rate, 1e-6)


PRESETS = {"smoke": Config(seeds=(0,), symbols=3, length=4, steps=3), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, expected: float, kind: Any = "ours") -> Claim:
    return Claim(f"distillation/{id}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim(
        "gkd-off-policy-forward-kl",
        "KL(teacher, student) of the student of forward KL on the teacher's sequences above the least of any, nats",
        "below",
        1e-6,
        "control",
    ),
    _claim(
        "gkd-stationary-start",
        "total variation of contexts of the best student of forward KL where sequences go on from the stationary law",
        "below",
        1e-6,
        "ours",
    ),
    _claim(
        "gkd-tradeoff",
        "KL(student, teacher), the larger of the changes from forward KL to JSD 0.5 and from there to reverse KL, nats"
        "; the teacher's sequences",
        "below",
        0.0,
    ),
    _claim(
        "gkd-tradeoff-forward",
        "KL(teacher, student), the smaller of these two changes, nats",
        "above",
        0.0,
    ),
    _claim(
        "gkd-on-policy-small-help",
        "ln of KL(student, teacher), own sequences minus the teacher's, mean of forward KL, JSD 0.5 and skew KL",
        "below",
        0.0,
    ),
    _claim(
        "gkd-on-policy-not-monotone",
        "KL(student, teacher) of reverse KL, half own sequences minus the better of none and all, nats",
        "below",
        0.0,
    ),
    _claim(
        "gkd-on-policy-best",
        "total variation of contexts, JSD 0.5 on own sequences minus forward KL on the teacher's",
        "below",
        0.0,
        "paper",
    ),
    _claim(
        "gkd-dropped-gradient",
        "KL(student, teacher) of reverse KL on own sequences, with the whole gradient over without",
        "below",
        0.75,
    ),
    _claim(
        "gkd-dropped-gradient-dominates",
        "what the whole gradient takes off KL(student, teacher) of reverse KL at all own sequences, minus the largest "
        "difference between two shares of own sequences, nats",
        "above",
        0.0,
    ),
    _claim(
        "minillm-reverse-kl",
        "total variation of contexts, reverse KL with the whole gradient minus forward KL on the teacher's sequences",
        "below",
        0.0,
        "paper",
    ),
)


def cells() -> list[tuple[str, Any]]:
    """Divergence and column of every cell of the grid.

    Example:
        >>> cells()[-1]
        ('reverse KL', 'whole gradient')
    """
    return [(name, share) for name in KINDS for share in (*FRACTIONS, WHOLE)]


@cache
def _program(config: Config) -> Any:
    """Teachers, and the same from their stationary laws -> measures (cells, seeds); of the best by forward KL, both."""
    import jax
    import jax.numpy as jnp

    from experiments.distillation.chains import best_forward, gkd_student, measures, one_of

    args: dict[str, Any] = {"length": config.length, "steps": config.steps, "rate": config.rate}
    kinds = list(KINDS.values())
    chosen = [
        (list(KINDS).index(name), 1.0 if share == WHOLE else share, float(share == WHOLE)) for name, share in cells()
    ]

    def fit(teacher: Any, which: Any, fraction: Any, through_visits: Any) -> Measures:
        divergence = one_of(kinds, jnp.arange(len(kinds)) == which)
        return measures(gkd_student(teacher, divergence, fraction, through_visits, **args), teacher, config.length)

    def best(teacher: Any) -> Measures:
        return measures(best_forward(teacher, config.length), teacher, config.length)

    def program(teachers: Any, stationary: Any) -> Any:
        columns = (jnp.array(column) for column in zip(*chosen, strict=True))
        grid = jax.vmap(jax.vmap(fit, (0, None, None, None)), (None, 0, 0, 0))(teachers, *columns)
        return grid, jax.vmap(best)(teachers), jax.vmap(best)(stationary)

    return jax.jit(program)


def run(config: Config, run_dir: Path) -> Result:
    """Fit the whole grid for every teacher, in float64."""
    import jax

    from experiments.distillation.chains import Measures, dirichlet_teacher, from_stationary, stacked

    teachers = [dirichlet_teacher(seed, config.symbols, config.concentration) for seed in config.seeds]
    stationary = [from_stationary(teacher) for teacher in teachers]
    with jax.enable_x64(True):
        grid, best, at_rest = jax.tree.map(np.asarray, _program(config)(stacked(teachers), stacked(stationary)))
    found = {cell: Measures(*(field[place] for field in grid)) for place, cell in enumerate(cells())}
    table: dict[str, list] = {name: [] for name in ("divergence", "own sequences", "seed", *Measures._fields)}
    for (name, share), values in found.items():
        for seed, *numbers in zip(config.seeds, *values, strict=True):
            row = (name, str(share), seed, *(float(number) for number in numbers))
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
    measured = {f"distillation/{id}": values.tolist() for id, values in compared(found, best.forward).items()}
    measured["distillation/gkd-stationary-start"] = at_rest.distance.tolist()
    return Result(measured, {"grid": table})


def compared(found: dict[tuple[str, Any], Measures], bound: np.ndarray) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed.

    Args:
        found: (divergence, share of own sequences) -> measures, each (seeds).
        bound: the least KL(teacher, student) (seeds).

    Returns:
        Claim, without its folder -> (seeds).
    """
    forward, reverse = (
        np.stack([getattr(found[name, 0.0], field) for name in (FORWARD, JSD, REVERSE)])
        for field in ("forward", "reverse")
    )
    mixed = np.stack([found[REVERSE, share].reverse for share in FRACTIONS])
    gain = [np.log(found[name, 1.0].reverse / found[name, 0.0].reverse) for name in (FORWARD, JSD, SKEW)]
    whole = found[REVERSE, WHOLE]
    return {
        "gkd-off-policy-forward-kl": found[FORWARD, 0.0].forward - bound,
        "gkd-tradeoff": np.diff(reverse, axis=0).max(0),
        "gkd-tradeoff-forward": np.diff(forward, axis=0).min(0),
        "gkd-on-policy-small-help": np.mean(gain, axis=0),
        "gkd-on-policy-not-monotone": found[REVERSE, 0.5].reverse - np.minimum(mixed[0], mixed[-1]),
        "gkd-on-policy-best": found[JSD, 1.0].distance - found[FORWARD, 0.0].distance,
        "gkd-dropped-gradient": whole.reverse / mixed[-1],
        "gkd-dropped-gradient-dominates": mixed[-1] - whole.reverse - np.ptp(mixed, axis=0),
        "minillm-reverse-kl": whole.distance - found[FORWARD, 0.0].distance,
    }


def plot(result: StoredResult) -> Figure:
    """Three maps: each measure over divergences and shares of own sequences, means over the teachers."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["grid"].items()}
    names, shares = (list(dict.fromkeys(table[column])) for column in ("divergence", "own sequences"))
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    titles = {
        "forward": "KL(teacher, student), nats",
        "reverse": "KL(student, teacher), nats",
        "distance": "total variation of visited contexts",
    }
    for axis, (field, title) in zip(axes, titles.items(), strict=True):
        cells = [
            [table[field][(table["divergence"] == name) & (table["own sequences"] == share)].mean() for share in shares]
            for name in names
        ]
        axis.imshow(cells, aspect="auto", cmap="viridis_r")
        for (row, column), cell in np.ndenumerate(np.array(cells)):
            axis.text(column, row, f"{cell:.3g}", ha="center", va="center", fontsize=7, color="w")
        axis.set_xticks(range(len(shares)), [share.replace(" ", "\n") for share in shares], fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set(xlabel="share of the student's own sequences", title=title)
    return figure
