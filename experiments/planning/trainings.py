"""The trainings of a result, none of them trained: written down while the result runs with them left out."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from experiments.errors import UserError
from experiments.registry import ResultFile, unknown
from experiments.results import Config
from experiments.training.config import TrainConfig
from experiments.training.loop import Outcome
from experiments.training.mesh import batch_sharding
from experiments.training.optimizer import make_optimizer
from experiments.training.recording import recording
from experiments.training.task import Task
from experiments.training.update import TrainState, initial_state, initializer, make_update, parts_of_a_batch
from lightnet.scan.dispatch import lowered_for

# They compute for long with what a training gives, and none of their models is larger than the first.
LOOKED_INTO = ("distillation/text_pairs", "token_dynamics/scenario_text", "token_dynamics/trained_models")
_AS_LARGE = 0.99


@dataclass(frozen=True)
class Training:
    """One training of a result.

    Attributes:
        config: steps, batch size, mesh and so on.
        task: initialisation and loss.
        example: one, a pytree of arrays.
        label: what the result calls it.
        shapes: of its parameters and mutable collections, in a `TrainState`.
    """

    config: TrainConfig
    task: Task
    example: Any
    label: str
    shapes: TrainState

    @property
    def parameters(self) -> int:
        """Numbers that are learned."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes.params))

    @property
    def tokens(self) -> int | None:
        """Numbers of the longest row of integers in an example; None if there is none, as of pictures."""
        leaves = jax.tree.leaves(self.example)
        rows = [leaf.size for leaf in leaves if leaf.ndim == 1 and np.issubdtype(leaf.dtype, np.integer)]
        return max(rows, default=None)


@dataclass(frozen=True)
class Recorded:
    """The trainings of a result with one seed.

    Attributes:
        trainings: in the order in which they would be done.
        stopped: why the result went no further, if it did not come to its end.
    """

    trainings: Sequence[Training]
    stopped: str = ""


class NothingToPlan(UserError):
    """A result trains nothing by the training loop."""


class _Enough(Exception):
    """The first training was seen."""


def recorded(result: ResultFile, config: Config) -> Recorded:
    """Run a result with its first seed, its trainings written down and answered by zeros.

    Args:
        result: whose.
        config: its settings.

    Returns:
        The trainings.

    Raises:
        NothingToPlan: it trains nothing.
    """
    if not any(isinstance(value, TrainConfig) for value in vars(config).values()):
        raise NothingToPlan(f"{result.id} trains nothing by the training loop")
    found: list[Training] = []

    def record(config: TrainConfig, task: Task, data: Any, *, seed: int, label: str) -> Outcome:
        found.append(Training(config, task, _example(data), label, shapes_of(task)))
        if result.id in LOOKED_INTO:
            raise _Enough("its further trainings are not larger than the first")
        return _nothing_learned(found[-1])

    # Shapes are the same with and without kernels, which take the longest to trace.
    with recording(record), lowered_for("cpu"), TemporaryDirectory() as folder:
        try:
            result.run(dataclasses.replace(config, seeds=config.seeds[:1]), Path(folder))
        except Exception as error:  # whatever becomes of zeros that are taken for trained parameters
            if not found:
                raise
            return Recorded(found, (str(error).strip() or type(error).__name__).splitlines()[0][:160])
    if not found:
        raise NothingToPlan(f"{result.id} trains nothing by the training loop")
    return Recorded(found)


def chosen(trainings: Sequence[Training], label: str | None = None) -> Training:
    """The training to plan.

    Args:
        trainings: there are.
        label: a part of what it is called; None takes the first of those that have, but for 1 %, the most parameters.

    Returns:
        One of them.

    Raises:
        UserError: none is called so.
    """
    if label is None:
        most = max(training.parameters for training in trainings)
        return next(training for training in trainings if training.parameters >= _AS_LARGE * most)
    labels = [training.label for training in trainings]
    if not (found := [training for training in trainings if label in training.label]):
        raise UserError(unknown("training", label, labels))
    return found[0]


def traced_update(training: Training, mesh: Mesh | AbstractMesh) -> Any:
    """The update as the loop makes it, on a mesh, from the shapes and shardings of its state and of its batch.

    Args:
        training: which.
        mesh: with devices, or without.

    Returns:
        A `jax.stages.Traced`.

    Raises:
        UserError: the devices cannot share the batch.
    """
    config, task = training.config, training.task
    optimizer = make_optimizer(config.optimizer, config.steps, task.labels)
    with jax.sharding.use_abstract_mesh(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh):
        _, shardings, shapes = initializer(task, optimizer, config, 0, mesh)
        parts = parts_of_a_batch(config, mesh)
        update: Any = make_update(task, optimizer, config, 0, microbatches=parts, shardings=shardings)
        state = jax.tree.map(_placed, shapes, shardings)
        rows = batch_sharding(mesh)
        batch = jax.tree.map(lambda x: _placed(x, rows, config.batch_size), training.example)
        return update.trace(state, batch)


def _placed(leaf: Any, sharding: NamedSharding, *leading: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=sharding)


def _example(data: Any) -> Any:
    first = {name: column[0] for name, column in data.items()} if isinstance(data, Mapping) else data[0]
    return jax.tree.map(np.asarray, first)


def shapes_of(task: Task) -> TrainState:
    """Shapes of the parameters and the mutable collections of a task."""
    nothing = optax.identity()
    return nn.meta.unbox(jax.eval_shape(lambda: initial_state(task.init(jax.random.key(0)), nothing, ema=False)))


def _nothing_learned(training: Training) -> Outcome:
    """Zeros for every parameter, which take no memory until somebody looks, and ones for whatever metric is asked."""
    config = training.config
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), training.shapes)
    every = config.eval_every or config.steps
    looked = np.array(sorted({*range(0, config.steps + 1, every), config.steps}))
    return Outcome(state, _ones(np.arange(1, config.steps + 1)), _ones(looked), seconds=0.0)


def _ones(steps: np.ndarray) -> dict[str, np.ndarray]:
    return defaultdict(partial(np.ones, len(steps)), step=steps)
