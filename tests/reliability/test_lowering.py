"""The update of the largest model of each preset `gpu` lowers for eight devices of any kind, without them."""

import contextlib
import dataclasses
import math
from collections import defaultdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from experiments.registry import discover, load_id
from experiments.training import loop
from experiments.training.config import MeshConfig, TrainConfig
from experiments.training.mesh import AXES, batch_sharding, make_mesh
from experiments.training.optimizer import make_optimizer
from experiments.training.task import Task
from experiments.training.update import make_update

DEVICES = 8
SPLIT = (2, 2, 2, 1)
CARD_BYTES = 80e9  # of the preset gpu
# One small model per seed, all on one device.
TRAINED_TOGETHER = (
    "lightnet/classification",
    "lightnet/generation",
    "state_spaces/digits_sequence",
    "token_dynamics/reordering_digits",
    "tokenization/escape_scaling",
)
# These need what a training gives, and all of their models have the size of the first.
LOOKED_INTO = ("token_dynamics/scenario_text", "token_dynamics/trained_models")

pytestmark = pytest.mark.slow


def ids() -> list[str]:
    """Results with the settings of a training in the preset `gpu`, but for small models that are no job for eight."""
    results = [load_id(id) for id in discover() if id not in TRAINED_TOGETHER]
    return [
        result.id
        for result in results
        if "gpu" in result.presets
        and any(isinstance(value, TrainConfig) for value in vars(result.presets["gpu"]).values())
    ]


def cases() -> list[Any]:
    """The ids; CI has no time for all of them."""
    return [pytest.param(id, marks=pytest.mark.exhaustive if id in LOOKED_INTO else ()) for id in ids()]


class Enough(Exception):
    """The first training was seen."""


@cache
def largest(id: str) -> tuple[TrainConfig, Any, Any]:
    """Settings, task and one example of the largest model that the preset `gpu` trains, none of it trained."""
    result, trainings = load_id(id), []

    def record(config, task, data, folder, *, seed, label="train"):
        trainings.append((config, task, data))
        if id in LOOKED_INTO:
            raise Enough
        every = config.eval_every or config.steps
        evaluated = np.array(sorted({*range(0, config.steps + 1, every), config.steps}))
        return loop.Outcome(None, history(np.arange(1, config.steps + 1)), history(evaluated), seconds=0.0)

    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(loop, "train", record)
        with contextlib.suppress(Enough):
            result.run(dataclasses.replace(result.preset("gpu"), seeds=(0,)), Path(folder))
    config, task, data = max(trainings, key=lambda training: size(training[1]))
    example = {name: column[0] for name, column in data.items()} if isinstance(data, dict) else data[0]
    return config, task, jax.tree.map(np.asarray, example)


def history(steps: np.ndarray) -> dict[str, np.ndarray]:
    """Ones for whatever metric is asked for."""
    return defaultdict(lambda: np.ones(len(steps)), step=steps)


def size(task: Task) -> int:
    """Numbers in the parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))


def traced(id: str, mesh: Mesh | AbstractMesh) -> Any:
    """The update as the loop makes it, on a mesh, from the shapes and shardings of its state and of its batch."""
    config, task, example = largest(id)
    optimizer = make_optimizer(config.optimizer, config.steps, task.labels)
    with jax.sharding.use_abstract_mesh(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh):
        _, shardings, shapes = loop._initializer(task, optimizer, config, 0, mesh)
        parts = loop._microbatches(config, mesh)
        update = make_update(task, optimizer, config, 0, microbatches=parts, shardings=shardings)
        state = jax.tree.map(placed, shapes, shardings)
        rows = batch_sharding(mesh)
        batch = jax.tree.map(lambda x: placed(x, rows, config.batch_size), example)
        return update.trace(state, batch)


def placed(leaf: Any, sharding: NamedSharding, *leading: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=sharding)


def declared(config: MeshConfig) -> tuple[int, ...]:
    """Sizes of the mesh that a preset asks for, on eight devices."""
    asked = [getattr(config, axis) for axis in AXES]
    rest = DEVICES // math.prod(size for size in asked if size != -1)
    return tuple(rest if size == -1 else size for size in asked)


@pytest.mark.parametrize("id", cases())
def test_the_update_of_the_largest_model_lowers_for_every_platform(id):
    config, *_ = largest(id)
    meshes = {declared(config.mesh), SPLIT}
    shared = [sizes for sizes in meshes if config.batch_size % (sizes[0] * sizes[1]) == 0]
    assert shared, f"a batch of {config.batch_size} cannot be shared"
    for sizes in shared:
        update = traced(id, AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES)))
        for platform in ("cpu", "tpu", "cuda"):
            text = update.lower(lowering_platforms=(platform,)).as_text()
            assert f"mhlo.num_partitions = {DEVICES}" in text
            mesh = ", ".join(f'"{axis}"={size}' for axis, size in zip(AXES, sizes, strict=True))
            assert f"sdy.mesh @mesh = <[{mesh}]>" in text
            arguments = text.partition("@main(")[2].partition("\n")[0]
            assert '[{"data", "fsdp"}, {}]' in arguments and '{"tensor"}' in arguments and '{"fsdp"}' in arguments


@pytest.mark.parametrize("id", cases())
def test_the_update_of_the_preset_gpu_fits_into_its_card(id, record_property):
    """Compiled for one device of this machine: an estimate of what the card needs, not a measurement on it."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    memory = traced(id, mesh).lower().compile().memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    record_property("bytes", needed)
    _, task, _ = largest(id)
    # Parameters and two moments of each, in float32; the old state's memory is used for the new one.
    assert 12 * size(task) <= memory.argument_size_in_bytes < needed < CARD_BYTES
