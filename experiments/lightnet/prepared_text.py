"""Causal language modelling of rows that `data prepare` has written; and whether reading them keeps up.

`--config.data FOLDER` trains on any such folder, on disk or in a bucket: its tokens, its length of a row, the documents
of a row each for itself. Its last shards are held out. Without a folder the standard library's sources are prepared in
the run folder, as bytes, so that a run needs no file. Losses are in nats per token.

The models are two of `lightnet/causal_lm` at preset `cpu`, with its batch. What a training consumes is measured as
the tokens per second of its update alone, compiled, on a batch that is on the device already: the most that it could
ask for. What is read is measured as one process gets it in the order of the training, shuffled, batched and handed to
the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.language import ModelConfig
from experiments.mixers import read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.language_models import LanguageModel
    from experiments.records.manifest import Manifest

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="autoregressive language modelling, from prepared rows (ours)",
    minutes={"smoke": 0.1, "cpu": 3},
)


@dataclass(frozen=True)
class Config(results.Config):
    """The rows, the models and their training. A seed decides initial values and order."""

    data: str = ""
    """Folder that `data prepare` wrote, or its address; empty: `source` is prepared in the run folder, as bytes."""
    source: str = "standard_library"
    """What is prepared without a folder: standard_library or documentation."""
    length: int = 128
    """Tokens per row of what is prepared without a folder."""
    shards: int = 8
    """Shards of what is prepared without a folder."""
    held_out: int = 1
    """Last shards, which are evaluated on."""
    evaluated: int = 2048
    """Most rows of them that are."""
    lanes: int = 1
    """1 shuffles all rows together; a multiple of the number of processes lets each read shards of its own."""
    seconds: float = 2.0
    """Length of a measurement of reading."""
    models: tuple[str, ...] = ("lightnet+both", "softmax+lrpe")
    """Mixer and positions, joined by +."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Size of the models."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=100,
            batch_size=8,
            eval_every=100,
            optimizer=OptimizerConfig(learning_rate=4e-3, schedule="cosine"),
            checkpoint=CheckpointConfig(every=0),
        )
    )
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        for name in ("length", "held_out", "evaluated", "lanes"):
            require(name, getattr(self, name), 1)
        require("shards", self.shards, self.held_out + 1)
        require("seconds", self.seconds, 0)
        require("train.eval_every", self.train.eval_every, 1)
        if not self.models:
            raise ValueError("models: got none, expected at least one")
        for model in self.models:
            read_model(model, "models", "causal text")


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        source="documentation",
        length=16,
        shards=8,
        evaluated=8,
        seconds=0.05,
        models=("softmax+none",),
        model=ModelConfig(num_layers=1, width=8, num_heads=1, hidden=16),
        train=TrainConfig(steps=3, batch_size=4, eval_every=3),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "lightnet/prepared-rows-keep-up",
        "tokens per second that one process reads in training order over those that an update of the model can take, "
        "the smallest of the models",
        "above",
        5.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Prepare rows unless there are, train every model with every seed, and measure reading beside the updates."""
    import grain

    from experiments.packed_language import train_on_rows
    from experiments.records.order import in_training_order, widened
    from experiments.records.source import Records
    from experiments.runs import record_data

    folder = config.data or _prepared(config, run_dir / "data")
    everything = Records(folder)
    manifest, numbers = everything.manifest, everything.shards
    record_data(run_dir, {manifest.name: manifest.sha256})
    trained, held_out = numbers[: -config.held_out], everything.only(numbers[-config.held_out :])
    evaluated = grain.MapDataset.source(held_out).map(widened)[: config.evaluated]
    speeds: dict[str, list] = {"model": [], "seed": [], "update": [], "reading": []}
    losses: dict[str, list] = {"model": [], "seed": [], "loss": []}
    for name, model in described(config, manifest, str(folder)).items():
        for seed in config.seeds:
            data = in_training_order(
                folder,
                seed=seed,
                batch_size=config.train.batch_size,
                lanes=config.lanes,
                shards=trained,
                check=False,
            )
            place = run_dir / "training" / f"{name}-seed{seed}"
            outcome = train_on_rows(config.train, model, data, evaluated, place, seed=seed)
            _append(losses, name, seed, float(outcome.evaluation["held_out"][-1]))
            _append(speeds, name, seed, *_speeds(config, model, data, manifest.about["length"]))
    measured: dict[str, Any] = {"lightnet/prepared-rows-keep-up": _ratios(config, speeds)}
    return Result(
        measured=measured,
        tables={"losses": losses, "tokens per second": speeds},
        data={manifest.name: manifest.sha256},
    )


def _prepared(config: Config, folder: Path) -> Path:
    """The embedded text as rows of bytes."""
    from experiments.distributed import is_primary, wait_for_all
    from experiments.records.documents import EmbeddedText
    from experiments.records.tokens import Tokenization, TokenRows
    from experiments.records.writing import write

    if is_primary():
        text, tokenization = EmbeddedText(config.source), Tokenization(None)
        write(folder, TokenRows(config.source, text, tokenization, config.length, config.shards), part=(0, 1))
    wait_for_all("the prepared rows")
    return folder


def described(config: Config, manifest: Manifest, folder: str) -> dict[str, LanguageModel]:
    """The models of a configuration by name, at the size of LightNet with both encodings.

    Args:
        config: names and sizes.
        manifest: of the rows.
        folder: where they are, and their tokenizer.

    Returns:
        name -> description.
    """
    from dataclasses import replace

    from experiments import language
    from experiments.language_models import LanguageModel
    from experiments.records.tokens import prepared_tokenizer

    reference = LanguageModel(
        manifest.about["vocab_size"],
        num_layers=config.model.num_layers,
        width=config.model.width,
        num_heads=config.model.num_heads,
        hidden=config.model.hidden,
        length=manifest.about["length"],
        tokenizer=prepared_tokenizer(folder, manifest.about),
    )
    parameters, models = language.count_parameters(reference.build()), {}
    for name in config.models:
        mixer, positions = read_model(name, "models", "causal text")
        models[name] = language.at_equal_size(replace(reference, mixer=mixer, positions=positions), parameters)
    return models


def _speeds(config: Config, model: LanguageModel, data: Any, length: int) -> tuple[float, float]:
    """Tokens per second of the update alone, and of reading alone."""
    from experiments.packed_language import packed_task
    from experiments.records.speed import speed_in_training_order
    from experiments.scan_benchmark.measure import take_turns
    from experiments.step_time import update_program
    from experiments.training.recording import recorder

    if recorder() is not None:
        return float("nan"), float("nan")
    # One row stands for all: its values do not change the time, and the rows of other processes stay where they are.
    batch = {name: np.stack([array] * config.train.batch_size) for name, array in data[0].items()}
    call = update_program(packed_task(model.build(), data[:1], 1), config.train.optimizer, batch)
    (timing,) = take_turns([call], 20)
    rows_read, seconds = speed_in_training_order(data, config.seconds, config.train.batch_size, config.train.workers)
    return 1e3 * config.train.batch_size * length / timing.wall_ms, rows_read * length / seconds


def _ratios(config: Config, speeds: dict[str, list]) -> np.ndarray:
    """Of each seed the smallest ratio of any model."""
    ratios = np.array(speeds["reading"]) / np.array(speeds["update"])
    return ratios.reshape(len(config.models), len(config.seeds)).min(axis=0)


def _append(table: dict[str, list], *row: Any) -> None:
    for column, entry in zip(table.values(), row, strict=True):
        column.append(entry)


def plot(result: StoredResult) -> Figure:
    """What updates can take and what is read: one row per model, one point per seed."""
    from matplotlib import pyplot as plt

    table = result.tables["tokens per second"]
    models = list(dict.fromkeys(table["model"]))
    figure, axis = plt.subplots(figsize=(6, 1 + 0.4 * len(models)), layout="constrained")
    rows = [models.index(name) for name in table["model"]]
    axis.plot(table["update"], rows, "o", color="#D55E00", label="an update can take")
    axis.plot(table["reading"], rows, "s", color="#0072B2", label="a process reads")
    axis.set(xscale="log", xlabel="tokens per second")
    axis.set_yticks(range(len(models)), models)
    axis.margins(y=0.4)
    axis.grid(axis="x", which="both", color="0.9")
    axis.legend()
    return figure
