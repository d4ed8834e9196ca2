"""Examples that are not finite: the update is skipped whole, and too many in a row end a training that lost nothing."""

import json

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.errors import UserError
from experiments.training.config import CheckpointConfig
from experiments.training.data import examples
from experiments.training.loop import train
from experiments.training.task import Task
from tests.reliability import trainee

pytestmark = pytest.mark.slow

SEED, STEPS = 5, 4  # less than an epoch, so that an example is seen once


def poisoned(value: float, *positions: int) -> tuple[dict[str, np.ndarray], list[int]]:
    """Columns with a bad value at these positions of the training's order, and the rows of the whole order."""
    columns = trainee.columns()
    order = examples({"row": columns["row"]}, seed=SEED)
    rows = [int(order[position]["row"]) for position in range(STEPS * trainee.BATCH)]
    columns["x"][[rows[position] for position in positions], 2] = value
    return columns, rows


def settings(every: int = 2, **changes):
    return trainee.settings(steps=STEPS, eval_every=1, checkpoint=CheckpointConfig(every=every, keep=9), **changes)


def test_one_bad_example_changes_neither_parameters_nor_statistics(tmp_path):
    """It is in update 3, in the last microbatch of four; an evaluation sees average and batch statistics."""
    columns, _ = poisoned(-np.inf, 2 * trainee.BATCH + 3)
    task, seen = trainee.task(), []

    def evaluate(variables):
        seen.append(jax.device_get(variables))
        return {}

    outcome = train(settings(), Task(task.init, task.loss, evaluate, task.weights), columns, tmp_path, seed=SEED)
    assert set(seen[0]) == {"params", "batch_stats"}
    chex.assert_trees_all_equal(seen[3], seen[2])
    for before, after in ((0, 1), (1, 2), (3, 4)):
        assert not np.array_equal(
            seen[before]["batch_stats"]["norm"]["mean"], seen[after]["batch_stats"]["norm"]["mean"]
        )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outcome.state))
    assert outcome.train["skipped"].tolist() == [0, 0, 1, 1] and not np.isfinite(outcome.train["loss"][2])
    assert (int(outcome.state.skipped), int(outcome.state.skipped_in_a_row)) == (1, 0)


def test_too_many_end_the_training_with_finite_checkpoints_and_their_names(tmp_path):
    columns, rows = poisoned(np.nan, 2 * trainee.BATCH + 5, 3 * trainee.BATCH)
    config, task = settings(every=1, max_skipped=1), trainee.task()
    with pytest.raises(UserError, match=r"2 updates in a row were not finite \(loss\), the last of them update 4"):
        train(config, task, columns, tmp_path, seed=SEED)
    told = json.loads((tmp_path / "not_finite.json").read_text())
    assert told == {
        "updates": [3, 4],
        "leaf": "loss",
        "first_example": 2 * trainee.BATCH,
        "examples": 2 * trainee.BATCH,
        "rows": rows[2 * trainee.BATCH :],
    }
    saved = tmp_path / "checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == ["1", "2", "3", "4"]
    states = [leaves(saved / step / "state") for step in "234"]
    assert all(np.isfinite(leaf).all() for state in states for leaf in state.values())
    counters = {"step", "skipped", "skipped_in_a_row"}
    for before, after in ((0, 1), (1, 2)):
        changed = {name for name in states[0] if not np.array_equal(states[before][name], states[after][name])}
        assert changed == counters


def leaves(folder):
    """The arrays that a checkpoint holds, by name."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), reader.metadata(folder).item_metadata.tree)
        return trainee.leaves(reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy)))
