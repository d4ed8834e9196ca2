"""Write all shards of a job: in several processes, on several machines, and again after whatever ended that.

Every process writes its own shards, and a shard depends on the job and its number alone: the same bytes whoever writes
it and whenever. On a cluster each process of Slurm's step, or each that LIGHTNET_PROCESS and LIGHTNET_PROCESSES number,
calls this with a share of the shards; the last one finds all of them there and writes the manifest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from experiments.distributed import PROCESS, PROCESSES
from experiments.errors import UserError, one_line
from experiments.files import (
    as_path,
    atomic_write_text,
    is_object_store,
    make_folder,
    read_json,
    to_plain,
    write_json,
)
from experiments.records.encoding import Record
from experiments.records.manifest import Manifest, write_manifest
from experiments.records.shards import Shard, shard_name, write_shard, written_shard

PREPARATION = "preparation.json"


class Job(Protocol):
    """What is written; it must be picklable, and `records` a pure function of the number of the shard.

    Attributes:
        name: of the data, with which file names begin.
        shards: how many.
        about: what the records are and what they are made of, in plain JSON values. Nothing that does not change the
            records belongs there: a folder that was begun with another one is not continued.
        files: name -> text of small files beside the shards, such as a tokenizer; `about` has their hashes.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def shards(self) -> int: ...  # noqa: D102

    @property
    def about(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def files(self) -> Mapping[str, str]: ...  # noqa: D102

    def records(self, shard: int) -> Iterator[Record]:
        """The records of one shard, in order."""

    def count(self, record: Record) -> Mapping[str, int]:
        """Numbers of a record whose sums the manifest states, such as "tokens"."""


def write(
    folder: str | Path,
    job: Job,
    processes: int = 1,
    report: Callable[[str], None] = lambda line: None,
    part: tuple[int, int] | None = None,
) -> Manifest | None:
    """Write the shards that are missing, and the manifest when none is.

    Args:
        folder: on this machine or in a bucket; made if it is not there.
        job: what to write.
        processes: of this machine that write.
        report: called with a line of text per shard.
        part: (k, n) writes every n-th shard from k on; None takes `part_of_cluster`.

    Returns:
        The manifest; None where another machine has shards left to write.

    Raises:
        UserError: the folder holds another preparation, or a process failed.
        OSError: something could not be written.
    """
    folder = make_folder(folder)
    _bind(folder, job)
    for name, text in job.files.items():
        if not (folder / name).is_file():
            atomic_write_text(folder / name, text)
    first, parts = part or part_of_cluster(os.environ)
    missing = [number for number in range(first, job.shards, parts) if _written(folder, job, number) is None]
    if processes == 1 or len(missing) < 2:
        _write_some(folder, job, missing, report)
    else:
        _write_in_processes(folder, job, missing, min(processes, len(missing)), report)
    shards = [_written(folder, job, number) for number in range(job.shards)]
    if any(shard is None for shard in shards):
        return None
    manifest = Manifest(job.name, to_plain(job.about), tuple(shard for shard in shards if shard is not None))
    write_manifest(folder, manifest)
    return manifest


def part_of_cluster(environment: Mapping[str, str]) -> tuple[int, int]:
    """Which part of the shards is ours, and of how many.

    Args:
        environment: of the process.

    Returns:
        (number from 0, how many): what LIGHTNET_PROCESS and LIGHTNET_PROCESSES say, else Slurm's step, else (0, 1).

    Raises:
        UserError: they do not say a number below another.

    Example:
        >>> part_of_cluster({"LIGHTNET_PROCESS": "2", "LIGHTNET_PROCESSES": "8"})
        (2, 8)
        >>> part_of_cluster({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"})
        (1, 4)
    """
    names = (PROCESS, PROCESSES)
    if not set(names) & environment.keys() and "SLURM_STEP_NODELIST" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS")
    part, parts = environment.get(names[0], "0"), environment.get(names[1], "1")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise UserError(f"{names[0]}: got {part} of {names[1]} {parts}, expected 0 up to the number less 1")
    return int(part), int(parts)


def _bind(folder: Path, job: Job) -> None:
    """Say what the folder is for, or refuse one that is for something else."""
    path, ours = folder / PREPARATION, to_plain({"name": job.name, "shards": job.shards, **job.about})
    # Looked for first: another process may begin meanwhile, and whoever has written a shard has said what for.
    shards = not is_object_store(folder) and any(file.suffix == ".array_record" for file in folder.iterdir())
    if not path.is_file():
        if shards:
            raise UserError(f"{folder} holds shards, but no {PREPARATION} that says what they are")
        write_json(path, ours)
    elif (theirs := read_json(path)) != ours:
        field = next(key for key in (*ours, *theirs) if ours.get(key) != theirs.get(key))
        raise UserError(
            f"{folder} was prepared with another {field}: {_short(theirs.get(field))}, not {_short(ours.get(field))}; "
            "take another folder"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _written(folder: Path, job: Job, number: int) -> Shard | None:
    return written_shard(folder, shard_name(job.name, number, job.shards))


def _write_some(folder: Path, job: Job, numbers: Sequence[int], report: Callable[[str], None]) -> None:
    for number in numbers:
        shard = write_shard(folder, shard_name(job.name, number, job.shards), job.records(number), job.count)
        counts = "".join(f", {count} {name}" for name, count in shard.counts.items())
        report(f"{shard.file}: {shard.records} records{counts}, {shard.bytes / 1e6:.1f} MB")


def _write_in_processes(
    folder: Path, job: Job, numbers: Sequence[int], processes: int, report: Callable[[str], None]
) -> None:
    """Each process writes every so-manieth shard; what it reports comes through a pipe, its failure too."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of libraries
    started = []
    try:
        for first in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (str(folder), job, numbers[first::processes], theirs)
            started.append((context.Process(target=_write_as_child, args=arguments, daemon=True), ours))
            started[-1][0].start()
            theirs.close()
        failure = next(_reports(started, report), None)
    finally:
        for process, _ in started:
            process.terminate()
            process.join()
    if failure is not None:
        raise UserError(failure)


def _reports(started: Sequence[tuple[Any, Connection]], report: Callable[[str], None]) -> Iterator[str]:
    """Hand on what the processes report; yields what those say that fail."""
    open_pipes = {ours: process for process, ours in started}
    while open_pipes:
        for pipe in multiprocessing.connection.wait(list(open_pipes)):
            assert isinstance(pipe, Connection)
            try:
                kind, line = pipe.recv()
            except EOFError:
                process = open_pipes.pop(pipe)
                process.join()
                if process.exitcode:
                    yield f"a writer ended with status {process.exitcode}; the same command writes what is missing"
                continue
            if kind == "shard":
                report(line)
            else:
                yield line


def _write_as_child(folder: str, job: Job, numbers: Sequence[int], pipe: Connection) -> None:
    """What a process does: leave signals of the terminal to the parent, and never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _write_some(as_path(folder), job, numbers, lambda line: pipe.send(("shard", line)))
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        pipe.send(("failure", line))
        sys.exit(2)


def _end_with_parent() -> None:
    """Stop as soon as the parent is no more, even when it was killed: half a shard is not renamed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
