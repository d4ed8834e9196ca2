"""The batch-wise Sinkhorn loss against its entropy: limits, bias at s = t, order of the rows, gradient of the plan.

Random logits of a batch, float64. Its limits are the optimal assignment (SciPy's) and the mean cost. At s = t the loss
is not 0 and has a gradient; the debiased form subtracts half of the cost of each batch to itself. The plan depends on
the student too: a gradient that holds it fixed is another one.
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
    paper="SinKD: Sinkhorn distance minimisation for knowledge distillation (arXiv 2402.17110)",
    source="its loss at several entropies",
    minutes={"smoke": 0.1, "cpu": 0.06},
)
RELEASED = 0.1


@dataclass(frozen=True)
class Config(results.Config):
    """The batches and the entropies."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One batch each."""
    batch: int = 8
    """Outputs of each of the two."""
    classes: int = 10
    """Of an output."""
    spread: float = 3.0
    """Standard deviation of the logits: outputs that are far apart."""
    overlapping: float = 1.0
    """Another, of outputs that overlap, for the bias at s = t."""
    entropies: tuple[float, ...] = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 1000.0)
    """Rising."""
    converged: int = 20_000
    """Iterations where the limits are looked at; 20, the released number, elsewhere."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("batch", "classes", "converged"):
            require(name, getattr(self, name), 1)
        require("spread", self.spread, 1e-3)
        require("overlapping", self.overlapping, 1e-3, self.spread)
        require("the smallest of entropies", min(self.entropies, default=0), 1e-4)


PRESETS = {"smoke": Config(seeds=(0,), batch=3, classes=4, entropies=(0.01, 100.0), converged=50), "cpu": Config()}


def _claim(name: str, quantity: str, test: Any, expected: float, kind: Any = "ours") -> Claim:
    return Claim(f"distillation/sinkd-{name}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim(
        "epsilon-limits",
        "distance of the cost at the least entropy from the best assignment, and at the largest from the mean cost, "
        "relative, the larger",
        "below",
        1e-3,
    ),
    _claim("permutation-blind", "change of the loss by another order of the student's rows, relative", "below", 1e-9),
    _claim("entropic-bias", "loss per output at s = t, entropy 0.1", "above", 0.05),
    _claim("entropic-bias-gradient", "norm of the gradient by the logits at s = t, entropy 0.1", "above", 0.01),
    _claim(
        "entropic-bias-overlapping", "loss at s = t, entropy 0.1, overlapping outputs, the whole batch", "above", 0.06
    ),
    _claim(
        "entropic-bias-overlapping-gradient",
        "norm of the gradient by the logits at s = t, entropy 0.1, overlapping outputs",
        "above",
        0.014,
    ),
    _claim(
        "entropic-bias-direction",
        "cosine of the step downhill at s = t, in probabilities, with the way of each row to the mean row",
        "above",
        0.0,
    ),
    _claim("debiased", "the larger of value and norm of the gradient at s = t, debiased, entropy 0.1", "below", 1e-4),
    _claim(
        "unrolled-gradient",
        "cosine of the gradient through the plan with the one that holds the plan fixed, entropy 0.1",
        "below",
        0.99,
    ),
)


@cache
def _programs(converged: int) -> dict[str, Any]:
    """Compiled: cost at an entropy; and all that is measured at the released one."""
    import jax
    import jax.numpy as jnp

    import kd

    def at_released(s: Any, t: Any, order: Any) -> dict[str, Any]:
        def by_probability(q: Any) -> Any:
            return kd.sinkd(2 * jnp.log(q), t, eps=RELEASED)

        return {
            "value": kd.sinkd(s, t, eps=RELEASED),
            "permuted": kd.sinkd(s[order], t, eps=RELEASED),
            "through": jax.grad(lambda s: kd.sinkd(s, t, eps=RELEASED))(s),
            "fixed": jax.grad(lambda s: kd.sinkd(s, t, eps=RELEASED, detach_plan=True))(s),
            "same": kd.sinkd(t, t, eps=RELEASED),
            "same gradient": jax.grad(lambda s: kd.sinkd(s, t, eps=RELEASED))(t),
            "same by probability": jax.grad(by_probability)(jax.nn.softmax(t / 2)),
            "debiased": kd.sinkd(t, t, eps=RELEASED, debiased=True),
            "debiased gradient": jax.grad(lambda s: kd.sinkd(s, t, eps=RELEASED, debiased=True))(t),
        }

    def cost(s: Any, t: Any, eps: Any) -> tuple[Any, Any]:
        return kd.sinkd(s, t, eps=eps, n_iters=converged), kd.sinkd(t, t, eps=eps, n_iters=converged)

    return {"cost": jax.jit(cost), "released": jax.jit(at_released)}


def batch(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of student and teacher.

    Example:
        >>> s, t = batch(Config(), 0)
        >>> s.shape
        (8, 10)
    """
    s, t = config.spread * np.random.default_rng(seed).standard_normal((2, config.batch, config.classes))
    return s, t


def run(config: Config, run_dir: Path) -> Result:
    """Measure every batch at every entropy."""
    import jax

    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    table: dict[str, list] = {name: [] for name in ("seed", "entropy", "cost", "same", "assignment", "mean cost")}
    with jax.enable_x64(True):
        programs = _programs(config.converged)
        for seed in config.seeds:
            s, t = batch(config, seed)
            best, mean = limits(s, t)
            costs = [[float(x) for x in programs["cost"](s, t, eps)] for eps in config.entropies]
            for eps, (cost, same) in zip(config.entropies, costs, strict=True):
                for column, entry in zip(table.values(), (seed, eps, cost, same, best, mean), strict=True):
                    column.append(entry)
            order = np.random.default_rng([seed, 1]).permutation(config.batch)
            found = jax.tree.map(np.asarray, programs["released"](s, t, order))
            near = jax.tree.map(np.asarray, programs["released"](s, t * config.overlapping / config.spread, order))
            values = _at_released(found, t) | {
                "epsilon-limits": max(abs(costs[0][0] / best - 1), abs(costs[-1][0] / mean - 1)),
                "entropic-bias-overlapping": near["same"],
                "entropic-bias-overlapping-gradient": np.linalg.norm(near["same gradient"]),
            }
            for name, value in values.items():
                measured[f"distillation/sinkd-{name}"].append(float(value))
    return Result(measured, {"entropies": table})


def limits(s: np.ndarray, t: np.ndarray) -> tuple[float, float]:
    """Cost of the best assignment, and the mean cost times the outputs.

    Example:
        >>> s = np.array([[40.0, 0.0], [0.0, 40.0]])
        >>> [round(x, 6) for x in limits(s, s[::-1])]
        [0.0, 2.0]
    """
    from scipy.optimize import linear_sum_assignment

    costs = np.abs(_softmax(s / 2)[:, None] - _softmax(t / 2)[None]).sum(2)
    return float(costs[linear_sum_assignment(costs)].sum()), float(len(s) * costs.mean())


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _at_released(found: dict[str, np.ndarray], t: np.ndarray) -> dict[str, float]:
    p = _softmax(t / 2)
    return {
        "permutation-blind": abs(found["permuted"] / found["value"] - 1),
        "entropic-bias": found["same"] / len(t),
        "entropic-bias-gradient": np.linalg.norm(found["same gradient"]),
        "entropic-bias-direction": cosine(-found["same by probability"], p.mean(0, keepdims=True) - p),
        "debiased": max(abs(found["debiased"]), np.linalg.norm(found["debiased gradient"])),
        "unrolled-gradient": cosine(found["through"], found["fixed"]),
    }


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Cosine of the angle of two arrays.

    Example:
        >>> cosine(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]]))
        0.0
    """
    return float((x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y)))


def plot(result: StoredResult) -> Figure:
    """Cost between its limits, and cost of a batch to itself, against the entropy."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["entropies"].items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for seed in result.seeds:
        here = table["seed"] == seed
        share = (table["cost"] - table["assignment"]) / (table["mean cost"] - table["assignment"])
        axes[0].semilogx(table["entropy"][here], share[here], "o-", markersize=3, linewidth=1)
        axes[1].semilogx(table["entropy"][here], table["same"][here], "o-", markersize=3, linewidth=1)
    axes[0].set(xlabel="entropy", ylabel="cost: 0 best assignment, 1 mean cost")
    axes[1].set(xlabel="entropy", ylabel="loss at s = t")
    for axis in axes:
        axis.axvline(RELEASED, color="black", linewidth=0.8, linestyle="--")
    return figure
