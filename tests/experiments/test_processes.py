"""The supervisor of `run --processes N` on a result without training: outcomes, messages, nobody left behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.distributed import _meeting, initialize_from_environment
from experiments.errors import UserError
from experiments.processes import _free_port, _suspicion

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_other_one_ended(waiting, start):
    supervisor, pids = start()
    os.kill(pids[1], signal.SIGKILL)
    _, told = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 128 + signal.SIGKILL
    assert told.splitlines()[1:] == ["process 1 was killed by SIGKILL; run the same command again to continue"]
    assert all(map(is_gone, pids))


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue_and_ends_all(waiting, start, run_folders):
    supervisor, pids = start()
    supervisor.send_signal(signal.SIGINT)
    _, told = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 130
    (folder,) = run_folders()
    assert told.splitlines()[1:] == [f"interrupted: the same command continues this run ({folder})"]
    assert all(map(is_gone, pids))


@pytest.mark.slow
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
        ({"LIGHTNET_PROCESSES": "auto", "LIGHTNET_PATIENCE": "soon"}, "LIGHTNET_PATIENCE: got 'soon'"),
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


SLURM = {
    "SLURM_JOB_ID": "1000",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("given", "method"),
    [
        (SLURM, "slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, "alone"),
        ({name: value for name, value in SLURM.items() if name != "SLURM_PROCID"}, "alone"),  # an allocation, no step
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, "alone"),
        ({"LIGHTNET_PROCESSES": "auto"}, None),
        ({**SLURM, "LIGHTNET_PROCESSES": "1"}, "alone"),
    ],
)
def test_a_cluster_is_noticed(given, method):
    meeting = _meeting(given)
    assert method == ("alone" if meeting is None else meeting["cluster_detection_method"])


IN_A_STEP = """
import os, sys
from experiments.distributed import initialize_from_environment, is_primary, wait_for_all
from experiments.errors import UserError

initialize_from_environment()
import jax

wait_for_all("the start")
print(jax.process_index(), jax.process_count(), len(jax.devices()), is_primary(), flush=True)
if is_primary():
    try:
        wait_for_all("the end")
    except UserError as error:
        print(error, flush=True)
    os._exit(0)
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.slow
def test_two_tasks_of_a_step_of_slurm_meet_and_one_that_does_not_come_is_named():
    job = _job_with_a_free_port()
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_STEP],
            env={**os.environ, **SLURM, "SLURM_JOB_ID": job, "SLURM_PROCID": str(number), "LIGHTNET_PATIENCE": "5"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    told = tasks[0].communicate(timeout=120)[0].splitlines()
    other = tasks[1].communicate(timeout=120)[0].splitlines()
    assert told[0] == "0 2 2 True" and other[0] == "1 2 2 False"
    assert told[1] == "the end: waited 5 s (LIGHTNET_PATIENCE) for process 1 in vain"


@pytest.mark.slow
def test_a_process_that_finds_nobody_ends(process, toy):
    one = {"LIGHTNET_PROCESS": "0", "LIGHTNET_PROCESSES": "2", "LIGHTNET_PATIENCE": "3"}
    done = process("run", toy, env={**one, "LIGHTNET_COORDINATOR": f"localhost:{_free_port()}"})
    assert done.returncode == -signal.SIGABRT  # by the runtime
    assert done.stderr.startswith("waiting for the other processes, at most 3 s (LIGHTNET_PATIENCE)\n")


def test_without_a_cluster_to_be_found(process, toy):
    done = process("run", toy, env={"LIGHTNET_PROCESSES": "auto"})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: LIGHTNET_PROCESSES is auto, and JAX finds no cluster here (")


def _job_with_a_free_port() -> str:
    """Number of a job from which JAX makes a port, of the 4,096 highest, that nobody listens on."""
    for job in range(4096):
        with socket.socket() as listener:
            try:
                listener.bind(("localhost", 61440 + job))
            except OSError:
                continue
            return str(job)
    raise AssertionError("all ports are taken")
