"""Execute one result: its run, the verdicts on what it measured, its files, and `DONE` at the end."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments import environment, runs
from experiments.claims import ledger
from experiments.distributed import first_process_says, is_primary
from experiments.errors import UserError
from experiments.evidence import same_claims
from experiments.files import as_path, atomic_write_bytes, is_object_store, read_json, to_plain, write_json
from experiments.plain_text import duration
from experiments.registry import ResultFile, unknown
from experiments.results import Claim, Config, Result
from experiments.statistics import summarize, verdict
from experiments.training.profile import profiling


@dataclass(frozen=True)
class Job:
    """One result at one config, and the folder that it goes to.

    Args:
        result: the result file.
        preset: which size gave the defaults.
        config: what is run.
        run_dir: its run folder.
        command: the command that makes it again.
        allow: fields in which the folder may differ from the config.
        profile: whether the first training writes a profiler trace.
        origin: what `--init_from` or `--resume_from` gives, by the flag's name.
    """

    result: ResultFile
    preset: str
    config: Config
    run_dir: Path
    command: str
    allow: tuple[str, ...] = ()
    profile: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> runs.Identity:
        """What the run folder is bound to."""
        return identity(self.result.id, self.preset, self.config, self.origin)


def identity(id: str, preset: str, config: Config, origin: Mapping[str, str] | None = None) -> runs.Identity:
    """Identity of a run.

    Args:
        id: of the result.
        preset: size that gave the defaults.
        config: what is run.
        origin: where its trainings begin, if not from nothing.

    Returns:
        The identity, with the config as plain JSON values, and the origin among them if there is one.

    Raises:
        UserError: if a field of the config has no JSON form.

    Example:
        >>> identity("demo/a", "cpu", Config(seeds=(0,))).config
        {'seeds': [0]}
    """
    try:
        return runs.Identity(id, preset, {**to_plain(config), **({"origin": dict(origin)} if origin else {})})
    except TypeError as error:
        raise UserError(f"the Config of {id} cannot be recorded: {error}") from None


def execute(job: Job) -> bool:
    """Run a job unless its folder is finished; interrupted runs go on with what they left in the folder.

    A folder that lacks nothing but its figure, because `plot` failed, is not computed again. Of several processes the
    first one does all of this; the others take part in the computation and write nothing.

    Args:
        job: what to run, and where.

    Returns:
        Whether anything was run.

    Raises:
        UserError: if the folder belongs to another run or is being written, the result does not keep its contract, or
            a trace shall be written to an object store.
        OSError: if the folder cannot be written.
    """
    if job.profile and is_object_store(job.run_dir):
        raise UserError(f"--profile writes into a folder of this machine, and the run folder is {job.run_dir}")
    if first_process_says(_is_done(job)):
        return False
    if not is_primary():
        if first_process_says(False):  # once it has the lock
            _run(job)
        return True
    with runs.writing(job.run_dir, job.identity, job.allow):
        done = _is_done(job)  # by another run, between the first look and the lock
        computing = first_process_says(not done and not _is_computed(job))
        if done:
            return False
        if not computing:
            told = f"{job.result.id}: computed before, drawing its figure; remove {job.run_dir} to compute it again"
            print(told, file=sys.stderr, flush=True)
        else:
            _compute(job)
        _draw(job)
        runs.mark_done(job.run_dir)
    return True


def _run(job: Job) -> Result:
    """Run the result file: all that a process other than the first does."""
    begins: Any = nullcontext()
    if job.origin:
        from experiments.training.start import origin

        begins = origin(**job.origin, run_dir=job.run_dir)
    with runs.allowing(job.allow), begins:
        return job.result.run(job.config, job.run_dir)


@contextmanager
def timing(run_dir: str | Path) -> Iterator[Callable[[], float]]:
    """Count the seconds that processes work on a run, through all of its interruptions.

    `seconds.json` holds them. A process adds its own when it leaves the block, also by an exception, Ctrl-C or SIGTERM;
    one that is killed outright adds nothing, so that the sum is then too small.

    Args:
        run_dir: the run folder.

    Yields:
        A function that returns the seconds of all processes so far, this one's included.
    """
    path, start = as_path(run_dir) / "seconds.json", time.monotonic()
    before = read_json(path) if path.exists() else 0.0

    def total() -> float:
        return round(before + time.monotonic() - start, 3)

    try:
        yield total
    except BaseException:
        with suppress(OSError):  # on a full disk, what ended the run is told
            write_json(path, total())
        raise
    write_json(path, total())


def _is_done(job: Job) -> bool:
    """Whether the folder holds everything of this run, not of one that it shall be continued from."""
    return runs.is_finished(job.run_dir) and not runs.check_identity(job.run_dir, job.identity, job.allow)


def _is_computed(job: Job) -> bool:
    """Whether the folder holds this very result, judged by the present claims."""
    try:
        stored = runs.read_result(job.run_dir)
    except UserError:  # absent, or damaged
        return False
    same_run = runs.Identity(stored.id, stored.preset, to_plain(stored.config)) == job.identity
    return same_run and same_claims(job.result, stored) and (job.run_dir / "arrays.npz").is_file()


def _compute(job: Job) -> None:
    """Run the result file, and write down what it returns."""
    write_json(job.run_dir / "env.json", environment.describe())
    print(_announcement(job), file=sys.stderr, flush=True)
    with timing(job.run_dir) as seconds:
        with profiling(job.run_dir / "profile") if job.profile else nullcontext():
            result = _run(job)
        _write_result(job, result, seconds())


def _announcement(job: Job) -> str:
    """What a run says before it starts."""
    minutes = duration(job.result.about.minutes[job.preset])
    seeds = f"{len(job.config.seeds)} seed{'s' * (len(job.config.seeds) > 1)}"
    return f"{job.result.id}: preset {job.preset}, {seeds}, about {minutes} -> {job.run_dir}"


def claim_records(job: Job, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `result.json` says of each claim.

    Args:
        job: whose claims.
        measured: claim id -> one value per seed.

    Returns:
        One record per claim of the result file, verdict included.

    Raises:
        UserError: if something was measured that is no claim of the file, or there is not one value per seed.
    """
    known = [claim.id for claim in job.result.claims]
    for name in measured:
        if name not in known:
            raise UserError(f"{job.result.id} measured {unknown('claim', name, known)}")
    sources = {row.id: row.source for row in ledger().values()}
    return [_record(job, claim, measured.get(claim.id, ()), sources.get(claim.id)) for claim in job.result.claims]


def _record(job: Job, claim: Claim, measured: Any, source: str | None) -> dict[str, Any]:
    """One claim's record."""
    values = [float(value) for value in measured]
    wanted = 1 if claim.deterministic else len(job.config.seeds)
    if values and len(values) != wanted:
        kind = "deterministic: one value" if claim.deterministic else f"one value for each of {wanted} seeds"
        raise UserError(f"claim {claim.id} needs {kind}, and {job.result.id} measured {len(values)}")
    summary = summarize(values, claim.deterministic)
    return {
        "claim": claim.id,
        "source": source or job.result.about.source,
        "kind": claim.kind,
        "scale": "published" if job.preset == "paper" else "analogue",
        "quantity": claim.quantity,
        "test": claim.test,
        "expected": claim.expected,
        "tolerance": claim.tolerance,
        "deterministic": claim.deterministic,
        "n": summary.n,
        "measured": summary.mean,
        "sd": summary.sd,
        "ci95": summary.ci95,
        "verdict": verdict(claim, values, job.preset),
        "values": values,
    }


def _write_result(job: Job, result: Result, seconds: float) -> None:
    """Write what a finished run has beside its figure and `DONE`; `result.json` last."""
    if not isinstance(result, Result):
        raise UserError(
            f"run of {job.result.id} must return an experiments.results.Result, got {type(result).__name__}"
        )
    _check_tables(job.result.id, result.tables)
    claims, data = claim_records(job, result.measured), _data(job.run_dir, result.data)
    runs.replace_result(job.run_dir, job.identity)
    record = {
        "id": job.result.id,
        "title": job.result.title,
        "paper": job.result.about.paper,
        "preset": job.preset,
        "seeds": job.config.seeds,
        "claims": claims,
        "tables": result.tables,
        "series": runs.write_arrays(job.run_dir, result.series),
        "data": data,
        "seconds": seconds,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "env": environment.describe(),
        "command": job.command,
        "config": job.identity.config,
        "allowed": read_json(allowed) if (allowed := job.run_dir / "allowed.json").exists() else [],
    }
    write_json(job.run_dir / "env.json", record["env"])  # again: by now the devices are known
    write_json(job.run_dir / "result.json", record)


def _data(run_dir: Path, data: dict[str, str]) -> dict[str, str]:
    """Data sets of the run, recorded in the folder if the result file has not done so before training."""
    if data:
        runs.record_data(run_dir, data)
    path = run_dir / "data.json"
    return read_json(path) if path.exists() else {}


def _draw(job: Job) -> None:
    """Write the figure as png and svg; the same result gives the same files."""
    import matplotlib

    matplotlib.use("Agg")
    figure = job.result.plot(runs.read_result(job.run_dir))
    with matplotlib.rc_context({"svg.hashsalt": "lightnet-lab"}):
        for kind, metadata in {"png": {"Software": None}, "svg": {"Date": None}}.items():
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=150, metadata=metadata, bbox_inches="tight")
            atomic_write_bytes(job.run_dir / f"figure.{kind}", content.getvalue())
    if "matplotlib.pyplot" in sys.modules:
        import matplotlib.pyplot

        matplotlib.pyplot.close(figure)


def _check_tables(id: str, tables: Mapping[str, Mapping[str, Collection]]) -> None:
    """Refuse a table whose columns are not equally long."""
    for name, columns in tables.items():
        lengths = {column: len(values) for column, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"table {name!r} of {id} has columns of unequal length: {lengths}")
