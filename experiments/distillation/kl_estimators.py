"""Three estimators of KL(pi, pi_T) from samples of pi, as values and inside a loss: everything by enumeration.

With d = log pi(a) - log pi_T(a) and a drawn from pi,

    k1 = d,    k2 = d^2 / 2,    k3 = exp(-d) - 1 + d

What a loss of samples has for a gradient is E_pi[grad k(a)], the samples held fixed. That is 0 for k1, the gradient of
KL(pi, pi_T) for k2 and of KL(pi_T, pi) for k3; k1 as a reward, d grad log pi, has that of KL(pi, pi_T). Ten actions,
float64, two distances between the policies; one check draws samples instead.
"""

from __future__ import annotations

from collections.abc import Callable
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
    paper="On-policy KL estimators (KDRL, arXiv 2506.02208; GRPO, MiniLLM, verl, TRL)",
    source="what each has for a value and for a gradient",
    minutes={"smoke": 0.05, "cpu": 0.05},
)
ESTIMATORS = ("k1", "k2", "k3")
USES = (*ESTIMATORS, "k1 as a reward")
SURROGATES = {"k1 as a reward": "reward"}  # as `kd` names them
NEAR, WIDE = "near", "far"


@dataclass(frozen=True)
class Config(results.Config):
    """The policies."""

    seeds: tuple[int, ...] = tuple(range(20))
    """One pair of policies each."""
    actions: int = 10
    """Of a policy."""
    near: float = 0.1
    """Standard deviation of the difference of the logits of two policies that are close."""
    far: float = 1.0
    """Of two that are not."""
    samples: int = 100_000
    """Of the check by samples."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("actions", self.actions, 2)
        require("samples", self.samples, 1)
        require("near", self.near, 1e-3, self.far)


PRESETS = {"smoke": Config(seeds=(0,), samples=1000), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, expected: float, tolerance: float = 0.0, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/estimator-{id}", quantity, test, expected, tolerance, kind)


CLAIMS = (
    _claim(
        "k1-loss",
        "norm of the expected gradient of a loss of k1, relative to that of KL(pi, pi_T), policies far apart",
        "below",
        1e-12,
    ),
    _claim(
        "k2-loss",
        "distance of the expected gradient of a loss of k2 from that of KL(pi, pi_T), relative to its norm",
        "below",
        1e-12,
    ),
    _claim(
        "k3-loss",
        "distance of the expected gradient of a loss of k3 from that of KL(pi_T, pi), relative to its norm",
        "below",
        1e-12,
    ),
    _claim(
        "k1-reward",
        "distance of the expectation of d grad log pi from the gradient of KL(pi, pi_T), relative to its norm",
        "below",
        1e-12,
    ),
    _claim(
        "values",
        "largest error of the expected values of k1 and k3, relative to KL(pi, pi_T)",
        "below",
        1e-12,
        0,
        "ours",
    ),
    _claim(
        "k2-biased",
        "size of the error of the expected value of k2, relative to KL(pi, pi_T), policies far apart",
        "above",
        0.05,
        0,
        "ours",
    ),
    _claim(
        "k3-variance",
        "variance of k3 over that of k1, policies near each other",
        "below",
        1.0,
        0,
        "ours",
    ),
    _claim(
        "k3-other-direction",
        "cosine of the gradients of KL(pi_T, pi) and KL(pi, pi_T), policies far apart: what a loss of k3 is off by",
        "below",
        0.99,
        0,
        "ours",
    ),
    _claim(
        "by-samples",
        "chi-squared per degree of freedom of the sampled gradient of k2 around that of KL(pi, pi_T)",
        "within",
        1.0,
        0.5,
        "control",
    ),
)


def policies(config: Config, seed: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of pi and log probabilities of pi_T.

    Example:
        >>> z, log_target = policies(Config(), 0, 0.5)
        >>> z.shape, round(float(np.exp(log_target).sum()), 6)
        ((10,), 1.0)
    """
    random = np.random.default_rng(seed)
    target = random.standard_normal(config.actions)
    z = target + spread * random.standard_normal(config.actions)
    return z, target - np.log(np.exp(target).sum())


def loss_of_samples(use: str, log_target: Any) -> Callable[[Any, Any], jax.Array]:
    """What is differentiated of one sample.

    Args:
        use: one of USES.
        log_target: log pi_T (A,).

    Returns:
        (logits, action) -> scalar.
    """
    import jax

    import kd

    def loss(z: Any, action: Any) -> jax.Array:
        laws = jax.nn.log_softmax(z)[action], log_target[action]
        # kd refuses k1 as a loss
        return laws[0] - laws[1] if use == "k1" else kd.kl_surrogate(*laws, kind=SURROGATES.get(use, use))

    return loss


@dataclass(frozen=True)
class Exact:
    """What enumeration says of one pair of policies.

    Attributes:
        reverse: KL(pi, pi_T), its gradient.
        forward: KL(pi_T, pi), its gradient.
        values: mean and variance of each estimator.
        gradients: expected gradient of each use.
        at_actions: gradient of a loss of k2 at every action (A, A).
    """

    reverse: tuple[float, np.ndarray]
    forward: tuple[float, np.ndarray]
    values: dict[str, tuple[float, float]]
    gradients: dict[str, np.ndarray]
    at_actions: np.ndarray


@cache
def _program() -> Any:
    """(logits, log pi_T) -> the fields of Exact and the gradient of a loss of k2 at every action, compiled."""
    import jax
    import jax.numpy as jnp

    import kd

    def program(z: Any, log_target: Any) -> Any:
        pi = jax.nn.softmax(z)
        log_pi = jax.nn.log_softmax(z)
        values = {}
        for kind in ESTIMATORS:
            k = kd.kl_value(log_pi, log_target, kind=kind)
            values[kind] = pi @ k, pi @ (k - pi @ k) ** 2
        each = {use: jax.vmap(jax.grad(loss_of_samples(use, log_target)), (None, 0)) for use in USES}
        at_actions = {use: f(z, jnp.arange(len(z))) for use, f in each.items()}
        gradients = {use: pi @ found for use, found in at_actions.items()}
        kinds = ("reverse_kl", "forward_kl")
        exact = [jax.value_and_grad(lambda z, k=k: kd.token_divergence(k, z, log_target))(z) for k in kinds]
        return *exact, values, gradients, at_actions["k2"]

    return jax.jit(program)


def enumerated(z: np.ndarray, log_target: np.ndarray) -> Exact:
    """All expectations as sums over the actions.

    Args:
        z: logits of pi (A,).
        log_target: log pi_T (A,).

    Returns:
        The values and gradients, in float64.
    """
    import jax

    with jax.enable_x64(True):
        return Exact(*jax.tree.map(np.asarray, _program()(z, log_target)))


def sampled(config: Config, seed: int, z: np.ndarray, exact: Exact) -> float:
    """Chi-squared per degree of freedom of the mean gradient of a loss of k2 over drawn actions.

    Gradients sum to 0 over the logits: the first entry says nothing that the others do not.
    """
    pi = np.exp(z - z.max())
    actions = np.random.default_rng([seed, 1]).choice(len(z), config.samples, p=pi / pi.sum())
    each = exact.at_actions[actions][:, 1:]
    error = each.mean(0) - exact.reverse[1][1:]
    return float(error @ np.linalg.solve(np.cov(each.T) / config.samples, error) / len(error))


def run(config: Config, run_dir: Path) -> Result:
    """Enumerate for every pair of policies, near and far."""
    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    table: dict[str, list] = {
        name: [] for name in ("seed", "policies", "use", "value error", "variance", "cosine reverse", "cosine forward")
    }
    for seed in config.seeds:
        found = {}
        for name, spread in ((NEAR, config.near), (WIDE, config.far)):
            pair = policies(config, seed, spread)
            found[name] = enumerated(*pair)
            _rows(table, seed, name, found[name])
        for id, value in _measured(found).items():
            measured[f"distillation/estimator-{id}"].append(value)
        chi2 = sampled(config, seed, pair[0], found[WIDE])
        measured["distillation/estimator-by-samples"].append(chi2)
    return Result(measured, {"estimators": table})


def _measured(found: dict[str, Exact]) -> dict[str, float]:
    near, far = found[NEAR], found[WIDE]
    kl, gradient = far.reverse
    error = {kind: abs(float(far.values[kind][0] / kl - 1)) for kind in ESTIMATORS}

    def off(use: str, exact: np.ndarray) -> float:
        return float(np.linalg.norm(far.gradients[use] - exact) / np.linalg.norm(exact))

    return {
        "k1-loss": float(np.linalg.norm(far.gradients["k1"]) / np.linalg.norm(gradient)),
        "k2-loss": off("k2", gradient),
        "k3-loss": off("k3", far.forward[1]),
        "k1-reward": off("k1 as a reward", gradient),
        "values": max(error["k1"], error["k3"]),
        "k2-biased": error["k2"],
        "k3-variance": float(near.values["k3"][1] / near.values["k1"][1]),
        "k3-other-direction": cosine(gradient, far.forward[1]),
    }


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Cosine of the angle; 0 where one is rounding of 0.

    Example:
        >>> cosine(np.array([2.0, 0.0]), np.array([0.0, 1.0]))
        0.0
    """
    norms = np.linalg.norm(x), np.linalg.norm(y)
    return float(x @ y / np.prod(norms)) if min(norms) > 1e-14 else 0.0


def _rows(table: dict[str, list], seed: int, name: str, exact: Exact) -> None:
    kl = float(exact.reverse[0])
    for use in USES:
        mean, variance = exact.values[use.split()[0]]
        angles = [cosine(exact.gradients[use], gradient) for _, gradient in (exact.reverse, exact.forward)]
        row = (seed, name, use, float(mean) / kl - 1, float(variance), *angles)
        for column, entry in zip(table.values(), row, strict=True):
            column.append(entry)


def plot(result: StoredResult) -> Figure:
    """Bias, spread and direction of the gradient of each use, policies far apart."""
    from matplotlib import pyplot as plt

    table = result.tables["estimators"]
    kept = [i for i, name in enumerate(table["policies"]) if name == WIDE]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for place, use in enumerate(USES):
        rows = [i for i in kept if table["use"][i] == use]
        points = np.full(len(rows), place)
        for axis, column in zip(axes[:2], ("value error", "variance"), strict=True):
            axis.plot(points, [table[column][i] for i in rows], "o", markersize=4, color=f"C{place}", alpha=0.6)
        for shift, column in ((-0.15, "cosine reverse"), (0.15, "cosine forward")):
            marker = "o" if shift < 0 else "s"
            axes[2].plot(points + shift, [table[column][i] for i in rows], marker, markersize=4, color=f"C{place}")
    for axis, label in zip(axes, ("error of the value / KL", "variance", "cosine with grad KL"), strict=True):
        axis.set_xticks(range(len(USES)), USES, fontsize=8)
        axis.set(ylabel=label)
    axes[1].set_yscale("log")
    axes[2].set_title("o: KL(pi, pi_T), s: KL(pi_T, pi)", fontsize=9)
    return figure
