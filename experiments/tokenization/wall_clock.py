"""On the order-1 source, loss against seconds: characters are learned too, but tokens get there sooner.

Figure 5 of arXiv 2404.08335, p = q = 0.8, three layers: (a) the smallest models within a tenth of the optimum, width 10
on characters and width 20 on 20 BPE tokens; (b) the same width on both. A published row of 512 characters is about 145
tokens, so that an update on tokens is cheaper.

Seconds are updates times the median time of one, taken once per seed, with the models in turn because the speed of a
shared machine drifts; compiling and evaluating do not count, as in the figure. A model that never comes within a tenth
of the optimum counts with its last second; the table says which do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.tokenization.rows_config import RowsConfig
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="Toward a Theory of Tokenization in LLMs (arXiv 2404.08335)",
    source="Figure 5",
    # That of paper is an estimate: it has not been run.
    minutes={"smoke": 0.4, "cpu": 2, "paper": 5},
)
WITHIN = 1.1
"""Of the entropy rate: where a model has arrived."""


@dataclass(frozen=True)
class Config(results.Config):
    """The source, the models and their training."""

    order: int = 1
    """order of the switching source"""
    p: float = 0.8
    """probability of 0 -> 1"""
    q: float = 0.8
    """probability of 1 -> 0"""
    models: tuple[tuple[int, int], ...] = ((2, 10), (2, 20), (20, 20))
    """(dictionary size, width) of each model; two tokens are the characters"""
    layers: int = 3
    """blocks"""
    length: int = 256
    """characters per row"""
    rows: RowsConfig = field(default_factory=lambda: RowsConfig(tokenizer_characters=10_000))
    """how much text"""
    calls: int = 12
    """updates that are timed, of each model and seed"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=300, batch_size=16, eval_every=5))
    """of every model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("order", self.order, 1)
        for name in ("p", "q"):
            require(name, getattr(self, name), 1e-3, below=1)
        require("the number of models", len(self.models), 1)
        for size, width in self.models:
            require("each dictionary size of models", size, 2, 10_000)
            require("each width of models", width, 1)
        for name in ("layers", "length", "calls"):
            require(name, getattr(self, name), 1)
        require("train.eval_every", self.train.eval_every, 1)


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        models=((2, 4),),
        layers=1,
        length=16,
        rows=RowsConfig(tokenizer_characters=500, pool=8, evaluation=4, reference=8),
        calls=1,
        train=TrainConfig(steps=2, batch_size=2, eval_every=2),
    ),
    "cpu": Config(),
    "paper": Config(seeds=(0, 1, 2, 3, 4), length=512),
}

CLAIMS = (
    Claim(
        "tokenization/F5-bpe-faster-smallest-models",
        "seconds until 1.1 H_inf: 20 BPE tokens at width 20 minus characters at width 10",
        "below",
        0.0,
    ),
    Claim(
        "tokenization/F5-smallest-models-arrive",
        "last loss over H_inf: the larger of 20 BPE tokens at width 20 and characters at width 10",
        "below",
        WITHIN,
    ),
    Claim(
        "tokenization/F5-same-architecture",
        "width 20: last loss on 20 BPE tokens minus that on characters (nats per character)",
        "above",
        0.0,
    ),
    Claim(
        "tokenization/F5-same-architecture-faster",
        "width 20: seconds until 1.1 H_inf on 20 BPE tokens minus those on characters",
        "below",
        0.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed, then time their updates in turns."""
    from experiments.scan_benchmark.measure import take_turns
    from experiments.sources import SwitchingSource
    from experiments.tokenization.scoring import columns
    from experiments.tokenization.token_training import token_texts, train_on_tokens
    from experiments.training.together import number_of_parameters

    source = SwitchingSource(config.order, config.p, config.q)
    goal = WITHIN * source.entropy_rate()
    batch_size = config.train.batch_size
    texts = {
        size: token_texts(
            source, size, seeds=config.seeds, length=config.length, batch_size=batch_size, rows=config.rows
        )
        for size in sorted(dict(config.models))
    }
    networks = {model: _network(config, texts[model[0]].longest, *model) for model in config.models}
    curves = {
        model: train_on_tokens(
            config.train, network, texts[model[0]], run_dir / "training" / label(*model), seeds=config.seeds
        )
        for model, network in networks.items()
    }
    calls = [_update(config, network, texts[size]) for (size, _), network in networks.items()]
    rounds = [take_turns(calls, config.calls) for _ in config.seeds]
    rows, series = [], {}
    for i, ((size, width), curve) in enumerate(curves.items()):
        loss, seconds = curve.metrics["loss"], np.array([1e-3 * found[i].wall_ms for found in rounds])
        series[label(size, width)] = {"step": curve.step, "loss": loss, "seconds": curve.step * seconds[:, None]}
        parameters = number_of_parameters(curve.params, len(config.seeds))
        for seed, losses, each in zip(config.seeds, loss, seconds.tolist(), strict=True):
            arrived = arrival(curve.step, losses, goal)
            row = {"size": size, "width": width, "seed": seed, "parameters": parameters, "seconds_per_update": each}
            row |= {"arrived": bool(losses.min() <= goal), "seconds": each * arrived, "last_loss": float(losses[-1])}
            rows.append(row)
    lines = [{"size": size, **text.references} for size, text in texts.items()]
    tables = {"models": columns(rows), "references": columns(lines)}
    return Result(measured={**measure(config, rows, source.entropy_rate())}, tables=tables, series=series)


def label(size: int, width: int) -> str:
    """Name of a model.

    Args:
        size: of the dictionary.
        width: channels.

    Returns:
        The name.

    Example:
        >>> label(2, 10), label(20, 20)
        ('characters-width-10', '20-tokens-width-20')
    """
    return f"{'characters' if size == 2 else f'{size}-tokens'}-width-{width}"


def arrival(step: np.ndarray, losses: np.ndarray, goal: float) -> int:
    """First evaluation at which the loss is at most the goal.

    Args:
        step: (T,) updates done.
        losses: (T,).
        goal: loss.

    Returns:
        The step; the last one where that never happens.

    Example:
        >>> arrival(np.array([0, 5, 10]), np.array([0.7, 0.5, 0.6]), 0.55)
        5
    """
    found = np.flatnonzero(losses <= goal)
    return int(step[found[0] if len(found) else -1])


def _network(config: Config, longest: int, size: int, width: int) -> Any:
    from experiments.tokenization.transformer import transformer

    return transformer(size, longest, layers=config.layers, width=width, heads=1)


def _update(config: Config, network: Any, texts: Any) -> Any:
    """One update on a batch, to be timed."""
    import jax

    from experiments.step_time import update_program
    from experiments.tokenization.transformer import language_modelling

    task = language_modelling(network, texts.evaluation[0], config.length)
    return update_program(task, config.train.optimizer, texts.draw(jax.random.key(0)))


def measure(config: Config, rows: list[dict[str, Any]], entropy_rate: float) -> dict[str, list[float]]:
    """The values of the claims, as far as their models were trained.

    Args:
        config: seeds.
        rows: of the table `models`.
        entropy_rate: of the source.

    Returns:
        claim id -> one value per seed.
    """

    def values(size: int, width: int, name: str) -> np.ndarray:
        return np.array([row[name] for row in rows if (row["size"], row["width"]) == (size, width)])

    known, measured = {(row["size"], row["width"]) for row in rows}, {}
    if {(20, 20), (2, 10)} <= known:
        measured["F5-bpe-faster-smallest-models"] = values(20, 20, "seconds") - values(2, 10, "seconds")
        larger = np.maximum(values(20, 20, "last_loss"), values(2, 10, "last_loss"))
        measured["F5-smallest-models-arrive"] = larger / entropy_rate
    if {(20, 20), (2, 20)} <= known:
        measured["F5-same-architecture"] = values(20, 20, "last_loss") - values(2, 20, "last_loss")
        measured["F5-same-architecture-faster"] = values(20, 20, "seconds") - values(2, 20, "seconds")
    return {f"tokenization/{id}": found.tolist() for id, found in measured.items()}


def plot(result: StoredResult) -> Figure:
    """Loss against seconds, one colour per model, one line per seed, with the references of the largest dictionary."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    colours = ("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7")
    for i, (size, width) in enumerate(result.config["models"]):
        curve = result.series[label(size, width)]
        for seed, losses in enumerate(curve["loss"]):
            name = None if seed else label(size, width).replace("-", " ")
            axis.plot(curve["seconds"][seed][1:], losses[1:], color=colours[i % len(colours)], linewidth=1, label=name)
    styles = {"unigram_entropy": ("H(pi)", "--"), "token_unigram": ("token unigram", "-.")}
    styles |= {"token_bigram": ("token bigram", ":"), "entropy_rate": ("entropy rate", "-")}
    for column, (title, style) in styles.items():
        level = result.tables["references"][column][-1]
        axis.axhline(level, color="black", linestyle=style, linewidth=0.8, label=title)
    axis.set(xlabel="seconds", ylabel="nats per character", xscale="log")
    axis.legend(fontsize=7)
    return figure
