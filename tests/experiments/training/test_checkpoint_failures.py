"""No failure of a save goes unseen, and none loses what was saved before."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from experiments.errors import UserError
from experiments.training import checkpoint
from experiments.training.background import failures_raised
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import CheckpointConfig
from tests.experiments.training.states import assert_same, make_state, restored


@pytest.mark.parametrize("where", ["manifest", "array", "sync"])
def test_a_failing_writer_is_heard_and_nothing_lost(tmp_path, monkeypatch, where, mode):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = CheckpointConfig(keep=1, best="loss")
    checkpoints = Checkpoints(tmp_path, config)
    checkpoints.save(1, make_state(1), {"step": 1}, best=1.0)
    checkpoints.save(2, make_state(2), {"step": 2})
    checkpoints._manager.wait_until_finished()
    assert checkpoints.steps() == [1, 2]
    with failures_raised(), monkeypatch.context() as patch:
        if where == "manifest":
            patch.setattr(checkpoint, "write_manifest", full)
        elif where == "array":
            patch.setattr(ocp.type_handlers.ArrayHandler, "serialize", full)
        else:
            patch.setattr(ocp.CheckpointManager, "save", full)
        told = r"^a checkpoint could not be saved in \S+: No space left on device$"
        with pytest.raises(UserError, match=told):
            checkpoints.save(3, make_state(3), {"step": 3}, best=0.5)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                checkpoints.check()
                time.sleep(0.005)
        assert checkpoints.steps() == [1, 2]
        checkpoints.check()
    checkpoints.save(4, make_state(4), {"step": 4})
    checkpoints.check()
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, config)
    assert checkpoints.steps() == [1, 4]
    assert_same(restored(checkpoints)[0], make_state(4))
    checkpoints.close()


@pytest.mark.parametrize("call", ["save", "close"])
def test_a_failure_reaches_the_next_call(tmp_path, monkeypatch, call):
    def refused(folder):
        raise RuntimeError("first line\nsecond line")

    checkpoints = Checkpoints(tmp_path)
    told = r"^a checkpoint could not be saved in \S+: first line$"
    with failures_raised():
        monkeypatch.setattr(checkpoint, "write_manifest", refused)
        checkpoints.save(3, make_state(3), {})
        with pytest.raises(UserError, match=told):
            checkpoints.save(4, make_state(4), {}) if call == "save" else checkpoints.close()
    if call == "save":
        monkeypatch.undo()
        checkpoints.save(3, make_state(3), {})
        checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == ([3] if call == "save" else [])
    checkpoints.close()


def test_a_save_under_way_is_not_listed(tmp_path, monkeypatch, mode):
    go_on, write = threading.Event(), checkpoint.write_manifest
    monkeypatch.setattr(checkpoint, "write_manifest", lambda folder: go_on.wait(20) and write(folder))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, make_state(3), {})
    other = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.steps() == [] and other.steps() == []
    checkpoints.check()
    go_on.set()
    checkpoints.close()
    other.close()
    other = Checkpoints(tmp_path, read_only=True)
    assert other.steps() == [3]
    other.close()


def test_arrays_that_orbax_refuses(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"could not be saved in \S+: Cannot save arrays with zero size: .*name=x"):
        checkpoints.save(1, {"x": jnp.zeros((0, 3))}, {})
    checkpoints.check()
    assert checkpoints.steps() == []
    checkpoints.save(2, make_state(2), {"step": 2})
    assert restored(checkpoints)[1] == {"step": 2} and checkpoints.steps() == [2]
    checkpoints.close()


def test_counters_that_are_no_json(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(TypeError, match="JSON"):
        checkpoints.save(1, make_state(), {"x": jnp.ones(1)})
    checkpoints.save(1, make_state(), {"x": 1})
    checkpoints.close()
    assert checkpoints.steps() == [1]


def test_no_space(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: _Usage(1, 1, 0))
    with pytest.raises(UserError, match=r"^no space left on device for a checkpoint in \S+: 0.5 MB are needed and 0.0"):
        checkpoints.save(1, make_state(), {})
    assert list(tmp_path.iterdir()) == []
    checkpoints.close()


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


KILLED = """
import sys, time
import jax.numpy as jnp
from experiments.training import checkpoint
from experiments.training.config import CheckpointConfig

if sys.argv[2] == "commit file":
    checkpoint.is_object_store = lambda folder: True
write = checkpoint.write_manifest
checkpoints = checkpoint.Checkpoints(sys.argv[1], CheckpointConfig(keep=1))
checkpoints.save(4, {"x": jnp.arange(4)}, {"step": 4})
checkpoints._manager.wait_until_finished()

def slow(folder):
    if sys.argv[3] == "after":
        write(folder)
    print("now", flush=True)
    time.sleep(60)

checkpoint.write_manifest = slow
checkpoints.save(8, {"x": jnp.arange(4)}, {"step": 8})
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_it_saves(tmp_path, mode, moment):
    command = [sys.executable, "-c", KILLED, str(tmp_path), mode, moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 2
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [4]
    like = {"x": jnp.arange(4)}
    state, loop = restored(checkpoints, like)
    assert_same(state, like)
    assert loop == {"step": 4}
    checkpoints.save(9, like, {"step": 9})
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "9"]
