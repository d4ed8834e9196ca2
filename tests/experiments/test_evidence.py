"""Only runs of the file as it is now speak for it."""

import os
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.evidence import evidence, find
from experiments.registry import load_path
from experiments.runs import finished_runs


def age(seconds: int) -> None:
    """Make the newest run so many seconds older, since the clock of a file system may be coarse."""
    done = finished_runs("toy")[0] / "DONE"
    os.utime(done, (done.stat().st_mtime - seconds,) * 2)


def test_the_newest_run_of_the_preset_counts_and_changed_ones_do_not(toy, call):
    result = load_path(toy)
    assert evidence(result) is None
    for words in [("--preset", "smoke"), ("--config.offset", "0.5"), ("--seeds", "0,1")]:
        call("run", toy, *words)
        assert evidence(result) is None
    call("run", toy)
    age(10)
    assert evidence(result).seeds == (0, 1, 2)
    call("run", toy, "--seeds", "0:5")  # more seeds are better evidence
    age(5)
    assert evidence(result).seeds == (0, 1, 2, 3, 4)
    call("run", toy, "--config.offset", "0.5")
    assert evidence(result).config["offset"] == 0.0


@pytest.mark.parametrize("new", ['"below", 0.5', '"above", 1.0', '"within", 1.0, 0.1'])
def test_a_threshold_that_was_changed_after_the_run_unmakes_the_evidence(toy, call, new):
    call("run", toy)
    assert evidence(load_path(toy)) is not None
    toy.write_text(toy.read_text().replace('"below", 1.0', new))
    assert evidence(load_path(toy)) is None


def test_a_run_is_found_by_folder_and_by_id(toy, call):
    call("run", toy, "--preset", "smoke")
    age(10)
    call("run", toy)
    assert find("toy").preset == "cpu"
    assert find("toy", preset="smoke").preset == "smoke"
    folder = finished_runs("toy", "smoke")[0]
    assert find(str(folder)).path == folder
    with pytest.raises(UserError, match="unknown run folder or result 'toi'; nearest: toy"):
        find("toi")
    (folder / "DONE").unlink()
    with pytest.raises(UserError, match="is not finished"):
        find(str(folder))
    (Path("empty")).mkdir()
    with pytest.raises(UserError, match="empty is not a run folder"):
        find("empty")
