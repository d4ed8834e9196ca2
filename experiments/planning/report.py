"""Plans as text: one plan as lines, several as a table for the terminal or in Markdown."""

from collections.abc import Mapping, Sequence

from experiments.plain_text import text_table
from experiments.planning.hardware import CHIPS
from experiments.planning.plan import Plan

NOT_MEASURED = (
    "A plan, not a measurement: memory is what the compiler for these chips asks for; times and rates are bounds by "
    "the published peaks of the chips, without evaluation, saving and data."
)
COLUMNS = (
    "mesh",
    "memory, GiB",
    "of",
    "compute, ms",
    "memory, ms",
    "network, ms",
    "step, ms",
    "in turn, ms",
    "MFU at most",
    "compute share",
)


def lines(plan: Plan) -> str:
    """Everything of a plan.

    Args:
        plan: which.

    Returns:
        Lines without a final newline.
    """
    run = f"{plan.trainings} training{'s' if plan.trainings > 1 else ''} like this one"
    rate = f"{plan.examples_per_second:,.0f} examples/s"
    if plan.tokens:
        rate += f", {plan.tokens * plan.examples_per_second:,.0f} tokens/s"
    seconds = plan.seconds
    rows = [
        ("training", f"{plan.id} ({plan.preset}), {plan.training}: {plan.parameters:,} parameters"),
        ("chips", f"{plan.chips} of {_place(plan)}, mesh {_mesh(plan)}"),
        ("memory per device", _memory(plan.memory)),
        ("operations per step", _operations(plan)),
        ("memory traffic", f"{_bytes(plan.traffic)} per device and step"),
        ("step at least", f"{_ms(seconds['step'])}: {_parts(seconds)}"),
        ("nothing overlapped", f"{_ms(seconds['in_turn'])}, {plan.compute_share:.1%} of it not spent sending"),
        ("at most", f"{rate}; model FLOPs utilisation {plan.utilisation(CHIPS[_kind(plan)].flops):.1%}"),
        ("this training", f"{_time(plan.hours)} at least for {plan.steps:,} steps of {plan.batch_size} examples"),
        ("the whole run", f"{_time(plan.hours * plan.trainings)}, {_chip_hours(plan)} chip-hours: {run}"),
        ("compiled by", ", ".join(f"{name} {value}" for name, value in plan.versions.items())),
    ]
    if plan.endless:
        rows.append(("counted once", f"{plan.endless} loops whose number of turns is not known"))
    said = "\n".join(f"{name:<20}{value}" for name, value in rows)
    return f"{said}\n\n{_collectives(plan)}\n\n{assumed(_kind(plan))}\n{NOT_MEASURED}"


def assumed(kind: str) -> str:
    """The published peaks that times are computed with.

    Args:
        kind: of the chips.

    Returns:
        One line.
    """
    chip = CHIPS[kind]
    return (
        f"Published peaks of {kind}, per chip: {chip.flops / 1e12:g} TFLOP/s in bfloat16, {chip.memory / 2**30:g} GiB, "
        f"{chip.bandwidth / 1e9:g} GB/s of memory, {chip.ring / 1e9:g} GB/s to the chips of an axis, "
        f"{chip.outside / 1e9:g} GB/s to other slices."
    )


def ranked(plans: Mapping[str, Plan], refused: Mapping[str, str]) -> str:
    """Plans of one training, the shortest step first, if nothing is overlapped; then what is not possible.

    Args:
        plans: by what they are called.
        refused: reasons, by the same names.

    Returns:
        Lines without a final newline.
    """
    best = sorted(plans.items(), key=lambda item: item[1].seconds["in_turn"])
    table = text_table(COLUMNS, [(name, *figures(plan)) for name, plan in best], width=140)
    return "\n".join([table, *(f"not possible: {name}: {reason}" for name, reason in refused.items())])


def figures(plan: Plan) -> Sequence[str]:
    """Cells of a row, without its first column."""
    seconds = plan.seconds
    times = [f"{1e3 * seconds[name]:.4g}" for name in ("compute", "memory", "network", "step", "in_turn")]
    needed, there = (f"{plan.memory[name] / 2**30:.3g}" for name in ("needed", "there"))
    return [needed, there, *times, f"{plan.utilisation(CHIPS[_kind(plan)].flops):.1%}", f"{plan.compute_share:.1%}"]


def _collectives(plan: Plan) -> str:
    if not plan.collectives:
        return "no collectives"
    return text_table(
        ("collective", "chips", "calls per step", "sent by a device", "to other slices"),
        [
            (row.kind, row.group, f"{row.calls:g}", _bytes(row.bytes), _bytes(row.outside) if row.outside else None)
            for row in plan.collectives
        ],
    )


def _kind(plan: Plan) -> str:
    return plan.topology.partition(":")[0]


def _place(plan: Plan) -> str:
    return f"{plan.topology} x {plan.slices} slices" if plan.slices > 1 else plan.topology


def _mesh(plan: Plan) -> str:
    return " ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "of one device"


def _memory(memory: Mapping[str, int]) -> str:
    kinds = ", ".join(f"{name} {_bytes(size)}" for name, size in memory.items() if name not in ("needed", "there"))
    share = memory["needed"] / memory["there"]
    return f"{_bytes(memory['needed'])} of {_bytes(memory['there'])}, {share:.1%} ({kinds})"


def _operations(plan: Plan) -> str:
    told = f"{plan.flops:.4g} in matrix products, {plan.passes:.4g} in passes of bfloat16"
    return f"{told}, {plan.repeated:.4g} of the former for rematerialisation" if plan.repeated else told


def _parts(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_ms(seconds[name])}" for name in ("compute", "memory", "network"))


def _chip_hours(plan: Plan) -> str:
    return f"{plan.chips * plan.hours * plan.trainings:,.3g}"


def _bytes(size: float) -> str:
    """In binary units.

    Example:
        >>> _bytes(100), _bytes(3 * 2**20)
        ('100 B', '3 MiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"


def _time(hours: float) -> str:
    return f"{60 * hours:.3g} min" if hours < 2 else f"{hours:.3g} h"
