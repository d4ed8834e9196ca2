"""f-distill's weights on a ring of modes: which divergence covers them, with density ratios that are exact.

The teacher is a mixture of eight Gaussians on a ring. A student is a generator with eight equal Gaussian parts, whose
means and widths are learned; all begin near one mode. Noise of a random level is added to its samples, and the
difference of the two scores there, weighted by h(r), r = teacher / student, moves them: distribution matching as in a
one-step diffusion student, with the discriminator and both scores replaced by what they estimate. A mode is covered
where the student has at least half of the mass that the teacher gives it.
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
    paper="f-distill (arXiv 2502.15681)",
    source="toy figure, with exact ratios",
    minutes={"smoke": 0.05, "cpu": 0.2},
)
REVERSE, FORWARD, SHANNON = "reverse_kl", "forward_kl", "jensen_shannon"
GENERATORS = (REVERSE, "softened_kl", SHANNON, "squared_hellinger", FORWARD, "jeffreys")
MODES, RADIUS, WIDTH = 8, 2.0, 0.2
LEVELS = (0.1, 2.0)  # of the noise, standard deviations, the logarithm equally likely in between
NEAR = 3.0  # a sample within so many widths of a mode is in it


@dataclass(frozen=True)
class Config(results.Config):
    """The student and its training."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One start and stream of samples each."""
    spread: float = 0.5
    """Standard deviation of the means at the start, around one mode."""
    batch: int = 256
    """Samples of a step."""
    steps: int = 1500
    """Of Adam."""
    rate: float = 0.02
    """Of its first step; it falls to 0."""
    test: int = 4000
    """Samples that the end is measured by."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("spread", self.spread, 1e-3)
        for name in ("batch", "steps", "test"):
            require(name, getattr(self, name), 1)
        require("rate", self.rate, 1e-6)


PRESETS = {"smoke": Config(seeds=(0,), batch=8, steps=3, test=50), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, kind: Any = "ours") -> Claim:
    return Claim(f"distillation/fdistill-{id}", quantity, test, 0.0, kind=kind)


CLAIMS = (
    _claim("mode-coverage", "share of covered modes, forward KL minus reverse KL", "above", "paper"),
    _claim("mode-coverage-shannon", "share of covered modes, Jensen-Shannon minus reverse KL", "above", "paper"),
    _claim(
        "precision",
        "share of samples in a mode, reverse KL minus forward KL: what covering costs",
        "above",
    ),
    _claim(
        "weight-variance",
        "ln of the coefficient of variation of the weights, mean over the training, forward KL minus Jensen-Shannon",
        "above",
    ),
)


def ring() -> np.ndarray:
    """Means of the teacher's modes (MODES, 2).

    Example:
        >>> ring().round(2)[[0, 2]].tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    angles = 2 * np.pi * np.arange(MODES) / MODES
    return RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def log_density(x: Any, means: Any, log_widths: Any, noise: Any) -> jax.Array:
    """Logarithm of the density of an equal mixture of Gaussians with noise on top.

    Args:
        x: (2).
        means: (K, 2).
        log_widths: (K).
        noise: its standard deviation.

    Returns:
        One number.

    Example:
        >>> print(f"{log_density(np.zeros(2), np.zeros((1, 2)), np.zeros(1), 0.0):.4f}")
        -1.8379
    """
    import jax
    import jax.numpy as jnp

    variance = jnp.exp(2 * log_widths) + noise**2
    terms = -jnp.sum((x[None] - means) ** 2, axis=1) / (2 * variance) - jnp.log(2 * jnp.pi * variance)
    return jax.nn.logsumexp(terms) - jnp.log(len(log_widths))


def generated(student: Any, parts: Any, normal: Any) -> Any:
    """Samples (B, 2) of a student from parts (B) and standard normal numbers (B, 2)."""
    import jax.numpy as jnp

    means, log_widths = student
    return means[parts] + jnp.exp(log_widths)[parts, None] * normal


def trained(config: Config, which: Any, key: Any) -> tuple[Any, Any]:
    """One student and the coefficients of variation of its weights.

    Args:
        config: of the training.
        which: 1 at the generator, else 0 (generators).
        key: of the start and the samples.

    Returns:
        (means (K, 2), log widths (K)), and (steps).
    """
    import jax
    import jax.numpy as jnp
    import optax

    import kd

    def derivative(log_ratio: Any) -> Any:
        return jnp.tensordot(which, jnp.stack([kd.GENERATORS[name].derivative(log_ratio) for name in GENERATORS]), 1)

    # which one is an array, so that one program is compiled for all; f itself is not needed
    generator = kd.Generator(jnp.zeros_like, derivative)
    teacher = jnp.asarray(ring(), jnp.float32), jnp.full(MODES, np.log(WIDTH))
    optimizer = optax.adam(optax.cosine_decay_schedule(config.rate, config.steps))
    density_and_score: Any = jax.vmap(jax.value_and_grad(log_density), (0, None, None, 0))

    def step(carry: Any, key: Any) -> Any:
        (student, state), keys = carry, jax.random.split(key, 4)
        parts = jax.random.randint(keys[0], (config.batch,), 0, MODES)
        normal, added = (jax.random.normal(k, (config.batch, 2)) for k in keys[1:3])
        times = jax.random.uniform(keys[3], (config.batch,))
        noise = LEVELS[0] * (LEVELS[1] / LEVELS[0]) ** times
        fixed = jax.lax.stop_gradient(student)
        x = generated(fixed, parts, normal) + noise[:, None] * added
        (log_p, score_p), (log_q, score_q) = (density_and_score(x, *law, noise) for law in (teacher, fixed))
        logit = kd.balance_over_time(log_p - log_q, times)
        weights = kd.f_distill_weights(logit, generator=generator)
        # scores grow as the noise falls
        scaled = noise[:, None] * (score_q - score_p)

        def loss(student: Any) -> Any:
            return kd.f_distill_loss(generated(student, parts, normal), scaled, weights)

        changes, state = optimizer.update(jax.grad(loss)(student), state, student)
        return (optax.apply_updates(student, changes), state), weights.std() / weights.mean()

    begin, rest = jax.random.split(key)
    means = teacher[0][:1] + config.spread * jax.random.normal(begin, (MODES, 2))
    student = means, jnp.full(MODES, np.log(config.spread))
    (student, _), variation = jax.lax.scan(
        step, (student, optimizer.init(student)), jax.random.split(rest, config.steps)
    )
    return student, variation


@cache
def _program(config: Config) -> Any:
    """Keys -> samples (generators, seeds, test, 2), variation of the weights (generators, seeds)."""
    import jax
    import jax.numpy as jnp

    def one(which: Any, key: Any) -> Any:
        student, variation = trained(config, which, jax.random.fold_in(key, 0))
        keys = jax.random.split(jax.random.fold_in(key, 1))
        parts = jax.random.randint(keys[0], (config.test,), 0, MODES)
        samples = generated(student, parts, jax.random.normal(keys[1], (config.test, 2)))
        return samples, variation.mean()

    every = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return jax.jit(lambda keys: every(jnp.eye(len(GENERATORS)), keys))


def coverage(samples: np.ndarray) -> tuple[float, float]:
    """Share of the modes that samples (N, 2) cover, and share of the samples that are in a mode.

    Example:
        >>> coverage(np.concatenate([ring()[:2], ring()[:1], np.zeros((1, 2))]))
        (0.25, 0.75)
    """
    distance = np.linalg.norm(samples[:, None] - ring()[None], axis=-1)
    inside = (distance < NEAR * WIDTH) & (distance == distance.min(1, keepdims=True))
    return float((inside.mean(0) >= 0.5 / MODES).mean()), float(inside.any(1).mean())


def run(config: Config, run_dir: Path) -> Result:
    """Train every student and count its modes."""
    import jax
    import jax.numpy as jnp

    keys = jnp.stack([jax.random.key(seed) for seed in config.seeds])
    samples, variation = jax.tree.map(np.asarray, _program(config)(keys))
    table: dict[str, list] = {name: [] for name in ("generator", "seed", "modes", "precision", "variation")}
    found = {}
    for place, name in enumerate(GENERATORS):
        each = np.array([coverage(x) for x in samples[place]])
        found[name] = {"modes": each[:, 0], "precision": each[:, 1], "variation": np.maximum(variation[place], 1e-12)}
        for seed, *row in zip(config.seeds, *found[name].values(), strict=True):
            for column, entry in zip(table.values(), (name, seed, *(float(x) for x in row)), strict=True):
                column.append(entry)
    values = {
        "mode-coverage": found[FORWARD]["modes"] - found[REVERSE]["modes"],
        "mode-coverage-shannon": found[SHANNON]["modes"] - found[REVERSE]["modes"],
        "precision": found[REVERSE]["precision"] - found[FORWARD]["precision"],
        "weight-variance": np.log(found[FORWARD]["variation"] / found[SHANNON]["variation"]),
    }
    measured: dict[str, Any] = {f"distillation/fdistill-{id}": x.tolist() for id, x in values.items()}
    series = {name: {"samples": samples[place, 0, :500]} for place, name in enumerate(GENERATORS)}
    return Result(measured, {"students": table}, series)


def plot(result: StoredResult) -> Figure:
    """Samples of the first seed's students over the teacher's modes."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["students"].items()}
    figure, axes = plt.subplots(1, len(GENERATORS), figsize=(14, 2.8), layout="constrained", sharex=True, sharey=True)
    for axis, name in zip(axes, GENERATORS, strict=True):
        axis.plot(*result.series[name]["samples"].T, ".", markersize=2)
        axis.plot(*ring().T, "kx", markersize=5)
        modes = table["modes"][table["generator"] == name].mean()
        axis.set_title(f"{name.replace('_', ' ')}\n{100 * modes:.0f} % of the modes", fontsize=9)
        axis.set_aspect("equal")
    return figure
