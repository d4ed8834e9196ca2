"""Dynamic logits fusion on n-grams: how near a large base model and a small expert come to a large expert.

Text of a general domain is a source of order 2; that of a task has other logits: a part that shows in the last symbol
and is what a small model can learn, and a private part of both symbols, which it cannot. The large base model is the
general source itself, the small base and the small expert are the bigrams of general and task text, and the large
expert, which nobody has, is the task's source. KL from it to the fused model is exact, contexts by their share in the
task's text: for the base alone (alpha 0), proxy tuning (alpha 1), every other constant, and the paper's alpha per step.

With a second task there are two experts, of which the paper's rule activates one per step without being told the task.
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
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Dynamic logits fusion (arXiv 2406.15480)",
    source="main table, on sources that are known",
    minutes={"smoke": 0.05, "cpu": 0.1},
)
LARGEST, POINTS = 2.0, 21
PRIVATE = 0.5  # the private part that claims are about


@dataclass(frozen=True)
class Config(results.Config):
    """The sources."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One general source and two tasks each."""
    symbols: int = 16
    """Of the sources."""
    spread: float = 1.5
    """Standard deviation of the general source's logits."""
    shift: float = 1.0
    """Of the part of a task that shows in the last symbol."""
    private: tuple[float, ...] = (0.0, PRIVATE, 1.0)
    """Of the part that does not."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("symbols", self.symbols, 2)
        require("spread", self.spread, 1e-3)
        require("shift", self.shift, 1e-3)
        require("the smallest of private", min(self.private, default=-1), 0)
        if not {0.0, PRIVATE, 1.0} <= set(self.private):
            raise ValueError(f"private: got {self.private}, expected 0, {PRIVATE} and 1 among them")


PRESETS = {"smoke": Config(seeds=(0,), symbols=3), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, expected: float = 0.0, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/fusion-{id}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim(
        "dynamic-beats-fixed", "KL from the large expert, alpha per step minus the better of 0 and 1, nats", "below"
    ),
    _claim(
        "dynamic-beats-constant",
        "KL from the large expert, alpha per step minus the best constant in hindsight, nats",
        "below",
        kind="ours",
    ),
    _claim(
        "closes-gap",
        "share of the base model's KL from the large expert that alpha per step takes off",
        "above",
        0.5,
    ),
    _claim(
        "better-small-models",
        "that share where small models can learn the whole task, minus where half of it is private (standard deviation "
        "1)",
        "above",
    ),
    _claim(
        "two-experts",
        "KL from the large expert, two experts of which one is the task's: alpha per step minus half of each, nats",
        "below",
    ),
    _claim("right-expert", "share of steps in which the task's expert is the active one", "above", 0.5, "ours"),
)


class Models(NamedTuple):
    """Logits by context.

    Attributes:
        large: the large base model (C, V).
        small: the small base model (C, V).
        experts: small ones of both tasks (2, C, V).
        oracles: large ones of both tasks (2, C, V).
        shares: of the contexts in the text of each task (2, C).
    """

    large: np.ndarray
    small: np.ndarray
    experts: np.ndarray
    oracles: np.ndarray
    shares: np.ndarray


def models(config: Config, seed: int, private: float) -> Models:
    """The models of one seed.

    Example:
        >>> drawn = models(Config(), 0, 0.5)
        >>> drawn.experts.shape, drawn.shares.sum(1).round(6).tolist()
        ((2, 256, 16), [1.0, 1.0])
    """
    random, size = np.random.default_rng(seed), config.symbols
    general = config.spread * random.standard_normal((size, size, size))
    shown = config.shift * random.standard_normal((2, 1, size, size))
    tasks = general + shown + private * random.standard_normal((2, size, size, size))
    small, _ = bigram(general)
    each = [bigram(task) for task in tasks]
    flat = (-1, size)
    return Models(
        general.reshape(flat),
        small,
        np.stack([logits for logits, _ in each]),
        tasks.reshape(2, *flat),
        np.stack([share for _, share in each]),
    )


def bigram(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best model that sees the last symbol only, of a source with logits (A, A, A).

    Returns:
        Log probabilities by context (A A, A), and the contexts' shares (A A).
    """
    from experiments.sources import MarkovSource

    p = np.exp(z - z.max(-1, keepdims=True))
    source = MarkovSource(p / p.sum(-1, keepdims=True))
    counts = (source.stationary[..., None] * source.kernel).sum(0)
    log_q = np.log(counts / counts.sum(1, keepdims=True))
    return np.tile(log_q, (len(log_q), 1)), source.stationary.ravel()


class Found(NamedTuple):
    """KL from the large expert of the first task, nats, and the choices.

    Attributes:
        constants: for every alpha of the grid (POINTS).
        dynamic: alpha per step.
        alpha: its mean.
        halves: half of each of two experts.
        two: one of two experts per step.
        right: share of steps in which that is the task's.
    """

    constants: Any
    dynamic: Any
    alpha: Any
    halves: Any
    two: Any
    right: Any


@cache
def _program() -> Any:
    import jax
    import jax.numpy as jnp

    import kd

    def program(given: Models) -> Found:
        oracle, share = given.oracles[0], given.shares[0]

        def distance(experts: Any, alpha: Any) -> Any:
            fused = kd.fuse_logits(given.large, given.small, experts, alpha)
            return share @ kd.token_divergence("forward_kl", fused, oracle)

        one, two = given.experts[:1], given.experts
        grid = jnp.linspace(0.0, LARGEST, POINTS)
        args: dict[str, Any] = {"largest": LARGEST, "points": POINTS}
        chosen = kd.solve_alpha(given.large, given.small, one, **args)
        of_two = kd.solve_alpha(given.large, given.small, two, **args)
        active = jnp.any(of_two > 0, axis=0)
        right = share @ (of_two[0] > 0) / jnp.maximum(share @ active, 1e-12)
        return Found(
            jax.lax.map(lambda alpha: distance(one, alpha[None]), grid),
            distance(one, chosen),
            share @ chosen[0],
            distance(two, jnp.full(2, 0.5)),
            distance(two, of_two),
            right,
        )

    return jax.jit(program)


def run(config: Config, run_dir: Path) -> Result:
    """Fuse the models of every seed in every way."""
    import jax

    columns = (
        "private",
        "seed",
        "alpha 0",
        "alpha 1",
        "best constant",
        "per step",
        "mean alpha",
        "halves",
        "one of two",
    )
    table: dict[str, list] = {name: [] for name in (*columns, "right expert")}
    found: dict[float, list[Found]] = {private: [] for private in config.private}
    one = POINTS // 2
    for private in config.private:
        for seed in config.seeds:
            values = jax.tree.map(np.asarray, _program()(jax.tree.map(np.float32, models(config, seed, private))))
            found[private].append(values)
            constants, *others = values
            numbers = (constants[0], constants[one], constants.min(), *others)
            row = (private, seed, *(float(number) for number in numbers))
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
    stacked = {private: Found(*map(np.stack, zip(*each, strict=True))) for private, each in found.items()}
    measured = {f"distillation/fusion-{id}": x.tolist() for id, x in compared(stacked).items()}
    curves = {"constants": np.stack([stacked[private].constants for private in config.private])}
    return Result(measured, {"fused": table}, {"fused": curves | {"alpha": np.linspace(0, LARGEST, POINTS)}})


def compared(found: dict[float, Found]) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed: private -> what was found, with a leading axis of the seeds."""
    here = found[PRIVATE]
    closed = {private: 1 - each.dynamic / each.constants[:, 0] for private, each in found.items()}
    return {
        "dynamic-beats-fixed": here.dynamic - here.constants[:, [0, POINTS // 2]].min(1),
        "dynamic-beats-constant": here.dynamic - here.constants.min(1),
        "closes-gap": closed[PRIVATE],
        "better-small-models": closed[0.0] - closed[1.0],
        "two-experts": here.two - here.halves,
        "right-expert": here.right,
    }


def plot(result: StoredResult) -> Figure:
    """KL from the large expert against a constant alpha, and that of alpha per step."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["fused"].items()}
    series = result.series["fused"]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, private in enumerate(np.unique(table["private"])):
        axis.plot(
            series["alpha"], series["constants"][number].mean(0), color=f"C{number}", label=f"private {private:g}"
        )
        here = table["private"] == private
        point = table["mean alpha"][here].mean(), table["per step"][here].mean()
        axis.plot(*point, "*", color=f"C{number}", markersize=12)
    axis.set(xlabel="alpha; stars: per step, at the mean alpha", ylabel="KL(large expert, fused), nats")
    axis.legend()
    return figure
