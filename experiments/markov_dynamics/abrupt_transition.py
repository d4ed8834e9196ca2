"""In-context learning of labels comes in two steps: a random label of the context first, then suddenly the right one.

Row R1: arXiv 2312.03002. All classes of training are novel, so that nothing can be learnt in weights but the labels'
vectors; these are drawn once, the same for all seeds. In the slow phase the model predicts one of the labels in the
context, whichever; then it finds the one of the target's item, as its first layer begins to attend from each label to
the item before it. We train with Adam and fewer labels than the paper, to be done in minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import results
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.source_training import Curves
    from experiments.sources import MixtureSequences

ABOUT = About(
    paper="Abrupt in-context learning, Reddy (arXiv 2312.03002)",
    source="learning curves, progress measures",
    minutes={"smoke": 0.3, "cpu": 6},
)


def _training(**changes: Any) -> TrainConfig:
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="constant", b2=0.999, weight_decay=0.0)
    return TrainConfig(**{"steps": 6000, "batch_size": 128, "eval_every": 50, "optimizer": optimizer, **changes})


@dataclass(frozen=True)
class Config(results.Config):
    """The task, the model and its training."""

    classes: int = 512
    """known classes K, which only the test in weights shows"""
    labels: int = 16
    """L"""
    pairs: int = 4
    """pairs in the context, N"""
    hidden: int = 128
    """units of each layer of the classifier"""
    evaluation_rows: int = 512
    """sequences of each test"""
    train: TrainConfig = field(default_factory=_training)
    """of every model"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("classes", "labels", "pairs"):
            require(name, getattr(self, name), 2)
        require("hidden", self.hidden, 1)
        require("evaluation_rows", self.evaluation_rows, 1)
        if self.classes % self.labels:
            raise ValueError(f"labels: got {self.labels}, expected a divisor of classes = {self.classes}")


PRESETS = {
    "smoke": Config(
        seeds=(0, 1),
        classes=32,
        hidden=8,
        evaluation_rows=16,
        train=_training(steps=4, batch_size=4, eval_every=2),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "markov_dynamics/R1-abrupt-transition",
        "updates during which more than 0.95 of the predictions are labels of the context and less than half are right",
        "above",
        500.0,
    ),
    Claim(
        "markov_dynamics/R1-learnt-in-context",
        "last accuracy on sequences of novel classes",
        "above",
        0.95,
    ),
    Claim(
        "markov_dynamics/R1-induction-measure-jumps",
        "rise of the first layer's attention from labels to their items between the last evaluation with less than "
        "half of the labels right and the first one with more than 0.95",
        "above",
        0.3,
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train one model per seed."""
    curves = _train(config, run_dir)
    last = {name: values[:, -1].tolist() for name, values in curves.metrics.items()}
    return Result(
        measured={**measure(curves.step, curves.metrics)},
        tables={"last": {"seed": list(config.seeds), **last}},
        series={"training": {"step": curves.step, **curves.metrics}},
    )


def _train(config: Config, run_dir: Path) -> Curves:
    import jax
    import jax.numpy as jnp

    from experiments.markov_dynamics.label_model import LabelModel
    from experiments.source_training import train_on_source
    from experiments.sources import MixtureSequences
    from experiments.training.update import random_stream

    task = MixtureSequences(classes=config.classes, labels=config.labels, pairs=config.pairs)
    means = task.means(jax.random.key(0))
    model = LabelModel(config.labels, config.hidden)

    def loss(params: Any, batch: Any) -> Any:
        applied: Any = model.apply(params, batch.inputs)
        logs = jax.nn.log_softmax(applied[0])
        return -jnp.take_along_axis(logs, batch.labels[:, -1:], axis=-1).mean()

    sets = [_tests(task, means, random_stream(seed, "evaluation"), config.evaluation_rows) for seed in config.seeds]
    return train_on_source(
        config.train,
        lambda key: model.init(key, sets[0]["context"].inputs[:1]),
        loss,
        lambda key: task.sample(key, means, config.train.batch_size, bursty=1.0, novel=1.0),
        run_dir / "training",
        seeds=config.seeds,
        label="items and labels",
        evaluation=sets,
        measure=lambda params, chosen: _progress(model, params, chosen),
    )


def _tests(task: MixtureSequences, means: Any, key: Any, rows: int) -> dict[str, Any]:
    """Sequences whose labels are known from the context, and such whose labels are known from the weights if at all."""
    import jax

    keys = jax.random.split(key)
    return {
        "context": task.sample(keys[0], means, rows, bursty=1.0, novel=1.0),
        "weights": task.sample(keys[1], means, rows, bursty=0.0, novel=0.0),
    }


def _progress(model: Any, params: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    """Accuracies and what the layers attend to."""
    from experiments.markov_dynamics.label_model import (
        context_label_accuracy,
        label_to_item_attention,
        target_to_label_attention,
    )

    context, known = chosen["context"], chosen["weights"]
    logits, attention = model.apply(params, context.inputs)
    predicted, recalled = logits.argmax(axis=-1), model.apply(params, known.inputs)[0].argmax(axis=-1)
    return {
        "in_context": (predicted == context.labels[:, -1]).mean(),
        "context_label": context_label_accuracy(predicted, context.labels),
        "in_weights": (recalled == known.labels[:, -1]).mean(),
        "label_to_item": label_to_item_attention(attention[0]),
        "target_to_label": target_to_label_attention(attention[1], context.classes),
    }


def measure(step: np.ndarray, metrics: dict[str, np.ndarray]) -> dict[str, Sequence[float]]:
    """The values of the claims.

    Args:
        step: (T,) updates done, equally far apart.
        metrics: over training, each (seeds, T).

    Returns:
        claim id -> one value per seed. Without a transition there is no jump: its measure is 0.

    Example:
        >>> metrics = {"in_context": np.array([[0.1, 0.3, 0.3, 0.98]]), "context_label": np.array([[0.2, 0.97, 1, 1]])}
        >>> metrics["label_to_item"] = np.array([[0.1, 0.15, 0.2, 0.8]])
        >>> [round(values[0], 2) for values in measure(np.arange(0, 400, 100), metrics).values()]
        [200.0, 0.98, 0.6]
    """
    right, item = metrics["in_context"], metrics["label_to_item"]
    slow = (metrics["context_label"] > 0.95) & (right < 0.5)
    updates = slow.sum(axis=1) * float(step[1] - step[0])
    jumps = []
    for accuracy, attention in zip(right, item, strict=True):
        after = int((accuracy > 0.95).argmax())
        before = np.flatnonzero(accuracy[:after] < 0.5)
        jumps.append(float(attention[after] - attention[before[-1]]) if before.size else 0.0)
    return {
        "markov_dynamics/R1-abrupt-transition": updates.tolist(),
        "markov_dynamics/R1-learnt-in-context": right[:, -1].tolist(),
        "markov_dynamics/R1-induction-measure-jumps": jumps,
    }


def plot(result: StoredResult) -> Figure:
    """Accuracies left, attention right, one line per seed."""
    from matplotlib import pyplot as plt

    curve, config = result.series["training"], result.config
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    panels = (
        {"in_context": "#D55E00", "context_label": "#0072B2", "in_weights": "#999999"},
        {"label_to_item": "#CC79A7", "target_to_label": "#009E73"},
    )
    for axis, names, title in zip(axes, panels, ("accuracy", "attention"), strict=True):
        for name, colour in names.items():
            lines = axis.plot(curve["step"], curve[name].T, color=colour, linewidth=1)
            lines[0].set_label(name.replace("_", " "))
        axis.set(xlabel="updates", title=title, ylim=(0, 1.02))
        axis.legend(fontsize=7)
    for chance in (1 / config["labels"], 1 / config["pairs"]):
        axes[0].axhline(chance, color="black", linestyle=":", linewidth=0.8)
    return figure
