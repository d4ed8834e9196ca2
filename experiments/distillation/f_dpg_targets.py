"""f-DPG on known targets: which divergence brings a policy nearest to which target, from samples.

A policy over 64 states starts from a base model and is trained towards a target by sampled gradients, a batch from the
policy itself at every step. Targets: the base model tilted by a reward; the base model kept to a set of states that are
rare in it, with a hundredth of the mass elsewhere; and a model with other modes. The rewards -f'(pi / p) have the mean
of the last 1024 as their baseline, or none. Four distances from the target are followed, each of them the objective of
one of the generators.

The policy can be any target, so that exact gradients lead there whatever the generator: what differs is the way and the
noise.
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
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="f-DPG (arXiv 2302.08215)",
    source="its comparison of divergences, on a table",
    minutes={"smoke": 0.05, "cpu": 0.1},
)
FORWARD, REVERSE, SHANNON, CHI2 = "forward_kl", "reverse_kl", "jensen_shannon", "chi2_qp"
GENERATORS = (FORWARD, REVERSE, SHANNON, "total_variation", CHI2)
METRICS = (FORWARD, REVERSE, "jensen_shannon", "total_variation")
TARGETS = ("tilted", "constrained", "other modes")
BASELINE, NONE, EXACT = GRADIENTS = ("sampled, baseline", "sampled", "exact")
REMEMBERED = 1024  # rewards in the baseline, as released
OUTSIDE = 0.01  # mass of the constrained target where the constraint does not hold


@dataclass(frozen=True)
class Config(results.Config):
    """The targets and the trainings."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One base model, reward and stream of samples each."""
    states: int = 64
    """Of a policy."""
    spread: float = 1.5
    """Standard deviation of the logits of the base model, of the reward and of the other modes."""
    batch: int = 32
    """Samples of a step."""
    steps: int = 500
    """Of Adam."""
    exact_steps: int = 2000
    """With exact gradients."""
    rate: float = 0.05
    """Of the first step; it falls to 0."""
    records: int = 50
    """Of the distances, equally far apart."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("states", self.states, 8)
        require("spread", self.spread, 1e-3)
        require("batch", self.batch, 1, REMEMBERED)
        for name in ("steps", "exact_steps", "records"):
            require(name, getattr(self, name), 1)
        require("records", self.records, 1, self.steps)
        require("rate", self.rate, 1e-6)


PRESETS = {"smoke": Config(seeds=(0,), states=8, batch=4, steps=4, exact_steps=4, records=2), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, expected: float, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/fdpg-{id}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim(
        "converges",
        "total variation from the target after exact gradients, the largest over generators and targets",
        "below",
        0.05,
        "control",
    ),
    _claim(
        "no-single-best",
        "how many generators end nearest in total variation to one of the three targets or more",
        "above",
        1.5,
    ),
    _claim(
        "js-tradeoff",
        "ln of the final distance by Jensen-Shannon over the least of the five generators, mean over four distances "
        "and three targets",
        "below",
        float(np.log(1.5)),
    ),
    _claim(
        "js-over-forward",
        "ln of the final distance, Jensen-Shannon minus forward KL, mean over four distances and three targets",
        "below",
        0.0,
    ),
    _claim(
        "chi2-unstable",
        "ln of the largest norm of a sampled gradient over the median one, chi^2 minus Jensen-Shannon, mean over "
        "targets",
        "above",
        float(np.log(3)),
        "ours",
    ),
    _claim(
        "baseline",
        "ln of the final total variation, with a baseline minus without, mean over generators and targets",
        "below",
        0.0,
    ),
)


def base_and_targets(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities of the base model (S) and of the targets (3, S).

    Example:
        >>> base, targets = base_and_targets(Config(), 0)
        >>> targets.shape, np.exp(targets).sum(1).round(6).tolist()
        ((3, 64), [1.0, 1.0, 1.0])
    """
    random = np.random.default_rng(seed)
    z, reward, other = config.spread * random.standard_normal((3, config.states))
    rare = np.argsort(np.argsort(z)) < config.states // 4
    inside, outside = (np.where(which, z, -np.inf) for which in (rare, ~rare))
    constrained = np.logaddexp(np.log1p(-OUTSIDE) + _normalised(inside), np.log(OUTSIDE) + _normalised(outside))
    return _normalised(z), np.stack([_normalised(z + reward), constrained, _normalised(other)])


def _normalised(z: np.ndarray) -> np.ndarray:
    return z - np.logaddexp.reduce(z)


def distances(z: Any, log_p: Any) -> jax.Array:
    """The four distances of a policy with logits z (S) from a target (S), in the order of METRICS."""
    import jax.numpy as jnp

    import kd

    return jnp.stack([kd.token_divergence("f_divergence", z, log_p, generator=name) for name in METRICS])


def sampled_path(config: Config, which: Any, baseline: Any, base: Any, log_p: Any, key: Any) -> Any:
    """Train one policy by samples.

    Args:
        config: of the training.
        which: 1 at the generator, else 0 (generators).
        baseline: 1 with, 0 without.
        base: log probabilities that it starts from (S).
        log_p: the target's (S).
        key: of the samples.

    Returns:
        Distances before every step and at the end (steps + 1, 4), and norms of the gradients (steps).
    """
    import jax
    import jax.numpy as jnp
    import optax

    import kd

    optimizer = optax.adam(optax.cosine_decay_schedule(config.rate, config.steps))

    def derivative(log_ratio: Any) -> Any:
        return jnp.tensordot(which, jnp.stack([kd.GENERATORS[name].derivative(log_ratio) for name in GENERATORS]), 1)

    # which one is an array, so that one program is compiled for all; f itself is not needed
    generator = kd.Generator(jnp.zeros_like, derivative)

    def loss(z: Any, states: Any, subtracted: Any) -> Any:
        log_pi = jax.nn.log_softmax(z)[states]
        return kd.f_dpg_loss(log_pi, log_p[states], generator=generator, baseline=subtracted)

    def step(carry: Any, key: Any) -> Any:
        z, state, recent = carry
        states = jax.random.categorical(key, z, shape=(config.batch,))
        gradient = jax.grad(loss)(z, states, baseline * kd.baseline_value(recent))
        cost = kd.f_dpg_cost(jax.nn.log_softmax(z)[states], log_p[states], generator=generator)
        recent = kd.baseline_update(recent, cost)
        changes, state = optimizer.update(gradient, state, z)
        return (optax.apply_updates(z, changes), state, recent), (distances(z, log_p), jnp.linalg.norm(gradient))

    start = base, optimizer.init(base), kd.baseline_start(REMEMBERED)
    (z, *_), (path, norms) = jax.lax.scan(step, start, jax.random.split(key, config.steps))
    return jnp.concatenate([path, distances(z, log_p)[None]]), norms


def exact_end(config: Config, which: Any, base: Any, log_p: Any) -> jax.Array:
    """Distances (4) of a policy trained by exact gradients."""
    from experiments.distillation.chains import one_of
    from experiments.distillation.descent import fitted

    divergence = one_of([("f_divergence", {"generator": name}) for name in GENERATORS], which)

    def loss(z: Any, _: Any) -> Any:
        return divergence(z, log_p)

    return distances(fitted(loss, base, steps=config.exact_steps, rate=config.rate)[0], log_p)


@cache
def _program(config: Config) -> Any:
    """(bases, targets, keys) -> paths (generators, seeds, targets, 2, steps + 1, 4), norms, ends (.., targets, 4)."""
    import jax
    import jax.numpy as jnp

    def one(which: Any, base: Any, log_p: Any, key: Any) -> Any:
        paths = jax.vmap(lambda b: sampled_path(config, which, b, base, log_p, key))(jnp.array([1.0, 0.0]))
        return *paths, exact_end(config, which, base, log_p)

    over_seeds = jax.vmap(jax.vmap(one, (None, None, 0, None)), (None, 0, 0, 0))
    every = jnp.eye(len(GENERATORS))
    return jax.jit(lambda *given: jax.vmap(over_seeds, (0, None, None, None))(every, *given))


def run(config: Config, run_dir: Path) -> Result:
    """Train every policy towards every target."""
    import jax
    import jax.numpy as jnp

    drawn = [base_and_targets(config, seed) for seed in config.seeds]
    bases, targets = (jnp.asarray(np.stack(part), jnp.float32) for part in zip(*drawn, strict=True))
    keys = jnp.stack([jax.random.key(seed) for seed in config.seeds])
    every = jax.tree.map(np.asarray, _program(config)(bases, targets, keys))
    found = {name: [part[place] for part in every] for place, name in enumerate(GENERATORS)}
    ends = {(name, BASELINE): paths[:, :, 0, -1] for name, (paths, _, _) in found.items()}
    ends |= {(name, NONE): paths[:, :, 1, -1] for name, (paths, _, _) in found.items()}
    ends |= {(name, EXACT): exact for name, (_, _, exact) in found.items()}
    jumps = {
        name: np.log(norms[:, :, 0].max(-1) / np.maximum(np.median(norms[:, :, 0], -1), 1e-12))
        for name, (_, norms, _) in found.items()
    }
    table: dict[str, list] = {name: [] for name in ("generator", "gradient", "target", "seed", *METRICS)}
    for (name, gradient), values in ends.items():
        for (row, column), _ in np.ndenumerate(values[:, :, 0]):
            entries = (name, gradient, TARGETS[column], config.seeds[row], *values[row, column].tolist())
            for cells, entry in zip(table.values(), entries, strict=True):
                cells.append(entry)
    measured = {f"distillation/fdpg-{id}": values.tolist() for id, values in compared(ends, jumps).items()}
    when = np.linspace(0, config.steps, config.records + 1).astype(int)
    series = {name: {"step": when, "path": paths[:, :, :, when].mean(0)} for name, (paths, _, _) in found.items()}
    return Result(measured, {"ends": table}, series)


def compared(ends: dict[tuple[str, str], np.ndarray], jumps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed.

    Args:
        ends: (generator, gradient) -> final distances (seeds, targets, 4).
        jumps: generator -> ln of the largest gradient over the median one (seeds, targets).

    Returns:
        Claim, without its folder and prefix -> (seeds).
    """
    variation = METRICS.index("total_variation")
    logs = {key: np.log(np.maximum(values, 1e-12)) for key, values in ends.items()}
    sampled = np.stack([logs[name, BASELINE] for name in GENERATORS])
    winners = sampled[..., variation].argmin(0)
    without = np.stack([logs[name, NONE] for name in GENERATORS])
    return {
        "converges": np.max([ends[name, EXACT][..., variation].max(1) for name in GENERATORS], axis=0),
        "no-single-best": np.array([float(len(set(row))) for row in winners]),
        "js-tradeoff": (logs[SHANNON, BASELINE] - sampled.min(0)).mean((1, 2)),
        "js-over-forward": (logs[SHANNON, BASELINE] - logs[FORWARD, BASELINE]).mean((1, 2)),
        "chi2-unstable": (jumps[CHI2] - jumps[SHANNON]).mean(1),
        "baseline": (sampled - without)[..., variation].mean((0, 2)),
    }


def plot(result: StoredResult) -> Figure:
    """Two distances over the steps, a column per target; solid with a baseline, dashed without."""
    from matplotlib import pyplot as plt

    shown = (FORWARD, "total_variation")
    figure, axes = plt.subplots(len(shown), len(TARGETS), figsize=(11, 6), layout="constrained", sharex=True)
    for (row, column), axis in np.ndenumerate(axes):
        for number, name in enumerate(GENERATORS):
            series = result.series[name]
            for place, style in enumerate(("-", "--")):
                label = name.replace("_", " ") if not place else None
                curve = series["path"][column, place, :, METRICS.index(shown[row])]
                axis.plot(series["step"], curve, style, color=f"C{number}", linewidth=1, label=label)
        axis.set_yscale("log")
        if not row:
            axis.set_title(TARGETS[column])
        if not column:
            axis.set_ylabel(shown[row].replace("_", " "))
    axes[0, 0].legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    return figure
