"""One model on one task of the Long Range Arena: its loss, what is evaluated, and which update counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.long_memory.arena_data import Part, Parts
from experiments.long_memory.arena_models import STEPPED, SequenceClassifier, classifier
from experiments.long_memory.arena_tasks import IMAGE, TASKS
from experiments.training.config import TrainConfig
from experiments.training.data import examples
from experiments.training.loop import train
from experiments.training.task import Task
from experiments.training.validation import validation

if TYPE_CHECKING:
    from experiments.long_memory.long_range_arena import Config

VALIDATION, TEST = "validation error", "test error"


def train_one(
    config: Config, name: str, model: str, parts: Parts, run_dir: Path, seed: int
) -> tuple[tuple, dict[str, np.ndarray]]:
    """Train a model on a task.

    Args:
        config: of everything.
        name: of the task.
        model: mixer and positions.
        parts: of the task.
        run_dir: for checkpoints and metrics.
        seed: of everything.

    Returns:
        A row of `long_range_arena.COLUMNS`; and "updates" and "accuracy", %, of the evaluations.
    """
    settings, task = settings_of(config, name, model), TASKS[name]
    dropout, length = config.image_dropout if name == IMAGE else 0.0, task.tokens(config.longest)
    options = {"dropout": dropout, "remat": settings.remat, "scan_layers": config.scan_layers}
    network, hidden = classifier(config.model, model, task, length, both_ways=config.both_ways, **options)
    outcome = train(
        settings,
        training_task(network, parts, config.evaluated_at_once or settings.batch_size),
        examples(parts.train, seed=seed),
        run_dir / "training" / f"{name}-{model}-{seed}",
        seed=seed,
        label=f"{name}, {model}, seed {seed}",
    )
    found = outcome.evaluation
    updates, accuracy, place = found["step"], 100 * (1 - found[TEST]), counted(found, parts)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(outcome.params))
    told = (int(updates[place]), float(accuracy[place]), 100 * task.chance)
    return (name, model, seed, *told, parameters, hidden, outcome.seconds), {"updates": updates, "accuracy": accuracy}


def settings_of(config: Config, name: str, model: str) -> TrainConfig:
    """The training of a model on a task: the rates of S4's settings are for S4, S4D and S5.

    Args:
        config: of everything.
        name: of the task.
        model: mixer and positions.

    Returns:
        The training.
    """
    settings = config.training(name)
    if model.partition("+")[0] in STEPPED:
        return settings
    rate = config.slower * settings.optimizer.learning_rate
    return replace(settings, optimizer=replace(settings.optimizer, learning_rate=rate))


def training_task(model: SequenceClassifier, parts: Parts, at_once: int) -> Task:
    """Cross-entropy on the part to train on, and shares of wrong answers on the others.

    Args:
        model: what is trained.
        parts: of the task.
        at_once: examples that are evaluated at once.

    Returns:
        The task.
    """
    example = parts.train[0]

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.asarray(example["tokens"])[None], jnp.asarray(example["lengths"])[None])["params"]

    def loss(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        rngs = {"dropout": key} if model.backbone.dropout else {}
        logits: Any = model.apply({"params": params}, batch["tokens"], batch["lengths"], rngs=rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), {"error": jnp.mean(logits.argmax(-1) != batch["label"])}

    return Task(init, loss, _evaluation(model, parts, at_once))


def _evaluation(model: SequenceClassifier, parts: Parts, at_once: int) -> Callable[[Any], dict[str, float]]:
    """Parameters -> share of wrong answers on each part that is not trained on."""

    def wrong(params: Any, batch: Any) -> dict[str, jax.Array]:
        logits: Any = model.apply({"params": params}, batch["tokens"], batch["lengths"])
        return {"error": (logits.argmax(-1) != batch["label"]).astype(jnp.float32)}

    def mean(part: Part) -> Callable[[Any], dict[str, float]]:
        return validation(wrong, grain.MapDataset.source(part), at_once)

    means = {TEST: mean(parts.test)} | ({} if parts.validation is None else {VALIDATION: mean(parts.validation)})
    return lambda params: {name: errors(params)["error"] for name, errors in means.items()}


def counted(evaluation: Mapping[str, np.ndarray], parts: Parts) -> int:
    """The evaluation that counts: the best on the validation part, or the last where a task has none.

    Args:
        evaluation: errors by name, of every evaluation.
        parts: of the task.

    Returns:
        Its place.

    Example:
        >>> errors = {"validation error": np.array([0.5, 0.1, 0.2]), "test error": np.array([0.5, 0.3, 0.1])}
        >>> counted(errors, Parts(None, None, None)), counted(errors, Parts(None, [], None))
        (-1, 1)
    """
    return -1 if parts.validation is None else int(np.argmin(evaluation[VALIDATION]))
