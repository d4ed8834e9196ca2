"""The reward that SequenceMatch learns: bounded under the mixture, without bound where the data never go otherwise.

A policy gives half of its mass to states in which the data have the mass delta together. The reward that attains the
supremum of E_data r - E_own r - c E r^2 is known in closed form, with the square under the data or under the mixture of
both. Gradient ascent on that objective is compared with it, and continued where the data have no mass at all; and both
divergences are estimated from samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="SequenceMatch (arXiv 2306.05426)",
    source="why its regulariser is a mixture",
    minutes={"smoke": 0.05, "cpu": 0.1},
)
WEIGHT = 0.25  # c, that of phi(r) = r - r^2 / 4
ORDINARY, RARE = 1e-3, 1e-6  # delta, that claims are about
REGULARIZERS = ("mixture", "chi2")


@dataclass(frozen=True)
class Config(results.Config):
    """The pairs, the ascent and the samples."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One pair of laws each."""
    states: int = 40
    """Of them; half have the mass delta under the data."""
    deltas: tuple[float, ...] = (0.5, 0.1, 1e-2, ORDINARY, 1e-4, 1e-5, RARE)
    """Falling."""
    steps: int = 20_000
    """Of the ascent."""
    rate: float = 4.0
    """Of its steps."""
    samples: int = 1000
    """Of each law in the estimates."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("states", self.states, 4)
        require("the smallest of deltas", min(self.deltas, default=0), 1e-12, below=1)
        require("the largest of deltas", max(self.deltas), 1e-12, below=1)
        if not {ORDINARY, RARE} <= set(self.deltas):
            raise ValueError(f"deltas: got {self.deltas}, expected {ORDINARY} and {RARE} among them")
        for name in ("steps", "samples"):
            require(name, getattr(self, name), 1)
        require("rate", self.rate, 1e-6)


PRESETS = {"smoke": Config(seeds=(0,), states=6, steps=10, samples=20), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, expected: float, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/sequencematch-{id}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim("mixture-bounded", "largest size of the reward times c under the mixture, all delta", "below", 1 + 1e-9),
    _claim(
        "chi2-unbounded",
        "ln of the largest size of the reward under plain chi^2 at delta 1e-6 over that at 1e-3",
        "above",
        float(np.log(100)),
    ),
    _claim(
        "ascent",
        "largest distance of the reward after the ascent from the closed form, mixture, delta 1e-3",
        "below",
        1e-3,
        "control",
    ),
    _claim(
        "off-support",
        "the policy's reward in the states without data after all steps of the ascent over that after half, plain "
        "chi^2",
        "above",
        1.9,
        "ours",
    ),
    _claim(
        "off-support-mixture",
        "the same under the mixture",
        "below",
        1.001,
        "ours",
    ),
    _claim(
        "mixture-estimates",
        "ln of the relative error of the divergence estimated from samples, mixture minus plain chi^2, delta 0.01",
        "below",
        0.0,
        "ours",
    ),
)


def laws(config: Config, seed: int, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of data and policy; the second half of the states has delta and 1/2.

    Example:
        >>> data, own = laws(Config(), 0, 0.01)
        >>> round(float(data[20:].sum()), 6), round(float(own[20:].sum()), 6)
        (0.01, 0.5)
    """
    shape = 2, 2, config.states // 2
    p, q = np.random.default_rng(seed).dirichlet(np.ones(shape[2]), shape[:2])
    return np.concatenate([(1 - delta) * p[0], delta * p[1]]), np.concatenate([0.5 * q[0], 0.5 * q[1]])


def closed_form(data: np.ndarray, own: np.ndarray, regularizer: str) -> np.ndarray:
    """The reward of `kd.chi2_reward` in float64."""
    import jax

    import kd

    with jax.enable_x64(True):
        log_data, log_own = (np.log(np.maximum(x, 1e-300)) for x in (data, own))
        mixture = regularizer == "mixture"
        return np.asarray(kd.chi2_reward(log_data, log_own, weight=WEIGHT, mixture=mixture))


def ascent(config: Config, data: np.ndarray, own: np.ndarray, regularizer: str) -> tuple[np.ndarray, np.ndarray]:
    """Rewards after half of the steps and after all of gradient ascent on E_data r - E_own r - c E r^2, from 0.

    Example:
        >>> half, whole = ascent(Config(steps=4, rate=1.0), np.array([1.0, 0.0]), np.array([0.5, 0.5]), "chi2")
        >>> half.tolist(), whole.tolist()
        ([0.75, -1.0], [0.9375, -2.0])
    """
    under = (data + own) / 2 if regularizer == "mixture" else data
    r, half = np.zeros(len(data)), np.zeros(len(data))
    for step in range(config.steps):
        if step == config.steps // 2:
            half = r.copy()
        r = r + config.rate * (data - own - 2 * WEIGHT * under * r)
    return half, r


def supremum(data: np.ndarray, own: np.ndarray, regularizer: str) -> float:
    """The divergence that the best reward attains, sum (data - own)^2 / (4 c under); infinite off the support.

    Example:
        >>> supremum(np.array([1.0, 0.0]), np.array([0.5, 0.5]), "mixture")
        1.3333333333333333
    """
    under = (data + own) / 2 if regularizer == "mixture" else data
    here = (data != 0) | (own != 0)
    with np.errstate(divide="ignore"):
        return float(((data - own)[here] ** 2 / under[here]).sum() / (4 * WEIGHT))


def estimate_error(config: Config, seed: int, regularizer: str, delta: float) -> float:
    """Relative error of the divergence between counts, in which every state is counted once more than it was drawn."""
    data, own = laws(config, seed, delta)
    random = np.random.default_rng([seed, 1])
    drawn = [(random.multinomial(config.samples, law) + 1) / (config.samples + len(law)) for law in (data, own)]
    exact = supremum(data, own, regularizer)
    return abs(supremum(drawn[0], drawn[1], regularizer) / exact - 1)


def run(config: Config, run_dir: Path) -> Result:
    """Rewards at every delta, ascents at two, estimates at one."""
    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    table: dict[str, list] = {name: [] for name in ("seed", "regularizer", "delta", "largest reward", "divergence")}
    for seed in config.seeds:
        largest = {}
        for regularizer in REGULARIZERS:
            for delta in config.deltas:
                data, own = laws(config, seed, delta)
                largest[regularizer, delta] = float(np.abs(closed_form(data, own, regularizer)).max())
                row = (seed, regularizer, delta, largest[regularizer, delta], supremum(data, own, regularizer))
                for column, entry in zip(table.values(), row, strict=True):
                    column.append(entry)
        data, own = laws(config, seed, ORDINARY)
        _, climbed = ascent(config, data, own, "mixture")
        numbers = {
            "mixture-bounded": max(largest["mixture", delta] for delta in config.deltas) * WEIGHT,
            "chi2-unbounded": np.log(largest["chi2", RARE] / largest["chi2", ORDINARY]),
            "ascent": np.abs(climbed - closed_form(data, own, "mixture")).max(),
            "off-support": growth(config, seed, "chi2"),
            "off-support-mixture": growth(config, seed, "mixture"),
            "mixture-estimates": float(
                np.log(estimate_error(config, seed, "mixture", 0.01) / estimate_error(config, seed, "chi2", 0.01))
            ),
        }
        for id, value in numbers.items():
            measured[f"distillation/sequencematch-{id}"].append(float(value))
    return Result(measured, {"rewards": table})


def growth(config: Config, seed: int, regularizer: str) -> float:
    """The policy's mean reward in the states without data after all steps over that after half of them."""
    data, own = laws(config, seed, 0.0)
    half, whole = ascent(config, data, own, regularizer)
    off = data == 0
    return float(own[off] @ whole[off] / (own[off] @ half[off]))


def plot(result: StoredResult) -> Figure:
    """Largest reward against the mass of the data where the policy has one half."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["rewards"].items()}
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, regularizer in enumerate(REGULARIZERS):
        for seed in result.seeds:
            here = (table["regularizer"] == regularizer) & (table["seed"] == seed)
            label = regularizer if seed == result.seeds[0] else None
            style: dict[str, Any] = {"color": f"C{number}", "markersize": 3, "linewidth": 1, "label": label}
            axis.loglog(table["delta"][here], table["largest reward"][here], "o-", **style)
    axis.axhline(1 / WEIGHT, color="k", linestyle="--", linewidth=1, label="1 / c")
    axis.set(xlabel="mass of the data where the policy has 1/2", ylabel="largest size of the reward")
    axis.legend()
    return figure
