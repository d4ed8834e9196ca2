"""Tokens in two dimensions: who converges by the eigenvalues of the input-output matrix, and who by its symmetric part.

Six cells: two positive, one positive and two negative eigenvalues, each with symmetric matrices (random rotations) and
with non-symmetric ones (random eigenvectors). Each draw has its own matrix, step-size weights and tokens. A trajectory
converges when the longest token has become 100 times shorter than the longest at the start, diverges when there is a
blow-up or the longest token has grown tenfold, and rests when all that it would change by while its time doubles is
1e-9 of it, whichever comes first: tokens can stand still where x^T M x = 0, neither at the origin nor far from it. To
rest is neither to converge nor to diverge. What ends before, at the limit of steps, is undecided, which is counted.

Both criteria are about the matrix: it is convergent if tokens converge from every start, and not if they do not from
some start. Random starts would miss the latter where M is 0 or negative on most of the plane. So if the symmetric part
of M is not negative definite, the draw is followed a second time, `aligned`: its first token, at the length that it
has, along the eigenvector of the largest eigenvalue of the symmetric part, where x^T M x is largest.

The counter-example has eigenvalues -1 and -1/2 and a symmetric part that is not definite; its first token diverges.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, product
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
    minutes={"smoke": 0.1, "cpu": 2},
)
CELLS = {"two positive": (1.0, 0.5), "one positive": (1.0, -0.5), "two negative": (-1.0, -0.5)}
KINDS = ("symmetric", "non-symmetric")
CONVERGES, DIVERGES, RESTS, UNDECIDED = OUTCOMES = ("converges", "diverges", "rests", "undecided")
DRAWN, ALIGNED = "drawn", "aligned"
COUNTER_EXAMPLE = ((-1.0, 6.0), (0.0, -0.5))
_SMALLER, _LARGER = 1e-2, 10.0
_LOG_RESTS = np.log(1e-9)  # of the speed relative to the size, times the time


@dataclass(frozen=True)
class Config(results.Config):
    """The trajectories."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One set of draws each."""
    trajectories: int = 40
    """Draws of each cell and seed."""
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
        "share of the drawn trajectories with two positive eigenvalues that diverge, symmetric matrices",
        "above",
        0.95,
    ),
    Claim(
        "token_dynamics/Fig6-one-positive",
        "share of the decided drawn trajectories with one positive eigenvalue that diverge, symmetric matrices; one "
        "that rests is decided and does not",
        "above",
        0.95,
    ),
    Claim(
        "token_dynamics/Fig6-two-negative",
        "share of the drawn trajectories with two negative eigenvalues that converge, the smaller one of symmetric and "
        "non-symmetric matrices",
        "above",
        0.95,
    ),
    Claim(
        "token_dynamics/higher-dimension-conjecture",
        "share of the decided matrices of all cells for which 'every start converges exactly if all eigenvalues are "
        "negative' is wrong, by the drawn start and the aligned one",
        "below",
        0.0,
    ),
    Claim(
        "token_dynamics/symmetric-part-criterion",
        "share of the decided matrices of all cells for which 'every start converges if the symmetric part is negative "
        "definite, else the aligned one does not' is wrong",
        "below",
        0.0,
        kind="ours",
    ),
)


class Trajectory(NamedTuple):
    """How a configuration moves.

    Attributes:
        outcome: "converges", "diverges", "rests" or "undecided".
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
    from ssm.dynamics.limit_tokens import followed, token_flow, velocities

    flow, path = token_flow(x0, M, s_delta, np.ones(2)), [x0]
    if not velocities(flow, flow.start).any():
        return Trajectory(RESTS, np.stack(path))
    start = np.linalg.norm(x0, axis=1).max()
    with suppress(RuntimeError):  # rounding can stop the integration where tokens hold others for a long time
        for step, blown in islice(followed(flow, config.horizon), config.steps):
            path.append(step.tokens)
            length = np.linalg.norm(step.tokens, axis=1).max() / start
            if blown or length > _LARGER:
                return Trajectory(DIVERGES, np.stack(path))
            if length < _SMALLER:
                return Trajectory(CONVERGES, np.stack(path))
            if step.r < _LOG_RESTS:
                return Trajectory(RESTS, np.stack(path))
    return Trajectory(UNDECIDED, np.stack(path))


def run(config: Config, run_dir: Path) -> Result:
    """Follow all trajectories of every seed, and the counter-example."""
    rows: dict[str, list] = {name: [] for name in ("seed", "cell", "matrix", "definite", "draw", "start", "outcome")}
    paths: dict[str, np.ndarray] = {}
    for seed in config.seeds:
        random = np.random.default_rng(seed)
        for (kind, cell), draw in product(product(KINDS, CELLS), range(config.trajectories)):
            M = matrix(random, CELLS[cell], kind)
            s_delta, x0 = random.standard_normal((2, 2)), random.standard_normal((config.length, 2))
            definite = negative_definite(M)
            starts = {DRAWN: x0} if definite else {DRAWN: x0, ALIGNED: aligned(x0, M)}
            for start, tokens in starts.items():
                found = follow(config, tokens, M, s_delta)
                row = (seed, cell, kind, definite, draw, start, found.outcome)
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


def aligned(x0: np.ndarray, M: np.ndarray) -> np.ndarray:
    """The same tokens but for the direction of the first, which becomes that in which x^T M x is largest.

    Where that is above 0, the first token cannot converge: all of its coordinates grow as long as it is.

    Args:
        x0: tokens (L, 2).
        M: input-output matrix (2, 2).

    Returns:
        (L, 2).

    Example:
        >>> aligned(np.array([[3.0, 4.0], [1.0, 0.0]]), np.diag([1.0, -1.0])).tolist()
        [[5.0, 0.0], [1.0, 0.0]]
    """
    direction = np.linalg.eigh((M + M.T) / 2)[1][:, -1]
    towards = direction if direction @ x0[0] >= 0 else -direction
    return np.concatenate([np.linalg.norm(x0[0]) * towards[None] + 0.0, x0[1:]])


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
        claim -> value, NaN where nothing is decided.
    """
    drawn = {name: values[columns["start"] == DRAWN] for name, values in columns.items()}
    outcome, decided = drawn["outcome"], drawn["outcome"] != UNDECIDED

    def share(what: np.ndarray, of: np.ndarray) -> float:
        return float(what[of].mean()) if of.any() else float("nan")

    def cell(name: str, kind: str) -> np.ndarray:
        return (drawn["cell"] == name) & (drawn["matrix"] == kind)

    return {
        "Fig6-two-positive": share(outcome == DIVERGES, cell("two positive", "symmetric")),
        "Fig6-one-positive": share(outcome == DIVERGES, cell("one positive", "symmetric") & decided),
        "Fig6-two-negative": min(share(outcome == CONVERGES, cell("two negative", kind)) for kind in KINDS),
        **_criteria(columns),
    }


def _criteria(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """How often each criterion about the matrix is wrong, of one seed's trajectories."""
    keys = zip(columns["cell"], columns["matrix"], columns["draw"], columns["definite"], strict=True)
    outcomes: dict[tuple, dict[str, str]] = {}
    for key, start, outcome in zip(keys, columns["start"], columns["outcome"], strict=True):
        outcomes.setdefault(key, {})[start] = outcome
    by_eigenvalues, by_symmetric_part = [], []
    for (cell, _, _, definite), of in outcomes.items():
        every = _every_converges(list(of.values()))
        if every is not None:
            by_eigenvalues.append(every != (cell == "two negative"))
        telling = _every_converges([of[DRAWN if definite else ALIGNED]])
        if telling is not None:
            by_symmetric_part.append(telling != definite)
    wrong = {"higher-dimension-conjecture": by_eigenvalues, "symmetric-part-criterion": by_symmetric_part}
    return {name: float(np.mean(found)) if found else float("nan") for name, found in wrong.items()}


def _every_converges(outcomes: list[str]) -> bool | None:
    """Whether all of some trajectories converge; None if only undecided ones could tell."""
    if {DIVERGES, RESTS} & set(outcomes):
        return False
    return None if UNDECIDED in outcomes else True


def _shares(rows: dict[str, list]) -> dict[str, list]:
    """How many trajectories of each cell do what, by the start and by whether the symmetric part is definite."""
    names = ("matrix", "cell", "start", "definite")
    keys = list(zip(*(rows[name] for name in names), strict=True))
    table: dict[str, list[Any]] = {name: [] for name in (*names, *OUTCOMES)}
    told = list(zip(keys, rows["outcome"], strict=True))
    for key in sorted(set(keys)):
        counts = [told.count((key, outcome)) for outcome in OUTCOMES]
        for column, entry in zip(table.values(), (*key, *counts), strict=True):
            column.append(entry)
    return table


def plot(result: StoredResult) -> Figure:
    """Tokens of the first trajectory of each cell in the plane, the counter-example, and all outcomes as drawn."""
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
    colours = dict(zip(OUTCOMES, ("#0072B2", "#D55E00", "#F0E442", "#999999"), strict=True))
    left = np.zeros(len(names))
    for outcome, colour in colours.items():
        counts = np.zeros(len(names))
        columns = (shares[name] for name in ("matrix", "cell", "start", outcome))
        for kind, cell, start, count in zip(*columns, strict=True):
            counts[names.index(f"{kind}\n{cell}")] += count * (start == DRAWN)
        axis.barh(range(len(names)), counts, left=left, color=colour, label=outcome)
        left += counts
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("trajectories")
    axis.legend(fontsize=7)
