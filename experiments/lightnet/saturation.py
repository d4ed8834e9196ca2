"""LightNet's decay goes to 1 like 1 / t, and with it what a model without positions knows of the latest tokens.

Two parts, both on a weakness that a review of arXiv 2405.21022 names. First t E[-g_t] for independent logits N(0, s^2),
from the decays that the mixer computes, beside its exact expectation (`decay_law`), which goes to 1. Small trials of
ours before this result gave 0.65, 0.61 and 1.1 at t = 16, 256 and 4000 without a note on the number of draws; the
expectation for s = 1 is 1.08, 1.01 and 1.00 there, and 0.61 is the median of a single draw.

Second a task that is nothing but recency: tell the token before the present one, among 16 equally likely tokens, in
sequences of growing length. The accuracy that counts is that in the last quarter of the positions, which are as far
from the start as the length says. Multiplicative decay and softmax attention have no positions here either.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.mixers import read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.statistics import paired_differences
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.sources.recall import Recall

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="weakness named in review",
    minutes={"smoke": 0.2, "cpu": 8},
)
LIGHTNET, BOTH, LINEAR = "lightnet+none", "lightnet+both", "linear+none"


@dataclass(frozen=True)
class Config(results.Config):
    """The logits, the task, the models and their training."""

    spreads: tuple[float, ...] = (0.5, 1.0, 2.0)
    """s of the logits; claims are about s = 1."""
    channels: int = 4096
    """Independent sequences of logits per seed."""
    steps: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4000)
    """t; each stands for the mean over steps within 10 % of it."""
    models: tuple[str, ...] = (LIGHTNET, BOTH, LINEAR, "multiplicative+none", "softmax+none")
    """Mixer and positions of each model on the task."""
    lengths: tuple[int, ...] = (64, 192, 512)
    """Tokens of a sequence; a model is trained and evaluated at each of them."""
    lag: int = 1
    """Steps back at which the token to tell stands."""
    alphabet: int = 16
    """Tokens."""
    layers: int = 2
    """Blocks."""
    width: int = 32
    """Channels."""
    heads: int = 2
    """Heads."""
    batch_tokens: int = 2048
    """Tokens of an update, whatever the length; `train.batch_size` is replaced."""
    evaluation_tokens: int = 16384
    """Held-out tokens at each length."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=150,
            eval_every=150,
            optimizer=OptimizerConfig(learning_rate=5e-3, schedule="cosine", clip_norm=1.0),
            checkpoint=CheckpointConfig(every=0),
        )
    )
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("channels", "lag", "layers", "heads"):
            require(name, getattr(self, name), 1)
        require("alphabet", self.alphabet, 2)
        require("the smallest of steps", min(self.steps, default=0), 2)
        require("the smallest of spreads", min(self.spreads, default=-1), 0)
        require("the smallest of lengths", min(self.lengths, default=0), 2 * self.lag + 2)
        require("batch_tokens", self.batch_tokens, max(self.lengths))
        require("evaluation_tokens", self.evaluation_tokens, max(self.lengths))
        require("train.eval_every", self.train.eval_every, 1)
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, expected a divisor of the width {self.width}")
        if list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths: got {self.lengths}, expected growing numbers")
        for model in self.models:
            read_model(model, "models", "causal text")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        spreads=(1.0,),
        channels=64,
        steps=(4, 16),
        models=(LIGHTNET,),
        lengths=(8,),
        layers=1,
        width=8,
        batch_tokens=16,
        evaluation_tokens=32,
        train=TrainConfig(steps=2, eval_every=2, checkpoint=CheckpointConfig(every=0)),
    ),
    "cpu": Config(),
}
SUMMARY = (16, 256, 4000)  # t at which the decay is about constant

CLAIMS = (
    Claim(
        "lightnet/decay-saturates",
        "logits N(0, 1): largest over smallest of t E[-g_t] at t = 16, 256 and 4000",
        "below",
        1.8,  # what 0.65, 0.61 and 1.1, called about constant, give
    ),
    Claim(
        "lightnet/decay-follows-expectation",
        "logits N(0, 1): largest relative distance of t E[-g_t] from its exact expectation, all t from 16 on",
        "below",
        0.05,
        kind="ours",
    ),
    Claim(
        "lightnet/decay-median",
        "logits N(0, 1): median over draws of t (-g_t) at t = 4000",
        "within",
        0.6065,  # exp(-1 / 2)
        tolerance=0.03,
        kind="ours",
    ),
    Claim(
        "lightnet/R11-recency-at-length",
        "late accuracy of LightNet without positions minus that of plain linear attention without positions, at the "
        "shortest length minus at the longest",
        "above",
        0.0,
    ),
    Claim(
        "lightnet/R11-positions-restore-recency",
        "longest length: late accuracy of LightNet with both encodings minus that without positions",
        "above",
        0.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Decays of random logits, then the task at every length with every model."""
    from experiments.runs import record_data
    from experiments.training.data import fingerprint

    tasks = {(length, seed): _sequences(config, length, seed) for length in config.lengths for seed in config.seeds}
    data = {
        f"lagged copy in {length} tokens, seed {seed}": fingerprint([array for part in parts for array in part])
        for (length, seed), parts in tasks.items()
    }
    record_data(run_dir, data)
    decays = [{s: _decays(config, s, seed) for s in config.spreads} for seed in config.seeds]
    expected = {s: _expected(config, s) for s in config.spreads}
    table, trained = _train_all(config, tasks, run_dir)
    logits = {
        "spread": np.array(config.spreads),
        "t": np.array(config.steps),
        "mean": np.array([[decay[s][0] for s in config.spreads] for decay in decays]),
        "expected": np.array([expected[s] for s in config.spreads]),
    }
    return Result(
        measured=_of_decays(config, decays, expected) | _of_task(config, table),
        tables={"decay": _decay_table(config, logits), "task": table},
        series={"logits": logits, **({"trained": trained} if trained else {})},
        data=data,
    )


def _sequences(config: Config, length: int, seed: int) -> tuple[Recall, Recall]:
    """Fresh sequences for every update, and held-out ones."""
    from experiments.sources.recall import lagged_copy

    random = np.random.default_rng((seed, length))
    counts = (config.train.steps * _batch_size(config, length), config.evaluation_tokens // length)
    fit, held_out = (lagged_copy(random, (count, length), lag=config.lag, alphabet=config.alphabet) for count in counts)
    return fit, held_out


def _batch_size(config: Config, length: int) -> int:
    return config.batch_tokens // length


def _decays(config: Config, spread: float, seed: int) -> tuple[np.ndarray, float]:
    """Means of t (-g_t) near each step over channels, as the mixer computes g, and the median at the last step."""
    import jax

    from lightnet.mixers.normaliser import log_decay, log_normalisers

    last = max(config.steps)
    length, group = _near(last).stop, min(config.channels, 1024)  # in groups, for the memory

    @jax.jit
    def scaled(key: Any) -> Any:
        logits = spread * jax.random.normal(key, (1, length, 1, group))
        _, before = log_normalisers(logits)
        values = -log_decay(logits, before)[0, :, 0] * np.arange(1, length + 1)[:, None]
        return values.mean(axis=1), values[last - 1]

    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(-(-config.channels // group))]
    means, draws = zip(*(jax.device_get(scaled(key)) for key in keys), strict=True)
    return _around(np.mean(means, axis=0)[1:], config.steps), float(np.median(np.concatenate(draws)))


def _near(t: int) -> range:
    """The steps within 10 % of t."""
    return range(t - t // 10, t + t // 10 + 1)


def _around(values: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """Means near each step of values at t = 2, 3, ..."""
    return np.array([np.mean(values[_near(t).start - 2 : _near(t).stop - 2]) for t in steps])


def _expected(config: Config, spread: float) -> np.ndarray:
    """The exact expectation of what `_decays` measures."""
    from experiments.lightnet.decay_law import expected_log_decay

    t = np.arange(2, _near(max(config.steps)).stop)
    return _around(t * expected_log_decay(t, spread), config.steps)


def _train_all(
    config: Config, tasks: dict[tuple[int, int], tuple[Recall, Recall]], run_dir: Path
) -> tuple[dict[str, list], dict[str, np.ndarray]]:
    """Accuracies of every model at every length, and t E[-g_t], t = 2, 3, ..., in LightNet without positions."""
    table: dict[str, list] = {name: [] for name in ("model", "length", "seed", "accuracy", "late_accuracy")}
    scaled: dict[int, list] = {}
    for name in config.models:
        for (length, seed), parts in tasks.items():
            metrics, decays = _train_one(config, name, length, seed, parts, run_dir)
            row = (name, length, seed, metrics["accuracy"], metrics["late_accuracy"])
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
            if name == LIGHTNET:
                scaled.setdefault(length, []).append(decays)
    return table, {f"{length} tokens": np.array(values) for length, values in scaled.items()}


def _train_one(
    config: Config, name: str, length: int, seed: int, parts: tuple[Recall, Recall], run_dir: Path
) -> tuple[dict[str, float], np.ndarray | None]:
    from experiments.lightnet.recency import model, recall_task, scaled_decays
    from experiments.training.data import examples
    from experiments.training.loop import train

    fit, held_out = parts
    mixer, positions = read_model(name, "models", "causal text")
    size: dict[str, Any] = {
        "layers": config.layers,
        "width": config.width,
        "heads": config.heads,
        "length": length,
        "remat": config.train.remat,
    }
    network = model(config.alphabet, mixer=mixer, positions=positions, **size)
    batch = _batch_size(config, length)
    # The sequences are independent: there is nothing to shuffle.
    data = examples(fit._asdict(), seed=seed, shuffle=False)
    label = f"{name}, {length} tokens, seed {seed}"
    folder = run_dir / "training" / label.replace(", ", "-").replace(" ", "")
    settings = replace(config.train, batch_size=batch)
    outcome = train(settings, recall_task(network, held_out, batch), data, folder, seed=seed, label=label)
    decays = scaled_decays(network, outcome.params, held_out.tokens[:batch]) if mixer == "lightnet" else None
    return {key: float(outcome.evaluation[key][-1]) for key in ("accuracy", "late_accuracy")}, decays


def _of_decays(config: Config, decays: list, expected: dict[float, np.ndarray]) -> dict[str, Any]:
    """What is read off the random logits, one value per seed."""
    if 1.0 not in config.spreads or not set(SUMMARY) <= set(config.steps):
        return {}
    steps = np.array(config.steps)
    means = np.array([decay[1.0][0] for decay in decays])
    summary = means[:, np.isin(steps, SUMMARY)]
    distance = np.abs(means / expected[1.0] - 1)[:, steps >= SUMMARY[0]]
    return {
        "lightnet/decay-saturates": summary.max(axis=1) / summary.min(axis=1),
        "lightnet/decay-follows-expectation": distance.max(axis=1),
        "lightnet/decay-median": [decay[1.0][1] for decay in decays],
    }


def _of_task(config: Config, table: dict[str, list]) -> dict[str, Any]:
    """What is read off the task, one value per seed."""
    rows = zip(table["model"], table["length"], table["late_accuracy"], strict=True)
    late: dict[tuple[str, int], list[float]] = {}
    for model, length, accuracy in rows:
        late.setdefault((model, length), []).append(accuracy)
    shortest, longest = config.lengths[0], config.lengths[-1]
    measured = {}
    if {LIGHTNET, LINEAR} <= set(config.models) and shortest < longest:
        gaps = [paired_differences(late[LIGHTNET, length], late[LINEAR, length]) for length in (shortest, longest)]
        measured["lightnet/R11-recency-at-length"] = paired_differences(*gaps)
    if {LIGHTNET, BOTH} <= set(config.models):
        restored = paired_differences(late[BOTH, longest], late[LIGHTNET, longest])
        measured["lightnet/R11-positions-restore-recency"] = restored
    return measured


def _decay_table(config: Config, logits: dict[str, np.ndarray]) -> dict[str, list]:
    rows = [
        (spread, t, float(logits["expected"][i, k]), *logits["mean"][:, i, k].tolist())
        for i, spread in enumerate(config.spreads)
        for k, t in enumerate(config.steps)
    ]
    names = ("spread", "t", "expected", *(f"seed {seed}" for seed in config.seeds))
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


STYLES = {
    LIGHTNET: ("#0072B2", "o", "-"),
    BOTH: ("#0072B2", "s", "--"),
    LINEAR: ("#D55E00", "v", "-"),
    "multiplicative+none": ("#CC79A7", "D", "-"),
    "softmax+none": ("black", "x", "-"),
}


def plot(result: StoredResult) -> Figure:
    """Scaled decays against t, with the exact expectation and the limit 1; late accuracy against length."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    _plot_decays(axes[0], result)
    _plot_task(axes[1], result)
    return figure


def _plot_decays(axis: Axes, result: StoredResult) -> None:
    logits = result.series["logits"]
    for i, spread in enumerate(logits["spread"]):
        colour, marker = (("#0072B2", "o"), ("#009E73", "s"), ("#D55E00", "D"))[i % 3]
        axis.plot(
            logits["t"], logits["mean"][:, i].mean(axis=0), marker, color=colour, markersize=5, label=f"s = {spread:g}"
        )
        axis.plot(logits["t"], logits["expected"][i], color=colour, linewidth=1)
    trained = result.series.get("trained", {})
    for length, colour in ((result.config["lengths"][0], "#CC79A7"), (result.config["lengths"][-1], "grey")):
        for layer, values in enumerate(trained.get(f"{length} tokens", np.empty((1, 0, 0))).mean(axis=0)):
            style: dict[str, Any] = {"color": colour, "linestyle": ("-", "--")[layer % 2], "linewidth": 0.9}
            axis.plot(2 + np.arange(len(values)), values, label=f"trained at {length}, layer {layer + 1}", **style)
    axis.axhline(1, color="black", linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="t", ylabel="t E[-g_t]", title="decay of LightNet; lines: exact expectation")
    axis.set_ylim(0, 6)
    axis.legend(fontsize=7, frameon=False, ncols=2)


def _plot_task(axis: Axes, result: StoredResult) -> None:
    table, seeds = result.tables["task"], len(result.seeds)
    lengths = result.config["lengths"]
    accuracy = np.array(table["late_accuracy"]).reshape(-1, len(lengths), seeds)
    others = iter(("#E69F00", "#56B4E9", "#F0E442") * len(accuracy))
    for name, values in zip(dict.fromkeys(table["model"]), accuracy, strict=True):
        colour, marker, line = STYLES.get(name) or (next(others), "^", "-.")
        axis.plot(lengths, values.mean(axis=1), color=colour, marker=marker, linestyle=line, label=name)
        axis.fill_between(lengths, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    axis.axhline(1 / result.config["alphabet"], color="black", linestyle=":", linewidth=1)
    axis.text(lengths[0], 1 / result.config["alphabet"], "chance", fontsize=8, va="bottom")
    axis.set(xscale="log", xticks=lengths, xticklabels=lengths, xlabel="tokens", ylim=(0, 1.05))
    axis.minorticks_off()
    axis.set(ylabel="accuracy, last quarter", title="tell the token before; mean and range of seeds")
    axis.legend(fontsize=7, frameon=False)
