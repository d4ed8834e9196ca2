"""Trainings in processes of their own, two at a time, and what they leave behind."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


class Trainings:
    """Runs `tests/reliability/trainee.py` in new processes, and reads the folders of its trainings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def process(self, *jobs: dict[str, Any], devices: int = 1) -> subprocess.CompletedProcess:
        """Do jobs one after the other in one new process; a job's folder is given by its name."""
        jobs = [{**job, "folder": str(self.folder / job["folder"])} for job in jobs]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, "-m", "tests.reliability.trainee", json.dumps(jobs)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)

    def processes(self, *lists: list[dict[str, Any]], devices: Sequence[int] = ()) -> list[subprocess.CompletedProcess]:
        """Several processes, two at a time, each with one list of jobs."""
        with ThreadPoolExecutor(2) as pool:
            each = devices or [1] * len(lists)
            return list(pool.map(lambda jobs, count: self.process(*jobs, devices=count), lists, each))

    def state(self, name: str, when: str = "end") -> dict[str, np.ndarray]:
        """Leaves of the state that a training ended (or began) with."""
        with np.load(self.folder / name / f"{when}.npz") as stored:
            return {leaf: stored[leaf] for leaf in stored.files}

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The metrics file as it is."""
        return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]

    def counters(self, name: str, step: int) -> dict[str, Any]:
        """What a checkpoint holds beside the state; all but the seconds, which no promise can be made about."""
        loop = json.loads((self.folder / name / "checkpoints" / str(step) / "loop" / "metadata").read_text())["loop"]
        del loop["seconds"]
        return loop

    def read(self, name: str) -> list[list[int]]:
        """The step and the rows of each batch, in the order in which they were read; of a kill, the same step twice."""
        lines = (self.folder / name / "read.txt").read_text().splitlines()
        return [[int(word) for word in line.split()] for line in lines]


@pytest.fixture(scope="session")
def trainings(tmp_path_factory) -> Trainings:
    """All trainings of this folder in one place; a program is compiled once for all.

    What is built on it is of the session too: a worker may come back to a file, and would train there again.
    """
    return Trainings(tmp_path_factory.mktemp("trainings"))


@pytest.fixture(scope="session")
def undisturbed(trainings) -> str:
    """Name of a training that nothing happened to."""
    done = trainings.process({"folder": "undisturbed"})
    assert done.returncode == 0, done.stderr
    return "undisturbed"


@pytest.fixture(scope="session")
def assert_ended_alike(trainings):
    """Two trainings ended alike: every leaf bit for bit, counters, data position, and the rows of the metrics."""

    def check(name: str, expected: str) -> None:
        one, other = trainings.state(name), trainings.state(expected)
        assert set(one) == set(other)
        different = [leaf for leaf in one if one[leaf].tobytes() != other[leaf].tobytes()]
        assert not different, f"{name} differs from {expected} in {different}"
        last = int(one["step"])
        assert trainings.counters(name, last) == trainings.counters(expected, last)
        by_step = [
            sorted(trainings.rows(each), key=lambda row: (row["split"], row["step"])) for each in (name, expected)
        ]
        assert by_step[0] == by_step[1]

    return check
