"""Digits read as sequences of 64 pixels: state space models against LightNet and softmax attention.

scikit-learn's digits, the 8 rows one behind the other, one pixel per token, are a small analogue of MNIST read pixel by
pixel. All models are the same stack, a mixer and a GLU in each block and the mean over all pixels at the end, with the
same channels; the GLU has the width with which they have about as many parameters. Nothing tells them that pixels 8
apart are neighbours. State space models know the order by themselves, and all but the bidirectional S5 see the pixels
before a pixel only; LightNet and softmax attention have positions of one axis and see all.

One recipe for all: what parameterises a recurrence has a learning rate of its own and no weight decay. It was chosen on
300 images split off the training part, with seeds that are not reported, mostly on Mamba, the slowest learner of those
that claims are about. The test images are the same for all seeds, and their accuracy during training, which the figure
shows, is not used for anything: the last one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.digit_classification import CLASSES, accuracies, pixels, smoothed_loss, standardised_parts
from experiments.mixers import mixer, positions, read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.sources.digits import Digits

ABOUT = About(
    paper="S4 (arXiv 2111.00396), S4D, S5, Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060)",
    source="a small analogue of sequential MNIST (ours)",
    minutes={"smoke": 0.2, "cpu": 20},
)
MODELS = (
    "s4+none",
    "s4d+none",
    "s5+none",
    "s5-bidirectional+none",
    "mamba+none",
    "mamba2+none",
    "lightnet+both",
    "softmax+both",
)
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#777777")


def _recipe(steps: int, eval_every: int) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=32,
        eval_every=eval_every,
        optimizer=OptimizerConfig(learning_rate=8e-3, schedule="cosine", warmup=0.05, ssm_rate=0.5, weight_decay=0.5),
        checkpoint=CheckpointConfig(every=0),
    )


@dataclass(frozen=True)
class Config(results.Config):
    """The models, their size and their training."""

    models: tuple[str, ...] = MODELS
    """Mixer and positions of each."""
    test_images: int = 500
    """Images held out, the same for all seeds."""
    width: int = 32
    """Channels."""
    layers: int = 2
    """Blocks."""
    heads: int = 4
    """Heads of the mixers that have any."""
    parameters: int = 40_000
    """Parameters of each model, about: the GLU gets the width for it."""
    shift: int = 1
    """Most pixels by which an image is shifted in training, along each axis."""
    smoothing: float = 0.1
    """Probability of the labels that is spread over all classes in training."""
    at_once: int = 1
    """Seeds that are computed at the same time; one after the other is fastest on a CPU."""
    train: TrainConfig = field(default_factory=lambda: _recipe(1500, 100))
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check the ranges and the names."""
        super().__post_init__()
        for name in ("width", "layers", "heads", "parameters", "at_once"):
            require(name, getattr(self, name), 1)
        require("test_images", self.test_images, 1, 1796)
        require("shift", self.shift, 0, 4)
        require("smoothing", self.smoothing, 0, below=1)
        require("train.eval_every", self.train.eval_every, 1)
        if len(set(self.models)) < len(self.models) or not self.models:
            raise ValueError("models: expected at least one, each of them once")
        for name in self.models:
            read_model(name, "models", "text")


PRESETS = {
    "smoke": Config(seeds=(0,), models=("mamba+none",), width=8, layers=1, heads=2, parameters=1, train=_recipe(4, 4)),
    "cpu": Config(),
}

CLAIMED = {"s4d": "s4d+none", "s5": "s5+none", "mamba": "mamba+none", "mamba2": "mamba2+none"}
CLAIMS = (
    Claim(
        "long_memory/digits-as-sequence",
        "test accuracy, the smallest of S4D, S5, Mamba and Mamba-2, %",
        "above",
        95.0,
        kind="ours",
    ),
    *(
        Claim(f"long_memory/digits-as-sequence-{name}", f"test accuracy of {model}, %", "above", 95.0, kind="ours")
        for name, model in CLAIMED.items()
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model with every seed."""
    from experiments.runs import record_data

    train, test, sha256 = standardised_parts(config.test_images)
    data = {"digits": sha256}
    record_data(run_dir, data)
    rows: dict[str, list] = {"model": [], "seed": [], "accuracy": [], "parameters": [], "hidden": [], "seconds": []}
    curves: dict[str, np.ndarray] = {}
    for name in config.models:
        found = train_model(config, name, train, test, run_dir)
        curves["updates"], curves[name] = found.updates, found.accuracies
        for seed, accuracy in zip(config.seeds, found.accuracies[:, -1], strict=True):
            row = (name, seed, float(accuracy), found.parameters, found.hidden, found.seconds)
            for column, entry in zip(rows.values(), row, strict=True):
                column.append(entry)
    measured = _measured({name: curves[name][:, -1] for name in config.models})
    return Result(measured=measured, tables={"accuracy": rows}, series={"accuracy": curves}, data=data)


def model_of(config: Config, name: str) -> tuple[Any, int]:
    """The classifier of sequences with a mixer.

    Args:
        config: its size.
        name: mixer and positions.

    Returns:
        The module, called with sequences (B, 64, 2), and the width of its GLU.
    """
    from experiments.equal_size import count_parameters, hidden_for

    example = np.zeros((1, 64, 2), np.float32)
    hidden = hidden_for(lambda width: count_parameters(_built(config, name, width), example), config.parameters)
    return _built(config, name, hidden), hidden


def _built(config: Config, name: str, hidden: int) -> Any:
    from lightnet.heads import Classifier
    from lightnet.models import Size, stack

    kind, _, encoding = name.partition("+")
    encodings = positions(encoding, length=64)
    size = Size(config.layers, config.width, config.heads, "ours", hidden=hidden)
    backbone = stack(size, mixer(kind, causal=False), relative=encodings["relative"], remat=config.train.remat)
    return Classifier(backbone, CLASSES, patch=(1,), input_positions=encodings["input_positions"])


@dataclass(frozen=True)
class Trained:
    """What a model reached.

    Attributes:
        updates: (n,) after which it was evaluated.
        accuracies: (seeds, n) on the test part, %.
        parameters: of one model.
        hidden: width of its GLU.
        seconds: of the training of one seed.
    """

    updates: np.ndarray
    accuracies: np.ndarray
    parameters: int
    hidden: int
    seconds: float


def train_model(config: Config, name: str, train: Digits, test: Digits, folder: Path) -> Trained:
    """Train a model with every seed.

    Args:
        config: of everything.
        name: mixer and positions.
        train: images to train on.
        test: images to evaluate on.
        folder: for checkpoints and metrics.

    Returns:
        What it reached.
    """
    from experiments.training.together import number_of_parameters, train_together

    model, hidden = model_of(config, name)
    outcome = train_together(
        config.train,
        lambda key: model.init(key, pixels(train.images[:1]))["params"],
        smoothed_loss(model, train, shift=config.shift, smoothing=config.smoothing, read=pixels),
        len(train),
        folder / "training" / name,
        seeds=config.seeds,
        label=name,
        at_once=config.at_once,
        evaluate=accuracies(model, test, config.seeds, pixels),
    )
    columns = [outcome.evaluation[f"accuracy {seed}"] for seed in config.seeds]
    count = len(config.seeds)
    return Trained(
        outcome.evaluation["step"],
        np.stack(columns),
        number_of_parameters(outcome.params, count),
        hidden,
        outcome.seconds / count,
    )


def _measured(accuracies: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The claims of those models that are there."""
    there = {name: accuracies[model] for name, model in CLAIMED.items() if model in accuracies}
    found: dict[str, Any] = {f"long_memory/digits-as-sequence-{name}": values for name, values in there.items()}
    if len(there) == len(CLAIMED):
        found["long_memory/digits-as-sequence"] = np.min(list(there.values()), axis=0)
    return found


def plot(result: StoredResult) -> Figure:
    """Left: test accuracy of each model, a dot per seed, mean and 95 % interval. Right: accuracy during training."""
    from matplotlib import pyplot as plt

    names, curves = result.config["models"], result.series["accuracy"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for number, name in enumerate(names):
        _row(axes[0], len(names) - 1 - number, COLOURS[number % len(COLOURS)], curves[name][:, -1])
    axes[0].axvline(95, color="black", linewidth=1, linestyle="--")
    axes[0].annotate("95 %", (95, len(names) - 0.45), ha="right", va="bottom", fontsize=8)
    axes[0].set(yticks=range(len(names)), ylim=(-0.6, len(names) + 0.1), xlabel="test accuracy, %")
    axes[0].set_yticklabels(list(reversed(names)), fontsize=8)
    for number, name in enumerate(names):
        style = ("-", "--", ":", "-.")[number % 4]
        axes[1].plot(
            curves["updates"], curves[name].mean(axis=0), style, color=COLOURS[number % len(COLOURS)], label=name
        )
    axes[1].set(xlabel="updates", ylabel="test accuracy, mean over seeds, %", ylim=(70, 100))
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _row(axis: Axes, height: int, colour: str, accuracies: np.ndarray) -> None:
    from experiments.statistics import t_interval

    axis.plot(accuracies, [height] * len(accuracies), "o", markersize=4, color=colour, markerfacecolor="none")
    middle = float(np.mean(accuracies))
    axis.plot([middle] * 2, [height - 0.3, height + 0.3], color=colour, linewidth=2)
    if len(accuracies) > 1:
        axis.hlines(height, *t_interval(accuracies.tolist()), color=colour, linewidth=1)
