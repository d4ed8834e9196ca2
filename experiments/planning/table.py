"""PLANS.md: the largest training of every result that has a preset, planned for the same chips."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import one_line
from experiments.files import atomic_write_text, make_folder
from experiments.planning.hardware import CHIPS, Topology, topology
from experiments.planning.plan import Plan, plan
from experiments.planning.report import NOT_MEASURED, assumed
from experiments.planning.trainings import NothingToPlan, chosen, recorded
from experiments.registry import ResultFile

_HEADER = (
    "result",
    "largest training",
    "parameters",
    "batch",
    "memory of a device, GiB",
    "operations per step",
    "sent by a device per step, MB",
    "step at least, ms",
    "MFU at most",
    "examples per second at most",
    "trainings",
    "chip-hours of the run",
)
_COUNTED = (
    "Every training of a run counts as long as its largest takes at least. Small models that are trained together, one "
    "per seed, are planned with one seed: n of them need about n times the memory and the time of a row."
)


def write_table(
    results: Sequence[ResultFile], preset: str, name: str, slices: int, folder: Path, out: Path | None
) -> int:
    """Plan all results, print what comes of each, and write the table.

    Args:
        results: which.
        preset: of all.
        name: kind and shape of a slice.
        slices: of that shape.
        folder: of plans.
        out: the file; None is PLANS.md in that folder.

    Returns:
        0, or 2 if a result that trains could not be planned.

    Raises:
        UserError: there is no compiler for these chips.
    """
    chips = topology(name, slices)
    rows: list[list[Any]] = []
    left_out: list[str] = []
    counted: list[str] = []
    failed = 0
    for result in results:
        try:
            found, stopped = _planned(result, preset, chips, folder)
        except Exception as error:
            if (reason := one_line(error)) is None:
                raise
            failed += not isinstance(error, NothingToPlan)
            left_out.append(f"`{result.id}`: {reason}")
            print(f"{result.id}: {reason}", flush=True)
            continue
        rows.append(_row(found))
        if stopped:
            counted.append(f"`{result.id}`: only {found.trainings} trainings were seen: {stopped}")
            print(counted[-1], flush=True)
        print(f"{result.id}: planned, {found.seconds['step']:.3g} s per step at least", flush=True)
    path = out or folder / "PLANS.md"
    make_folder(path.parent)
    atomic_write_text(path, _text(rows, {"Not counted to the end": counted, "Not planned": left_out}, preset, chips))
    print(f"table: {path}")
    return 2 if failed else 0


def _planned(result: ResultFile, preset: str, chips: Topology, folder: Path) -> tuple[Plan, str]:
    """The plan of its largest training, and why no further trainings are counted, if so."""
    config = result.preset(preset)
    found = recorded(result, config)
    count = len(found.trainings) * len(config.seeds)
    return plan(result.id, preset, chosen(found.trainings), count, chips, folder), found.stopped


def _row(plan: Plan) -> list[Any]:
    sent = sum(row.bytes + row.outside for row in plan.collectives)
    needed, there = (plan.memory[name] / 2**30 for name in ("needed", "there"))
    peak = CHIPS[plan.topology.partition(":")[0]].flops
    return [
        f"`{plan.id}`",
        plan.training,
        f"{plan.parameters / 1e6:.2f} M",
        plan.batch_size,
        f"{needed:.2f} of {there:.0f}",
        f"{plan.flops:.3g}",
        f"{sent / 1e6:.3g}",
        f"{1e3 * plan.seconds['step']:.3g}",
        f"{plan.utilisation(peak):.1%}",
        f"{plan.examples_per_second:,.0f}",
        plan.trainings,
        f"{plan.chips * plan.hours * plan.trainings:,.3g}",
    ]


def _text(rows: Sequence[Sequence[Any]], notes: Mapping[str, Sequence[str]], preset: str, chips: Topology) -> str:
    kind = chips.name.partition(":")[0]
    command = f"python -m experiments plan --all --preset {preset} --topology {chips.name}"
    command += f" --slices {chips.slices}" if chips.slices > 1 else ""
    lines = [f"# Plans of the presets `{preset}` on {chips.told}", "", f"Written by `{command}`. {NOT_MEASURED}", ""]
    lines += [assumed(kind), ""]
    lines += [_markdown(_HEADER), _markdown(["---"] * len(_HEADER)), *map(_markdown, rows), ""]
    lines += [_COUNTED, ""]
    for title, reasons in notes.items():
        if reasons:
            lines += [f"{title}:", "", *(f"- {reason}" for reason in reasons), ""]
    return "\n".join(lines)


def _markdown(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
