"""The training step that is timed does what the training loop does."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.step_time import update_program
from experiments.training.config import OptimizerConfig
from experiments.training.recording import recording
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


def test_each_call_takes_the_next_batch():
    batches = iter([{"x": np.float32(x)} for x in (1.0, 2.0, 3.0)])
    task = Task(init=lambda key: {"kernel": jnp.zeros(())}, loss=lambda params, batch, key: (batch["x"], {}))
    call = update_program(task, OptimizerConfig(weight_decay=0.0), batches)
    assert [float(call()), float(call())] == [2.0, 3.0]


def test_nothing_is_done_while_trainings_are_written_down():
    with recording(lambda *_, **__: None):
        call = update_program(Task(init=None, loss=None), OptimizerConfig(), {"x": np.zeros(3)})
    assert call() is None
