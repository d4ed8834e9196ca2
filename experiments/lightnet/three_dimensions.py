"""A task in three dimensions: on which of six sides of B is A, in a volume of 4 x 4 x 4 voxels.

A and B stand in voxels that differ in one coordinate, under noise. All volumes have the same voxels but for their order
and the noise, so that without positions nothing beats 1/6, by symmetry and not by experience. MD-LRPE alone cannot
beat 1/2: its cosines are even, so that a model with nothing else gives a volume and its mirror images the same logits.
Tests are on placements that were not trained on, as many of each side. Learning rate, updates and initial values were
chosen on another split of the placements, with seeds that are not reported; with the 800 updates of that choice one of
three models had not yet learnt the task, so there are 1600.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.mixers import POSITIONS, mixer, positions
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="abstract; asked for in review",
    minutes={"smoke": 0.2, "cpu": 5},
)
CLASSES = 6


def _recipe(steps: int) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=32,
        eval_every=0,
        optimizer=OptimizerConfig(learning_rate=5e-3, schedule="cosine", warmup=0.05),
        checkpoint=CheckpointConfig(every=0),
    )


@dataclass(frozen=True)
class Config(results.Config):
    """The volumes, the model and its training."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One model of each kind per seed, trained together."""
    encodings: tuple[str, ...] = ("both", "tpe", "lrpe", "none")
    """Positions to compare."""
    side: int = 4
    """Voxels along each axis."""
    noise: float = 0.1
    """Standard deviation of the noise on each voxel; marks have height 1."""
    held_out: float = 0.25
    """Share of the placements that are tested on and not trained on."""
    repetitions: int = 8
    """Draws of the noise for each tested placement."""
    width: int = 32
    """Channels."""
    layers: int = 2
    """Blocks."""
    heads: int = 2
    """Heads."""
    hidden: int = 64
    """Width of the gated linear unit."""
    train: TrainConfig = field(default_factory=lambda: _recipe(1600))
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check the ranges and the names."""
        super().__post_init__()
        for name in ("repetitions", "width", "layers", "heads", "hidden"):
            require(name, getattr(self, name), 1)
        require("side", self.side, 2, 16)
        require("noise", self.noise, 0)
        require("held_out", self.held_out, 0.01, 0.99)
        if unknown := set(self.encodings) - set(POSITIONS):
            raise ValueError(f"encodings: got {min(unknown)!r}, expected some of {', '.join(POSITIONS)}")


PRESETS = {
    "smoke": Config(seeds=(0, 1), encodings=("both",), side=2, width=8, layers=1, hidden=8, train=_recipe(4)),
    "cpu": Config(),
}

CLAIMS = (
    Claim("lightnet/R10-three-dimensions", "test accuracy with both encodings, %", "above", 90.0, kind="ours"),
    Claim(
        "lightnet/R10-chance-without-positions",
        "test accuracy without positions, %; chance is 16.7",
        "within",
        100.0 / CLASSES,
        tolerance=5.0,
        kind="control",
    ),
    Claim("lightnet/R10-lrpe-is-even", "test accuracy with MD-LRPE alone, %", "below", 55.0, kind="ours"),
)
CLAIM_OF = {"both": CLAIMS[0].id, "none": CLAIMS[1].id, "lrpe": CLAIMS[2].id}


def run(config: Config, run_dir: Path) -> Result:
    """Train the models of every encoding."""
    from experiments.lightnet.voxels import placements, split, volumes
    from experiments.runs import record_data
    from experiments.training.data import fingerprint

    where, labels = placements(config.side)
    grids = volumes(where, config.side)
    data = {"placements": fingerprint({"volumes": grids, "labels": labels})}
    record_data(run_dir, data)
    train, test = ((grids[part], labels[part]) for part in split(labels, config.held_out))
    table: dict[str, list] = {"positions": [], "seed": [], "accuracy": [], "parameters": [], "seconds": []}
    measured: dict[str, Any] = {}
    for encoding in config.encodings:
        accuracies, parameters, seconds = _train(config, encoding, train, test, run_dir)
        for seed, accuracy in zip(config.seeds, accuracies, strict=True):
            row = (encoding, seed, float(accuracy), parameters, seconds)
            for column, entry in zip(table.values(), row, strict=True):
                column.append(entry)
        if encoding in CLAIM_OF:
            measured[CLAIM_OF[encoding]] = accuracies
    return Result(measured=measured, tables={"accuracy": table}, data=data)


def model_of(config: Config, encoding: str) -> Any:
    """LightNet's classifier of volumes, one token per voxel.

    Args:
        config: its size.
        encoding: positions.

    Returns:
        The module.
    """
    from lightnet.models import Size, classifier

    return classifier(
        Size(config.layers, config.width, config.heads, "ours", hidden=config.hidden),
        (config.side,) * 3,
        (1, 1, 1),
        CLASSES,
        mixer=mixer("lightnet", causal=False),
        remat=config.train.remat,
        **positions(encoding),
    )


def _train(
    config: Config,
    encoding: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    run_dir: Path,
) -> tuple[np.ndarray, int, float]:
    """Test accuracies (seeds,) in %, parameters of one model, and seconds of its training."""
    import jax.numpy as jnp

    from experiments.initial_values import for_narrow_models
    from experiments.training.together import number_of_parameters, train_together

    model = model_of(config, encoding)
    outcome = train_together(
        config.train,
        lambda key: for_narrow_models(model.init(key, jnp.asarray(train[0][:1]))["params"], config.width),
        partial(_loss, config, model, train),
        len(train[1]),
        run_dir / "training" / encoding,
        seeds=config.seeds,
        label=encoding,
    )
    accuracy = _accuracy(config, model, outcome.params, test)
    return accuracy, number_of_parameters(outcome.params, len(config.seeds)), outcome.seconds / len(config.seeds)


def _loss(
    config: Config,
    model: Any,
    train: tuple[np.ndarray, np.ndarray],
    params: Any,
    rows: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Cross-entropy under fresh noise."""
    import jax.numpy as jnp
    import optax

    grids, labels = (jnp.asarray(column)[rows] for column in train)
    logits = model.apply({"params": params}, _noisy(grids, key, config.noise))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _noisy(grids: jax.Array, key: jax.Array, noise: float) -> jax.Array:
    import jax

    return grids + noise * jax.random.normal(key, grids.shape)


def _accuracy(config: Config, model: Any, params: Any, test: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Accuracies of stacked models in %, each model under noise of its own."""
    import jax
    import jax.numpy as jnp

    from experiments.training.update import random_stream

    grids, labels = (np.repeat(column, config.repetitions, axis=0) for column in test)
    keys = jnp.stack([random_stream(seed, "test noise") for seed in config.seeds])

    def one(arguments: tuple[Any, jax.Array]) -> jax.Array:
        logits = model.apply({"params": arguments[0]}, _noisy(jnp.asarray(grids), arguments[1], config.noise))
        return (logits.argmax(axis=-1) == labels).mean()

    return 100.0 * np.asarray(jax.lax.map(one, (params, keys)), dtype=np.float64)


def plot(result: StoredResult) -> Figure:
    """Accuracy with each encoding: bars at the mean, a dot per seed, lines at chance and at what is even."""
    from matplotlib import pyplot as plt

    table = result.tables["accuracy"]
    names = list(dict.fromkeys(table["positions"]))
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for place, name in enumerate(names):
        values = [a for a, n in zip(table["accuracy"], table["positions"], strict=True) if n == name]
        axis.bar(place, float(np.mean(values)), width=0.6, color="#56B4E9")
        axis.plot([place] * len(values), values, "o", color="black", markersize=4)
    for level, label in ((100 / CLASSES, "chance, 1/6"), (50.0, "even in every axis, 1/2")):
        axis.axhline(level, color="black", linewidth=1, linestyle="--")
        axis.annotate(label, (1.0, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axis.set(ylabel="accuracy on unseen placements, %", ylim=(0, 105), xlabel="positions", xticks=range(len(names)))
    axis.set_xticklabels(names)
    return figure
