"""The recurrence of Mamba-2 against that of Mamba: time of a pass forward and backward, over the size of the state.

Both have the same inner channels and read the same batch. Mamba's decays each state of each channel on its own;
Mamba-2's has one decay per head of 64 channels, so that its chunks are products of matrices (arXiv 2405.21060, section
6). Only the recurrences are timed, without projections, convolution, gate and norm.

Programs take turns within a repetition, of which each seed is one. Ratios are of CPU time on this machine; the
published ones are of one GPU, on which the products run on units of their own.
"""

from __future__ import annotations

from collections.abc import Callable
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
    paper="Transformers are SSMs, Mamba-2 (arXiv 2405.21060)",
    source="abstract",
    minutes={"smoke": 0.1, "cpu": 1},
)
MAMBA, MAMBA2 = "Mamba", "Mamba-2"


@dataclass(frozen=True)
class Config(results.Config):
    """What the recurrences read, and how often that is timed."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition each."""
    batch: int = 2
    """Sequences."""
    length: int = 1024
    """Tokens of each."""
    inner: int = 256
    """Inner channels."""
    head_size: int = 64
    """Channels that have a decay in common in Mamba-2."""
    states: tuple[int, ...] = (16, 64, 128)
    """Numbers of state of each channel; the claim is about 64."""
    calls: int = 3
    """Measured calls of a repetition, of which the median counts."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("batch", "length", "inner", "head_size", "calls"):
            require(name, getattr(self, name), 1)
        require("the smallest of states", min(self.states, default=0), 1)
        if self.inner % self.head_size:
            raise ValueError(f"head_size: got {self.head_size}, expected a divisor of inner, {self.inner}")


PRESETS = {
    "smoke": Config(seeds=(0,), batch=1, length=3, inner=4, head_size=2, states=(2,), calls=1),
    "cpu": Config(),
}
CLAIMED_STATES = 64
CLAIMS = (
    Claim(
        "long_memory/mamba2-faster",
        "64 states: CPU time of Mamba's recurrence over that of Mamba-2's, forward and backward",
        "above",
        2.0,  # published: 2 to 8 times
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Time both recurrences in turns, at every size of the state, in every repetition."""
    from experiments.scan_benchmark.measure import take_turns

    columns: dict[str, list] = {"recurrence": [], "states": [], "repetition": [], "cpu_ms": [], "wall_ms": []}
    for states in config.states:
        timed = programs(config, states)
        for seed in config.seeds:
            for name, timing in zip(timed, take_turns(list(timed.values()), config.calls), strict=True):
                row = (name, states, seed, timing.cpu_ms, timing.wall_ms)
                for column, entry in zip(columns.values(), row, strict=True):
                    column.append(entry)
    return Result(measured=_measured(columns), tables={"times": columns})


def programs(config: Config, states: int) -> dict[str, Callable[[], Any]]:
    """Both recurrences with their gradients with respect to all of their inputs.

    Args:
        config: the sizes.
        states: N.

    Returns:
        Programs by name.
    """
    import jax
    import jax.numpy as jnp

    from lightnet.scan import gated_linear_attention, selective_scan

    random = np.random.default_rng(states)
    shape, heads = (config.batch, config.length), config.inner // config.head_size

    def normal(*more: int) -> jax.Array:
        return jnp.asarray(random.standard_normal((*shape, *more)), jnp.float32)

    x, B, C, dt = normal(config.inner), normal(states), normal(states), jax.nn.softplus(normal(config.inner) - 4)
    A = -jnp.broadcast_to(jnp.arange(1.0, states + 1), (config.inner, states))
    in_heads = x.reshape(*shape, heads, config.head_size)
    log_decay = -jax.nn.softplus(normal(heads, 1) - 4)

    def selective(*operands: jax.Array) -> jax.Array:
        return selective_scan(*operands)[0].sum()

    def with_heads(*operands: jax.Array) -> jax.Array:
        return gated_linear_attention(*operands)[0].sum()

    given = {
        MAMBA: (jax.jit(jax.grad(selective, range(5))), (x, dt, A, B, C)),
        MAMBA2: (jax.jit(jax.grad(with_heads, range(4))), (C[:, :, None], B[:, :, None], in_heads, log_decay)),
    }
    return {name: _program(function, operands) for name, (function, operands) in given.items()}


def _program(function: Callable[..., Any], operands: tuple) -> Callable[[], Any]:
    import jax

    return lambda: jax.block_until_ready(function(*operands))


def _measured(columns: dict[str, list]) -> dict[str, Any]:
    """The claim, if its size is there: one value per repetition."""
    rows = list(zip(columns["recurrence"], columns["states"], columns["cpu_ms"], strict=True))
    mamba, mamba2 = (
        np.array([ms for of, states, ms in rows if (of, states) == (name, CLAIMED_STATES)]) for name in (MAMBA, MAMBA2)
    )
    return {"long_memory/mamba2-faster": mamba / mamba2} if len(mamba) else {}


def plot(result: StoredResult) -> Figure:
    """CPU time against the size of the state, a line per recurrence and a dot per repetition."""
    from matplotlib import pyplot as plt

    table, sizes = result.tables["times"], result.config["states"]
    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for name, colour in ((MAMBA, "#0072B2"), (MAMBA2, "#009E73")):
        rows = zip(table["recurrence"], table["states"], table["cpu_ms"], strict=True)
        times = [(states, ms) for of, states, ms in rows if of == name]
        axis.plot([states for states, _ in times], [ms for _, ms in times], "o", color=colour, markersize=3, alpha=0.6)
        medians = [np.median([ms for states, ms in times if states == size]) for size in sizes]
        axis.plot(sizes, medians, color=colour, label=name)
    axis.set(
        xlabel="states of each channel", ylabel="CPU time of a pass and its gradient, ms", xscale="log", yscale="log"
    )
    axis.legend(frameon=False)
    axis.grid(color="0.9")
    return figure
