"""LightNet and Mamba with 1.3 billion parameters on 100 billion tokens, at equal parameters and tokens.

Reviewers ask for the results with a billion parameters that the paper speaks of and does not show. Only that setting is
here, and **it has not been run**: tests run two updates of it with narrow blocks on drawn tokens, and
`python -m experiments plan lightnet/language_model_1b --topology v5p:4x4x8 --search` says what it would need, which is
what it is for.

**Size and recipe are unverified.** The size is that of the first author's configuration of HGRN2. The recipe is, from
memory, the one that gated linear attention was trained with at this size (arXiv 2312.06635): rows of 2048 tokens, 2 M
tokens in a batch, AdamW at 3e-4 with a warm-up of 1 B tokens, clipped at 1. What differs from it: the rate falls to 0,
and not to a tenth of the peak, and the tokens are GPT-2's.

The blocks are a loop over stacked parameters, so that one of them is compiled, and the backward pass computes a block
again from its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import language, results
from experiments.mixers import read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.language_models import LanguageModel
    from experiments.sources.token_files import Rows

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="autoregressive language modelling with a billion parameters (known from a review only)",
    # A guess: two trainings of 1.1e21 operations on 128 chips that do 2e14 a second each.
    minutes={"paper": 1400},
)
LIGHTNET, MAMBA = "lightnet+both", "mamba+none"
VOCABULARY = 50_257  # GPT-2's


@dataclass(frozen=True)
class Config(results.Config):
    """The models, the text and the training."""

    seeds: tuple[int, ...] = (0,)
    """One training of each model."""
    models: tuple[str, ...] = (LIGHTNET, MAMBA)
    """Mixer and positions, joined by +."""
    size: str = "1.3b"
    """Of `lightnet.models.CAUSAL_LMS`."""
    num_layers: int = 24
    """Blocks."""
    scan_layers: bool = True
    """Compile one block and loop over all."""
    length: int = 2048
    """Tokens per row."""
    token_dir: str = "data/tokens"
    """Folder with train.bin and valid.bin, GPT-2's tokens in 16 bits each."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=47_684,
            batch_size=1024,
            device_batch=8,  # the logits of 8 rows are 3.3 GB
            precision="bfloat16",
            remat="nothing_saveable",
            eval_every=5000,
            optimizer=OptimizerConfig(
                learning_rate=3e-4, schedule="cosine", warmup=477 / 47_684, weight_decay=0.01, clip_norm=1.0
            ),
            checkpoint=CheckpointConfig(every=500),
        )
    )
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        require("num_layers", self.num_layers, 1)
        require("length", self.length, 1)
        require("train.eval_every", self.train.eval_every, 1)
        for model in self.models:
            read_model(model, "models", "causal text")


PRESETS = {"paper": Config()}

CLAIMS = (
    # The margin is that of lightnet/causal-matches-mamba.
    Claim(
        "lightnet/language-model-1b-matches-mamba",
        "held-out loss, nats per token: LightNet with both encodings minus Mamba, over Mamba's",
        "within",
        0.0,
        tolerance=0.02,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed."""
    from experiments.sources.token_files import read_token_files

    rows = read_token_files(config.token_dir, config.length, VOCABULARY)
    table: dict[str, list] = {"model": [], "seed": [], "nats per token": [], "parameters": [], "hidden": []}
    curves: dict[str, list[np.ndarray]] = {name: [] for name in config.models}
    for name, model in described(config).items():
        for seed in config.seeds:
            found = _train(config, model, rows, run_dir / "training" / f"{name}-seed{seed}", seed)
            row = (name, seed, float(found["valid"][-1]), language.count_parameters(model.build()), model.hidden)
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
            curves[name].append(found["valid"])
            steps = found["step"]
    series = {name: {"step": steps, "nats per token": np.stack(losses)} for name, losses in curves.items()}
    return Result(measured=_measured(table), tables={"losses": table}, series=series)


def described(config: Config) -> dict[str, LanguageModel]:
    """The models of a configuration by name, all with as many parameters as LightNet with both encodings.

    Args:
        config: names and size.

    Returns:
        name -> description.
    """
    from experiments.language_models import LanguageModel
    from lightnet.models import CAUSAL_LMS

    size = CAUSAL_LMS[config.size]
    reference = LanguageModel(
        VOCABULARY,
        num_layers=config.num_layers,
        width=size.width,
        num_heads=size.num_heads,
        hidden=size.glu,
        length=config.length,
        scan_layers=config.scan_layers,
    )
    parameters, models = language.count_parameters(reference.build()), {}
    for name in config.models:
        mixer, positions = read_model(name, "models", "causal text")
        models[name] = language.at_equal_size(replace(reference, mixer=mixer, positions=positions), parameters)
    return models


def _train(
    config: Config, model: LanguageModel, rows: Mapping[str, Rows], folder: Path, seed: int
) -> Mapping[str, np.ndarray]:
    """Evaluations of one training: nats per token of what is held out."""
    from experiments.language_models import describe
    from experiments.training.loop import train

    describe(folder, model)
    held_out = [rows["valid"][i]["tokens"] for i in range(len(rows["valid"]))]
    at_once = config.train.device_batch or config.train.batch_size
    lengths = np.ones(VOCABULARY, np.float32)  # losses are told per token, and not per byte
    module = model.build(remat=config.train.remat)
    task = language.next_token_task(module, {"valid": {"tokens": np.stack(held_out)}}, lengths, at_once)
    return train(config.train, task, rows["train"], folder, seed=seed, label=folder.name).evaluation


def _measured(table: dict[str, list]) -> dict[str, Any]:
    """The claim, if both of its models were trained: one value per seed."""
    rows = list(zip(table["model"], table["nats per token"], strict=True))
    lightnet, mamba = (np.array([nats for name, nats in rows if name == model]) for model in (LIGHTNET, MAMBA))
    if not (len(lightnet) and len(mamba)):
        return {}
    return {"lightnet/language-model-1b-matches-mamba": (lightnet - mamba) / mamba}


def plot(result: StoredResult) -> Figure:
    """Loss on what is held out over the training: a line per seed, a style per model."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for (name, curve), style in zip(result.series.items(), ("-", "--", "-.", ":"), strict=False):
        for seed, nats in enumerate(curve["nats per token"]):
            axis.plot(curve["step"][1:], nats[1:], style, color="black", label=None if seed else name)
    axis.set(xlabel="updates", ylabel="held-out loss, nats per token")
    axis.legend()
    axis.grid(color="0.9")
    return figure
