"""What a result file is made of (Config, About, Claim, Result), and reading finished results back (load).

A result file defines a module docstring, `ABOUT`, a frozen `Config`, `PRESETS`, `CLAIMS`, `run(config, run_dir)` and
`plot(result)`. Only the standard library and numpy are imported here, so that listing results stays fast and notebooks
can load them without JAX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from experiments.errors import UserError

Preset = Literal["smoke", "cpu", "gpu", "paper"]
PRESET_NAMES: tuple[str, ...] = get_args(Preset)


@dataclass(frozen=True)
class Config:
    """What every result's own frozen Config inherits.

    A subclass with a `__post_init__` of its own calls `super().__post_init__()` first.

    Raises:
        ValueError: as `check_seeds`.

    Example:
        >>> Config(seeds=(0, 0))
        Traceback (most recent call last):
        ...
        ValueError: seeds must be distinct, got (0, 0)
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    """one repetition per seed; on the command line `--seeds 0:5` or `--seeds 0,3,4`"""

    def __post_init__(self) -> None:
        """Check the seeds."""
        check_seeds(self.seeds)


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that could not be told apart in a result.

    Args:
        seeds: one integer per repetition.

    Raises:
        ValueError: if seeds is empty, repeats a seed, or contains one that is no integer from 0 to 2**31 - 1.

    Example:
        >>> check_seeds((0, 1, 7))
    """
    seeds = tuple(seeds)
    if not seeds:
        raise ValueError("seeds must name at least one seed, got none")
    if any(isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**31 for seed in seeds):
        raise ValueError(f"seeds must be integers from 0 to 2**31 - 1, got {seeds}")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be distinct, got {seeds}")


@dataclass(frozen=True)
class About:
    """Where a result comes from and what it costs: what `python -m experiments list` prints of it.

    Args:
        paper: title and identifier of the paper.
        source: figure, table or theorem of that paper.
        minutes: wall-clock minutes of each preset.
        headline: one of the few results that `make reproduce` runs.

    Example:
        >>> About("A paper (arXiv 0000.00000)", "Figure 2", {"cpu": 4.0}).headline
        False
    """

    paper: str
    source: str
    minutes: Mapping[str, float]
    headline: bool = False


@dataclass(frozen=True)
class Claim:
    """One claim and the test that decides it, fixed before the run; `experiments.statistics` computes the verdict.

    Args:
        id: row of the ledger `experiments/CLAIMS.toml`.
        quantity: what is measured, one sentence with its unit.
        test: "within" expected +- tolerance, "below" or "above" expected.
        expected: value, or threshold.
        tolerance: half width of the accepted range, for "within" only.
        kind: a claim of the paper, one of ours, or a control that must come out as known.
        deterministic: one exact value, so that no interval over seeds is needed.

    Raises:
        ValueError: if a field has a value outside its range.

    Example:
        >>> Claim("tokenization/F2a-plateau", "loss minus unigram entropy, nats", "within", 0.0, 0.01).kind
        'paper'
    """

    id: str
    quantity: str
    test: Literal["within", "below", "above"]
    expected: float
    tolerance: float = 0.0
    kind: Literal["paper", "ours", "control"] = "paper"
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse a claim that no measurement could decide."""
        if self.test not in ("within", "below", "above"):
            raise ValueError(f"claim {self.id}: test must be within, below or above, got {self.test!r}")
        if self.kind not in ("paper", "ours", "control"):
            raise ValueError(f"claim {self.id}: kind must be paper, ours or control, got {self.kind!r}")
        if not np.isfinite(self.expected):
            raise ValueError(f"claim {self.id}: expected must be a finite number, got {self.expected}")
        if not (np.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"claim {self.id}: tolerance must be 0 or more, got {self.tolerance}")
        if self.test != "within" and self.tolerance:
            raise ValueError(f"claim {self.id}: tolerance belongs to the test 'within', not to {self.test!r}")


@dataclass
class Result:
    """What `run(config, run_dir)` of a result file returns.

    Args:
        measured: claim id -> one value per seed, in the order of `config.seeds` (one value if deterministic).
        tables: table -> column -> values; the columns of one table are equally long.
        series: series -> field -> array, for the figure and for notebooks.
        data: data set -> SHA-256 of its content.

    Example:
        >>> Result(measured={"demo/a": [0.5]}, tables={"loss": {"step": [1], "loss": [0.5]}}).data
        {}
    """

    measured: dict[str, Sequence[float]]
    tables: dict[str, dict[str, list]] = field(default_factory=dict)
    series: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredResult:
    """A finished result read back from its folder; `plot(result)` of a result file takes one.

    Args:
        id: `<paper>/<name>`, or the name of an outside result file.
        paper: title and identifier of the paper.
        preset: size of the run.
        seeds: the seeds, in the order of each claim's `values`.
        claims: one record per claim, with `measured`, `ci95`, `verdict` and `values`.
        tables: table -> column -> values.
        data: data set -> SHA-256 of its content.
        seconds: wall-clock seconds of all processes that worked on the run; killed ones are not counted.
        env: versions, commit and devices.
        config: every field of the Config, as plain JSON values.
        path: the folder that it was read from.
        command: the command that makes it again.
        title: first line of the result file.
        finished: when, ISO 8601 in UTC.
        allowed: settings in which its folder had been continued against its identity, each `{"field", "was", "now"}`.
    """

    id: str
    paper: str
    preset: str
    seeds: tuple[int, ...]
    claims: list[dict[str, Any]]
    tables: dict[str, dict[str, list]]
    data: dict[str, str]
    seconds: float
    env: dict[str, Any]
    config: dict[str, Any]
    path: Path
    command: str = ""
    title: str = ""
    finished: str = ""
    allowed: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def series(self) -> dict[str, dict[str, np.ndarray]]:
        """Series -> field -> array, read from `arrays.npz` at first use."""
        from experiments.runs import read_arrays

        return read_arrays(self.path)

    def table(self, name: str) -> dict[str, list]:
        """Columns of one table.

        Args:
            name: which table.

        Returns:
            column -> values, all equally long.

        Raises:
            UserError: if the result has no such table.
        """
        if name not in self.tables:
            raise UserError(f"{self.id} has no table {name!r}; it has: {', '.join(self.tables) or 'none'}")
        return self.tables[name]

    def claim(self, claim_id: str) -> dict[str, Any]:
        """Record of one claim.

        Args:
            claim_id: id of the claim.

        Returns:
            The record, with `measured`, `ci95`, `verdict` and `values`.

        Raises:
            UserError: if the result does not test that claim.
        """
        for record in self.claims:
            if record["claim"] == claim_id:
                return record
        raise UserError(
            f"{self.id} tests no claim {claim_id!r}; it tests: {', '.join(c['claim'] for c in self.claims)}"
        )


def load(id: str, preset: str = "cpu", *, runs_dir: str | Path | None = None) -> StoredResult:
    """The stored result that speaks for an id: its newest finished run with the preset's settings and present claims.

    The committed result stands in for such a run; where there is neither, and for an outside result file, it is the
    newest finished run whatever its settings. A certain run is read with `experiments.runs.read_result(folder)`.

    Args:
        id: `<paper>/<name>`, or the name of an outside result file.
        preset: which size.
        runs_dir: folder of run folders; None takes the environment variable LIGHTNET_RUNS, or `runs` in the current
            folder.

    Returns:
        The result, with tables and series.

    Raises:
        UserError: if that result was never finished at that preset, or its file cannot be imported.

    Example:
        >>> load("tokenization/nothing_like_this", runs_dir="/nonexistent")
        Traceback (most recent call last):
        ...
        experiments.errors.UserError: no finished run of tokenization/nothing_like_this at preset cpu; make one: \
python -m experiments run tokenization/nothing_like_this --preset cpu
    """
    from experiments.evidence import chosen

    stored = chosen(id, preset, runs_dir)
    if stored is None:
        make = f"python -m experiments run {id} --preset {preset}"
        raise UserError(f"no finished run of {id} at preset {preset}; make one: {make}")
    return stored
