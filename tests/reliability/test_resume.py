"""A training that is interrupted ends, in a new process, bit for bit where an undisturbed one does."""

import numpy as np
import pytest

from tests.reliability.trainee import BATCH, STEPS

PARTS = 4  # microbatches per update
EVALUATIONS = [0, 3, 6, 8]
# How each training is interrupted, and the update that it then continues after. Step 6 is one of saving and evaluating.
KILLED = {
    "in update 1": ({"exit_in_microbatch": 2, "committed": 0}, 0),
    "in update 4": ({"exit_in_microbatch": 3 * PARTS + 2, "committed": 2}, 2),
}
TERMINATED = {
    "between saves": ({"terminate_at": 4}, 5),
    "at a save and evaluation": ({"terminate_at": 5}, 6),
}
INTERRUPTED = {**KILLED, **TERMINATED}

pytestmark = pytest.mark.slow


NEVER = {"exit_in_microbatch": 0}


@pytest.fixture(scope="session")
def interrupted(trainings, undisturbed) -> dict:
    """Each interrupted in a process of its own; then new processes continue them all, one of them with workers."""
    jobs = [{"folder": name, **how} for name, (how, _) in INTERRUPTED.items()]
    jobs.append({"folder": "never killed", **NEVER})
    done = dict(zip([*INTERRUPTED, "never killed"], trainings.processes(*([job] for job in jobs)), strict=True))
    killed = [{"folder": name, **NEVER} for name in KILLED]
    between, both = TERMINATED
    continued = trainings.processes(killed, [{"folder": between, "settings": {"workers": 2}}, {"folder": both}])
    assert [each.returncode for each in continued] == [0, 0], [each.stderr for each in continued]
    return done


def reference(name: str) -> str:
    return "never killed" if name in KILLED else "undisturbed"


@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupted_anywhere_equals_undisturbed(trainings, interrupted, assert_ended_alike, name):
    assert interrupted[name].returncode == (9 if name in KILLED else 75), interrupted[name].stderr
    assert int(trainings.state(name, "start")["step"]) == INTERRUPTED[name][1]
    assert_ended_alike(name, reference(name))


@pytest.mark.parametrize("name", KILLED)
def test_an_update_killed_between_microbatches_is_done_again_whole(trainings, interrupted, name):
    how, saved = KILLED[name]
    inside = (how["exit_in_microbatch"] - 1) // PARTS
    batches = trainings.read(reference(name))
    assert trainings.read(name) == batches[: inside + 1] + batches[saved:]
    assert {len(rows) for _, *rows in batches} == {BATCH}


def test_preempted_at_a_save_and_evaluation_does_each_once(trainings, interrupted):
    name = "at a save and evaluation"
    assert "SIGTERM, saved after 6 updates" in interrupted[name].stderr
    assert len((trainings.folder / name / "evaluated.txt").read_text().splitlines()) == len(EVALUATIONS)
    assert [row["step"] for row in trainings.rows(name) if row["split"] == "eval"] == EVALUATIONS


@pytest.mark.parametrize("name", INTERRUPTED)
def test_metrics_hold_each_step_once_and_in_order(trainings, interrupted, name):
    rows = trainings.rows(name)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if row["split"] == "eval"] == EVALUATIONS


def test_the_same_seed_gives_the_same_and_another_another(trainings, undisturbed, assert_ended_alike):
    done = trainings.process({"folder": "same seed"}, {"folder": "other seed", "seed": 6})
    assert done.returncode == 0, done.stderr
    assert_ended_alike("same seed", undisturbed)
    same, other = trainings.state("same seed"), trainings.state("other seed")
    moved = [name for name in same if name.startswith(("params", "ema", "collections"))]
    assert moved and not any(np.array_equal(same[name], other[name]) for name in moved)
    assert trainings.read("same seed") != trainings.read("other seed")
