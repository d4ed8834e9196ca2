"""KDRL on a task that can be verified: digits that sum to a number, a tabular policy and a teacher that is right often.

A prompt asks for a number; a response is a sequence of digits, right if its sum has that remainder. The policy is a
table by position, remainder that is missing and digit, and so is the teacher, whose last digit is right with a given
probability and whose other digits are a random habit. Rewards are 0 or 1, GRPO's advantage; beside it or alone, the
teacher by k1, k2 or k3 on the policy's own tokens. k1 in the loss has no gradient in expectation: `kd` refuses it, and
it is written out here. Accuracy is exact, by the law of the missing remainder along the positions.
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
    paper="KDRL (arXiv 2506.02208)",
    source="main table, on modular sums",
    minutes={"smoke": 0.05, "cpu": 0.2},
)
GRPO, DISTILLED, K1, K2, K3, ANNEALED, RESPONSE, GROUP = METHODS = (
    "GRPO",
    "teacher alone",
    "KDRL, k1",
    "KDRL, k2",
    "KDRL, k3",
    "k2, annealed",
    "k2, wrong responses",
    "k2, failed groups",
)
# reward, estimators k1 k2 k3, whether beta falls, and mask: all, wrong responses, groups without a right one
PARTS = {
    GRPO: (1, (0, 0, 0), 0, 0),
    DISTILLED: (0, (0, 1, 0), 0, 0),
    K1: (1, (1, 0, 0), 0, 0),
    K2: (1, (0, 1, 0), 0, 0),
    K3: (1, (0, 0, 1), 0, 0),
    ANNEALED: (1, (0, 1, 0), 1, 0),
    RESPONSE: (1, (0, 1, 0), 0, 1),
    GROUP: (1, (0, 1, 0), 0, 2),
}
GUIDES = ("none", "response", "group")


@dataclass(frozen=True)
class Config(results.Config):
    """The task and the training."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One teacher and stream of samples each."""
    base: int = 10
    """Digits, and remainders."""
    length: int = 4
    """Of a response."""
    right: float = 0.7
    """Probability of the teacher's last digit."""
    group: int = 8
    """Responses to a prompt; every remainder is a prompt of each step."""
    beta: float = 0.1
    """Weight of the teacher; annealed, it falls to a fifth of it in the first half of the steps."""
    steps: int = 400
    """Of Adam."""
    rate: float = 0.03
    """Of every step."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("base", self.base, 2)
        require("length", self.length, 1)
        require("right", self.right, 1e-3, below=1)
        require("group", self.group, 2)
        require("beta", self.beta, 0)
        require("steps", self.steps, 2)
        require("rate", self.rate, 1e-6)


PRESETS = {"smoke": Config(seeds=(0,), base=3, length=2, group=2, steps=3), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, expected: float, tolerance: float = 0.0, kind: Any = "ours") -> Claim:
    return Claim(f"distillation/kdrl-{id}", quantity, test, expected, tolerance, kind)


CLAIMS = (
    _claim("toy", "mean accuracy over the training, KDRL by k2 minus GRPO", "above", 0.0),
    _claim("toy-over-distillation", "accuracy at the end, KDRL by k2 minus the teacher alone", "above", 0.0),
    _claim("toy-end", "accuracy at the end, KDRL by k2 minus GRPO", "above", 0.0),
    _claim("toy-k1", "mean accuracy over the training, KDRL by k1 minus GRPO", "within", 0.0, 0.02),
    _claim("anneal", "accuracy at the end, k2 annealed minus fixed", "above", 0.0, 0.0, "paper"),
    _claim("masking", "accuracy at the end, k2 on wrong responses minus on all", "above", 0.0, 0.0, "paper"),
)


def teacher(config: Config, seed: int) -> np.ndarray:
    """Log probabilities by position, missing remainder and digit (length, base, base).

    Example:
        >>> log_p = teacher(Config(), 0)
        >>> log_p.shape, np.exp(log_p[-1].diagonal()).round(4)[:2].tolist()
        ((4, 10, 10), [0.7, 0.7])
    """
    z = np.random.default_rng(seed).standard_normal((config.length, config.base, config.base))
    log_p = z - np.logaddexp.reduce(z, axis=2)[..., None]
    wrong = np.full((config.base, config.base), (1 - config.right) / (config.base - 1))
    np.fill_diagonal(wrong, config.right)
    log_p[-1] = np.log(wrong)
    return log_p


def accuracy(log_pi: Any) -> Any:
    """Probability that the digits sum to what is asked for, mean over the prompts.

    Args:
        log_pi: by position, missing remainder and digit (length, base, base).

    Returns:
        One number.

    Example:
        >>> print(f"{accuracy(teacher(Config(), 0)):.4f}")
        0.7000
    """
    import jax.numpy as jnp

    pi = jnp.exp(jnp.asarray(log_pi))
    base = pi.shape[-1]
    digits = np.arange(base)
    left = (digits[:, None] - digits[None]) % base  # what is missing after a digit
    law = jnp.eye(base)
    for at in pi:
        moved = law[:, :, None] * at[None]
        law = jnp.stack([jnp.sum(jnp.where(left[None] == m, moved, 0), axis=(1, 2)) for m in range(base)], axis=1)
    return law[:, 0].mean()


def sampled(config: Config, z: Any, key: Any) -> tuple[Any, Any, Any]:
    """Responses of a policy: missing remainders and digits (base, group, length), and which are right (base, group)."""
    import jax
    import jax.numpy as jnp

    missing = jnp.repeat(jnp.arange(config.base)[:, None], config.group, axis=1)
    states, digits = [], []
    for position, key_of in enumerate(jax.random.split(key, config.length)):
        digit = jax.random.categorical(key_of, z[position][missing])
        states.append(missing)
        digits.append(digit)
        missing = (missing - digit) % config.base
    return jnp.stack(states, axis=-1), jnp.stack(digits, axis=-1), missing == 0


def trained(config: Config, parts: Any, log_teacher: Any, key: Any) -> Any:
    """Accuracy before every step and at the end (steps + 1).

    Args:
        config: of the training.
        parts: whether there are rewards, weights of the estimators (3), whether beta falls, one of three masks (3).
        log_teacher: (length, base, base).
        key: of the samples.
    """
    import jax
    import jax.numpy as jnp
    import optax

    import kd

    rewarded, estimators, falls, guide = parts
    optimizer = optax.adam(config.rate)
    positions = jnp.arange(config.length)

    def loss(z: Any, states: Any, digits: Any, right: Any, beta: Any) -> Any:
        log_pi, log_p = (law[positions, states, digits] for law in (jax.nn.log_softmax(z), log_teacher))
        advantage = rewarded * kd.grpo_advantage(right.astype(z.dtype))
        masks = jnp.stack([kd.guided_mask(right, name) for name in GUIDES])
        kept = jnp.tensordot(guide, masks.astype(z.dtype), 1)[..., None]
        k1 = log_pi - log_p
        each = jnp.stack([k1, *(kd.kl_surrogate(log_pi, log_p, kind=kind) for kind in ("k2", "k3"))])
        taught = kept * jnp.tensordot(estimators, each, 1)
        return jnp.mean(kd.clipped_policy_loss(log_pi, log_pi, advantage) + beta * taught)

    def step(carry: Any, given: Any) -> Any:
        (z, state), (key, number) = carry, given
        states, digits, right = sampled(config, z, key)
        lowered = kd.kdrl_beta(
            number, start=config.beta, least=config.beta / 5, decrement=1.6 * config.beta / config.steps
        )
        beta = jnp.where(falls > 0, lowered, config.beta)
        changes, state = optimizer.update(jax.grad(loss)(z, states, digits, right, beta), state)
        return (optax.apply_updates(z, changes), state), accuracy(jax.nn.log_softmax(z))

    start = jnp.zeros((config.length, config.base, config.base))
    steps = jax.random.split(key, config.steps), jnp.arange(config.steps)
    (z, _), path = jax.lax.scan(step, (start, optimizer.init(start)), steps)
    return jnp.append(path, accuracy(jax.nn.log_softmax(z)))


@cache
def _program(config: Config) -> Any:
    """(teachers, keys) -> accuracy (methods, seeds, steps + 1), compiled."""
    import jax
    import jax.numpy as jnp

    rewarded, estimators, falls, guide = zip(*PARTS.values(), strict=True)
    parts = tuple(jnp.array(part, jnp.float32) for part in (rewarded, estimators, falls, np.eye(3)[list(guide)]))

    def one(parts: Any, log_teacher: Any, key: Any) -> Any:
        return trained(config, parts, log_teacher, key)

    every: Any = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))
    return jax.jit(lambda *given: every(parts, *given))


def run(config: Config, run_dir: Path) -> Result:
    """Train by every method."""
    import jax
    import jax.numpy as jnp

    teachers = np.stack([teacher(config, seed) for seed in config.seeds]).astype(np.float32)
    keys = jnp.stack([jax.random.key(seed) for seed in config.seeds])
    paths = np.asarray(_program(config)(teachers, keys), np.float64)
    found = dict(zip(METHODS, paths, strict=True))
    table: dict[str, list] = {name: [] for name in ("method", "seed", "accuracy", "mean accuracy")}
    for name, path in found.items():
        for seed, curve in zip(config.seeds, path, strict=True):
            for column, entry in zip(table.values(), (name, seed, float(curve[-1]), float(curve.mean())), strict=True):
                column.append(entry)
    measured: dict[str, Any] = {f"distillation/kdrl-{id}": x.tolist() for id, x in compared(found).items()}
    when = np.unique(np.linspace(0, config.steps, 101).astype(int))
    series = {name: {"step": when, "accuracy": path[:, when]} for name, path in found.items()}
    return Result(measured, {"policies": table}, series)


def compared(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed: method -> accuracy (seeds, steps + 1)."""
    end, mean = ({name: f(path) for name, path in found.items()} for f in (lambda x: x[:, -1], lambda x: x.mean(1)))
    return {
        "toy": mean[K2] - mean[GRPO],
        "toy-over-distillation": end[K2] - end[DISTILLED],
        "toy-end": end[K2] - end[GRPO],
        "toy-k1": mean[K1] - mean[GRPO],
        "anneal": end[ANNEALED] - end[K2],
        "masking": end[RESPONSE] - end[K2],
    }


def plot(result: StoredResult) -> Figure:
    """Accuracy over the steps, means over the seeds."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in METHODS:
        axis.plot(result.series[name]["step"], result.series[name]["accuracy"].mean(0), label=name)
    axis.axhline(result.config["right"], color="k", linestyle=":", linewidth=1, label="the teacher")
    axis.set(xlabel="step", ylabel="accuracy")
    axis.legend(fontsize=8)
    return figure
