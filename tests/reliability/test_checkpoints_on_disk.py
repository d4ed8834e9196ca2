"""Kills in the middle of a save, damaged checkpoints and a writer that fails: no update is lost, none done twice."""

import os
import random
import shutil
import time
from pathlib import Path

import chex
import pytest

from experiments.errors import UserError
from experiments.training import checkpoint
from experiments.training.checkpoint import Checkpoints
from experiments.training.data import DeviceBatches
from experiments.training.loop import train
from experiments.training.manifest import MANIFEST
from tests.reliability import trainee

SAVES = {"before its manifest": False, "before its commit": True}


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def torn(folder: Path) -> None:
    os.truncate(largest(folder), largest(folder).stat().st_size // 2)


def empty(folder: Path) -> None:
    os.truncate(largest(folder), 0)


def flipped(folder: Path) -> None:
    content, draw = bytearray(largest(folder).read_bytes()), random.Random(folder.name)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    largest(folder).write_bytes(content)


def missing(folder: Path) -> None:
    shutil.rmtree(folder / "state" / "d")


DAMAGES = {damage.__name__: damage for damage in (torn, empty, flipped, missing)}


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def continued(trainings, undisturbed) -> dict:
    """Trainings killed while they saved, and copies of an interrupted one with damaged checkpoints; all continued."""
    kills = [{"folder": name, "save": 4, "written": SAVES[name], "kill_at": 5} for name in SAVES]
    killed = trainings.processes(*([job] for job in kills), [{"folder": "whole", "terminate_at": 4}])
    assert [done.returncode for done in killed] == [-9, -9, 75], [done.stderr for done in killed]
    found = {name: sorted(path.name for path in checkpoints(trainings, name).iterdir()) for name in SAVES}
    for name in [*DAMAGES, "all damaged"]:
        shutil.copytree(trainings.folder / "whole", trainings.folder / name)
    for name, damage in DAMAGES.items():
        damage(checkpoints(trainings, name) / "5")
    for step, damage in zip("245", DAMAGES.values(), strict=False):
        damage(checkpoints(trainings, "all damaged") / step)
    before = files(checkpoints(trainings, "all damaged"))
    names = [*SAVES, *DAMAGES, "all damaged"]
    done = trainings.processes([{"folder": name} for name in names[::2]], [{"folder": name} for name in names[1::2]])
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    return {"found": found, "before": before, "told": "".join(each.stderr for each in done)}


def checkpoints(trainings, name: str) -> Path:
    return trainings.folder / name / "checkpoints"


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVES)
def test_killed_while_it_saved_in_the_background(trainings, continued, undisturbed, assert_ended_alike, name):
    committed, unfinished = continued["found"][name]
    assert committed == "2" and unfinished.startswith("4.")
    batches = trainings.read(undisturbed)
    assert trainings.read(name) == batches[:5] + batches[2:]  # update 5 was done while the checkpoint 4 was written
    assert int(trainings.state(name, "start")["step"]) == 2
    assert_ended_alike(name, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_an_older_one_used(
    trainings, continued, undisturbed, assert_ended_alike, name
):
    warnings = [line for line in continued["told"].splitlines() if f"/{name}/checkpoints is damaged" in line]
    assert len(warnings) == 1 and warnings[0].startswith("warning: checkpoint 5 in"), continued["told"]
    assert warnings[0].endswith("; going on from checkpoint 4")
    assert int(trainings.state(name, "start")["step"]) == 4
    assert_ended_alike(name, undisturbed)


@pytest.mark.slow
def test_all_checkpoints_damaged_stops_and_overwrites_nothing(trainings, continued):
    folder = trainings.folder / "all damaged"
    assert "all 3 checkpoints in" in (folder / "error.txt").read_text()
    assert files(folder / "checkpoints") == continued["before"]
    assert not (folder / "end.npz").exists() and len(trainings.read("all damaged")) == 5


@pytest.mark.slow
def test_a_failing_writer_ends_the_training_at_the_next_update(tmp_path, monkeypatch):
    """Saves are due at 4 and 8: the failure of the first is raised after update 5."""
    saving = trainee.CheckpointConfig(every=4, keep=9)
    config = trainee.settings(device_batch=0, precision="float32", ema_decay=0.0, checkpoint=saving)
    trained = config, trainee.task(stateful=False), trainee.columns()
    undisturbed = train(*trained, tmp_path / "undisturbed", seed=5)
    managers, read, write, ahead = [], [], checkpoint.write_manifest, DeviceBatches.__next__
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, *a, **k: (managers.append(self._manager), save(self, *a, **k))
    )

    def full(folder):
        if folder.name.startswith("4"):
            raise OSError(28, os.strerror(28))
        write(folder)

    def following(batches):
        while len(read) == 4 and managers[-1].is_saving_in_progress():  # then its thread has met the failure
            time.sleep(0.01)
        read.append(len(read))
        return ahead(batches)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_manifest", full)
        patch.setattr(DeviceBatches, "__next__", following)
        with pytest.raises(UserError, match="a checkpoint could not be saved in .*: No space left on device"):
            train(*trained, tmp_path / "run", seed=5)
    assert len(read) == 5
    assert not (tmp_path / "run" / "checkpoints" / "4").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob(f"*/{MANIFEST}"))
    again = train(*trained, tmp_path / "run", seed=5)
    chex.assert_trees_all_equal(again.state, undisturbed.state)
    assert again.train["step"].tolist() == list(range(1, trainee.STEPS + 1))
