"""Induction heads: trained on sequences of 64 tokens, tested on up to 16,384.

What followed a special token is told when that token is read again (arXiv 2312.00752, section 4.1.2). A model that has
learned the rule and not the length does so however far the two are apart. The published model was trained at 256 and is
said to be perfect up to 2^20; `gpu` has these lengths.

Sequences are read in chunks with the state carried along, so that memory does not grow with the length. Softmax
attention has no state of fixed size: it reads whole sequences, and the longest that it is tested on is shorter. A
training ends once all seeds tell every answer on the evaluation sequences, of the training's length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.long_memory.cells import MemoryConfig, as_table, recipe, train_cell
from experiments.long_memory.networks import ModelConfig, colour
from experiments.long_memory.tasks import InductionConfig
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.long_memory.learning import Learned
    from lightnet.backbone import CausalLM

ABOUT = About(
    paper="Mamba: Linear-Time Sequence Modeling with Selective State Spaces (arXiv 2312.00752)",
    source="induction heads figure and abstract",
    # Of gpu a guess: 15 ms an update, and a second for each of 16 sequences of a million tokens.
    minutes={"smoke": 0.1, "cpu": 15, "gpu": 20},
)
MAMBA = "mamba+none"


@dataclass(frozen=True)
class Config(MemoryConfig):
    """The task, the models, their training and the lengths of the test."""

    models: tuple[str, ...] = (MAMBA, "mamba2+none", "lightnet+both", "softmax+both")
    task: InductionConfig = field(default_factory=lambda: InductionConfig(64))
    """The sizes of the task in training."""
    train: TrainConfig = field(default_factory=lambda: recipe(1000, 32, 25, wrong=0.0))
    test_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
    """Tokens of the sequences to test on, growing."""
    test_rows: int = 64
    """Sequences of each length."""
    chunk: int = 64
    """Tokens that are read together."""
    softmax_longest: int = 2048
    """Most tokens that softmax attention is tested on."""

    def __post_init__(self) -> None:
        """Check the ranges and the names."""
        super().__post_init__()
        require("the smallest of test_lengths", min(self.test_lengths, default=0), 3)
        for name in ("test_rows", "chunk", "softmax_longest"):
            require(name, getattr(self, name), 1)
        if list(self.test_lengths) != sorted(set(self.test_lengths)):
            raise ValueError(f"test_lengths: got {self.test_lengths}, expected growing numbers")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        models=("softmax+none",),
        task=InductionConfig(6),
        model=ModelConfig(1, 8, 2, 1),
        evaluation_rows=4,
        train=recipe(2, 4, 2, wrong=0.0),
        test_lengths=(8,),
        test_rows=2,
        chunk=4,
    ),
    "cpu": Config(),
    "gpu": Config(
        models=(MAMBA,),
        task=InductionConfig(256),
        model=ModelConfig(2, 64, 4, 100_000),
        train=recipe(20_000, 32, 500, learning_rate=1e-3, wrong=0.0),
        test_lengths=tuple(2**power for power in range(6, 21)),
        test_rows=16,
        chunk=16_384,
    ),
}

CLAIMS = (
    Claim(
        "long_memory/mamba-induction-extrapolates",
        "share of the answers that Mamba tells on the longest sequences of the test, %",
        "above",
        99.0,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed, then test them at every length."""
    task = config.task.task()
    rows: list[tuple] = []
    tested: list[tuple] = []
    curves: dict[str, dict[str, np.ndarray]] = {}
    measured: dict[str, Any] = {}
    for name in config.models:
        cell, model, found = train_cell(config, task, name, run_dir)
        rows += cell
        lengths, accuracy = _lengths(config, name), _tested(config, name, model, found)
        tested += [
            (name, seed, length, float(accuracy[i, k]))
            for i, seed in enumerate(config.seeds)
            for k, length in enumerate(lengths)
        ]
        curves[name] = {"length": np.array(lengths), "accuracy": accuracy}
        if name == MAMBA:
            measured["long_memory/mamba-induction-extrapolates"] = accuracy[:, -1]
    tables = {"models": as_table(rows), "lengths": as_table(tested, ("model", "seed", "length", "accuracy"))}
    return Result(measured=measured, tables=tables, series=curves)


def _lengths(config: Config, name: str) -> list[int]:
    """Lengths that a model is tested at."""
    longest = config.softmax_longest if name.startswith("softmax") else config.test_lengths[-1]
    return [length for length in config.test_lengths if length <= longest]


def _tested(config: Config, name: str, model: CausalLM, found: Learned) -> np.ndarray:
    """Accuracy of each seed at each length that the model is tested at, (seeds, lengths), %."""
    from experiments.long_memory.extrapolation import reader
    from experiments.training.together import one_of

    read, lengths = reader(model), _lengths(config, name)
    tested = [
        [_share(config, name, model, read, one_of(found.params, i), seed, length) for length in lengths]
        for i, seed in enumerate(config.seeds)
    ]
    return 100 * np.array(tested)


def _share(config: Config, name: str, model: CausalLM, read: Any, params: Any, seed: int, length: int) -> float:
    """Share of the answers at a length."""
    from experiments.long_memory.extrapolation import last_logits
    from experiments.sources.memory import induction_heads
    from experiments.training.update import random_stream

    key = random_stream(seed, f"{length} tokens")
    task = induction_heads(key, config.test_rows, length=length, alphabet=config.task.alphabet)
    if name.startswith("softmax"):
        # What attention holds grows with the square of the length: one whole sequence at a time.
        rows = [last_logits(read, params, tokens[None], None, length) for tokens in task.tokens]
        told = np.concatenate(rows).argmax(axis=1)
    else:
        state = model.apply({"params": params}, config.test_rows, method="init_state")
        told = np.asarray(last_logits(read, params, task.tokens, state, min(config.chunk, length))).argmax(axis=1)
    return float(np.mean(told == np.asarray(task.targets[:, -1])))


def plot(result: StoredResult) -> Figure:
    """Accuracy against the length of the test: a line per seed, thick for their mean; dotted: the training's length."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for name, curve in result.series.items():
        style: dict[str, Any] = {"color": colour(name), "marker": "o", "markersize": 3}
        axis.plot(curve["length"], curve["accuracy"].T, linewidth=0.5, alpha=0.5, **style)
        axis.plot(curve["length"], curve["accuracy"].mean(axis=0), label=name.partition("+")[0], **style)
    axis.axvline(result.config["task"]["length"], color="black", linestyle=":", linewidth=1)
    axis.axhline(100 / (result.config["task"]["alphabet"] - 1), color="black", linestyle=":", linewidth=0.8)
    axis.set(xlabel="tokens of the test; trained at the dotted line", ylabel="answers told, %")
    axis.set_xscale("log", base=2)
    axis.set_ylim(0, 102)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.grid(color="0.92")
    return figure
