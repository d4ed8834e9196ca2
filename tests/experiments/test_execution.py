"""Of several processes that execute one job, only the first one writes."""

import dataclasses

import pytest

from experiments.errors import UserError
from experiments.execution import Job, execute, timing
from experiments.files import read_json
from experiments.registry import load_path
from experiments.runs import is_finished, read_result


@pytest.fixture
def job(toy, tmp_path) -> Job:
    """The toy, without its own file."""
    text = toy.read_text()
    start, end = text.index('    with open(run_dir / "runs.txt"'), text.index("    values = ")
    toy.write_text(text[:start] + text[end:])
    result = load_path(toy)
    return Job(result, "cpu", result.presets["cpu"], tmp_path / "runs" / "mine", "a command")


def counted(job: Job) -> tuple[Job, list]:
    """The job, and the list of its computations so far."""
    calls: list = []
    run = job.result.run
    result = dataclasses.replace(job.result, run=lambda *arguments: (calls.append(arguments), run(*arguments))[1])
    return dataclasses.replace(job, result=result), calls


@pytest.fixture
def other(monkeypatch):
    """Executes a job as a process other than the first, which is told what the first one has decided."""

    def execute_with(job: Job, *decisions: bool) -> bool:
        left = list(decisions)
        with monkeypatch.context() as patch:
            patch.setenv("LIGHTNET_PROCESS", "1")
            patch.setattr("experiments.execution.first_process_says", lambda _own: left.pop(0))
            ran = execute(job)
        assert left == []
        return ran

    return execute_with


DONE, NOT_DONE, COMPUTE, DRAW = True, False, True, False


def test_another_process_computes_and_writes_nothing(job, other):
    job, calls = counted(job)
    assert other(job, NOT_DONE, COMPUTE) and len(calls) == 1 and not job.run_dir.parent.exists()
    assert execute(job) and is_finished(job.run_dir) and len(calls) == 2
    files = {path: path.stat().st_mtime_ns for path in job.run_dir.iterdir()}
    assert not other(job, DONE) and len(calls) == 2
    (job.run_dir / "DONE").unlink()
    del files[job.run_dir / "DONE"]
    assert other(job, NOT_DONE, DRAW) and len(calls) == 2  # only the figure is missing, which is for the first process
    assert other(job, NOT_DONE, COMPUTE) and len(calls) == 3
    assert {path: path.stat().st_mtime_ns for path in job.run_dir.iterdir()} == files


def test_another_process_refuses_other_data_too(job, other, monkeypatch):
    execute(job)
    (job.run_dir / "DONE").unlink()
    monkeypatch.setenv("TOY_DATA", "bb")
    with pytest.raises(UserError, match="was started with other data"):
        other(job, NOT_DONE, COMPUTE)
    assert other(dataclasses.replace(job, allow=("data",)), NOT_DONE, COMPUTE)
    assert read_json(job.run_dir / "data.json") == {"numbers": "aa"}


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_processes(job, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("experiments.execution.time.monotonic", lambda: clock[0])

    def slow(result, seconds: float):
        def run(*arguments):
            clock[0] += seconds
            return result.run(*arguments)

        return dataclasses.replace(job, result=dataclasses.replace(result, run=run))

    monkeypatch.setenv("TOY_TROUBLE", "interrupt")
    for seconds in (10.0, 200.0):
        with pytest.raises(KeyboardInterrupt):
            execute(slow(job.result, seconds))
    monkeypatch.setenv("TOY_TROUBLE", "")
    execute(slow(job.result, 3000.0))
    assert read_result(job.run_dir).seconds == 3210.0


def test_the_seconds_of_all_processes_are_added_up(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("experiments.execution.time.monotonic", lambda: clock[0])

    def work(seconds: float, end: type[BaseException] | None) -> float:
        with timing(tmp_path) as spent:
            clock[0] += seconds
            if end is not None:
                raise end
            return spent()

    for seconds, end in ((1.5, KeyboardInterrupt), (20.25, SystemExit), (300.0, ValueError)):
        with pytest.raises(end):
            work(seconds, end)
    assert work(4000.5, None) == 4322.25 == read_json(tmp_path / "seconds.json")
