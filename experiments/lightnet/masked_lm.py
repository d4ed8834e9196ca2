"""Masked language modelling at equal training time: LightNet without an order against models that scan twice.

15 % of the bytes of each row are replaced by a mask, drawn anew at every step, and predicted from both sides. Every
model has as many parameters and as much CPU time as the others; a model whose step is cheaper takes more steps. The
times of a step were measured once, by `step_times`, in turns, and the numbers of steps that follow from them are fixed,
so that a run repeats bit for bit.

The published comparison is one of 24 hours, for which no numbers were at hand; here a model has a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import language, results
from experiments.equal_size import hidden_for
from experiments.language import BYTES, ModelConfig, TextConfig
from experiments.mixers import read_model
from experiments.results import About, Claim, Result, StoredResult
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.training.task import Task

ABOUT = About(
    paper="You Only Scan Once: LightNet (arXiv 2405.21022)",
    source="bidirectional language modelling table (known from a review only)",
    minutes={"smoke": 0.1, "cpu": 5},
)

LIGHTNET, TWO_SCANS = "lightnet+both", "multiplicative-2+both"


@dataclass(frozen=True)
class Config(results.Config):
    """The text, the models and their training. A seed decides initial values, order, masks and held-out files."""

    models: tuple[str, ...] = (LIGHTNET, "linear+both", "softmax+lrpe", TWO_SCANS)
    """Mixer and positions, joined by +."""
    # `step_times(PRESETS["cpu"])` on 2026-11-21, two x86-64 cores under load, JAX 0.10.2.
    milliseconds: tuple[float, ...] = (48.8, 49.0, 66.4, 140.4)
    """CPU time of one update of each model, as measured once."""
    budget: float = 16.0
    """Seconds of CPU time that each model is trained for, by these times."""
    rate: float = 0.15
    """Share of the bytes that is masked."""
    text: TextConfig = field(default_factory=lambda: TextConfig(length=256))
    """The text."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Size of the models; the width of the GLU is LightNet's."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            batch_size=8,
            optimizer=OptimizerConfig(learning_rate=4e-3, schedule="cosine"),
            checkpoint=CheckpointConfig(every=0),
        )
    )
    """The training of every model, but for its steps, which follow from the budget."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        require("budget", self.budget, 1e-3)
        require("rate", self.rate, 1e-3, 1)
        require("the smallest of milliseconds", min(self.milliseconds, default=0), 1e-3)
        if len(self.milliseconds) != len(self.models):
            raise ValueError(f"milliseconds: got {len(self.milliseconds)}, expected one for each of {self.models}")
        for model in self.models:
            read_model(model, "models", "text")

    @property
    def steps(self) -> dict[str, int]:
        """Updates of each model within the budget."""
        times = zip(self.models, self.milliseconds, strict=True)
        return {name: max(1, round(1e3 * self.budget / time)) for name, time in times}


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        models=(LIGHTNET,),
        milliseconds=(10.0,),
        budget=0.04,
        text=TextConfig(every=100, folds=4, length=16),
        model=ModelConfig(num_layers=1, width=8, num_heads=1, hidden=16),
        train=TrainConfig(batch_size=4),
    ),
    "cpu": Config(),
}

CLAIMS = (
    Claim(
        "lightnet/R8-equal-time-masked-lm",
        "held-out masked loss of LightNet minus that of two multiplicative scans after the same time, nats per byte",
        "below",
        0.0,
        kind="ours",
    ),
)


def run(config: Config, run_dir: Path) -> Result:
    """Train every model for its number of steps, for every seed."""
    from experiments.runs import record_data
    from experiments.training.loop import train

    texts = {seed: language.parts(config.text, seed) for seed in config.seeds}
    data = {f"text, seed {seed}": part.sha256 for seed in config.seeds for part in texts[seed][:1]}
    data |= {f"held-out text, seed {seed}": texts[seed][1].sha256 for seed in config.seeds}
    record_data(run_dir, data)
    models = models_of(config)
    losses: dict[str, list[float]] = {name: [] for name in models}
    for seed in config.seeds:
        train_rows, held_out = (_rows(config, part.documents) for part in texts[seed])
        held_out = with_masks(held_out["tokens"], config.rate, seed)
        for name, (model, _) in models.items():
            task = masked_task(model, held_out, config.rate, 4 * config.train.batch_size)
            steps = config.steps[name]
            settings = replace(config.train, steps=steps, eval_every=steps)
            folder = run_dir / "training" / f"{name}-seed{seed}"
            outcome = train(settings, task, train_rows, folder, seed=seed, label=folder.name)
            losses[name].append(float(outcome.evaluation["held_out"][-1]))
    measured: dict[str, Any] = {}
    if {LIGHTNET, TWO_SCANS} <= losses.keys():
        from experiments.statistics import paired_differences

        measured["lightnet/R8-equal-time-masked-lm"] = paired_differences(losses[LIGHTNET], losses[TWO_SCANS])
    return Result(measured=measured, tables=_tables(config, losses, models), series={}, data=data)


def _rows(config: Config, documents: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Bytes in rows (N, L), of which none overlap."""
    stream = language.Vocabulary(None, np.ones(BYTES, np.float32)).encode(documents)
    length = config.text.length
    if len(stream) < length:
        raise ValueError(f"text.length: got {length}, expected at most the {len(stream)} bytes of the text")
    return {"tokens": stream[: len(stream) // length * length].reshape(-1, length)}


def with_masks(tokens: np.ndarray, rate: float, seed: int) -> dict[str, np.ndarray]:
    """Rows with the bytes that are hidden in an evaluation.

    Args:
        tokens: (N, L).
        rate: share that is masked.
        seed: of the places.

    Returns:
        "tokens" and "hidden" (N, L), true where a byte is to be predicted.
    """
    return {"tokens": tokens, "hidden": np.random.default_rng(seed).random(tokens.shape) < rate}


def masked_task(model: Any, held_out: dict[str, np.ndarray], rate: float, batch_size: int) -> Task:
    """Prediction of masked bytes: the mean loss per masked byte, over masks that are drawn anew at every step.

    Args:
        model: a `lightnet.heads.MaskedLM`, whose id for the mask is its number of tokens.
        held_out: "tokens" and "hidden" (N, L).
        rate: share that is masked in training.
        batch_size: rows evaluated at once.

    Returns:
        The task.
    """
    import jax
    import jax.numpy as jnp

    from experiments.initial_values import for_narrow_models
    from experiments.training.task import Loss, Task
    from experiments.training.validation import validation

    def per_row(variables: Any, batch: Any) -> dict[str, Any]:
        tokens, hidden = batch["tokens"], batch["hidden"]
        logits = model.apply(variables, jnp.where(hidden, model.vocab_size, tokens))
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        return {"nats": jnp.where(hidden, -picked, 0).sum(axis=1), "hidden": hidden.sum(axis=1)}

    def loss(variables: Any, batch: Any, key: Any) -> Loss:
        hidden = jax.random.bernoulli(key, rate, batch["tokens"].shape)
        found = per_row(variables, {"tokens": batch["tokens"], "hidden": hidden})
        count = found["hidden"].sum()
        return Loss(found["nats"].sum() / jnp.maximum(count, 1), weight=count)

    means = validation(per_row, held_out, batch_size)

    def evaluate(variables: Any) -> dict[str, float]:
        found = means(variables)
        return {"held_out": found["nats"] / found["hidden"]}

    def init(key: Any) -> Any:
        return for_narrow_models(model.init(key, jnp.zeros((1, 8), jnp.int32)), model.backbone.width)

    return Task(init=init, loss=loss, evaluate=evaluate)


def models_of(config: Config) -> dict[str, tuple[Any, int]]:
    """The models of a configuration and the widths of their GLU, all with as many parameters as the first has.

    Args:
        config: names and sizes.

    Returns:
        name -> (model, width).
    """
    build = {name: partial(_build, config, name) for name in config.models}
    parameters = language.count_parameters(build[config.models[0]](config.model.hidden))
    models = {}
    for name, make in build.items():
        hidden = hidden_for(partial(_parameters, make), parameters)
        models[name] = (make(hidden), hidden)
    return models


def _parameters(make: Callable[[int], Any], hidden: int) -> int:
    return language.count_parameters(make(hidden))


def _build(config: Config, name: str, hidden: int) -> Any:
    from experiments.mixers import mixer, positions
    from lightnet.models import Size, masked_lm

    kind, encodings = read_model(name, "models", "text")
    size = Size(config.model.num_layers, config.model.width, config.model.num_heads, "ours", hidden=hidden)
    chosen = positions(encodings, length=config.text.length)
    return masked_lm(size, BYTES, mixer=mixer(kind, causal=False), remat=config.train.remat, **chosen)


def step_times(config: Config, calls: int = 20) -> dict[str, float]:
    """CPU milliseconds of an update of each model, in turns: what `milliseconds` of a config is to be.

    Args:
        config: the models.
        calls: measured updates of each.

    Returns:
        name -> median.
    """
    from experiments.scan_benchmark.measure import take_turns
    from experiments.step_time import update_program

    shape = (config.train.batch_size, config.text.length)
    batch = {"tokens": np.random.default_rng(0).integers(0, BYTES, shape, np.int32)}
    held_out = with_masks(batch["tokens"], config.rate, 0)
    programs = [
        update_program(masked_task(model, held_out, config.rate, shape[0]), config.train.optimizer, batch)
        for model, _ in models_of(config).values()
    ]
    return dict(zip(config.models, [found.cpu_ms for found in take_turns(programs, calls)], strict=True))


def _tables(config: Config, losses: dict[str, list[float]], models: dict[str, tuple[Any, int]]) -> dict[str, Any]:
    return {
        "losses": {
            "model": [name for name in losses for _ in config.seeds],
            "seed": [seed for _ in losses for seed in config.seeds],
            "loss": [loss for values in losses.values() for loss in values],
        },
        "models": {
            "model": list(models),
            "parameters": [language.count_parameters(model) for model, _ in models.values()],
            "hidden": [hidden for _, hidden in models.values()],
            "milliseconds": list(config.milliseconds),
            "steps": list(config.steps.values()),
        },
    }


def plot(result: StoredResult) -> Figure:
    """Held-out masked loss after the same time, a point per seed and a bar at the mean; steps beside the names."""
    from matplotlib import pyplot as plt

    models, steps = result.tables["models"]["model"], result.tables["models"]["steps"]
    loss = np.array(result.tables["losses"]["loss"]).reshape(len(models), -1)
    figure, axis = plt.subplots(figsize=(6, 1 + 0.35 * len(models)), layout="constrained")
    for row, (name, values) in enumerate(zip(models, loss, strict=True)):
        axis.plot(values, [row] * len(values), "o", color="#D55E00" if name == LIGHTNET else "#0072B2", markersize=4)
        axis.plot(values.mean(), row, "|", color="black", markersize=14)
    axis.set_yticks(range(len(models)), [f"{name}, {count} steps" for name, count in zip(models, steps, strict=True)])
    axis.set_xlabel(f"held-out loss after {result.config['budget']:g} s of training, nats per masked byte")
    axis.grid(axis="x", color="0.9")
    axis.invert_yaxis()
    return figure
