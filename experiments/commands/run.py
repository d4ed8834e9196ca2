"""`run`: execute results, resume interrupted ones, return at once from finished ones."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import distributed, runs
from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, flag_names, parse, parse_known
from experiments.compilation_cache import compile_quickly, keep_compiled_programs
from experiments.errors import UserError, one_line
from experiments.evidence import same_claims
from experiments.execution import Job, execute, identity
from experiments.plain_text import claims_table, duration, filled
from experiments.processes import supervise
from experiments.registry import ResultFile, discover, select, unknown
from experiments.results import PRESET_NAMES, Config
from experiments.training.preemption import STATUS as PREEMPTED
from experiments.training.preemption import Preempted, watching

# Where a run goes, in how many processes, and what is told of it does not change its result, so the recorded command
# leaves these out.
_PLACES = ("runs_dir", "run_dir", "allow_mismatch", "profile", "processes", "debug")


@dataclass(frozen=True)
class Flags:
    """Flags of `run` beside those of a result's Config."""

    preset: Annotated[str, tyro.conf.arg(metavar="smoke|cpu|gpu|paper")] = "cpu"
    """size of the run: smoke (seconds), cpu (minutes), gpu, paper; gives the defaults of --config.*"""
    runs_dir: RunsDir = None
    """folder of run folders"""
    run_dir: Annotated[
        Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: <runs_dir>/<id>/<preset>-<hash>)")
    ] = None
    """this run's own folder"""
    allow_mismatch: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """a field in which the run folder may differ from what it was started with, such as train.steps, seeds, preset or
    data; several with commas"""
    profile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """write a profiler trace of ten steps of the first training into the run folder"""
    resume_from: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """run, training or checkpoint folder: trainings without checkpoints of their own go on from its state, data
    position and counters"""
    init_from: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """the same, but only the weights are taken and everything else begins anew; a run with either goes to a folder of
    its own and never counts as evidence"""
    processes: int = 1
    """processes on this machine that share the run: on CPUs any number, each with all cores and its own (virtual)
    devices; one for each GPU (not tried on GPUs); 1 on a TPU"""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """show the traceback of an error, and of several processes everything that any of them prints"""

    def __post_init__(self) -> None:
        """Check what no type says."""
        if self.processes < 1:
            raise ValueError(f"processes: got {self.processes}, expected at least 1")

    @property
    def origin(self) -> dict[str, str]:
        """Where trainings begin, if not from nothing."""
        given = {"resume_from": self.resume_from, "init_from": self.init_from}
        return {name: path for name, path in given.items() if path is not None}


def main(arguments: Sequence[str]) -> int:
    """Run what the words of the command line name.

    Args:
        arguments: words after `run`.

    Returns:
        0, or 1 if a result crashed, 2 if one was refused, 130 after Ctrl-C; with several processes what `supervise`
        returns.
    """
    arguments = _with_seeds_flag(arguments)
    help_wanted = bool({"-h", "--help"} & set(arguments))
    first, words = parse_known(Flags(), f"{PROGRAM} run", arguments)
    target = _target(words)
    if target is None:
        if not help_wanted:
            raise UserError(f"run needs the id of a result; there is: {', '.join(discover())}")
        parse(Flags(), f"{PROGRAM} run ID|PAPER|FILE.py|headline|all", arguments, _description())
    named = select(str(target))
    results = _with_preset(named, first.preset)
    if help_wanted and len(results) == 1:
        parse(_flags(results[0], first.preset), f"{PROGRAM} run {target}", arguments, _result_description(results[0]))
    elif help_wanted:
        parse(_flags_of_many(results, first.preset), f"{PROGRAM} run {target}", arguments, _description())
    jobs = _jobs(results, first, arguments, str(target))
    for result in named:
        if result not in results:
            print(f"left out: {result.id} has no preset {first.preset}", file=sys.stderr)
    keep_compiled_programs()
    if first.preset == "smoke":
        compile_quickly()
    if first.processes > 1 and not distributed.is_one_of_several():
        commands = [_words_for(job, jobs, arguments, str(target)) for job in jobs]
        return _supervise_all(jobs, commands, first)
    distributed.initialize_from_environment()
    return _run_all(jobs)


def _supervise_all(jobs: Sequence[Job], commands: Sequence[Sequence[str]], flags: Flags) -> int:
    """Execute jobs one after the other, each in processes of its own, so that none inherits another's failure."""
    failures: list[int] = []
    for job, words in zip(jobs, commands, strict=True):
        if runs.is_finished(job.run_dir) and not runs.check_identity(job.run_dir, job.identity, job.allow):
            _run_one(job)  # returns at once
            continue
        status = supervise(words, flags.processes, run=str(job.run_dir), debug=flags.debug)
        if len(jobs) == 1 or status in (PREEMPTED, 130):
            return status
        if status:
            print(f"{job.result.id} failed", file=sys.stderr)
            failures.append(status)
    return min(failures, default=0)


def _words_for(job: Job, jobs: Sequence[Job], arguments: Sequence[str], target: str) -> list[str]:
    """The command line that runs one of several jobs by itself."""
    if len(jobs) == 1:
        return ["run", *arguments]
    place = list(arguments).index(target)
    return ["run", *arguments[:place], job.result.id, *arguments[place + 1 :]]


def _run_all(jobs: Sequence[Job]) -> int:
    """Execute jobs one after the other; one that fails does not keep the next from running."""
    failures: list[Exception] = []
    for job in jobs:
        try:
            with watching():
                _run_one(job)
        except (KeyboardInterrupt, Preempted) as stop:
            if distributed.is_primary():
                what = "SIGTERM" if isinstance(stop, Preempted) else "interrupted"
                print(f"{what}: the same command continues this run ({job.run_dir})", file=sys.stderr)
            return PREEMPTED if isinstance(stop, Preempted) else 130
        except Exception as error:
            if len(jobs) == 1 or distributed.is_one_of_several():
                raise
            print(f"{job.result.id} failed", file=sys.stderr)
            failures.append(_of_result(error, job.result.id))
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(jobs)} results failed", failures)
    return 0


def _of_result(error: Exception, id: str) -> Exception:
    """An exception that says which of several results it belongs to."""
    line = one_line(error)
    if line is None:
        error.add_note(f"while running {id}")
        return error
    told = UserError(f"{id}: {line}")
    told.__cause__ = error
    return told


def _run_one(job: Job) -> None:
    """Execute one job and show its verdicts."""
    done = execute(job)
    if not distributed.is_primary():
        return
    stored = runs.read_result(job.run_dir)
    print("\n" + filled(f"{stored.id} ({stored.preset}): {job.result.title}"))
    print(claims_table(stored.claims))
    if job.preset == "smoke":
        print("smoke is too small to test a claim: verdicts come from the presets cpu, gpu and paper")
    if not same_claims(job.result, stored):
        print(f"the claims were changed after this run; remove {job.run_dir} to test them")
    print(f"{f'finished in {duration(stored.seconds / 60)}' if done else 'already finished'}: {job.run_dir}")
    print(f"figure: {job.run_dir / 'figure.png'}", flush=True)
    if job.profile:
        trace = job.run_dir / "profile"
        print(f"profile: {trace}" if trace.exists() else "profile: nothing was trained, so there is no trace")


def _jobs(results: Sequence[ResultFile], first: Flags, arguments: Sequence[str], target: str) -> list[Job]:
    """What the flags ask for, checked before the first run starts."""
    if len(results) > 1 and first.run_dir is not None:
        raise UserError(
            f"--run_dir is the folder of one run, and {target} names {len(results)} results; use --runs_dir"
        )
    jobs = []
    for result in results:
        default = _flags(result, first.preset) if len(results) == 1 else _flags_of_many(results, first.preset)
        flags, words = parse(default, f"{PROGRAM} run {target}", arguments)
        exactly(words, "ID")
        config = flags.config
        if len(results) > 1:
            seeds = {"seeds": flags.config.seeds} if _gives_seeds(arguments) else {}
            config = dataclasses.replace(result.preset(first.preset), **seeds)
        jobs.append(_job(result, flags, config, _command(result, arguments, target)))
    return jobs


def _job(result: ResultFile, flags: Any, config: Config, command: str) -> Job:
    """One job."""
    if len(flags.origin) > 1:
        raise UserError("--resume_from and --init_from exclude each other: the first takes the weights over, too")
    bound = identity(result.id, flags.preset, config, flags.origin)
    allow = tuple(name for words in flags.allow_mismatch for name in words.split(",") if name)
    fields = ["preset", "data", "origin", "origin.resume_from", "origin.init_from"]
    fields += [name.removeprefix("config.") for name in flag_names(config)]
    for name in allow:
        if not any(field == name or field.endswith(f".{name}") for field in fields):
            raise UserError(f"--allow_mismatch: {unknown('field', name, fields)}")
    run_dir = flags.run_dir or runs.run_folder(bound, flags.runs_dir)
    return Job(result, flags.preset, config, run_dir, command, allow, flags.profile, flags.origin)


def _flags(result: ResultFile, preset: str) -> Any:
    """Flags of one result: those of `run` and its Config, with the values of the preset as defaults."""
    return _with_config(result.preset(preset), preset)


def _flags_of_many(results: Sequence[ResultFile], preset: str) -> Any:
    """Flags when several results are named: their seeds are all that they have in common."""
    return _with_config(Config(results[0].preset(preset).seeds), preset)


def _with_config(config: Config, preset: str) -> Any:
    """An instance of Flags with a field for the config."""
    fields: list[Any] = [("config", type(config), field(default_factory=lambda: config))]
    return dataclasses.make_dataclass("Flags", fields, bases=(Flags,), frozen=True)(preset=preset)


def _with_preset(results: Sequence[ResultFile], preset: str) -> list[ResultFile]:
    """Of several results, those that have the preset; each result says at which sizes it can be run."""
    if preset not in PRESET_NAMES or len(results) == 1:
        for result in results:
            result.preset(preset)
    if not (found := [result for result in results if preset in result.presets]):
        raise UserError(f"no result to run at preset {preset}")
    return found


def _target(words: Sequence[str]) -> str | None:
    """The word that names results, which may stand after flags that are only known once it is read."""
    if not words or not words[0].startswith("-"):
        return words[0] if words else None
    known = {name for id in discover() for name in (id, id.partition("/")[0])} | {"all", "headline"}
    found = [word for word in words if word in known or word.endswith(".py")]
    if not found and any(not word.startswith("-h") and word != "--help" for word in words):
        raise UserError(f"name the result before its flags: {PROGRAM} run ID {' '.join(words[:2])}")
    return found[0] if found else None


def _with_seeds_flag(arguments: Sequence[str]) -> list[str]:
    """`--seeds` stands for `--config.seeds`."""
    return [f"--config.{word[2:]}" if word.partition("=")[0] == "--seeds" else word for word in arguments]


def _gives_seeds(arguments: Sequence[str]) -> bool:
    """Whether the command line sets the seeds."""
    return any(word.partition("=")[0] == "--config.seeds" for word in arguments)


def _command(result: ResultFile, arguments: Sequence[str], target: str) -> str:
    """The command that makes this one result again, wherever its folder is."""
    words, skipping = [], False
    for word in arguments:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--"):
            skipping = name in _PLACES
            if skipping and "=" in word:
                continue
        if not skipping and word != target:
            words.append(word.replace("--config.seeds", "--seeds"))
    return f"{PROGRAM} run {shlex.join([result.target, *words])}"


def _description() -> str:
    """What `run --help` begins with."""
    ids = "\n".join(f"  {id}" for id in discover())
    return f"""Run results and print the verdicts on their claims. An interrupted run continues, a finished one \
returns at once.

ID is one of
{ids}

or a paper (its folder), headline, all, or the path of a result file of your own.

`{PROGRAM} run ID --preset {"|".join(PRESET_NAMES)} --help` shows the settings of one result, --config.*, \
with their defaults at that preset.
--seeds 0:5 or --seeds 0,3,4 replaces the seeds."""


def _result_description(result: ResultFile) -> str:
    """What `run ID --help` begins with."""
    minutes = ", ".join(f"{name} {duration(value)}" for name, value in result.about.minutes.items())
    return f"""{result.title}

{result.about.paper}, {result.about.source}

presets: {minutes}; --seeds is short for --config.seeds"""
