"""A residual stack of selective layers tends to the continuous limit at first order in the step.

Layers with the same weights, x <- x + tau S6(x), in float64, against the simulated limit at the same time, tau times
depth. Each seed draws weights and tokens. They are compared at a fixed time, or before that when the norm of all
tokens has grown by half: near a blow-up even the smallest step is too long for an order to be seen. The error is the
largest over tokens and channels, relative to the largest token; its order is fitted to the smaller half of the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssm.dynamics.limit_tokens import TokenFlow

ABOUT = About(
    paper="Demystifying the Token Dynamics of Deep Selective State Space Models (arXiv 2410.03292)",
    source="the continuous limit in depth",
    minutes={"smoke": 0.2, "cpu": 0.1},
)

WITHIN_A_STEP = 100  # times at which the growth of the tokens is looked at


@dataclass(frozen=True)
class Config(results.Config):
    """The layers and the steps."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One draw of weights and tokens each."""
    length: int = 6
    """Tokens."""
    width: int = 4
    """Channels."""
    states: int = 2
    """States of each channel."""
    time: float = 1.0
    """At which stack and limit are compared."""
    size: float = 0.5
    """Standard deviation of the coordinates of tokens."""
    growth: float = 1.5
    """Of the norm of all tokens, after which they are compared if that is earlier."""
    log_depths: tuple[int, ...] = (6, 7, 8, 9, 10, 11, 12, 13)
    """Binary logarithms of the numbers of layers, rising."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("length", "width", "states"):
            require(name, getattr(self, name), 1)
        require("time", self.time, 1e-6)
        require("size", self.size, 1e-3, 10)
        require("growth", self.growth, 1.01, 10)
        require("log_depths: how many", len(self.log_depths), 3)
        require("the smallest of log_depths", min(self.log_depths), 0)
        require("the largest of log_depths", max(self.log_depths), 1, 20)
        if sorted(set(self.log_depths)) != list(self.log_depths):
            raise ValueError(f"log_depths: got {self.log_depths}, expected rising numbers")


PRESETS = {"smoke": Config(seeds=(0,), log_depths=(5, 6, 7, 8)), "cpu": Config()}

CLAIMS = (
    Claim(
        "token_dynamics/abstract-continuous-limit",
        "largest difference of stack and limit at the smallest step, relative to the largest token",
        "below",
        1e-3,
    ),
    Claim(
        "token_dynamics/discrete-stack-slope",
        "slope of the logarithm of that difference against the logarithm of the step, the smaller half of the steps",
        "within",
        1.0,
        tolerance=0.05,
        kind="ours",
    ),
)


class Layer(NamedTuple):
    """Tokens and weights in the order of `ssm.dynamics.residual_stack`."""

    x: np.ndarray
    s_b: np.ndarray
    s_c: np.ndarray
    s_delta: np.ndarray
    a: np.ndarray


def draw(config: Config, seed: int) -> Layer:
    """Random tokens and weights.

    Args:
        config: their sizes.
        seed: of the random numbers.

    Returns:
        The layer.

    Example:
        >>> draw(Config(), 0).s_b.shape
        (2, 4)
    """
    random = np.random.default_rng(seed)
    length, width, states = config.length, config.width, config.states
    s_b, s_c = random.standard_normal((2, states, width)) / width**0.5
    s_delta = random.standard_normal((width, width)) / width**0.5
    x = config.size * random.standard_normal((length, width))
    return Layer(x, s_b, s_c, s_delta, random.uniform(0.5, 2.0, width))


def run(config: Config, run_dir: Path) -> Result:
    """Errors of stacks of all depths, for every seed."""
    depths = 2 ** np.array(config.log_depths)
    found = [_errors(config, draw(config, seed), depths) for seed in config.seeds]
    times, errors = np.array([time for time, _ in found]), np.stack([error for _, error in found])
    steps = times[:, None] / depths
    slopes = [order(step, error) for step, error in zip(steps, errors, strict=True)]
    measured = {
        "token_dynamics/abstract-continuous-limit": errors[:, -1].tolist(),
        "token_dynamics/discrete-stack-slope": slopes,
    }
    rows = [(seed, int(depth)) for seed in config.seeds for depth in depths]
    table = {
        "seed": [seed for seed, _ in rows],
        "depth": [depth for _, depth in rows],
        "step": steps.ravel().tolist(),
        "error": errors.ravel().tolist(),
    }
    series = {"errors": {"step": steps, "error": errors}}
    return Result(measured=measured, tables={"errors": table}, series=series)


def order(steps: np.ndarray, errors: np.ndarray) -> float:
    """Slope of ln error against ln step, of the smaller half of the steps.

    Args:
        steps: (K,), falling, at least 3.
        errors: (K,).

    Returns:
        The slope.

    Example:
        >>> round(order(np.array([8.0, 4.0, 2.0, 1.0]), np.array([9.0, 9.0, 4.0, 1.0])), 6)
        2.0
    """
    half = len(steps) // 2
    return float(np.polyfit(np.log(steps[half:]), np.log(errors[half:]), 1)[0])


def _errors(config: Config, layer: Layer, depths: np.ndarray) -> tuple[float, np.ndarray]:
    """The time, and the error of a stack of each depth there."""
    import jax

    from ssm.dynamics import residual_stack, simulate_tokens
    from ssm.dynamics.limit_tokens import token_flow

    arguments = (layer.x, layer.s_c.T @ layer.s_b, layer.s_delta, layer.a)
    time = time_of_comparison(config, token_flow(*arguments))
    exact = simulate_tokens(*arguments, [time]).tokens[0]
    with jax.enable_x64(True):
        ends = [np.asarray(residual_stack(*layer, step=time / depth, depth=int(depth))[-1]) for depth in depths]
    return time, np.array([np.abs(end - exact).max() / np.abs(exact).max() for end in ends])


def time_of_comparison(config: Config, flow: TokenFlow) -> float:
    """The fixed time, or an earlier one at which the tokens have grown enough.

    Args:
        config: of the time and the growth.
        flow: the configuration.

    Returns:
        The time.
    """
    from ssm.dynamics.limit_tokens import followed, log_rate, velocities
    from ssm.dynamics.stepping import theta_of, time_of

    log_unit = -log_rate(flow.start, velocities(flow, flow.start))
    end = float(theta_of(np.array([config.time]), log_unit)[0])
    for step, _ in followed(flow, end):
        thetas = np.linspace(step.old, step.theta, WITHIN_A_STEP)
        grown = np.linalg.norm(step.at(thetas), axis=1) > config.growth * np.linalg.norm(flow.start)
        if grown.any():
            return min(config.time, time_of(float(thetas[grown.argmax()]), log_unit))
    return config.time


def plot(result: StoredResult) -> Figure:
    """Error against step, a line per seed, and the slope of 1."""
    from matplotlib import pyplot as plt

    steps, errors = result.series["errors"]["step"], result.series["errors"]["error"]
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for seed, step, error in zip(result.seeds, steps, errors, strict=True):
        axis.loglog(step, error, "o-", markersize=3, linewidth=1, label=f"seed {seed}")
    ends = np.array([steps.min(), steps.max()])
    axis.loglog(ends, 2 * errors.max() * ends / ends[1], color="black", linestyle="--", linewidth=1, label="slope 1")
    axis.set(xlabel="step of the residual stack", ylabel="relative difference from the limit")
    axis.legend(fontsize=8)
    return figure
