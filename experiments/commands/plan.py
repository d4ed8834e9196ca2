"""`plan`: what a training would need on chips that are not there, before they are paid for."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.commands import PROGRAM
from experiments.commands.flags import RunsDir, exactly, parse, parse_known
from experiments.errors import UserError
from experiments.registry import ResultFile, discover, load_id, select, unknown
from experiments.results import Config
from experiments.runs import runs_folder

if TYPE_CHECKING:
    from experiments.planning.trainings import Training


@dataclass(frozen=True)
class Flags:
    """Compile the update of a result's largest training for TPUs or GPUs that are not there.

    What it needs is printed and kept in <runs_dir>/plans: memory, operations, bytes, collectives, and the least time by
    the published peaks of the chips. ID is a result; with its preset, --config.* are its settings.
    """

    preset: Annotated[str, tyro.conf.arg(metavar="smoke|cpu|gpu|paper")] = "paper"
    """size of the run; gives the defaults of --config.*"""
    topology: str = "v5p:2x2x1"
    """kind and shape of a slice: v5e:4x4, v5p:8x8x4, v6e:4x4, tpu7x:2x2x1; of a machine with GPUs: h100:8"""
    slices: int = 1
    """slices of that shape, or machines, joined by the network of the data centre"""
    training: Annotated[str | None, tyro.conf.arg(metavar="LABEL")] = None
    """of a result with several trainings, the first whose label has this part (default: the first of the largest)"""
    search: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """plan every size of data, fsdp and tensor that divides the batch, of sequence too if that is -1; minutes each"""
    remat: tuple[str, ...] = ()
    """with --search, policies of train.remat to try beside each other (default: the one that is set)"""
    tensor: tuple[int, ...] = ()
    """with --search, the sizes of tensor to try (default: all)"""
    all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """plan every result that has the preset and trains; writes a table into --out"""
    out: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(default: PLANS.md in the folder of plans)")] = None
    """with --all, the file of the table"""
    runs_dir: RunsDir = None
    """folder of run folders"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.slices < 1:
            raise ValueError(f"slices: got {self.slices}, expected at least 1")
        given = {"search": self.search, "remat": self.remat, "tensor": self.tensor, "training": self.training}
        for name in ("remat", "tensor"):
            if given[name] and not self.search:
                raise ValueError(f"--{name} is for --search")
        if self.all and (wrong := next((name for name, value in given.items() if value), None)):
            raise ValueError(f"--{wrong} is for one result, not for --all")
        if self.out and not self.all:
            raise ValueError("--out is for --all")

    @property
    def folder(self) -> Path:
        """Of plans."""
        return runs_folder(self.runs_dir) / "plans"


def main(arguments: Sequence[str]) -> int:
    """Plan one training, or those of all results.

    Args:
        arguments: words after `plan`.

    Returns:
        0, or 2 if one of several results could not be planned.
    """
    first, words = parse_known(Flags(), f"{PROGRAM} plan", arguments)
    if first.all or not words:
        flags, words = parse(Flags(), f"{PROGRAM} plan", arguments)
        exactly(words, *([] if flags.all else ["ID"]))
        _compile_on_the_cpu()
        from experiments.planning.table import write_table

        results = [result for result in map(load_id, discover()) if flags.preset in result.presets]
        return write_table(results, flags.preset, flags.topology, flags.slices, flags.folder, flags.out)
    if words[0].startswith("-"):
        raise UserError(f"name the result before its flags: {PROGRAM} plan ID {' '.join(words[:2])}")
    if len(results := select(words[0])) > 1:
        raise UserError(unknown("result", words[0], discover()))
    flags, words = parse(_flags(results[0], first.preset), f"{PROGRAM} plan {words[0]}", arguments)
    exactly(words, "ID")
    _compile_on_the_cpu()
    _search(results[0], flags) if flags.search else _plan(results[0], flags)
    return 0


def _plan(result: ResultFile, flags: Any) -> None:
    from experiments.planning.hardware import topology
    from experiments.planning.plan import plan
    from experiments.planning.report import lines

    chips = topology(flags.topology, flags.slices)
    training, count = _training(result, flags.config, flags.training)
    print(lines(plan(result.id, flags.preset, training, count, chips, flags.folder)))


def _search(result: ResultFile, flags: Any) -> None:
    """Plan all meshes with all policies, and rank them."""
    from experiments.planning.hardware import topology
    from experiments.planning.plan import Plan, plan
    from experiments.planning.report import lines, ranked
    from experiments.planning.search import meshes, on_mesh

    chips = topology(flags.topology, flags.slices)
    plans: dict[str, Plan] = {}
    refused: dict[str, str] = {}
    for policy in flags.remat or [None]:
        training, count = _training(result, _with_remat(flags.config, policy), flags.training)
        for mesh in meshes(len(chips.devices), training.config, flags.tensor):
            sizes = {axis: size for axis, size in vars(mesh).items() if axis != "sequence" or size > 1}
            name = " ".join([f"{axis} {size}" for axis, size in sizes.items()] + ([policy] if policy else []))
            try:
                tried = on_mesh(training, mesh)
                plans[name] = plan(result.id, flags.preset, tried, count, chips, flags.folder)
            except UserError as error:
                refused[name] = str(error)
            print(f"planned: {name}" if name in plans else f"not possible: {name}", flush=True)
    if not plans:
        raise UserError(f"no mesh of {flags.topology} is possible: {next(iter(refused.values()), 'none divides it')}")
    print("\n" + ranked(plans, refused) + "\n\nthe best of them:\n")
    print(lines(min(plans.values(), key=lambda found: found.seconds["in_turn"])))


def _training(result: ResultFile, config: Config, label: str | None) -> tuple[Training, int]:
    """The training that is planned, and how many the whole run has."""
    from experiments.planning.trainings import chosen, recorded

    found = recorded(result, config)
    if found.stopped:
        print(f"only the {len(found.trainings)} trainings up to here were seen: {found.stopped}", file=sys.stderr)
    return chosen(found.trainings, label), len(found.trainings) * len(config.seeds)


def _with_remat(config: Any, policy: str | None) -> Any:
    """The settings with another policy."""
    if policy is None:
        return config
    if not hasattr(config, "train"):
        raise UserError("--remat: the result has no train.remat")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, remat=policy))


def _flags(result: ResultFile, preset: str) -> Any:
    """Flags with a field for the settings of the result."""
    config = result.preset(preset)
    fields: list[Any] = [("config", type(config), field(default_factory=lambda: config))]
    return dataclasses.make_dataclass("Flags", fields, bases=(Flags,), frozen=True)(preset=preset)


def _compile_on_the_cpu() -> None:
    """Nothing is asked of an accelerator of this machine; to be called before JAX is imported."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
