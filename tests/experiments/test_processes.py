"""The supervisor of `run --processes N` on a result without training: outcomes, messages, nobody left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.distributed import initialize_from_environment
from experiments.errors import UserError
from experiments.processes import _suspicion

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache_of_the_tests_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def waiting(toy) -> Path:
    """The toy, which writes down its process id and then waits."""
    wait = """
    import time
    number = os.environ.get("LIGHTNET_PROCESS", "0")
    Path(os.environ["TOY_PIDS"], number).write_text(str(os.getpid()))
    time.sleep(600)
    values ="""
    toy.write_text(toy.read_text().replace("\n    values =", wait))
    return toy


@pytest.fixture
def start(toy, tmp_path):
    """Starts the command line in two processes and waits until both run the result."""
    started = []

    def launch() -> tuple[subprocess.Popen, list[int]]:
        pids = tmp_path / f"pids{len(started)}"
        pids.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOY_PIDS": str(pids)}
        command = [sys.executable, "-m", "experiments", "run", str(toy), "--processes", "2"]
        supervisor = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)
        started.append(supervisor)
        files = [pids / "0", pids / "1"]
        until(lambda: all(file.exists() and file.read_text() for file in files) or supervisor.poll() is not None)
        assert supervisor.poll() is None, supervisor.communicate()
        return supervisor, [int(file.read_text()) for file in files]

    yield launch
    for supervisor in started:
        supervisor.kill()
        supervisor.communicate()


def until(condition) -> None:
    """Wait for something that must happen; the limit only ends a test that hangs."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited for a minute in vain")


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even if whoever inherited it has not asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_two_processes_make_one_result_and_print_it_once(process, toy, run_folders):
    first = process("run", toy, "--processes", 2)
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith("toy: preset cpu, 3 seeds") and first.stderr.count("\n") == 1
    assert first.stdout.count("toy/small") == 1 and "Gloo" not in first.stdout
    (folder,) = run_folders()
    assert (folder / "DONE").exists() and '"command": "python -m experiments run toy.py"' in (
        folder / "result.json"
    ).read_text().replace("\n", "")
    assert (folder / "runs.txt").read_text() == "run\nrun\n"  # the toy itself writes in each process
    again = process("run", toy, "--processes", 2)
    assert again.returncode == 0 and "already finished" in again.stdout and again.stderr == ""
    assert (folder / "runs.txt").read_text() == "run\nrun\n"


@pytest.mark.slow
def test_a_refusal_of_all_processes_is_told_once(process, toy):
    done = process("run", toy, "--processes", 2, env={"TOY_TROUBLE": "value"})
    told = [line for line in done.stderr.splitlines() if not line.startswith("toy: preset")]
    assert (done.returncode, done.stdout) == (2, "")
    assert told == ["error: p: got 2.0, expected between 0 and 1"]


@pytest.mark.slow
def test_a_crash_names_its_process_after_the_traceback(process, toy):
    toy.write_text(
        toy.read_text().replace(
            "    trouble =", '    if os.environ["LIGHTNET_PROCESS"] == "1":\n        1 / 0\n    trouble ='
        )
    )
    toy.write_text(toy.read_text().replace("    values =", "    import time\n    time.sleep(600)\n    values ="))
    done = process("run", toy, "--processes", 2)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("toy: preset")]
    assert done.returncode == 1 and "[process 1] Traceback (most recent call last):" in lines
    assert lines[-2:] == [
        "error: ZeroDivisionError: division by zero",
        "process 1 failed with status 1; run the same command again to continue",
    ]


def test_a_killed_process_is_named_and_the_other_one_ended(waiting, start):
    supervisor, pids = start()
    os.kill(pids[1], signal.SIGKILL)
    _, told = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 128 + signal.SIGKILL
    assert told.splitlines()[1:] == ["process 1 was killed by SIGKILL; run the same command again to continue"]
    assert all(map(is_gone, pids))


def test_ctrl_c_says_how_to_continue_and_ends_all(waiting, start, run_folders):
    supervisor, pids = start()
    supervisor.send_signal(signal.SIGINT)
    _, told = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 130
    (folder,) = run_folders()
    assert told.splitlines()[1:] == [f"interrupted: the same command continues this run ({folder})"]
    assert all(map(is_gone, pids))


def test_nobody_outlives_a_killed_supervisor(waiting, start):
    supervisor, pids = start()
    supervisor.kill()
    until(lambda: all(map(is_gone, pids)))


def test_fewer_than_one_process_is_refused(call, toy, refused):
    assert refused(call("run", toy, "--processes", 0)) == "--processes: got 0, expected at least 1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"LIGHTNET_PROCESS": "1"}, "LIGHTNET_PROCESS is set and LIGHTNET_PROCESSES is not"),
        ({"LIGHTNET_PROCESSES": "2", "LIGHTNET_PROCESS": "0"}, "LIGHTNET_COORDINATOR is not"),
        ({"LIGHTNET_PROCESS": "2", "LIGHTNET_PROCESSES": "2", "LIGHTNET_COORDINATOR": "a:1"}, "got 2 of .* 2"),
        ({"LIGHTNET_PROCESS": "x", "LIGHTNET_PROCESSES": "2", "LIGHTNET_COORDINATOR": "a:1"}, "got x of .* 2"),
    ],
)
def test_a_half_set_environment_is_refused(monkeypatch, given, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        initialize_from_environment()


def test_of_several_dead_the_one_killed_from_outside_is_named():
    statuses = [1, -signal.SIGABRT, -signal.SIGKILL]
    assert sorted(statuses, key=_suspicion) == [-signal.SIGKILL, 1, -signal.SIGABRT]


def test_origin_gives_another_folder_and_is_no_evidence(call, toy, refused, run_folders, tmp_path):
    words = ("--init_from", tmp_path, "--resume_from", tmp_path)
    assert "--resume_from and --init_from exclude each other" in refused(call("run", toy, *words))
    for extra in ((), words[:2], words[2:]):
        assert call("run", toy, *extra)[0] == 0
    plain, *_ = {folder.name for folder in run_folders()}
    assert len(run_folders()) == 3 and re.fullmatch(r"cpu-[0-9a-f]{8}", plain)
    commands = [(folder / "result.json").read_text() for folder in run_folders()]
    assert sum(f"--init_from {tmp_path}" in text and '"init_from"' in text for text in commands) == 1
