"""Tables and figures of students: each measure with its interval over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELLS = ("accuracy", "agreement", "entropy", "calibration error")
Values = Sequence[float] | np.ndarray
Measured = Mapping[str, Any]
"""Measure -> one value per seed."""


def interval(values: Values) -> tuple[float, float, float]:
    """Mean and 95 % interval over seeds; of one seed, or where one is not finite, the three are equal.

    Example:
        >>> [round(x, 2) for x in interval([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48]
    """
    from experiments.statistics import mean, t_interval

    numbers = [float(value) for value in values]
    if len(numbers) < 2 or not np.isfinite(numbers).all():
        return (float(np.mean(numbers)),) * 3
    return (mean(numbers), *t_interval(numbers))


def cell_columns(found: Mapping[str, Measured], measures: Sequence[str] = CELLS) -> dict[str, list]:
    """A row for each student: every measure, and the ends of its interval.

    Args:
        found: student -> measure -> one value per seed.
        measures: which.

    Returns:
        Column -> values.

    Example:
        >>> cell_columns({"a": {"accuracy": [1.0, 1.0]}}, ["accuracy"])
        {'student': ['a'], 'accuracy': [1.0], 'accuracy, low': [1.0], 'accuracy, high': [1.0]}
    """
    rows: dict[str, list] = {"student": list(found)}
    for measure in measures:
        ends = np.array([interval(each[measure]) for each in found.values()]).reshape(-1, 3)
        for name, column in zip((measure, f"{measure}, low", f"{measure}, high"), ends.T, strict=True):
            rows[name] = column.tolist()
    return rows


def seed_columns(
    found: Mapping[str, Measured], seeds: Sequence[int], measures: Sequence[str] = CELLS
) -> dict[str, list]:
    """A row for each student and seed.

    Args:
        found: student -> measure -> one value per seed.
        seeds: in the same order.
        measures: which.

    Returns:
        Column -> values.

    Example:
        >>> seed_columns({"a": {"accuracy": [1.0, 2.0]}}, (7, 9), ["accuracy"])
        {'student': ['a', 'a'], 'seed': [7, 9], 'accuracy': [1.0, 2.0]}
    """
    rows: dict[str, list] = {
        "student": [name for name in found for _ in seeds],
        "seed": [seed for _ in found for seed in seeds],
    }
    for measure in measures:
        rows[measure] = [float(value) for each in found.values() for value in each[measure]]
    return rows


def difference(a: Values, *others: Values) -> np.ndarray:
    """What one student is above the best of others, seed by seed.

    Example:
        >>> difference([3.0, 3.0], [1.0, 5.0], [2.0, 0.0]).tolist()
        [1.0, -2.0]
    """
    return np.asarray(a, float) - np.max(np.asarray(others, float), axis=0)


def draw_cells(axis: Axes, cells: Mapping[str, list], measure: str, labels: Sequence[str] | None = None) -> None:
    """Each student's mean and interval, the first at the top.

    Args:
        axis: where.
        cells: of `cell_columns`.
        measure: which.
        labels: of the rows; None takes the students' names.
    """
    names = list(cells["student"] if labels is None else labels)
    heights = np.arange(len(names))[::-1]
    axis.hlines(heights, cells[f"{measure}, low"], cells[f"{measure}, high"], color="#0072B2", linewidth=2)
    axis.plot(cells[measure], heights, "o", markersize=4, color="#0072B2")
    axis.set_yticks(heights, names, fontsize=8)


def draw_curve(axis: Axes, x: Values, values: Any, label: str, **style: Any) -> None:
    """Mean and interval over seeds along x.

    Args:
        axis: where.
        x: (n,).
        values: (n, seeds).
        label: of the curve.
        **style: of the line.
    """
    middle, low, high = np.array([interval(row) for row in values]).T
    (line,) = axis.plot(x, middle, marker=".", label=label, **style)
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
