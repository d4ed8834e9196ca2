"""Means over a fixed set: exact for every size, blind to padding, the same on a mesh."""

import os
import subprocess
import sys
import textwrap

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.validation import validation


def column(count):
    return np.random.default_rng(count).standard_normal(count).astype(np.float32)


def moments(w, batch):
    return {"square": (w * batch["x"]) ** 2, "above": w * batch["x"] > 0.5}


@pytest.mark.parametrize("count", [1, 2, 7, 13, 64])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_mean_is_over_the_examples_whatever_the_batch_size(count, batch_size):
    x = column(count)
    means = validation(moments, {"x": x}, batch_size)(jnp.float32(2.0))
    wide = 2 * x.astype(np.float64)
    # float32: one rounding per operation, and at most n of them in a sum of positive terms.
    assert means["square"] == pytest.approx(np.mean(wide**2), rel=(count + 2) * 2.0**-23)
    assert means["above"] == np.mean(wide > 0.5)
    assert all(isinstance(value, float) for value in means.values())


def test_not_a_number_on_padding_is_not_seen_but_on_an_example_it_is():
    def poisoned(w, batch):
        seen = jnp.sum(batch["x"] == 4.0) > 1  # the last example, repeated as padding
        return {"x": jnp.where(seen & (jnp.arange(3) == 2), jnp.nan, w * batch["x"])}

    ones = jnp.float32(1.0)
    assert validation(poisoned, {"x": np.arange(5.0)}, 3)(ones) == {"x": 2.0}
    broken = {"x": np.array([1.0, np.nan, 2.0])}
    assert np.isnan(validation(lambda w, batch: {"x": w * batch["x"]}, broken, 2)(ones)["x"])


def test_sums_are_not_taken_in_the_precision_of_the_metric():
    ones = validation(lambda w, batch: {"x": (w * batch["x"]).astype(jnp.bfloat16)}, {"x": np.ones(999)}, 999)
    assert ones(jnp.float32(1.0)) == {"x": 1.0}


def test_the_set_is_read_once_and_in_order():
    reads = []

    def read(x):
        reads.append(int(x))
        return {"x": x}

    evaluate = validation(lambda w, batch: {"x": w * batch["x"]}, grain.MapDataset.range(7).map(read), 3)
    assert reads == []
    assert [evaluate(jnp.float32(w))["x"] for w in (1, 2)] == [3.0, 6.0]
    assert reads == [*range(7)]


@pytest.mark.parametrize(
    ("data", "batch_size", "message"),
    [
        ({"x": np.zeros(0)}, 2, "data: got no examples"),
        (grain.MapDataset.range(3).repeat(), 2, "data: got an endless dataset"),
        ({"x": np.zeros(2)}, 0, "batch_size: got 0"),
    ],
)
def test_refusals_name_the_argument(data, batch_size, message):
    with pytest.raises(ValueError, match=message):
        validation(moments, data, batch_size)


def test_a_metric_that_is_no_value_per_example_is_refused():
    evaluate = validation(lambda w, batch: {"loss": jnp.mean(batch["x"])}, {"x": np.zeros(4)}, 2)
    with pytest.raises(ValueError, match=r"metric loss: got shape \(\), expected one value per example, \(2,\)"):
        evaluate(jnp.float32(1.0))


EIGHT_DEVICES = """
    from contextlib import nullcontext
    import jax, jax.numpy as jnp, numpy as np
    jax.config.update("jax_num_cpu_devices", 8)
    from experiments.training.config import MeshConfig
    from experiments.training.mesh import make_mesh
    from experiments.training.validation import validation

    shapes = []
    def metrics(w, batch):
        shapes.append(batch["x"].shape)
        return {"m": w * batch["x"]}

    evaluate = validation(metrics, {"x": np.arange(13.0)}, 3)
    for config in (None, MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)):
        with nullcontext() if config is None else jax.set_mesh(make_mesh(config)):
            assert evaluate(jnp.array(2.0)) == {"m": 12.0}
    assert shapes == [(3,), (8,), (4,)], shapes
"""


def test_the_same_on_meshes_of_eight_devices():
    code = textwrap.dedent(EIGHT_DEVICES)
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
