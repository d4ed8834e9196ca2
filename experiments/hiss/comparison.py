"""Models of the generated sensors: one per seed, each with recordings of its own, judged where they were not trained.

A training is evaluated every so many updates on recordings for validation and on others for the test; the test error
that counts is that of the evaluation with the smallest validation error. The recordings of a seed are the same for
every model, and a smaller training part is the beginning of a larger one, so that models are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import results
from experiments.hiss.names import read_name
from experiments.hiss.preparation import low_passed, standardised, with_differences
from experiments.sources.sensors import Sensors
from experiments.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, require

TARGETS = 2
_PARTS = {"train": 0, "validation": 1, "test": 2}


def recipe(steps: int, eval_every: int, batch_size: int = 8) -> TrainConfig:
    """The training that all models have.

    Args:
        steps: updates.
        eval_every: updates between evaluations.
        batch_size: recordings per update.

    Returns:
        AdamW on a cosine.
    """
    optimizer = OptimizerConfig(learning_rate=4e-3, schedule="cosine", warmup=0.05, weight_decay=0.01)
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        eval_every=eval_every,
        optimizer=optimizer,
        checkpoint=CheckpointConfig(every=0),
    )


SMOKE: dict[str, Any] = {
    "seeds": (0,),
    "width": 4,
    "layers": 1,
    "state_size": 2,
    "validation": 2,
    "test": 2,
    "train": recipe(1, 1, 2),
}


@dataclass(frozen=True)
class SensorConfig(results.Config):
    """The recordings, the size of the models and their training."""

    sensors: Sensors = field(default_factory=Sensors)
    """What is recorded."""
    freq_ratio: int = 10
    """Samples of a chunk."""
    validation: int = 48
    """Recordings to choose the evaluation by."""
    test: int = 96
    """Recordings to test on."""
    width: int = 24
    """Channels of each level."""
    layers: int = 2
    """Blocks of each level."""
    state_size: int = 8
    """Numbers of state per channel, of S4 and Mamba."""
    heads: int = 2
    """Heads of attention."""
    train: TrainConfig = field(default_factory=lambda: recipe(400, 50))
    """The training of every model."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("freq_ratio", "validation", "test", "width", "layers", "state_size", "heads"):
            require(name, getattr(self, name), 1)
        require("train.eval_every", self.train.eval_every, 1)
        if self.sensors.length % self.freq_ratio:
            expected = f"a multiple of freq_ratio, {self.freq_ratio}"
            raise ValueError(f"sensors.length: got {self.sensors.length}, expected {expected}")


def check_names(names: Sequence[str], field: str = "models") -> None:
    """Refuse names that are of no model, that are there twice, or that are none.

    Args:
        names: of models.
        field: of the config.

    Raises:
        ValueError: there is such a name.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{field}: got {tuple(names)}, expected at least one, each of them once")
    for name in names:
        read_name(name, field)


class Part(NamedTuple):
    """Recordings as a model takes them: inputs (n, L, 6) and targets (n, L / freq_ratio, 2)."""

    inputs: Any
    targets: Any


def parts(config: SensorConfig, seed: int, count: int, cutoff: float = 0.0) -> dict[str, Part]:
    """The recordings of a seed.

    The target of a chunk is the velocity at its first sample, which is where the published targets stand: they are
    sampled anew at 5 Hz from the same start as the samples at 50 Hz.

    Args:
        config: of everything.
        seed: of the recordings.
        count: training recordings.
        cutoff: of a low-pass filter before the model, Hz; 0 has none.

    Returns:
        "train", "validation" and "test"; inputs are standardised by the first.
    """
    sizes = {"train": count, "validation": config.validation, "test": config.test}
    drawn = {name: config.sensors.sample((seed, _PARTS[name]), size) for name, size in sizes.items()}
    rate = config.sensors.rate
    inputs = {name: with_differences(low_passed(readings, cutoff, rate)) for name, (readings, _) in drawn.items()}
    return {
        name: Part(standardised(inputs[name], inputs["train"]), velocity[:, :: config.freq_ratio])
        for name, (_, velocity) in drawn.items()
    }


class Trained(NamedTuple):
    """What a model reached with each seed.

    Attributes:
        updates: (n,) after which it was evaluated.
        validation: (seeds, n) mean squared error.
        test: (seeds, n) mean squared error.
        parameters: of one model.
        seconds: of the training of one seed.
    """

    updates: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    parameters: int
    seconds: float

    @property
    def errors(self) -> np.ndarray:
        """(seeds,) on the test part, where the error on the validation part is smallest."""
        best = self.validation.argmin(axis=1)
        return np.take_along_axis(self.test, best[:, None], axis=1)[:, 0]


def train_model(config: SensorConfig, name: str, count: int, folder: Path, cutoff: float = 0.0) -> Trained:
    """Train a model with every seed, each on recordings of its own.

    Args:
        config: of everything.
        name: of the model, see `experiments.hiss.names`.
        count: training recordings of each seed.
        folder: for checkpoints and metrics.
        cutoff: of a low-pass filter before the model, Hz; 0 has none.

    Returns:
        What it reached.
    """
    import jax
    import jax.numpy as jnp

    from experiments.hiss.models import LevelSize, model_of
    from experiments.training.together import number_of_parameters, train_together

    size = LevelSize(config.width, config.layers, config.state_size, config.heads)
    model: Any = model_of(read_name(name), size, TARGETS, config.freq_ratio)
    found = [parts(config, seed, count, cutoff) for seed in config.seeds]
    inputs, targets = (jnp.stack([own["train"][i] for own in found]) for i in range(2))

    def loss(params: Any, rows: jax.Array, key: jax.Array, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        del key
        return jnp.mean((model.apply({"params": params}, inputs[rows]) - targets[rows]) ** 2)

    outcome = train_together(
        config.train,
        lambda key: model.init(key, inputs[0, :1])["params"],
        loss,
        count,
        folder,
        seeds=config.seeds,
        label=name,
        evaluate=_errors(model, found, config.seeds),
        own=(inputs, targets),
    )
    history, models = outcome.evaluation, len(config.seeds)
    validation, test = (
        np.stack([history[f"{part} {seed}"] for seed in config.seeds]) for part in ("validation", "test")
    )
    parameters = number_of_parameters(outcome.params, models)
    return Trained(history["step"], validation, test, parameters, outcome.seconds / models)


def _errors(model: Any, found: Sequence[Mapping[str, Part]], seeds: Sequence[int]) -> Callable[[Any], dict[str, float]]:
    """Stacked parameters -> {"validation SEED" and "test SEED": mean squared error}."""
    import jax
    import jax.numpy as jnp

    held_out = {
        part: Part(*(jnp.stack([own[part][i] for own in found]) for i in range(2))) for part in ("validation", "test")
    }

    @jax.jit
    def errors(params: Any) -> dict[str, jax.Array]:
        def of_one(given: tuple[Any, Part]) -> jax.Array:
            return jnp.mean((model.apply({"params": given[0]}, given[1].inputs) - given[1].targets) ** 2)

        return {part: jax.lax.map(of_one, (params, own)) for part, own in held_out.items()}

    def evaluate(params: Any) -> dict[str, float]:
        values = errors(params)
        return {f"{part} {seed}": float(values[part][i]) for part in values for i, seed in enumerate(seeds)}

    return evaluate


def gain(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """By how much an error is smaller than another, seed by seed, as a part of the other.

    Args:
        ours: (seeds,) errors.
        theirs: (seeds,) errors.

    Returns:
        (seeds,).

    Example:
        >>> gain(np.array([0.5]), np.array([2.0])).tolist()
        [0.75]
    """
    return 1 - np.asarray(ours) / np.asarray(theirs)


def best_of(errors: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Errors of the model whose mean over seeds is smallest.

    Args:
        errors: (seeds,) of each model.
        names: of the models to choose from.

    Returns:
        (seeds,).

    Example:
        >>> best_of({"a": np.array([3.0, 4.0]), "b": np.array([1.0, 5.0])}, ("a", "b")).tolist()
        [1.0, 5.0]
    """
    return errors[min(names, key=lambda name: errors[name].mean())]
