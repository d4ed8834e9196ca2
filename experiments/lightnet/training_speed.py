"""Tokens per second of a training step: the causal LightNet model against the same one with softmax attention.

Softmax attention is `jax.nn.dot_product_attention`, XLA's own on a CPU, which forms all pairs. LRPE doubles its keys,
so it is timed with LightNet's two encodings, which is the same model with another mixer, and with TPE alone; the claim
is about the faster of the two. A step is loss, gradient and AdamW. The models take turns within a repetition, of which
each seed of the config is one, and the ratio is that of their medians. Times are of the machine that runs this: they do
not repeat bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import language, results
from experiments.language import BYTES, ModelConfig
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="abstract (ours)",
    minutes={"smoke": 0.2, "cpu": 0.5},
)

MODELS = ("lightnet+both", "softmax+both", "softmax+tpe")


@dataclass(frozen=True)
class Config(results.Config):
    """The models and how often they are timed."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One repetition each."""
    length: int = 1024
    """Tokens per row."""
    calls: int = 5
    """Measured steps of a model in a repetition, of which the median counts."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Size of the models."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=2))
    """Batch size and optimizer; 2 rows of 1024 are twice the tokens of a batch of `causal_lm`."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require("length", self.length, 1)
        require("calls", self.calls, 1)


PRESETS = {
    "smoke": Config(seeds=(0,), length=16, calls=1, model=ModelConfig(num_layers=1, width=8, num_heads=1, hidden=16)),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "lightnet/R7-training-speed",
        "tokens per second of a training step with LightNet over those with the faster softmax attention, L = 1024",
        "above",
        1.3,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Time the three models in turns, once per repetition."""
    from experiments.scan_benchmark.measure import take_turns

    calls = [_program(config, name) for name in MODELS]
    rounds = [take_turns(calls, config.calls) for _ in config.seeds]
    tokens = config.train.batch_size * config.length
    speeds = {name: [1e3 * tokens / found[i].wall_ms for found in rounds] for i, name in enumerate(MODELS)}
    fastest = np.maximum(speeds["softmax+both"], speeds["softmax+tpe"])
    table: dict[str, list] = {
        "model": [name for name in MODELS for _ in config.seeds],
        "repetition": [seed for _ in MODELS for seed in config.seeds],
        "tokens_per_second": [speed for name in MODELS for speed in speeds[name]],
    }
    measured: dict[str, Any] = {"lightnet/R7-training-speed": np.array(speeds["lightnet+both"]) / fastest}
    return Result(measured=measured, tables={"speeds": table}, series={})


def _program(config: Config, name: str) -> Any:
    """One update of a model on random bytes."""
    from experiments.language_models import LanguageModel
    from experiments.step_time import update_program

    mixer, _, positions = name.partition("+")
    size = config.model
    model = LanguageModel(
        BYTES,
        mixer=mixer,
        positions=positions,
        num_layers=size.num_layers,
        width=size.width,
        num_heads=size.num_heads,
        hidden=size.hidden,
    )
    shape = (config.train.batch_size, config.length + 1)
    batch = {"tokens": np.random.default_rng(0).integers(0, BYTES, shape, np.int32)}
    lengths = np.ones(BYTES, np.float32)
    task = language.next_token_task(model.build(remat=config.train.remat), {"batch": batch}, lengths, shape[0])
    return update_program(task, config.train.optimizer, batch)


def plot(result: StoredResult) -> Figure:
    """Speeds of every repetition, one row per model."""
    from matplotlib import pyplot as plt

    table = result.tables["speeds"]
    speeds = np.array(table["tokens_per_second"]).reshape(len(MODELS), -1)
    figure, axis = plt.subplots(figsize=(6, 1.8), layout="constrained")
    for row, values in enumerate(speeds):
        axis.plot(values, [row] * len(values), "o", color="#0072B2", markersize=4, alpha=0.6)
        axis.plot(np.median(values), row, "|", color="black", markersize=14)
    axis.set(xscale="log", xlabel=f"tokens per second of a training step, L = {result.config['length']}")
    axis.set_yticks(range(len(MODELS)), MODELS)
    axis.grid(axis="x", which="both", color="0.9")
    axis.invert_yaxis()
    return figure
