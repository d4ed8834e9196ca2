"""AKL's balance of head and tail beside forward KL, reverse KL and their plain mean.

Teachers have Zipf's probabilities in random order with noise, students begin at random logits and follow the gradient.
The gap sum |p - q| over the head (the largest entries with half of the teacher's mass) and over the tail is followed
over the steps. AKL weighs the two KLs by these very gaps, token by token; the plain mean of the two does not look.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.distillation.alpha_beta_plane import halved, heads, zipf_teachers
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="AKL (arXiv 2404.02657)",
    source="head and tail over the training",
    minutes={"smoke": 0.05, "cpu": 0.1},
)
FORWARD, REVERSE, HALF, AKL = OBJECTIVES = ("forward KL", "reverse KL", "their mean", "AKL")


@dataclass(frozen=True)
class Config(results.Config):
    """The pairs and the descent."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One set of pairs each."""
    pairs: int = 30
    """Of a set."""
    vocabulary: int = 100
    """Of them."""
    steps: int = 1000
    """Of the descent."""
    rate: float = 2.0
    """Of a step."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("pairs", "steps"):
            require(name, getattr(self, name), 1)
        require("vocabulary", self.vocabulary, 10)
        require("rate", self.rate, 1e-6)


PRESETS = {"smoke": Config(seeds=(0,), pairs=3, vocabulary=20, steps=5), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, expected: float, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/akl-{id}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim(
        "balances",
        "size of ln of the ratio of the steps in which the gaps of head and tail halve, AKL minus the smaller of "
        "forward and reverse KL",
        "below",
        0.0,
    ),
    _claim(
        "faster",
        "ln of the mean gap over the steps, AKL minus the smaller of forward and reverse KL",
        "below",
        0.0,
    ),
    _claim("beyond-mean", "ln of the mean gap over the steps, AKL minus the mean of the two KLs", "below", 0.0, "ours"),
    _claim(
        "same-limit", "gap after the last step over that at the start, the largest of all objectives", "below", 0.05
    ),
)


@cache
def _program(steps: int, rate: float) -> Any:
    """(s, t, head) -> for every objective the gaps of head and tail (steps + 1, 2, pairs)."""
    import jax
    import jax.numpy as jnp

    import kd

    def loss(name: str, s: Any, t: Any) -> Any:
        if name == AKL:
            return kd.akl(s, t).sum()
        both = [kd.token_divergence(kind, s, t).sum() for kind in ("forward_kl", "reverse_kl")]
        return {FORWARD: both[0], REVERSE: both[1], HALF: (both[0] + both[1]) / 2}[name]

    def descend(name: str, s: Any, t: Any, head: Any) -> Any:
        def gaps(s: Any) -> Any:
            gap = jnp.abs(jax.nn.softmax(t) - jax.nn.softmax(s))
            return jnp.stack([jnp.sum(gap * head, 1), jnp.sum(gap * (1 - head), 1)])

        def step(s: Any, _: None) -> Any:
            return s - rate * jax.grad(lambda s: loss(name, s, t))(s), gaps(s)

        end, path = jax.lax.scan(step, s, length=steps)
        return jnp.concatenate([path, gaps(end)[None]])

    return jax.jit(lambda s, t, head: {name: descend(name, s, t, head) for name in OBJECTIVES})


def run(config: Config, run_dir: Path) -> Result:
    """Descend from random logits, every set under every objective."""
    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    table: dict[str, list] = {name: [] for name in ("seed", "objective", "head", "tail", "mean gap", "end over start")}
    paths = []
    for seed in config.seeds:
        random = np.random.default_rng(seed)
        t = zipf_teachers(random, config.pairs, config.vocabulary)
        start = random.standard_normal(t.shape)
        found = _program(config.steps, config.rate)(start, t, heads(t))
        path = {name: np.asarray(found[name], np.float64) for name in OBJECTIVES}
        for id, value in compared(path).items():
            measured[f"distillation/akl-{id}"].append(value)
        for name in OBJECTIVES:
            head, tail = (float(np.median(halved(path[name][:, part]))) for part in (0, 1))
            total = path[name].sum(1).mean(1)
            row = (seed, name, head, tail, float(total.mean()), float(total[-1] / total[0]))
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
        paths.append(np.stack([path[name].mean(2) for name in OBJECTIVES]))
    series = {"gaps": {name: np.stack(paths)[:, i] for i, name in enumerate(OBJECTIVES)}}
    return Result(measured, {"objectives": table}, series)


def compared(path: dict[str, np.ndarray]) -> dict[str, float]:
    """What claims are about.

    Args:
        path: objective -> gaps of head and tail (steps + 1, 2, pairs).

    Returns:
        Claim, without its folder and prefix -> one number.

    Example:
        >>> even, head_first = (np.array([[[x], [y]] for x, y in rows]) for rows in (
        ...     [(4.0, 4.0), (1.0, 1.0)], [(4.0, 4.0), (1.0, 3.0)]))
        >>> found = compared({FORWARD: head_first, REVERSE: head_first, HALF: even, AKL: even})
        >>> found["balances"] < 0, found["beyond-mean"], found["same-limit"]
        (True, 0.0, 0.5)
    """

    def unevenness(gaps: np.ndarray) -> float:
        head, tail = (np.log1p(halved(gaps[:, part])) for part in (0, 1))
        return float(abs((head - tail).mean()))

    total = {name: gaps.sum(1).mean(1) for name, gaps in path.items()}
    area = {name: float(np.log(gap.mean())) for name, gap in total.items()}
    return {
        "balances": unevenness(path[AKL]) - min(unevenness(path[name]) for name in (FORWARD, REVERSE)),
        "faster": area[AKL] - min(area[FORWARD], area[REVERSE]),
        "beyond-mean": area[AKL] - area[HALF],
        "same-limit": max(float(gap[-1] / gap[0]) for gap in total.values()),
    }


def plot(result: StoredResult) -> Figure:
    """Gaps of head and tail over the steps."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    for part, (axis, name) in enumerate(zip(axes, ("head", "tail"), strict=True)):
        for objective, gaps in result.series["gaps"].items():
            axis.loglog(1 + np.arange(gaps.shape[1]), gaps[:, :, part].mean(0), label=objective)
        axis.set(xlabel="step", ylabel="sum |p - q|", title=name)
    axes[0].legend()
    return figure
