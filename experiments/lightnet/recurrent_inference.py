"""Recurrent inference: LightNet generates 10,000 bytes with a state and a time per byte that do not grow.

A small model is trained on the standard library's sources and continues the beginning of a held-out file by itself, one
byte after the other, 1,000 to a program. Three things are measured. The logits of all bytes against those of one
parallel pass over the whole generated text, which shares no state with the decoding. The time per byte: of generating
from the states before the first and before the last 1,000 bytes, in turns; and of `lightnet.decoding.stream`, which
hands out one byte after the other, in the first and in the last 1,000 of one stream. And the size of the state, beside
that of softmax attention, whose cache holds every byte; its time per byte is measured with a cache of 1,000 and 10,000.
Where the differences of the logits come from is told by decoding in float64 with one part of the state in float32.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import language, results
from experiments.language import BYTES, ModelConfig, TextConfig
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.language_models import LanguageModel

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="Section 3 (known from code and reviews)",
    minutes={"smoke": 0.2, "cpu": 2},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The model, how much it generates, and how often that is timed."""

    tokens: int = 10_000
    """Bytes to generate."""
    block: int = 1000
    """Bytes that one program generates; the first and the last block are compared."""
    prompt: int = 64
    """Bytes of a held-out file to begin with."""
    temperature: float = 0.8
    """Of the samples."""
    calls: int = 9
    """Measured generations of a block, of which the median counts."""
    streams: int = 7
    """Measured streams; of their medians the smallest counts, since other work on a machine only adds to them."""
    caches: tuple[int, ...] = (1000, 10_000)
    """Lengths of softmax attention's cache to time beside it."""
    text: TextConfig = field(default_factory=TextConfig)
    """What the model is trained on."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Size of the model."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=100,
            eval_every=100,
            optimizer=OptimizerConfig(learning_rate=4e-3, schedule="cosine"),
            checkpoint=CheckpointConfig(every=0),
        )
    )
    """Its training."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("block", "prompt", "calls", "streams"):
            require(name, getattr(self, name), 1)
        require("temperature", self.temperature, 1e-3)
        require("train.eval_every", self.train.eval_every, 1)
        if self.tokens < 2 * self.block or self.tokens % self.block:
            raise ValueError(
                f"tokens: got {self.tokens}, expected a multiple of the block, {self.block}, twice at least"
            )


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        tokens=32,
        block=16,
        prompt=4,
        calls=1,
        streams=1,
        caches=(),
        text=TextConfig(every=100, folds=4, length=16),
        model=ModelConfig(num_layers=1, width=8, num_heads=1, hidden=16),
        train=TrainConfig(steps=2, batch_size=4, eval_every=2),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "lightnet/R9-recurrent-inference",
        "largest difference between a decoded logit and that of the parallel pass over all 10,000 bytes, float32",
        "below",
        1e-4,
        kind="ours",
    ),
    Claim(
        "lightnet/R9-time-per-token",
        "time per byte of the last 1,000 of 10,000 bytes over that of the first 1,000",
        "within",
        1.0,
        tolerance=0.1,
        kind="ours",
    ),
    Claim(
        "lightnet/R9-streamed-time-per-token",
        "median time between two bytes of a stream, of the last 1,000 of 10,000 over that of the first 1,000",
        "within",
        1.0,
        tolerance=0.1,
        kind="ours",
    ),
    Claim(
        "lightnet/R9-state-size",
        "bytes of the state behind 10,000 tokens over those behind the prompt",
        "within",
        1.0,
        deterministic=True,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train a model per seed, let it generate, compare and time."""
    from experiments.lightnet.drift import drifts, generate, rounding
    from experiments.runs import record_data

    texts = {seed: language.parts(config.text, seed) for seed in config.seeds}
    data = {f"training text, seed {seed}": train.sha256 for seed, (train, _) in texts.items()}
    record_data(run_dir, data)
    columns: dict[str, list] = {"seed": [], "drift": [], "first_us": [], "last_us": []}
    columns |= {"first_streamed_us": [], "last_streamed_us": [], "bytes": [], "bytes_at_end": []}
    curves = []
    rounded: dict[str, list] = {"seed": [], "float32": [], "drift": []}
    for seed in config.seeds:
        model, params, prompt = _trained(config, seed, texts[seed], run_dir)
        built = model.build()
        found = generate(
            built,
            params,
            prompt,
            seed,
            tokens=config.tokens,
            block=config.block,
            temperature=config.temperature,
        )
        drift = drifts(built, params, prompt, found)
        first, last = block_times(config, built, params, [found.states[0], found.states[-2]])
        streamed = stream_times(config, built, params, prompt, seed)
        sizes = [state_bytes(state) for state in (found.states[0], found.states[-1])]
        row = (seed, float(drift.max()), first, last, *streamed, *sizes)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        curves.append(drift.reshape(-1, config.block).max(axis=1))
        for part, difference in rounding(built, params, prompt, found).items():
            rounded["seed"].append(seed)
            rounded["float32"].append(part)
            rounded["drift"].append(difference)
    blocks = config.block * np.arange(1, len(curves[0]) + 1)
    return Result(
        measured={
            "lightnet/R9-recurrent-inference": columns["drift"],
            "lightnet/R9-time-per-token": np.array(columns["last_us"]) / np.array(columns["first_us"]),
            "lightnet/R9-streamed-time-per-token": np.array(columns["last_streamed_us"])
            / np.array(columns["first_streamed_us"]),
            "lightnet/R9-state-size": [columns["bytes_at_end"][0] / columns["bytes"][0]],
        },
        tables={"decoding": columns, "rounding": rounded, "softmax": _softmax(config)},
        series={"drift": {"tokens": blocks, "largest": np.stack(curves)}},
        data=data,
    )


def described(config: Config, mixer: str = "lightnet", positions: str = "both") -> LanguageModel:
    """The model of a configuration, or the same with another mixer.

    Args:
        config: its size.
        mixer: see `experiments.mixers`.
        positions: see `experiments.mixers`.

    Returns:
        The description.
    """
    from experiments.language_models import LanguageModel

    size = config.model
    return LanguageModel(
        BYTES,
        mixer=mixer,
        positions=positions,
        num_layers=size.num_layers,
        width=size.width,
        num_heads=size.num_heads,
        hidden=size.hidden,
    )


def _trained(config: Config, seed: int, texts: Any, run_dir: Path) -> tuple[LanguageModel, Any, np.ndarray]:
    """A trained model, its parameters, and the beginning of the held-out text."""
    vocabulary, model = language.Vocabulary(None, np.ones(BYTES, np.float32)), described(config)
    streams = [vocabulary.encode(text.documents) for text in texts]
    train_rows, held_out = (language.rows(stream, config.text.length) for stream in streams)
    outcome = language.train_language_model(
        config.train,
        model,
        train_rows,
        {"held_out": held_out},
        vocabulary.lengths,
        run_dir / "training" / f"lightnet-seed{seed}",
        seed=seed,
    )
    return model, outcome.params, streams[1][: config.prompt]


def block_times(config: Config, model: Any, params: Any, starts: list[Any]) -> list[float]:
    """Microseconds per token of generating a block from each of several states, in turns.

    Args:
        config: the block, and how often it is timed.
        model: which generates.
        params: its variables.
        starts: states to begin with, (state, logits).

    Returns:
        A median for each.
    """
    import jax

    from experiments.lightnet.drift import block_program
    from experiments.scan_benchmark.measure import take_turns

    block, key = block_program(model, config.block, config.temperature), jax.random.key(0)
    calls = [lambda start=start: jax.block_until_ready(block(params, *start, key)) for start in starts]
    for call in calls:
        call()
    return [1e3 * found.wall_ms / config.block for found in take_turns(calls, config.calls)]


def stream_times(config: Config, model: Any, params: Any, prompt: np.ndarray, seed: int) -> tuple[float, float]:
    """Median microseconds between two bytes of a stream, of its first and of its last block, in the quickest of some.

    Args:
        config: how much, how often, and at which temperature.
        model: which generates.
        params: its variables.
        prompt: (p,) bytes.
        seed: of the samples.

    Returns:
        The smallest of each median. Before the first bytes the step is compiled, which a median does not see.
    """
    from experiments.training.update import random_stream
    from lightnet.decoding import stream

    key = random_stream(seed, "streamed samples")
    medians = []
    for _ in range(config.streams):
        bytes_of = stream(model, params, prompt[None], key, steps=config.tokens, temperature=config.temperature)
        times = np.diff([time.perf_counter() for _ in bytes_of])
        medians.append([np.median(times[part]) for part in (slice(config.block), slice(-config.block, None))])
    first, last = 1e6 * np.min(medians, axis=0)
    return float(first), float(last)


def state_bytes(state: Any) -> int:
    """Size of all arrays of a state."""
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _softmax(config: Config) -> dict[str, list]:
    """Size of the cache and time per token of softmax attention, whose weights are random: they do not matter here."""
    import jax
    from flax import linen as nn

    shorter = replace(config, block=max(1, config.block // 10))
    columns: dict[str, list] = {"cache": [], "bytes": [], "us": []}
    for cache in config.caches:
        model = described(config, "softmax", "both").build(cache=cache)
        prompt = np.zeros((1, 1), np.int32)
        params = nn.unbox(jax.jit(model.init)(jax.random.key(0), prompt))
        logits, state = jax.jit(partial(model.apply, method="extend"))(params, prompt)
        columns["cache"].append(cache)
        columns["bytes"].append(state_bytes(state))
        columns["us"] += block_times(shorter, model, params, [(state, logits[:, -1])])
    return columns


def plot(result: StoredResult) -> Figure:
    """Left: drift of the logits against generated bytes, and its limit. Right: time per byte, of softmax too."""
    from matplotlib import pyplot as plt

    drift, times, softmax = result.series["drift"], result.tables["decoding"], result.tables["softmax"]
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
    for seed, values in zip(result.seeds, drift["largest"], strict=True):
        axes[0].plot(drift["tokens"], values, "o-", markersize=3, label=f"seed {seed}")
    axes[0].axhline(1e-4, color="black", linestyle="--", linewidth=1, label="limit")
    axes[0].set(yscale="log", xlabel="generated bytes", ylabel="largest difference of a logit")
    axes[0].legend(fontsize=8)
    ends = [result.config["block"], result.config["tokens"]]
    for first, last in zip(times["first_us"], times["last_us"], strict=True):
        axes[1].plot(ends, [first, last], "o-", color="#D55E00", markersize=4)
    axes[1].plot(softmax["cache"], softmax["us"], "s--", color="#0072B2", markersize=4, label="softmax, by its cache")
    axes[1].plot([], [], "o-", color="#D55E00", label="LightNet")
    axes[1].set(xscale="log", yscale="log", xlabel="bytes in the context", ylabel="µs per byte")
    axes[1].legend(fontsize=8)
    return figure
