"""Tokens in two dimensions: who converges by the eigenvalues of the input-output matrix, and who by its symmetric part.

Six cells: two positive, one positive and two negative eigenvalues, each with symmetric matrices (random rotations) and
with non-symmetric ones (random eigenvectors). Each trajectory has its own matrix, step-size weights and tokens. It
converges when the longest token has become 100 times shorter than the longest at the start, and diverges when there is
a blow-up or the longest token has grown tenfold, whichever comes first; else it is undecided, which is counted. Some
of these rest: tokens can stand still where x^T M x = 0, neither at the origin nor far from it.

The counter-example has eigenvalues -1 and -1/2 and a symmetric part that is not definite; its first token diverges.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Demystifying the Token Dynamics of Deep Selective State Space Models (arXiv 2410.03292)",
    source="Figure 6 and the conjecture on higher dimension",
    minutes={"smoke": 0.1, "cpu": 1},
)
CELLS = {"two positive": (1.0, 0.5), "one positive": (1.0, -0.5), "two negative": (-1.0, -0.5)}
KINDS = ("symmetric", "non-symmetric")
CONVERGES, DIVERGES, UNDECIDED = "converges", "diverges", "undecided"
COUNTER_EXAMPLE = ((-1.0, 6.0), (0.0, -0.5))
_SMALLER, _LARGER = 1e-2, 10.0


@dataclass(frozen=True)
class Config(results.Config):
    """The trajectories."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One set of trajectories each."""
    trajectories: int = 40
    """Of each cell and seed."""
    length: int = 6
    """Tokens."""
    horizon: float = 40.0
    """ln(1 + t / t0) up to which a trajectory is followed, t0 being the time in which it first changes."""
    steps: int = 4000
    """Steps of the integration after which it is undecided."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("trajectories", "length", "steps"):
            require(name, getattr(self, name), 1)
        require("horizon", self.horizon, 1, 300)


PRESETS = {"smoke": Config(seeds=(0,), trajectories=2, steps=100), "cpu": Config()}

CLAIMS = (
    Claim(
        "token_dynamics/Fig6-two-positive",
        "share of the trajectories with two positive eigenvalues that diverge, symmetric matrices",
        "above",
        0.95,
    ),
    Claim(
        "token_dynamics/Fig6-one-positive",
        "share of the decided trajectories with one positive eigenvalue that diverge, symmetric matrices",
        "above",
        0.95,
    ),
    Claim(
        "token_dynamics/Fig6-two-negative",
        "share of the trajectories with two negative eigenvalues that converge, the smaller one of symmetric and "
        "non-symmetric matrices",
        "above",
        0.95,
    ),
    Claim(
        "token_dynamics/higher-dimension-conjecture",
        "share of the decided trajectories of all cells for which 'converges exactly if all eigenvalues are negative' "
        "is wrong",
        "below",
        0.0,
    ),
    Claim(
        "token_dynamics/symmetric-part-criterion",
        "share of the decided trajectories of all cells for which 'converges exactly if the symmetric part is negative "
        "definite' is wrong",
        "below",
        0.0,
        kind="ours",
    ),
)


class Trajectory(NamedTuple):
    """How a configuration moves.

    Attributes:
        outcome: "converges", "diverges" or "undecided".
        tokens: at the start and behind each step, (S + 1, L, 2).
    """

    outcome: str
    tokens: np.ndarray


def matrix(random: np.random.Generator, eigenvalues: tuple[float, float], kind: str) -> np.ndarray:
    """A matrix with these eigenvalues.

    Args:
        random: the source of its eigenvectors.
        eigenvalues: two.
        kind: "symmetric" or "non-symmetric".

    Returns:
        (2, 2).

    Example:
        >>> np.linalg.eigvals(matrix(np.random.default_rng(0), (1.0, 2.0), "non-symmetric")).round(6).tolist()
        [2.0, 1.0]
    """
    vectors = random.standard_normal((2, 2))
    if kind == "symmetric":
        vectors = np.linalg.qr(vectors)[0]
    return vectors @ np.diag(eigenvalues) @ np.linalg.inv(vectors)


def follow(config: Config, x0: np.ndarray, M: np.ndarray, s_delta: np.ndarray) -> Trajectory:
    """Simulate until it is decided what happens.

    Args:
        config: how far.
        x0: tokens (L, 2).
        M: input-output matrix (2, 2).
        s_delta: step-size weights (2, 2).

    Returns:
        The trajectory.

    Example:
        >>> follow(Config(), np.ones((1, 2)), -np.eye(2), np.zeros((2, 2))).outcome
        'converges'
    """
    from ssm.dynamics.limit_tokens import followed, token_flow

    flow, path = token_flow(x0, M, s_delta, np.ones(2)), [x0]
    start = np.linalg.norm(x0, axis=1).max()
    with suppress(RuntimeError):  # rounding can stop the integration where tokens hold others for a long time
        for step, blown in islice(followed(flow, config.horizon), config.steps):
            path.append(step.tokens)
            length = np.linalg.norm(step.tokens, axis=1).max() / start
            if blown or length > _LARGER:
                return Trajectory(DIVERGES, np.stack(path))
            if length < _SMALLER:
                return Trajectory(CONVERGES, np.stack(path))
    return Trajectory(UNDECIDED, np.stack(path))


def run(config: Config, run_dir: Path) -> Result:
    """Follow all trajectories of every seed, and the counter-example."""
    rows: dict[str, list] = {"seed": [], "cell": [], "matrix": [], "definite": [], "outcome": []}
    paths: dict[str, np.ndarray] = {}
    for seed in config.seeds:
        random = np.random.default_rng(seed)
        for kind in KINDS:
            for cell, eigenvalues in CELLS.items():
                for _ in range(config.trajectories):
                    M = matrix(random, eigenvalues, kind)
                    s_delta, x0 = random.standard_normal((2, 2)), random.standard_normal((config.length, 2))
                    found = follow(config, x0, M, s_delta)
                    row = (seed, cell, kind, negative_definite(M), found.outcome)
                    for column, entry in zip(rows.values(), row, strict=True):
                        column.append(entry)
                    paths.setdefault(f"{kind}, {cell}", found.tokens)
    paths["counter-example"] = _counter_example(config)
    series = {name: {"tokens": tokens} for name, tokens in paths.items()}
    return Result(
        measured=_measured(config, rows), tables={"trajectories": rows, "shares": _shares(rows)}, series=series
    )


def negative_definite(M: np.ndarray) -> bool:
    """Whether x^T M x < 0 for all x but 0.

    Example:
        >>> negative_definite(-np.eye(2)), negative_definite(np.array(COUNTER_EXAMPLE))
        (True, False)
    """
    from ssm.dynamics import scenario

    return scenario(M) == "convergent"


def _counter_example(config: Config) -> np.ndarray:
    """Two tokens that start where x^T M x is positive, or negative."""
    x0 = np.array([[0.5, 0.5], [0.6, -0.4]])
    return follow(config, x0, np.array(COUNTER_EXAMPLE), np.array([[0.5, 0.2], [-0.3, 0.4]])).tokens


def _measured(config: Config, rows: dict[str, list]) -> dict[str, Any]:
    columns = {name: np.array(values) for name, values in rows.items()}
    found: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    for seed in config.seeds:
        one = {name: values[columns["seed"] == seed] for name, values in columns.items()}
        for name, value in of_one_seed(one).items():
            found[f"token_dynamics/{name}"].append(value)
    return found


def of_one_seed(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """What claims are about, of the trajectories of one seed.

    Args:
        columns: of the table of trajectories.

    Returns:
        claim -> value, NaN where no trajectory is decided.
    """
    outcome, decided = columns["outcome"], columns["outcome"] != UNDECIDED
    converges = outcome == CONVERGES

    def share(what: np.ndarray, of: np.ndarray) -> float:
        return float(what[of].mean()) if of.any() else float("nan")

    def cell(name: str, kind: str) -> np.ndarray:
        return (columns["cell"] == name) & (columns["matrix"] == kind)

    return {
        "Fig6-two-positive": share(outcome == DIVERGES, cell("two positive", "symmetric")),
        "Fig6-one-positive": share(outcome == DIVERGES, cell("one positive", "symmetric") & decided),
        "Fig6-two-negative": min(share(converges, cell("two negative", kind)) for kind in KINDS),
        "higher-dimension-conjecture": share(converges != (columns["cell"] == "two negative"), decided),
        "symmetric-part-criterion": share(converges != columns["definite"], decided),
    }


def _shares(rows: dict[str, list]) -> dict[str, list]:
    """How many trajectories of each cell do what, by whether the symmetric part is negative definite."""
    keys = sorted(set(zip(rows["matrix"], rows["cell"], rows["definite"], strict=True)))
    table: dict[str, list[Any]] = {"matrix": [], "cell": [], "definite": [], CONVERGES: [], DIVERGES: [], UNDECIDED: []}
    told = list(zip(rows["matrix"], rows["cell"], rows["definite"], rows["outcome"], strict=True))
    for key in keys:
        counts = [told.count((*key, outcome)) for outcome in (CONVERGES, DIVERGES, UNDECIDED)]
        for column, entry in zip(table.values(), (*key, *counts), strict=True):
            column.append(entry)
    return table


def plot(result: StoredResult) -> Figure:
    """Tokens of the first trajectory of each cell in the plane, the counter-example, and all outcomes."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(13, 6.4), layout="constrained")
    for row, kind in zip(axes, KINDS, strict=True):
        for axis, cell in zip(row, CELLS, strict=False):
            _paths(axis, f"{kind}, {cell}", result.series[f"{kind}, {cell}"]["tokens"])
    _paths(axes[0, 3], "two negative, one diverges", result.series["counter-example"]["tokens"])
    _bars(axes[1, 3], result.tables["shares"])
    return figure


def _paths(axis: Axes, title: str, tokens: np.ndarray) -> None:
    for number in range(tokens.shape[1]):
        (line,) = axis.plot(*tokens[:, number].T, linewidth=1)
        axis.plot(*tokens[0, number], "o", markersize=4, color=line.get_color())
    axis.plot(0, 0, "k+")
    size = 4 * np.abs(tokens[0]).max()
    axis.set(title=title, xlim=(-size, size), ylim=(-size, size), aspect="equal")
    axis.title.set_fontsize(9)


def _bars(axis: Axes, shares: dict[str, list]) -> None:
    names = [f"{kind}\n{cell}" for kind in KINDS for cell in CELLS]
    colours = {CONVERGES: "#0072B2", DIVERGES: "#D55E00", UNDECIDED: "#999999"}
    left = np.zeros(len(names))
    for outcome, colour in colours.items():
        counts = np.zeros(len(names))
        for kind, cell, count in zip(shares["matrix"], shares["cell"], shares[outcome], strict=True):
            counts[names.index(f"{kind}\n{cell}")] += count
        axis.barh(range(len(names)), counts, left=left, color=colour, label=outcome)
        left += counts
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("trajectories")
    axis.legend(fontsize=7)
