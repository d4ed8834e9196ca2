"""Every function of the scan core on a mesh of eight virtual devices, against one device."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from lightnet.scan.linear import LINEAR
from lightnet.scan.placement import placement
from tests.lightnet.scan.calls import CALLS

ROOT = Path(__file__).parents[3]
# One of each kind of sharding: channels, states shared by channels, heads with a chunked sequence, and no order.
NAMES = ("linear_scan", "selective_scan", "gated_linear_attention", "additive_global")


def in_a_process(module, *words, **settings):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **settings}
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout == "ok\n", done.stdout + done.stderr


def on_eight_devices(*words, **settings):
    devices = "--xla_force_host_platform_device_count=8"
    in_a_process("tests.lightnet.scan.on_mesh", *words, XLA_FLAGS=devices, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_split_over_the_mesh_is_the_same(name):
    # Both sides of the comparison without most optimisations: nearly all of its time is compilation.
    on_eight_devices("equal_to_one_device", name, JAX_DISABLE_MOST_OPTIMIZATIONS="1")


@pytest.mark.slow
def test_the_state_that_enters_has_the_same_bits_for_every_number_of_devices_and_both_exchanges():
    on_eight_devices("same_bits_for_every_number_of_devices", "linear_scan")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_explicit_meshes():
    on_eight_devices("on_explicit_axes", *NAMES, JAX_DISABLE_MOST_OPTIMIZATIONS="1")


def test_axes_that_another_shard_map_has_taken():
    on_eight_devices("inside_another_shard_map", "linear_scan", "gated_linear_attention", "additive_global")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_axes_of_the_mesh_that_are_left_over_hold_copies(name):
    on_eight_devices("left_over", name, JAX_DISABLE_MOST_OPTIMIZATIONS="1")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_gradient_of_an_empty_state_passes_a_row_without_real_tokens():
    on_eight_devices("nothing_to_hand_on", "additive_recurrence", JAX_DISABLE_MOST_OPTIMIZATIONS="1")


@pytest.mark.slow
def test_rows_and_heads_move_nothing_and_the_sequence_moves_summaries():
    on_eight_devices("collectives", *NAMES)


def placed(recurrence, *shapes, everywhere=False, **mesh):
    abstract = AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))
    arrays = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    with jax.sharding.use_abstract_mesh(abstract):
        return placement(recurrence.axes, arrays, everywhere=everywhere)


def test_an_axis_that_does_not_divide_is_not_split():
    pair = (1, 1, 9), (6, 5, 9)
    assert placed(LINEAR, *pair, data=2, fsdp=3, tensor=3).names == {"B": ("data", "fsdp"), "L": (), "D": ("tensor",)}
    assert placed(LINEAR, *pair, data=2, fsdp=2, tensor=2).manual == {"data"}
    assert placed(LINEAR, *pair, data=2, fsdp=2, tensor=2).automatic
    assert placed(LINEAR, *pair, sequence=4, other=2).names == {"B": (), "L": ("sequence",), "D": ()}
    assert placed(LINEAR, *pair, data=3, sequence=8).names["L"] == ()  # fewer tokens than devices


def test_nothing_of_the_mesh_is_left_to_the_compiler_where_a_kernel_runs():
    pair = (1, 1, 9), (6, 5, 9)
    every = placed(LINEAR, *pair, data=2, tensor=2, other=2, everywhere=True)
    assert every.manual == {"data", "tensor", "other"} and not every.automatic
    assert every.names == {"B": ("data",), "L": (), "D": ()}
    assert placed(LINEAR, *pair, other=2, everywhere=True).manual == {"other"}
    assert placed(LINEAR, *pair, other=1, everywhere=True) is None


def test_without_an_axis_to_split_nothing_is_wrapped():
    pair = (6, 5, 9), (6, 5, 9)
    assert placed(LINEAR, *pair, data=1, sequence=1) is None
    assert placed(LINEAR, *pair, data=4, other=4) is None
    assert placement(LINEAR.axes, tuple(map(jnp.zeros, pair))) is None
