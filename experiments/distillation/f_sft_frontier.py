"""f-divergence fine-tuning and f-DPO on tables of prompts: where they end, and what reward costs.

Fine-tuning: the variational form of D_f(data || reference) with the witness f'(pi / reference) is maximised over a
policy that can be anything, with data and reference as lists of responses, so that all expectations are exact. For
every f its maximum is pi = data, and for f = u log u it is maximum likelihood.

f-DPO: pairs of responses drawn from the reference, labelled by a known reward with the noise of Bradley and Terry. The
policy is trained at several strengths beta under four divergences; the reward that it has is compared at the same
distance from the reference.
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
    paper="Implicit reward as the bridge (arXiv 2507.00018); f-DPO (arXiv 2309.16240)",
    source="method; reward against divergence",
    minutes={"smoke": 0.05, "cpu": 0.4},
)
FINE_TUNED = ("reverse_kl", "forward_kl", "jensen_shannon", "chi2_qp", "squared_hellinger")
REVERSE, FORWARD, SHANNON, HELLINGER = PREFERRED = (
    "reverse_kl",
    "forward_kl",
    "jensen_shannon",
    "squared_hellinger",
)
BETAS = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
NEAR = 0.3  # KL(pi, reference), nats, at which rewards are compared
CLOSE = 0.06  # the same for the Jensen-Shannon divergence


@dataclass(frozen=True)
class Config(results.Config):
    """The prompts, the responses and the trainings."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One set of prompts each."""
    prompts: int = 8
    """Of a set."""
    responses: int = 12
    """To a prompt."""
    listed: int = 100
    """Responses in the data, and in the reference, of each prompt in fine-tuning; each occurs at least once."""
    pairs: int = 200
    """Pairs of each prompt in f-DPO."""
    steps: int = 1000
    """Of Adam."""
    rate: float = 0.05
    """Of its first step; it falls to 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("prompts", self.prompts, 1)
        require("responses", self.responses, 2)
        require("listed", self.listed, self.responses)
        require("pairs", self.pairs, 1)
        require("steps", self.steps, 1)
        require("rate", self.rate, 1e-6)


PRESETS = {"smoke": Config(seeds=(0,), prompts=2, responses=3, listed=6, pairs=4, steps=3), "cpu": Config()}


def _claim(id: str, quantity: str, test: Any, expected: float, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/{id}", quantity, test, expected, kind=kind)


CLAIMS = (
    _claim(
        "implicit-reward-maximiser",
        "gradient at pi = data relative to that at the reference, the largest of all generators",
        "below",
        1e-10,
        "ours",
    ),
    _claim(
        "implicit-reward-arrives",
        "largest size of ln(pi / data) after fine-tuning, all generators",
        "below",
        0.05,
        "ours",
    ),
    _claim(
        "implicit-reward-sft",
        "distance of the gradient with f = u log u from that of maximum likelihood, relative, at a random policy",
        "below",
        1e-10,
    ),
    _claim(
        "fdpo-frontier",
        "reward at KL(pi, reference) 0.3, reverse KL minus the best of the other three",
        "above",
        0.0,
    ),
    _claim(
        "fdpo-frontier-shannon",
        "reward at a Jensen-Shannon divergence of 0.06, Jensen-Shannon minus reverse KL",
        "above",
        0.0,
        "ours",
    ),
    _claim(
        "fdpo-diversity",
        "entropy at beta 0.25, reverse KL minus forward KL, nats",
        "below",
        0.0,
    ),
)


def lists(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Responses of data and reference, by number, to every prompt: 2 x (prompts, listed).

    Example:
        >>> data, _ = lists(Config(), 0)
        >>> data.shape, len(set(data[0].tolist()))
        ((8, 100), 12)
    """
    random, size = np.random.default_rng(seed), config.responses
    counts = [
        1 + random.multinomial(config.listed - size, random.dirichlet(np.ones(size), config.prompts)) for _ in range(2)
    ]
    data, reference = (np.stack([np.repeat(np.arange(size), row) for row in each]) for each in counts)
    return data, reference


def preferences(config: Config, seed: int) -> tuple[np.ndarray, ...]:
    """Log probabilities of the reference and rewards (prompts, responses), better and worse ones (prompts, pairs)."""
    random = np.random.default_rng([seed, 1])
    z, reward = random.standard_normal((2, config.prompts, config.responses))
    log_reference = z - np.logaddexp.reduce(z, axis=1)[:, None]
    first, second = (
        np.stack([random.choice(config.responses, config.pairs, p=np.exp(row)) for row in log_reference])
        for _ in range(2)
    )
    gap = np.take_along_axis(reward, first, 1) - np.take_along_axis(reward, second, 1)
    kept = random.random(gap.shape) < 1 / (1 + np.exp(-gap))
    return log_reference, reward, np.where(kept, first, second), np.where(kept, second, first)


@cache
def _fine_tuning(config: Config) -> Any:
    """(data, reference, random logits) -> the policies and gradients that claims are about.

    Policies (generators, prompts, responses); gradients at the random policy, of u log u and of the likelihood; norms
    of the gradients at the data over those at the reference (generators).
    """
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.descent import fitted

    def program(data: Any, reference: Any, random: Any) -> Any:
        counts = jax.nn.one_hot(reference, config.responses, dtype=random.dtype).sum(1)
        log_reference = jnp.log(counts / config.listed)

        def of(log_pi: Any, which: Any) -> Any:
            return jnp.take_along_axis(log_pi, which, axis=1).ravel()

        def loss(z: Any, generator: str) -> Any:
            laws = jax.nn.log_softmax(z), log_reference
            of_data, of_reference = ([of(law, which) for law in laws] for which in (data, reference))
            return kd.f_sft_loss(*of_data, *of_reference, generator=generator)

        def likelihood(z: Any) -> Any:
            return -of(jax.nn.log_softmax(z), data).mean()

        def end(generator: str) -> Any:
            def of_step(z: Any, _: Any) -> Any:
                return loss(z, generator)

            return fitted(of_step, log_reference, steps=config.steps, rate=config.rate)[0]

        ends = [end(generator) for generator in FINE_TUNED]
        gradients = jax.grad(loss)(random, REVERSE), jax.grad(likelihood)(random)
        log_data = jnp.log(jax.nn.one_hot(data, config.responses, dtype=random.dtype).sum(1) / config.listed)
        norms = [[jnp.linalg.norm(jax.grad(loss)(z, g)) for z in (log_data, log_reference)] for g in FINE_TUNED]
        return jax.nn.log_softmax(jnp.stack(ends)), *gradients, jnp.array([a / b for a, b in norms])

    return jax.jit(program)


@cache
def _preference(config: Config) -> Any:
    """(log reference, better, worse) -> log policies (generators, betas, prompts, responses)."""
    import jax
    import jax.numpy as jnp

    import kd
    from experiments.distillation.descent import fitted

    def program(log_reference: Any, better: Any, worse: Any) -> Any:
        def of(log_pi: Any, which: Any) -> Any:
            return jnp.take_along_axis(log_pi, which, axis=1).ravel()

        def end(generator: str, beta: Any) -> Any:
            def loss(z: Any, _: Any) -> Any:
                laws = jax.nn.log_softmax(z), log_reference
                each = [of(law, which) for law in laws for which in (better, worse)]
                return kd.f_dpo_loss(*each, beta=beta, generator=generator)

            return jax.nn.log_softmax(fitted(loss, log_reference, steps=config.steps, rate=config.rate)[0])

        return jnp.stack([jax.vmap(lambda beta, g=g: end(g, beta))(jnp.array(BETAS)) for g in PREFERRED])

    return jax.jit(program)


def frontier(log_pi: np.ndarray, log_reference: np.ndarray, reward: np.ndarray) -> dict[str, np.ndarray]:
    """Means over the prompts of what a policy has and costs.

    Args:
        log_pi: (..., prompts, responses).
        log_reference: (prompts, responses).
        reward: (prompts, responses).

    Returns:
        reward above the reference's, KL(pi, reference), Jensen-Shannon divergence, entropy; each (...).

    Example:
        >>> half = np.log(np.full((1, 2), 0.5))
        >>> {name: round(float(x), 4) for name, x in frontier(half, half, np.ones((1, 2))).items()}
        {'reward': 0.0, 'KL': 0.0, 'JSD': 0.0, 'entropy': 0.6931}
    """
    log_m = np.logaddexp(log_pi, log_reference) - np.log(2)
    pi, reference = np.exp(log_pi), np.exp(log_reference)

    def mean(x: np.ndarray) -> np.ndarray:
        return x.sum(-1).mean(-1)

    return {
        "reward": mean((pi - reference) * reward),
        "KL": mean(pi * (log_pi - log_reference)),
        "JSD": mean(pi * (log_pi - log_m) + reference * (log_reference - log_m)) / 2,
        "entropy": -mean(pi * log_pi),
    }


def reward_at(found: dict[str, np.ndarray], cost: str, level: float) -> np.ndarray:
    """Reward of each generator where its cost first reaches a level as beta falls, between the two strengths around it.

    Args:
        found: of `frontier`, each (generators, betas).
        cost: which.
        level: of it.

    Returns:
        (generators).

    Example:
        >>> reward_at({"reward": np.array([[9.0, 3.0, 1.0]]), "KL": np.array([[0.6, 1.0, 0.5]])}, "KL", 0.75).tolist()
        [2.0]
    """
    reached = []
    for costs, rewards in zip(found[cost], found["reward"], strict=True):
        costs, rewards = (np.r_[0, x[::-1]] for x in (costs, rewards))
        end = 1 + int((costs >= level).argmax()) if costs.max() >= level else len(costs)
        reached.append(np.interp(level, costs[:end], rewards[:end]))
    return np.array(reached)


def run(config: Config, run_dir: Path) -> Result:
    """Fine-tune under every generator, and train on preferences under every divergence and strength."""
    import jax

    measured: dict[str, Any] = {claim.id: [] for claim in CLAIMS}
    table: dict[str, list] = {name: [] for name in ("seed", "divergence", "beta", "reward", "KL", "JSD", "entropy")}
    for seed in config.seeds:
        with jax.enable_x64(True):
            data, reference = lists(config, seed)
            random = np.random.default_rng([seed, 2]).standard_normal((config.prompts, config.responses))
            log_pi, ours, likelihood, still = jax.tree.map(np.asarray, _fine_tuning(config)(data, reference, random))
            log_reference, reward, better, worse = preferences(config, seed)
            preferred = np.asarray(_preference(config)(log_reference, better, worse))
        shares = np.stack([np.bincount(row, minlength=config.responses) for row in data]) / config.listed
        found = frontier(preferred, log_reference, reward)
        for (row, column), _ in np.ndenumerate(found["reward"]):
            each = (float(values[row, column]) for values in found.values())
            for cells, entry in zip(table.values(), (seed, PREFERRED[row], BETAS[column], *each), strict=True):
                cells.append(entry)
        rewards, close = reward_at(found, "KL", NEAR), reward_at(found, "JSD", CLOSE)
        entropy = found["entropy"][:, BETAS.index(0.25)]
        numbers = {
            "implicit-reward-maximiser": still.max(),
            "implicit-reward-arrives": np.abs(log_pi - np.log(shares)).max(),
            "implicit-reward-sft": np.linalg.norm(ours - likelihood) / np.linalg.norm(likelihood),
            "fdpo-frontier": rewards[0] - rewards[1:].max(),
            "fdpo-frontier-shannon": close[PREFERRED.index(SHANNON)] - close[0],
            "fdpo-diversity": entropy[0] - entropy[PREFERRED.index(FORWARD)],
        }
        for id, value in numbers.items():
            measured[f"distillation/{id}"].append(float(value))
    return Result(measured, {"preferences": table})


def plot(result: StoredResult) -> Figure:
    """Reward against two costs, a line per divergence, means over the seeds at each strength."""
    from matplotlib import pyplot as plt

    table = {name: np.array(column) for name, column in result.tables["preferences"].items()}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, cost, level in zip(axes, ("KL", "JSD"), (NEAR, CLOSE), strict=True):
        for name in PREFERRED:
            rows = [(table["divergence"] == name) & (table["beta"] == beta) for beta in BETAS]
            axis.plot(*([table[each][row].mean() for row in rows] for each in (cost, "reward")), "o-", label=name)
        axis.axvline(level, color="k", linestyle=":", linewidth=1)
        axis.set(xlabel=f"{cost} from the reference, nats", ylabel="reward above the reference's", xscale="log")
    axes[0].legend(fontsize=8)
    return figure
