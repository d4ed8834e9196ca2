"""The update of the largest model of each preset `gpu` lowers for eight devices of any kind, without them."""

import math
from functools import cache
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from experiments.planning.trainings import LOOKED_INTO, Training, chosen, recorded, traced_update
from experiments.registry import discover, load_id
from experiments.training.config import MeshConfig, TrainConfig
from experiments.training.mesh import AXES, make_mesh

DEVICES = 8
SPLIT = (2, 2, 2, 1)
CARD_BYTES = 80e9  # of the preset gpu
# One small model per seed, all on one device.
TRAINED_TOGETHER = (
    "lightnet/classification",
    "lightnet/generation",
    "long_memory/induction",
    "long_memory/path_length",
    "long_memory/recall",
    "long_memory/selective_copying",
    "state_spaces/digits_sequence",
    "token_dynamics/reordering_digits",
    "tokenization/escape_scaling",
)

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


@cache
def largest(id: str) -> Training:
    """The largest training of the preset `gpu`, not trained."""
    result = load_id(id)
    return chosen(recorded(result, result.preset("gpu")).trainings)


def declared(config: MeshConfig) -> tuple[int, ...]:
    """Sizes of the mesh that a preset asks for, on eight devices."""
    asked = [getattr(config, axis) for axis in AXES]
    rest = DEVICES // math.prod(size for size in asked if size != -1)
    return tuple(rest if size == -1 else size for size in asked)


@pytest.mark.parametrize("id", cases())
def test_the_update_of_the_largest_model_lowers_for_every_platform(id):
    config = largest(id).config
    meshes = {declared(config.mesh), SPLIT}
    shared = [sizes for sizes in meshes if config.batch_size % (sizes[0] * sizes[1]) == 0]
    assert shared, f"a batch of {config.batch_size} cannot be shared"
    for sizes in shared:
        update = traced_update(largest(id), AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES)))
        for platform in ("cpu", "tpu", "cuda"):
            text = update.lower(lowering_platforms=(platform,)).as_text()
            assert f"mhlo.num_partitions = {DEVICES}" in text
            mesh = ", ".join(f'"{axis}"={size}' for axis, size in zip(AXES, sizes, strict=True))
            assert f"sdy.mesh @mesh = <[{mesh}]>" in text
            arguments = text.partition("@main(")[2].partition("\n")[0]
            assert '[{"data", "fsdp"}, {}]' in arguments and '{"tensor"}' in arguments and '{"fsdp"}' in arguments


@pytest.mark.exhaustive
@pytest.mark.parametrize("id", cases())
def test_the_update_of_the_preset_gpu_fits_into_its_card(id, record_property):
    """Compiled for one device of this machine: an estimate of what the card needs, not a measurement on it."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    memory = traced_update(largest(id), mesh).lower().compile().memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    record_property("bytes", needed)
    # Parameters and two moments of each, in float32; the old state's memory is used for the new one.
    assert 12 * largest(id).parameters <= memory.argument_size_in_bytes < needed < CARD_BYTES
