"""The training step that is timed does what the training loop does."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lightnet import training_speed
from experiments.lightnet.step_time import update_program
from experiments.training.config import OptimizerConfig
from experiments.training.task import Task


def test_calls_descend_and_keep_their_parameters():
    batch = {"x": np.array([1.0, 2.0, 3.0], np.float32)}
    task = Task(
        init=lambda key: {"kernel": jnp.zeros(3)},
        loss=lambda params, batch, key: (jnp.sum((params["kernel"] - batch["x"]) ** 2), {}),
    )
    call = update_program(task, OptimizerConfig(learning_rate=0.1, schedule="constant", weight_decay=0.0), batch)
    losses = [float(call()) for _ in range(3)]
    # AdamW's first steps have the size of the rate: 1 + 4 + 9 = 14 before any.
    assert losses[0] == pytest.approx(0.9**2 + 1.9**2 + 2.9**2, rel=1e-5)
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.slow
def test_the_ratio_is_over_the_faster_softmax_model(tmp_path, monkeypatch):
    from experiments.scan_benchmark import measure

    times = iter((2.0, 8.0, 5.0))
    found = lambda calls, repeats: [measure.Timing(0.0, next(times), 0.0, 1) for _ in calls]  # noqa: E731
    monkeypatch.setattr(measure, "take_turns", found)
    result = training_speed.run(training_speed.PRESETS["smoke"], tmp_path)
    np.testing.assert_allclose(result.measured["lightnet/R7-training-speed"], [2.5])
    tokens = 2 * training_speed.PRESETS["smoke"].length
    np.testing.assert_allclose(result.tables["speeds"]["tokens_per_second"], [500 * tokens, 125 * tokens, 200 * tokens])
