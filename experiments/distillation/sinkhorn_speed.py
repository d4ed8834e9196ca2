"""Time of the Sinkhorn loss, forward and backward, beside that of ott-jax on the same cost.

256 student outputs and as many of a teacher with 1,000 classes, 20 iterations, entropy 0.1. Both get the same L1 costs,
computed by the same function, and both give the gradient by the student's logits. ott-jax (if it is installed; it is no
dependency) runs exactly 20 iterations and differentiates through them, as we do: its implicit gradient is for plans
that have converged. It works in logarithms, its default, or with the kernel, which has no small entropies. The costs
are compared first. CPU times in turns; each seed is a repetition.

Half of our time goes into the costs of all pairs of outputs and their gradient, which is the same for all; so the
iterations are also timed alone, from given costs to their gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="SinKD: Sinkhorn distance minimisation for knowledge distillation (arXiv 2402.17110)",
    source="its loss (speed: ours)",
    minutes={"smoke": 0.1, "cpu": 0.2},
)
OURS, RELEASED, PEER, PEER_KERNEL = ("kd", "kd, released arithmetic", "ott-jax", "ott-jax, kernel")
GIVEN = " (given costs)"


@dataclass(frozen=True)
class Config(results.Config):
    """The batch and the transport."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Repetitions."""
    batch: int = 256
    """Outputs of each of the two."""
    classes: int = 1000
    """Of an output."""
    eps: float = 0.1
    """Strength of the entropy."""
    n_iters: int = 20
    """Iterations."""
    calls: int = 5
    """Of each program in a repetition."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("batch", "classes", "n_iters", "calls"):
            require(name, getattr(self, name), 1)
        require("eps", self.eps, 1e-3)


PRESETS = {"smoke": Config(seeds=(0,), batch=8, classes=10, calls=1), "cpu": Config()}

CLAIMS = (
    Claim(
        "distillation/sinkhorn-faster",
        "CPU time of ott-jax in logarithms over ours, forward and backward",
        "above",
        1.5,
        kind="ours",
    ),
    Claim(
        "distillation/sinkhorn-faster-kernel",
        "CPU time of ott-jax with the kernel over ours, forward and backward",
        "above",
        1.5,
        kind="ours",
    ),
    Claim(
        "distillation/sinkhorn-faster-given-costs",
        "CPU time of the faster form of ott-jax over ours, forward and backward, from given costs",
        "above",
        1.5,
        kind="ours",
    ),
    Claim(
        "distillation/sinkhorn-same-cost",
        "difference of the costs of ott-jax's plan and ours, relative to the cost",
        "below",
        1e-4,
        kind="control",
        deterministic=True,
    ),
    Claim(
        "distillation/sinkhorn-small-entropy",
        "entries of value and gradient that are not finite at an entropy of 1e-3, float32",
        "below",
        0.0,
        kind="ours",
        deterministic=True,
    ),
)


def losses(config: Config) -> dict[str, Callable[[Any, Any], jax.Array]]:
    """(student logits, teacher logits) -> transport cost summed over the batch, in every form that is installed."""
    import jax

    import kd
    from kd.classification.sinkhorn import l1_costs

    def loss(of_costs: Callable[[Any], jax.Array], s: Any, t: Any) -> jax.Array:
        return of_costs(l1_costs(jax.nn.softmax(s / 2), jax.lax.stop_gradient(jax.nn.softmax(t / 2))))

    args: dict[str, Any] = {"eps": config.eps, "n_iters": config.n_iters}
    ours = {OURS: partial(kd.sinkd, **args), RELEASED: partial(kd.sinkd, log_domain=False, **args)}
    return {name: ours.get(name, partial(loss, of_costs)) for name, of_costs in transports(config).items()}


def transports(config: Config) -> dict[str, Callable[[Any], jax.Array]]:
    """Costs (B, B) -> transport cost summed over the batch, in every form that is installed."""
    import jax.numpy as jnp

    import kd

    def transport(plan: Callable[[Any], jax.Array], cost: Any) -> jax.Array:
        return jnp.sum(cost * plan(cost))

    args: dict[str, Any] = {"eps": config.eps, "n_iters": config.n_iters}
    plans: dict[str, Any] = {
        OURS: partial(kd.sinkhorn, **args),
        RELEASED: partial(kd.sinkhorn, log_domain=False, **args),
    }
    spec = find_spec("ott")
    if spec is not None and spec.origin is not None:  # a folder of that name is no package
        plans |= {PEER: partial(peer, config, True), PEER_KERNEL: partial(peer, config, False)}
    return {name: partial(transport, plan) for name, plan in plans.items()}


def peer(config: Config, logarithms: bool, cost: Any) -> jax.Array:
    """The plan of ott-jax, whose masses sum to 1, with rows and columns that do.

    Args:
        config: of the transport.
        logarithms: whether it iterates these, or the kernel.
        cost: (B, B).

    Returns:
        The plan (B, B).
    """
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    solver = sinkhorn.Sinkhorn(
        lse_mode=logarithms,
        threshold=-1.0,
        min_iterations=config.n_iters,
        max_iterations=config.n_iters,
        inner_iterations=config.n_iters,
        implicit_diff=None,
    )
    problem = linear_problem.LinearProblem(geometry.Geometry(cost_matrix=cost, epsilon=config.eps))
    return solver(problem).matrix * len(cost)


def logits(config: Config) -> list[np.ndarray]:
    """Random logits of student and teacher."""
    drawn = 3 * np.random.default_rng(0).standard_normal((2, config.batch, config.classes))
    return list(drawn.astype(np.float32))


def run(config: Config, run_dir: Path) -> Result:
    """Compile, compare the costs, and time in turns."""
    import jax

    from experiments.scan_benchmark.measure import take_turns
    from kd.classification.sinkhorn import l1_costs

    arrays = [jax.device_put(x) for x in logits(config)]
    given = [l1_costs(*(jax.nn.softmax(x / 2) for x in arrays))]
    inputs: dict[str, tuple[Any, list[Any]]] = {name: (loss, arrays) for name, loss in losses(config).items()}
    inputs |= {name + GIVEN: (of_costs, given) for name, of_costs in transports(config).items()}
    programs = {
        name: jax.jit(jax.value_and_grad(loss)).lower(*operands).compile() for name, (loss, operands) in inputs.items()
    }
    costs = {name: float(program(*inputs[name][1])[0]) for name, program in programs.items()}
    times: dict[str, list] = {"form": [], "repetition": [], "cpu_ms": [], "wall_ms": []}
    calls = [partial(_finished, program, inputs[name][1]) for name, program in programs.items()]
    for seed in config.seeds:
        for name, timing in zip(programs, take_turns(calls, config.calls), strict=True):
            for column, entry in zip(times.values(), (name, seed, timing.cpu_ms, timing.wall_ms), strict=True):
                column.append(entry)
    measured = _measured(costs, times)
    measured["distillation/sinkhorn-small-entropy"] = [not_finite(config, arrays)]
    table: dict[str, list] = {"form": list(costs), "cost": list(costs.values())}
    return Result(measured, {"times": times, "costs": table})


def not_finite(config: Config, arrays: list[Any]) -> float:
    """Entries of value and gradient that are not finite at an entropy of 1e-3, for outputs that are nearly certain."""
    import jax

    import kd

    both = jax.jit(jax.value_and_grad(partial(kd.sinkd, eps=1e-3, n_iters=config.n_iters)))
    found = jax.tree.leaves(both(*(10 * x for x in arrays)))
    return float(sum((~np.isfinite(np.asarray(x))).sum() for x in found))


def _finished(program: Any, arrays: list[Any]) -> Any:
    import jax

    return jax.block_until_ready(program(*arrays))


def _measured(costs: dict[str, float], times: dict[str, list]) -> dict[str, Any]:
    """Ratios of each repetition; nothing about ott-jax where it is not installed."""

    def cpu(form: str) -> np.ndarray:
        return np.array([ms for name, ms in zip(times["form"], times["cpu_ms"], strict=True) if name == form])

    if PEER not in costs:
        return {}
    return {
        "distillation/sinkhorn-faster": (cpu(PEER) / cpu(OURS)).tolist(),
        "distillation/sinkhorn-faster-kernel": (cpu(PEER_KERNEL) / cpu(OURS)).tolist(),
        "distillation/sinkhorn-faster-given-costs": (
            np.minimum(cpu(PEER + GIVEN), cpu(PEER_KERNEL + GIVEN)) / cpu(OURS + GIVEN)
        ).tolist(),
        "distillation/sinkhorn-same-cost": [abs(costs[PEER] / costs[OURS] - 1)],
    }


def plot(result: StoredResult) -> Figure:
    """CPU time of each form, one point per repetition."""
    from matplotlib import pyplot as plt

    times = result.tables["times"]
    names = list(dict.fromkeys(times["form"]))
    figure, axis = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    for place, name in enumerate(names):
        found = [cpu for form, cpu in zip(times["form"], times["cpu_ms"], strict=True) if form == name]
        axis.plot(found, [place] * len(found), "o", color=f"C{place}")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="CPU time of value and gradient, ms", xlim=(0, None))
    axis.invert_yaxis()
    return figure
