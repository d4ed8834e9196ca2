"""Failures of background threads and of the file system end a training in one clear error."""

import threading
from collections import namedtuple

import jax.numpy as jnp
import pytest

from experiments.errors import UserError
from experiments.training.background import failures_raised
from experiments.training.checkpoint import Checkpoints


def fail():
    raise OSError(28, "No space left on device")


def in_a_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_a_failure_in_a_thread_is_raised_and_not_printed(capfd):
    before = threading.excepthook
    with pytest.raises(OSError, match="No space left"), failures_raised():
        in_a_thread(fail)
    assert threading.excepthook is before
    assert capfd.readouterr().err == ""


def test_the_own_exception_of_the_block_comes_first():
    with pytest.raises(KeyError, match="own"), failures_raised():
        in_a_thread(fail)
        raise KeyError("own")


def test_nothing_is_raised_without_a_failure():
    with failures_raised():
        in_a_thread(lambda: None)


def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"no space left on device for a checkpoint in .*: 0\.5 MB are needed"):
        checkpoints.save(1, {"w": jnp.ones(3)}, {"step": 1})
    checkpoints.close()
    assert not any(path.name.startswith("1") for path in (tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("told", ["No space left on device", "File too large"])
def test_what_the_file_system_refused_is_told_in_one_line(tmp_path, monkeypatch, told):
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def refuse(*_, **__):
        raise ValueError(f"OUT_OF_RANGE: Error writing local file: [OS error: {told}]\nsource locations: many")

    monkeypatch.setattr(checkpoints._manager, "save", refuse)
    with pytest.raises(UserError) as error:
        checkpoints.save(1, {"w": jnp.ones(3)}, {"step": 1})
    assert str(error.value) == f"a checkpoint could not be saved in {tmp_path / 'checkpoints'}: {told}"
    checkpoints.close()


def test_other_failures_of_a_save_keep_their_traceback(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def broken(*_, **__):
        raise TypeError("a bug")

    monkeypatch.setattr(checkpoints._manager, "save", broken)
    with pytest.raises(TypeError, match="a bug"):
        checkpoints.save(1, {"w": jnp.ones(3)}, {"step": 1})
    checkpoints.close()
