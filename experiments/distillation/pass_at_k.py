"""DPH-RL on a bandit with several correct answers: Pass@1 and Pass@k under different anchors to the base model.

A prompt has 24 answers, of which four are correct, and does not say which of the four is asked for: in training one of
them is rewarded, drawn anew for every group of samples. So Pass@k is the mean over the four of the probability that k
samples contain it; a policy that keeps to one correct answer has Pass@k as low as Pass@1. GRPO from a base model, on a
table of logits, with nothing else, with a penalty for the reverse KL on the policy's own samples, or with an anchor by
forward KL, Jensen-Shannon or an alpha divergence on stored samples of the base model. All prompts are reinforced and
anchored: on a table, the paper's partition of prompts would leave the reinforced ones without an anchor.
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
    paper="DPH-RL (arXiv 2509.07430)",
    source="Pass@1 against Pass@k, on a bandit",
    minutes={"smoke": 0.05, "cpu": 0.4},
)
NOTHING, REVERSE, FORWARD, SHANNON, ALPHA = ANCHORS = (
    "none",
    "reverse KL",
    "forward KL",
    "Jensen-Shannon",
    "alpha 0.2",
)


@dataclass(frozen=True)
class Config(results.Config):
    """The bandit and the training."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One base model, set of correct answers and stream of samples each."""
    prompts: int = 32
    """Of the bandit."""
    answers: int = 24
    """To a prompt."""
    correct: int = 4
    """Of them."""
    known: float = 2.0
    """Added to the base model's logits of the correct answers; the others have standard deviation 1."""
    group: int = 8
    """Samples of a prompt in a step."""
    stored: int = 64
    """Samples of the base model, of each prompt."""
    k: int = 8
    """Of Pass@k."""
    weight: float = 0.1
    """Of every anchor."""
    steps: int = 1000
    """Of Adam."""
    rate: float = 0.02
    """Of every step."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("prompts", "stored", "k", "steps"):
            require(name, getattr(self, name), 1)
        require("answers", self.answers, 2)
        require("correct", self.correct, 1, self.answers)
        require("group", self.group, 2)
        require("known", self.known, 0)
        require("weight", self.weight, 0)
        require("rate", self.rate, 1e-6)


PRESETS = {
    "smoke": Config(seeds=(0,), prompts=2, answers=4, correct=2, group=2, stored=4, k=2, steps=3),
    "cpu": Config(),
}


def _claim(id: str, quantity: str, test: Any, kind: Any = "paper") -> Claim:
    return Claim(f"distillation/dph-{id}", quantity, test, 0.0, kind=kind)


CLAIMS = (
    _claim("pass-1-rises", "Pass@1 with no anchor, after the training minus before", "above"),
    _claim("none-collapses", "Pass@8 with no anchor, after the training minus before", "below"),
    _claim("reverse-kl-collapses", "Pass@8 with the reverse KL, after the training minus before", "below"),
    _claim(
        "mass-covering-keeps",
        "Pass@8 with an anchor, the smaller of forward KL and Jensen-Shannon, minus that of the base model",
        "above",
    ),
    _claim("mass-covering-over-reverse", "Pass@8, forward KL minus reverse KL", "above"),
    _claim("mass-covering-pass-1", "Pass@1, forward KL minus no anchor: what covering costs", "below", "ours"),
)


def bandit(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities of the base model (prompts, answers), and the correct answers (prompts, correct).

    Example:
        >>> base, correct = bandit(Config(), 0)
        >>> base.shape, correct.shape
        ((32, 24), (32, 4))
    """
    random = np.random.default_rng(seed)
    z = random.standard_normal((config.prompts, config.answers))
    correct = np.stack([random.permutation(config.answers)[: config.correct] for _ in range(config.prompts)])
    np.put_along_axis(z, correct, np.take_along_axis(z, correct, 1) + config.known, 1)
    return z - np.logaddexp.reduce(z, axis=1)[:, None], correct


def pass_at(log_pi: Any, correct: Any, k: int) -> Any:
    """Mean over prompts and correct answers of the probability that k samples contain the answer.

    Args:
        log_pi: (prompts, answers).
        correct: (prompts, correct).
        k: samples.

    Returns:
        One number.

    Example:
        >>> log_pi = np.log(np.array([[0.5, 0.25, 0.25]]))
        >>> float(pass_at(log_pi, np.array([[0]]), 2)), float(pass_at(log_pi, np.array([[0, 1]]), 1))
        (0.75, 0.375)
    """
    import jax.numpy as jnp

    chosen = jnp.exp(jnp.take_along_axis(jnp.asarray(log_pi), jnp.asarray(correct), axis=1))
    return jnp.mean(1 - (1 - chosen) ** k)


def anchored(config: Config, which: Any, log_pi: Any, log_base: Any, own: Any, stored: Any) -> Any:
    """The anchor's loss, a mean over prompts and samples.

    Args:
        config: of the bandit.
        which: 1 at the anchor, else 0 (anchors).
        log_pi: (prompts, answers).
        log_base: (prompts, answers).
        own: samples of the policy (prompts, group).
        stored: samples of the base model (prompts, stored).

    Returns:
        One number. Only its gradient means something.
    """
    import jax.numpy as jnp

    import kd
    from kd.generators import alpha

    def at(answers: Any) -> list[Any]:
        return [jnp.take_along_axis(law, answers, axis=1) for law in (log_pi, log_base)]

    generators = ("forward_kl", "jensen_shannon", alpha(0.2))
    anchors = [kd.dph_anchor(*at(stored), generator=generator).mean() for generator in generators]
    reverse = kd.kl_surrogate(*at(own), kind="k2").mean()
    return which @ jnp.stack([jnp.zeros(()), reverse, *anchors])


def trained(config: Config, which: Any, log_base: Any, correct: Any, key: Any) -> tuple[Any, Any]:
    """One policy.

    Args:
        config: of the training.
        which: 1 at the anchor, else 0 (anchors).
        log_base: (prompts, answers).
        correct: (prompts, correct).
        key: of all samples.

    Returns:
        Pass@1 and Pass@k before every step and at the end (steps + 1, 2); entropy over the correct answers at the end.
    """
    import jax
    import jax.numpy as jnp
    import optax

    import kd

    optimizer = optax.adam(config.rate)
    begin, rest = jax.random.split(key)
    stored = jax.random.categorical(begin, log_base[:, None], shape=(config.prompts, config.stored))

    def both(z: Any) -> Any:
        log_pi = jax.nn.log_softmax(z)
        return jnp.stack([pass_at(log_pi, correct, k) for k in (1, config.k)])

    def step(carry: Any, key: Any) -> Any:
        (z, state), keys = carry, jax.random.split(key)
        own = jax.random.categorical(keys[0], z[:, None], shape=(config.prompts, config.group))
        asked = jnp.take_along_axis(correct, jax.random.randint(keys[1], (config.prompts, 1), 0, config.correct), 1)
        advantage = kd.grpo_advantage((own == asked).astype(jnp.float32))

        def loss(z: Any) -> Any:
            log_pi = jax.nn.log_softmax(z)
            chosen = jnp.take_along_axis(log_pi, own, axis=1)
            reinforced = kd.clipped_policy_loss(chosen, chosen, advantage).mean()
            return reinforced + config.weight * anchored(config, which, log_pi, log_base, own, stored)

        changes, state = optimizer.update(jax.grad(loss)(z), state)
        return (optax.apply_updates(z, changes), state), both(z)

    (z, _), path = jax.lax.scan(step, (log_base, optimizer.init(log_base)), jax.random.split(rest, config.steps))
    among = jax.nn.log_softmax(jnp.take_along_axis(z, correct, axis=1))
    return jnp.concatenate([path, both(z)[None]]), -jnp.sum(jnp.exp(among) * among, axis=1).mean()


@cache
def _program(config: Config) -> Any:
    import jax
    import jax.numpy as jnp

    def one(which: Any, log_base: Any, correct: Any, key: Any) -> Any:
        return trained(config, which, log_base, correct, key)

    every: Any = jax.vmap(jax.vmap(one, (None, 0, 0, 0)), (0, None, None, None))
    return jax.jit(lambda *given: every(jnp.eye(len(ANCHORS)), *given))


def run(config: Config, run_dir: Path) -> Result:
    """Train under every anchor."""
    import jax
    import jax.numpy as jnp

    base, correct = (np.stack(part) for part in zip(*(bandit(config, seed) for seed in config.seeds), strict=True))
    keys = jnp.stack([jax.random.key(seed) for seed in config.seeds])
    paths, diversity = jax.tree.map(np.asarray, _program(config)(np.float32(base), correct, keys))
    columns = ("anchor", "seed", "Pass@1, base", "Pass@k, base", "Pass@1", "Pass@k", "entropy of correct answers")
    table: dict[str, list] = {name: [] for name in columns}
    for place, name in enumerate(ANCHORS):
        for row, seed in enumerate(config.seeds):
            numbers = (*paths[place, row, 0], *paths[place, row, -1], diversity[place, row])
            for column, entry in zip(table.values(), (name, seed, *(float(x) for x in numbers)), strict=True):
                column.append(entry)
    found = {name: paths[place].astype(float) for place, name in enumerate(ANCHORS)}
    measured: dict[str, Any] = {f"distillation/dph-{id}": x.tolist() for id, x in compared(found).items()}
    when = np.unique(np.linspace(0, config.steps, 101).astype(int))
    series = {name: {"step": when, "passed": found[name][:, when].mean(0)} for name in ANCHORS}
    return Result(measured, {"policies": table}, series)


def compared(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What claims are about, one number per seed.

    Args:
        found: anchor -> Pass@1 and Pass@k (seeds, steps + 1, 2).

    Returns:
        Claim, without its folder and prefix -> (seeds).
    """
    base = found[NOTHING][:, 0]
    end = {name: path[:, -1] for name, path in found.items()}
    return {
        "pass-1-rises": end[NOTHING][:, 0] - base[:, 0],
        "none-collapses": end[NOTHING][:, 1] - base[:, 1],
        "reverse-kl-collapses": end[REVERSE][:, 1] - base[:, 1],
        "mass-covering-keeps": np.minimum(end[FORWARD][:, 1], end[SHANNON][:, 1]) - base[:, 1],
        "mass-covering-over-reverse": end[FORWARD][:, 1] - end[REVERSE][:, 1],
        "mass-covering-pass-1": end[FORWARD][:, 0] - end[NOTHING][:, 0],
    }


def plot(result: StoredResult) -> Figure:
    """Pass@1 and Pass@k over the steps."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name in ANCHORS:
        for axis, curve in zip(axes, result.series[name]["passed"].T, strict=True):
            axis.plot(result.series[name]["step"], curve, label=name)
    for axis, k in zip(axes, (1, result.config["k"]), strict=True):
        axis.set(xlabel="step", ylabel=f"Pass@{k}")
    axes[0].legend(fontsize=8)
    return figure
