"""Configuration, mesh, schedule, parameter groups."""

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
from experiments.training.config import CheckpointConfig, MeshConfig, MomentumConfig, OptimizerConfig, TrainConfig
from experiments.training.mesh import AXES, make_mesh, state_shardings
from experiments.training.optimizer import make_optimizer, make_schedule, parameter_labels, stepped_schedule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(steps=-5), "train.steps: got -5, expected at least 1"),
        (lambda: TrainConfig(batch_size=0), "train.batch_size: got 0"),
        (lambda: OptimizerConfig(b1=1), "optimizer.b1: got 1, expected at least 0 and below 1"),
        (lambda: OptimizerConfig(learning_rate=float("inf")), "optimizer.learning_rate: got inf, expected at least 0"),
        (lambda: OptimizerConfig(warmup=1.5), "optimizer.warmup: got 1.5, expected between 0 and 1"),
        (lambda: MomentumConfig(momentum=1.0), "optimizer.momentum: got 1.0, expected at least 0 and below 1"),
        (lambda: MomentumConfig(factor=1.5), "optimizer.factor: got 1.5, expected between 0 and 1"),
        (
            lambda: MomentumConfig(milestones=(0.5, 0.25)),
            r"optimizer.milestones: got \(0.5, 0.25\), expected ascending",
        ),
        (lambda: MomentumConfig(milestones=(0.5, 0.5)), "optimizer.milestones: got"),
        (lambda: MomentumConfig(milestones=(0.5, 150.0)), "optimizer.milestones: got"),
        (lambda: CheckpointConfig(every=4, permanent_every=6), "permanent_every: got 6, expected a multiple of .* 4"),
        (lambda: CheckpointConfig(keep=0), "checkpoint.keep: got 0, expected at least 1"),
        (lambda: TrainConfig(ema_decay=1.0), "train.ema_decay: got 1.0"),
        (lambda: TrainConfig(eval_every=0, stop_metric="loss"), "train.stop_metric: got 'loss' with eval_every 0"),
        (lambda: TrainConfig(stop_at=0.5), "train.stop_at: got 0.5 without train.stop_metric"),
        (lambda: MeshConfig(data=0), "mesh.data: got 0, expected at least 1"),
        (lambda: MeshConfig(sequence=0), "mesh.sequence: got 0, expected at least 1"),
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


@pytest.mark.slow
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


@pytest.mark.parametrize("warmup", [0.0, 0.04])
def test_rsqrt_halves_at_four_times_the_step_of_the_peak(warmup):
    config = OptimizerConfig(learning_rate=2.0, schedule="rsqrt", warmup=warmup)
    rate, top = make_schedule(config, 100), max(1, round(100 * warmup))
    steps = np.array([0, top, 4 * top, 16 * top])
    np.testing.assert_allclose([rate(s) for s in steps], [0, 2, 1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(steps), [0, 2, 1, 0.5], rtol=1e-6)


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5)])
def test_linear_and_cosine_rise_from_nothing_and_end_there(schedule, middle):
    rate = make_schedule(OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup=0.1), 100)
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 55, 100)], [0, 1, 2, 2 * middle, 0], atol=1e-6)
    for warmup, steps in ((0.0, 1), (1.0, 1), (1.0, 7), (0.0, 7)):
        rate = make_schedule(OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup=warmup), steps)
        assert max(float(rate(step)) for step in range(steps)) == 1.0


def test_the_stepped_rate_falls_with_the_first_update_behind_each_milestone():
    rate = stepped_schedule(MomentumConfig(), 187_500)
    steps = np.array([0, 117_187, 117_188, 140_624, 140_625, 164_061, 164_062, 187_499])
    np.testing.assert_allclose(jax.vmap(rate)(steps), np.repeat([5e-2, 5e-3, 5e-4, 5e-5], 2), rtol=1e-5)
    # 0.625, 0.75 and 0.875 of two updates are the first, the second and the second one again.
    short = stepped_schedule(MomentumConfig(learning_rate=1.0), 2)
    np.testing.assert_allclose([short(step) for step in range(3)], [1, 0.1, 1e-3], rtol=1e-5)


def test_momentum_is_its_recursion_with_all_parameters_decayed():
    config = MomentumConfig(learning_rate=0.5, momentum=0.75, weight_decay=0.1, milestones=(0.5,), factor=0.2)
    optimizer, params = make_optimizer(config, 4), {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    state = optimizer.init(params)
    w, v = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for step, gradient in enumerate(np.random.default_rng(0).normal(size=(4, 3))):
        changes, state = optimizer.update({"kernel": gradient[:2], "bias": gradient[2:]}, state, params)
        params = jax.tree.map(jnp.add, params, changes)
        v = 0.75 * v + gradient + 0.1 * w
        w = w - (0.5 if step < 2 else 0.1) * v
        np.testing.assert_allclose(np.concatenate([params["kernel"], params["bias"]]), w, rtol=1e-5)


# Parameters of the models here and of the recurrences to come, in the groups of their published recipes.
GROUPS = {
    "decay": ("up/kernel", "down/kernel", "head", "qkv/kernel"),
    "no_decay": ("embedding", "positions", "up/bias", "mix_norm/scale", "head_bias", "C", "dt_proj/bias"),
    "ssm": (
        "mix/A_log",
        "mix/D",
        "mix/dt_bias",
        "Lambda_re",
        "Lambda_im",
        "log_step",
        "log_A_real",
        "A_imag",
        "log_dt",
        "B",
    ),
}


def parameters_of(leaf):
    """One leaf per row of GROUPS."""
    tree = {}
    for name in (name for names in GROUPS.values() for name in names):
        *folders, last = name.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = leaf
    return tree


def test_each_parameter_is_in_its_group():
    labels = parameter_labels(parameters_of(jnp.ones(1)))
    for group, names in GROUPS.items():
        for name in names:
            inner = labels
            for part in name.split("/"):
                inner = inner[part]
            assert inner == group, name


def test_decay_and_rate_are_those_of_the_group():
    config = OptimizerConfig(schedule="constant", learning_rate=0.1, weight_decay=0.5, ssm_rate=0.25)
    optimizer, params = make_optimizer(config, 10), parameters_of(jnp.ones(2))
    boxed = jax.tree.map(lambda leaf: nn.LogicallyPartitioned(leaf, ("embed",)), params)
    for tree in (params, boxed):
        state, labels = optimizer.init(tree), jax.tree.leaves(parameter_labels(tree))
        still, _ = optimizer.update(jax.tree.map(jnp.zeros_like, tree), state, tree)
        moved, _ = optimizer.update(jax.tree.map(jnp.ones_like, tree), state, tree)
        for label, decayed, step in zip(labels, jax.tree.leaves(still), jax.tree.leaves(moved), strict=True):
            np.testing.assert_allclose(decayed, {"decay": -0.05}.get(label, 0.0), rtol=1e-6)
            expected = {"decay": -0.15, "no_decay": -0.1, "ssm": -0.025}[label]
            np.testing.assert_allclose(step, expected, rtol=1e-5)


def test_the_gradient_is_clipped_by_its_norm_over_all_groups():
    config = OptimizerConfig(schedule="constant", learning_rate=1.0, weight_decay=0.0, clip_norm=1.0)
    params = {"kernel": jnp.zeros(1), "A_log": jnp.zeros(1), "bias": jnp.zeros(1)}
    gradient = {"kernel": jnp.array([2.0]), "A_log": jnp.array([-2.0]), "bias": jnp.array([1.0])}
    optimizer = make_optimizer(config, 10)
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    moments = {id(leaf): leaf for leaf in jax.tree.leaves(state) if leaf.shape == (1,)}.values()
    first = sorted(float(abs(leaf[0])) for leaf in moments)[-3:]
    np.testing.assert_allclose(first, [(1 - 0.9) / 3, 2 * (1 - 0.9) / 3, 2 * (1 - 0.9) / 3], rtol=1e-5)


def test_an_unknown_group_is_refused():
    optimizer = make_optimizer(OptimizerConfig(), 10, labels=lambda params: jax.tree.map(lambda _: "fast", params))
    with pytest.raises(ValueError, match="fast"):
        optimizer.init({"kernel": jnp.ones(1)})


SHARDED = textwrap.dedent("""
    import sys, tempfile, pathlib, functools
    import jax, numpy as np
    from experiments.tokenization.transformer import language_modelling, transformer
    from experiments.training.config import CheckpointConfig, MeshConfig, TrainConfig
    from experiments.training.loop import train

    rows = np.random.default_rng(0).integers(0, 4, (64, 16)).astype(np.int32)
    columns = {"tokens": rows, "mask": np.ones(rows.shape, bool)}
    model = transformer(4, 16, layers=1, width=16, heads=2)
    task = language_modelling(model, columns, symbols=16)
    for mesh in (MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=-1, data=1)):
        if len(jax.devices()) == 1:
            mesh = MeshConfig()
        with tempfile.TemporaryDirectory() as folder:
            saving = CheckpointConfig(every=2)
            config = TrainConfig(steps=4, batch_size=8, eval_every=2, checkpoint=saving, mesh=mesh)
            outcome = train(config, task, columns, pathlib.Path(folder), seed=0)
        kernel = outcome.params["params"]["backbone"]["blocks_0"]["feed_forward"]["up"]["kernel"]
        print(len(kernel.sharding.device_set), kernel.addressable_shards[0].data.size, *outcome.train["loss"])
""")


@pytest.mark.slow
@pytest.mark.exhaustive
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
