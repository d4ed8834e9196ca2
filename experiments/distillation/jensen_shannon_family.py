"""The generalised Jensen-Shannon divergence at the ends of its range, where released code puts the two KLs.

JSD_beta = beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q, of random pairs in float64. It goes to 0 at
both ends; what goes to KL(p, q) is JSD_beta / beta, and to KL(q, p) JSD_beta / (1 - beta). Code that returns KL(p, q)
at 0 and KL(q, p) at 1 therefore jumps there, in value and in gradient.
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
    paper="GKD, on-policy distillation (arXiv 2306.13649)",
    source="its family of divergences, with the special cases of released code",
    minutes={"smoke": 0.05, "cpu": 0.05},
)
END = 1e-4  # how far from 0 and 1 claims are measured


@dataclass(frozen=True)
class Config(results.Config):
    """The pairs."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One pair of distributions each."""
    vocabulary: int = 50
    """Of them."""
    spread: float = 2.0
    """Standard deviation of the logits."""
    betas: tuple[float, ...] = (END, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9, 1 - 1e-2, 1 - 1e-3, 1 - END)
    """Within 0 and 1, rising; claims are about the first and the last."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("vocabulary", self.vocabulary, 2)
        require("spread", self.spread, 1e-3)
        require("the smallest of betas", min(self.betas, default=0), 1e-9, below=1)
        require("the largest of betas", max(self.betas), 1e-9, below=1)


PRESETS = {"smoke": Config(seeds=(0,), vocabulary=5, betas=(END, 0.5, 1 - END)), "cpu": Config()}

CLAIMS = (
    Claim(
        "distillation/gkd-jsd-discontinuity",
        "distance of JSD_beta / beta from KL(p, q) at 1e-4, and of JSD_beta / (1 - beta) from KL(q, p) at 1 - 1e-4, "
        "relative, the larger",
        "below",
        1e-2,
        kind="ours",
    ),
    Claim(
        "distillation/gkd-jsd-jump",
        "JSD_beta at 1e-4 over KL(p, q), which released code returns at 0, and at the other end; the larger",
        "below",
        1e-3,
        kind="ours",
    ),
    Claim(
        "distillation/gkd-jsd-gradient",
        "cosine of the gradients of JSD_beta at 1e-4 and of KL(p, q), and at the other end; the smaller",
        "above",
        0.99,
        kind="ours",
    ),
)


def pair(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of student and teacher."""
    s, t = config.spread * np.random.default_rng(seed).standard_normal((2, config.vocabulary))
    return s, t


def family(config: Config, s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and gradients: of KL(p, q), of every beta, of KL(q, p).

    Args:
        config: of the betas.
        s: student logits (V,).
        t: teacher logits (V,).

    Returns:
        (betas + 2,) and (betas + 2, V), float64.
    """
    import jax

    with jax.enable_x64(True):
        found = _program(config.betas)(s, t)
    return np.array([float(value) for value, _ in found]), np.stack([np.asarray(g) for _, g in found])


@cache
def _program(betas: tuple[float, ...]) -> Any:
    import jax

    import kd

    kinds: list[tuple[str, dict[str, Any]]] = [("jsd", {"beta": beta}) for beta in betas]
    kinds = [("forward_kl", {}), *kinds, ("reverse_kl", {})]

    def all_of_it(s: Any, t: Any) -> list[Any]:
        return [
            jax.value_and_grad(lambda s, kind=kind, args=args: kd.token_divergence(kind, s, t, **args))(s)
            for kind, args in kinds
        ]

    return jax.jit(all_of_it)


def run(config: Config, run_dir: Path) -> Result:
    """Measure all pairs."""
    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    values = []
    for seed in config.seeds:
        value, gradient = family(config, *pair(config, seed))
        values.append(value)
        for claim, number in zip(CLAIMS, ends(np.array(config.betas), value, gradient), strict=True):
            measured[claim.id].append(number)
    stacked = np.stack(values)
    columns = ("forward KL", *(f"JSD {beta:g}" for beta in config.betas), "reverse KL")
    table: dict[str, list] = {"seed": list(config.seeds)}
    table |= {name: stacked[:, i].tolist() for i, name in enumerate(columns)}
    series = {"family": {"beta": np.array(config.betas), "value": stacked}}
    return Result(measured, {"family": table}, series)


def ends(betas: np.ndarray, value: np.ndarray, gradient: np.ndarray) -> tuple[float, float, float]:
    """What the three claims are about.

    Example:
        >>> value = np.array([2.0, 0.2, 0.1, 1.0])
        >>> [round(x, 3) for x in ends(np.array([0.1, 0.9]), value, np.ones((4, 2)))]
        [0.0, 0.1, 1.0]
    """
    scaled = value[1] / betas[0] / value[0], value[-2] / (1 - betas[-1]) / value[-1]
    unit = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    return (
        float(max(abs(x - 1) for x in scaled)),
        float(max(value[1] / value[0], value[-2] / value[-1])),
        float(min(unit[0] @ unit[1], unit[-1] @ unit[-2])),
    )


def plot(result: StoredResult) -> Figure:
    """The family, plain and divided by beta (1 - beta), relative to the mean of the two KLs."""
    from matplotlib import pyplot as plt

    beta, values = result.series["family"]["beta"], result.series["family"]["value"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for value in values:
        for axis, scale in zip(axes, (1, beta * (1 - beta)), strict=True):
            line = axis.plot(beta, value[1:-1] / scale, "o-", markersize=3, linewidth=1)[0]
            axis.plot([0, 1], value[[0, -1]], "x", color=line.get_color())
    axes[0].set(xlabel="beta", ylabel="JSD; x: special cases of released code")
    axes[1].set(xlabel="beta", ylabel="JSD / (beta (1 - beta)); x: the KLs")
    return figure
