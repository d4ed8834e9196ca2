"""Configuration, mesh, schedule, weight decay."""

import os
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from experiments.errors import UserError
from experiments.training.config import MeshConfig, OptimizerConfig, TrainConfig
from experiments.training.mesh import AXES, make_mesh, state_shardings
from experiments.training.optimizer import decay_mask, make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(steps=-5), "train.steps: got -5, expected at least 1"),
        (lambda: TrainConfig(batch_size=0), "train.batch_size: got 0"),
        (lambda: OptimizerConfig(b1=1), "optimizer.b1: got 1, expected at least 0 and below 1"),
        (lambda: OptimizerConfig(learning_rate=float("inf")), "optimizer.learning_rate: got inf, expected at least 0"),
        (lambda: OptimizerConfig(warmup=1.5), "optimizer.warmup: got 1.5, expected between 0 and 1"),
        (lambda: MeshConfig(data=0), "mesh.data: got 0, expected at least 1"),
        (lambda: MeshConfig(sequence=2), "mesh.sequence: got 2, expected between 1 and 1"),
        (lambda: MeshConfig(data=-1, tensor=-1), "expected at most one -1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(
        UserError, match="mesh: data -1, fsdp 3, tensor 1, sequence 1 does not multiply to the 1 devices"
    ):
        make_mesh(MeshConfig(fsdp=3), jax.devices()[:1])


def test_logical_axes_map_to_the_mesh_and_what_does_not_divide_stays_whole():
    mesh = AbstractMesh((2, 2, 2, 1), AXES)
    boxed = {
        "kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((8, 6), jnp.float32), ("embed", "mlp")),
        "odd": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((7, 6), jnp.float32), ("embed", "mlp")),
        "plain": jax.ShapeDtypeStruct((4,), jnp.float32),
    }
    shardings = state_shardings(boxed, mesh)
    assert shardings["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert shardings["odd"].spec == PartitionSpec(None, "tensor")
    assert shardings["plain"].spec == PartitionSpec()


def test_schedule_starts_at_a_hundredth_peaks_and_ends_at_a_fifth():
    rate = make_schedule(OptimizerConfig(learning_rate=2e-3, warmup=0.02), 500)
    values = np.array([rate(step) for step in range(501)])
    np.testing.assert_allclose(values[[0, 10, 500]], [2e-5, 2e-3, 4e-4], rtol=1e-5)
    assert np.all(np.diff(values[:11]) > 0) and np.all(np.diff(values[10:]) < 0)
    assert make_schedule(OptimizerConfig(schedule="constant"), 5)(3) == 2e-3


@pytest.mark.parametrize("steps", [2, 10, 49, 51])
def test_a_short_training_warms_up_for_one_step(steps):
    rate = make_schedule(OptimizerConfig(learning_rate=1.0, warmup=0.02), steps)
    np.testing.assert_allclose([rate(0), rate(1), rate(steps)], [0.01, 1.0, 0.2], rtol=1e-5)


def test_weight_decay_reaches_dense_kernels_only():
    params = {"dense": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "embedding": jnp.ones(2), "head": jnp.ones(2)}
    boxed = {"head": {"kernel": nn.LogicallyPartitioned(jnp.ones(2), ("embed",)), "bias": jnp.ones(2)}}
    assert jax.tree.leaves(decay_mask(boxed)) == [False, True]
    optimizer = make_optimizer(OptimizerConfig(schedule="constant", learning_rate=0.1, weight_decay=0.5), 10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert float(updates["dense"]["kernel"][0]) == pytest.approx(-0.05) == float(updates["head"][0])
    assert float(updates["dense"]["bias"][0]) == float(updates["embedding"][0]) == 0


SHARDED = textwrap.dedent("""
    import sys, tempfile, pathlib, functools
    import jax, numpy as np
    from experiments.tokenization.transformer import language_modelling, transformer
    from experiments.training.config import MeshConfig, TrainConfig
    from experiments.training.data import batches
    from experiments.training.loop import train

    rows = np.random.default_rng(0).integers(0, 4, (64, 16)).astype(np.int32)
    columns = {"tokens": rows, "mask": np.ones(rows.shape, bool)}
    model = transformer(4, 16, layers=1, width=16, heads=2)
    task = language_modelling(model, columns, symbols=16)
    for mesh in (MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=-1, data=1)):
        if len(jax.devices()) == 1:
            mesh = MeshConfig()
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(steps=4, batch_size=8, eval_every=2, save_every=2, mesh=mesh)
            outcome = train(config, task, batches(columns, 8, seed=0), pathlib.Path(folder), seed=0)
        kernel = outcome.params["params"]["backbone"]["blocks_0"]["feed_forward"]["up"]["kernel"]
        print(len(kernel.sharding.device_set), kernel.addressable_shards[0].data.size, *outcome.train["loss"])
""")


@pytest.mark.slow
def test_eight_devices_train_like_one():
    def losses(devices):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        run = subprocess.run(
            [sys.executable, "-c", SHARDED],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        )
        return np.array([line.split() for line in run.stdout.splitlines()], float)

    one, eight = losses(1), losses(8)
    np.testing.assert_array_equal(eight[:, :2], [[8, 1024], [8, 256], [8, 128]])
    np.testing.assert_allclose(eight[:, 2:], one[:, 2:], rtol=1e-5)
