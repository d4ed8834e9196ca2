"""`data`: rows of tokens in shards, and a teacher's outputs for them; whether they are whole, and how fast."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.commands import PROGRAM
from experiments.commands.flags import exactly, parse
from experiments.errors import UserError
from experiments.files import as_path, make_folder, write_json
from experiments.plain_text import text_table
from experiments.registry import unknown
from experiments.runs import runs_folder

HELP = {"-h", "--help"}


@dataclass(frozen=True)
class PrepareFlags:
    """Tokenise the documents of SOURCE, pack them into rows with segment ids, and write the rows into shards.

    SOURCE is standard_library or documentation (Python's own text), tfds:NAME (an example is a document; NAME may be
    the folder of a prepared data set), wikitext103:FOLDER, or a text file, a folder of them or a pattern with *. Paths
    may be addresses such as gs://bucket/folder. Called again, it writes the shards that are missing; the same call with
    LIGHTNET_PROCESS 0, 1, ... of LIGHTNET_PROCESSES on several machines, or in a step of Slurm, shares them out.
    """

    out: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(needed)")] = None
    """folder of the shards, on this machine or in a bucket"""
    tokenizer: str = "bytes"
    """bytes, or the path of a tokenizer.json of Hugging Face's library"""
    end: str = ""
    """token of the tokenizer that is put behind each document, such as <|endoftext|>"""
    length: int = 1024
    """tokens of a row"""
    shards: int = 16
    """files; a multiple of the processes that will train, some hundred megabytes each"""
    processes: int = 1
    """of this machine, each of which writes shards of its own"""
    name: str = ""
    """what file names begin with (default: the last word of SOURCE)"""
    split: str = "train"
    """of a data set of TFDS, or of WikiText-103"""
    field: str = "text"
    """of an example of TFDS, or of a line of a .jsonl file, that has the text"""
    documents: Literal["file", "line"] = "file"
    """what a document is in text files; in .jsonl files it is a line"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for field, most in (("length", 2**24), ("shards", 99_999), ("processes", 1024)):
            if not 1 <= getattr(self, field) <= most:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected 1 to {most}")
        if self.name and not re.fullmatch(r"[\w.+-]+", self.name):
            raise ValueError(f"name: got {self.name!r}, expected letters, digits and . _ + -")


@dataclass(frozen=True)
class TeacherFlags:
    """Run a teacher over the rows of --data, and write its largest log probabilities into as many shards.

    RUN is a training, a run with one in it, an export, or a checkpoint in the layout of others. Its tokenizer must be
    that of the rows. Called again, it writes the shards that are missing; shares are taken as by `data prepare`.
    """

    data: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(needed)")] = None
    """folder that `data prepare` wrote"""
    out: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(needed)")] = None
    """folder of the shards, on this machine or in a bucket"""
    model: str | None = None
    """which training of the run, by its folder in there; needed where there are several"""
    top_k: int = 64
    """log probabilities that are kept of a token"""
    batch_size: int = 64
    """rows at once, over all devices"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for field in ("top_k", "batch_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected at least 1")


@dataclass(frozen=True)
class VerifyFlags:
    """Read every record of FOLDER and hold it against the manifest: bytes, counts, segment ids."""


@dataclass(frozen=True)
class BenchFlags:
    """How fast this process reads FOLDER: in order, cold and warm, and in training order onto the device."""

    seconds: float = 2.0
    """length of one measurement"""
    batch_size: int = 64
    """rows of a batch, in training order"""
    workers: int = 0
    """processes that read, in training order; 0 reads in threads"""
    out: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(default: bench/data in LIGHTNET_RUNS or runs)")] = (
        None
    )
    """folder for result.json"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.seconds < 3600:
            raise ValueError(f"seconds: got {self.seconds}, expected a time above 0 and below an hour")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: got {self.batch_size}, expected at least 1")
        if self.workers < 0:
            raise ValueError(f"workers: got {self.workers}, expected at least 0")


def main(arguments: Sequence[str]) -> int:
    """Prepare, verify or measure.

    Args:
        arguments: words after `data`: which, and its own.

    Returns:
        0.

    Raises:
        UserError: there is no such action, or what it was given is refused.
    """
    if arguments and arguments[0] in ACTIONS:
        return ACTIONS[arguments[0]][1](arguments[1:])
    if HELP & set(arguments):
        purposes = "\n".join(f"  {name:<9}{purpose}" for name, (purpose, _) in ACTIONS.items())
        print(f"usage: {PROGRAM} data ACTION [--help] ...\n\n{purposes}")
        return 0
    if arguments:
        raise UserError(unknown("action", arguments[0], ACTIONS))
    raise UserError(f"the action is missing; there is: {', '.join(ACTIONS)}")


def _prepare(arguments: Sequence[str]) -> int:
    flags, words = parse(PrepareFlags(), f"{PROGRAM} data prepare SOURCE", arguments)
    (source,) = exactly(words, "SOURCE")
    if flags.out is None:
        raise UserError("--out is missing: the folder of the shards")
    from experiments.records.documents import find_documents
    from experiments.records.tokens import TokenRows, read_tokenizer
    from experiments.records.writing import write

    tokenization = read_tokenizer(flags.tokenizer, flags.end)
    documents = find_documents(source, split=flags.split, field=flags.field, unit=flags.documents)
    job = TokenRows(flags.name or _name(source), documents, tokenization, flags.length, flags.shards)
    manifest = write(flags.out, job, flags.processes, lambda line: print(line, flush=True))
    if manifest is None:
        print(f"this part is written: {flags.out}; the manifest comes with the last part")
        return 0
    if not manifest.records:
        raise UserError(f"{source}: no text in it; {flags.out} has no rows")
    print(f"prepared: {flags.out}: {manifest.records} rows, {manifest.counts['tokens']} tokens")
    return 0


def _name(source: str) -> str:
    """What file names begin with.

    Example:
        >>> _name("tfds:lm1b"), _name("gs://bucket/texts/*.txt"), _name("documentation")
        ('lm1b', 'txt', 'documentation')
    """
    return re.sub(r"[^\w+-]+", "-", re.split(r"[:/]", source.rstrip("/"))[-1]).strip("-") or "text"


def _teacher(arguments: Sequence[str]) -> int:
    flags, words = parse(TeacherFlags(), f"{PROGRAM} data teacher RUN", arguments)
    (run,) = exactly(words, "RUN")
    if flags.data is None:
        raise UserError("--data is missing: the folder of the rows")
    if flags.out is None:
        raise UserError("--out is missing: the folder of the shards")
    from experiments.language_models import load
    from experiments.records.manifest import read_manifest
    from experiments.records.teacher import TeacherOutputs
    from experiments.records.writing import write

    rows = read_manifest(flags.data)
    job = TeacherOutputs(load(run, flags.model), flags.data, flags.top_k, flags.batch_size)
    manifest = write(flags.out, job, report=lambda line: print(line, flush=True))
    if manifest is None:
        print(f"this part is written: {flags.out}; the manifest comes with the last part")
        return 0
    size = sum(shard.bytes for shard in manifest.shards)
    each = size / max(rows.counts["tokens"], 1)
    print(f"written: {flags.out}: {manifest.records} rows, top {flags.top_k}, {each:.1f} MB per million tokens")
    return 0


def _verify(arguments: Sequence[str]) -> int:
    _, words = parse(VerifyFlags(), f"{PROGRAM} data verify FOLDER", arguments)
    (folder,) = exactly(words, "FOLDER")
    from experiments.records.verify import verify

    manifest = verify(folder)
    counts = "".join(f", {count} {name}" for name, count in manifest.counts.items())
    print(f"whole: {folder}: {len(manifest.shards)} shards, {manifest.records} records{counts}")
    return 0


def _bench(arguments: Sequence[str]) -> int:
    flags, words = parse(BenchFlags(), f"{PROGRAM} data bench FOLDER", arguments)
    (folder,) = exactly(words, "FOLDER")
    from experiments import environment
    from experiments.records.manifest import read_manifest
    from experiments.records.speed import reading_speed

    manifest = read_manifest(folder)
    found = reading_speed(as_path(folder), flags.seconds, flags.batch_size, flags.workers)
    rows = [[one.way, f"{one.rows_per_second:.3g}", f"{one.tokens_per_second:.3g}"] for one in found]
    print(text_table(["one process", "rows per second", "tokens per second"], rows))
    out = make_folder(flags.out or runs_folder() / "bench" / "data")
    about = {"folder": str(folder), "sha256": manifest.sha256, "length": manifest.about["length"]}
    record = {**about, "settings": flags, "versions": environment.versions(), "speed": found}
    write_json(out / "result.json", record)
    print(f"written: {out / 'result.json'}")
    return 0


ACTIONS: Mapping[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "prepare": ("text as rows of tokens in shards, written by several processes; again: what is missing", _prepare),
    "teacher": ("a teacher's largest log probabilities for such rows; again: what is missing", _teacher),
    "verify": ("whether every byte, record and count of a folder is as its manifest says", _verify),
    "bench": ("rows and tokens per second that one process reads from a folder", _bench),
}
