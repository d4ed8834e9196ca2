"""The figure of `dictionary_size`: loss against dictionary size on two sources and on real text."""

import math
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.results import StoredResult
from experiments.sources.switching import SwitchingSource
from experiments.tokenization.theory import theorem_4_1_bound

# Okabe and Ito's palette: distinct for all common forms of colour blindness.
_COLOURS = {"BPE": "#0072B2", "BPE, greedy": "#56B4E9", "LZW": "#D55E00", "blocks": "#009E73"}
_GREY, _BLACK, _PURPLE = "#666666", "#000000", "#CC79A7"


def draw(result: StoredResult) -> Figure:
    """Three panels; a line is the mean over seeds, a band their range.

    Args:
        result: a stored run of `dictionary_size`.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(13.5, 4.6), layout="constrained")
    axes = figure.subplots(1, 3)
    sources = _panel_sources(result)
    for panel, source in zip(axes, sources, strict=False):
        _draw_source(panel, result, source)
    for panel in axes[len(sources) : 2]:
        panel.set_axis_off()
    _draw_text(axes[2], result)
    return figure


def _panel_sources(result: StoredResult) -> list[tuple[int, float, float]]:
    """Where BPE shines and where LZW does: the source of highest order, and the slowest of order 1."""
    rows = [row for row in _rows(result, "sources") if row["tokenizer"] == "BPE"]
    sources = [(row["order"], row["p"], row["q"]) for row in rows]
    return list(dict.fromkeys([max(sources), min(sources)]))


def _draw_source(panel: Axes, result: StoredResult, source: tuple[int, float, float]) -> None:
    order, p, q = source
    references = _rows(result, "references", order=order, p=p, q=q)[0]
    rows = _rows(result, "sources", order=order, p=p, q=q)
    curves = {name: _curve([row for row in rows if row["tokenizer"] == name], "unigram") for name in _COLOURS}
    for name, curve in curves.items():
        _draw_curve(panel, curve, _COLOURS[name])
    rate, unigram = references["entropy_rate"], references["unigram_entropy"]
    sizes = np.geomspace(2, max(row["size"] for row in rows), 200)
    bounds = np.array([_bound(SwitchingSource(*source), size) for size in sizes])
    panel.plot(sizes, bounds, color=_PURPLE, linestyle="--", linewidth=1.2)
    panel.axhline(rate, color=_BLACK, linewidth=1)
    panel.axhline(unigram, color=_GREY, linewidth=1, linestyle=":")
    panel.set_ylim(rate - 0.1 * unigram, 1.3 * unigram)
    ends = [(curve[1][-1], name, _COLOURS[name]) for name, curve in curves.items()]
    ends += [(rate, "entropy rate", _BLACK), (unigram, "unigram entropy", _GREY)]
    if np.isfinite(bounds[-1]):
        ends.append((bounds[-1], "Theorem 4.1", _PURPLE))
    _finish(panel, ends, f"Order-{order} switching source, p = {p:g}, q = {q:g}", "symbol")


def _draw_text(panel: Axes, result: StoredResult) -> None:
    rows = _rows(result, "text")
    ends = []
    for name in ("LZW", "BPE"):
        curve = _curve([row for row in rows if row["tokenizer"] == name], "held_out")
        _draw_curve(panel, curve, _COLOURS[name])
        ends.append((curve[1][-1], f"{name} unigram", _COLOURS[name]))
    for name in dict.fromkeys(row["tokenizer"] for row in rows if row["tokenizer"].startswith("characters")):
        level = np.mean([row["held_out"] for row in rows if row["tokenizer"] == name])
        panel.axhline(level, color=_GREY, linewidth=1, linestyle=":")
        ends.append((float(level), name, _GREY))
    panel.margins(y=0.08)
    _finish(panel, ends, "Real text, held out", "character")
    sizes = sorted({row["size"] for row in rows if row["tokenizer"] == "BPE"})
    panel.set_xticks(sizes, [f"{size / 1000:g}k" if size >= 1000 else str(size) for size in sizes])
    panel.minorticks_off()


def _finish(panel: Axes, ends: list[tuple[float, str, str]], title: str, unit: str) -> None:
    panel.set_xscale("log")
    panel.set_title(title, fontsize=11)
    panel.set_xlabel("dictionary size d (tokens)")
    panel.set_ylabel(f"loss (nats per source {unit})")
    panel.spines[["top", "right"]].set_visible(False)
    low, high = panel.get_ylim()
    for (value, label, colour), height in zip(sorted(ends), _spread(sorted(ends), low, high), strict=True):
        anchor = (1.0, min(max((value - low) / (high - low), 0), 1))
        panel.annotate(
            label,
            anchor,
            (1.05, height),
            "axes fraction",
            "axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def _spread(ends: list[tuple[float, str, str]], low: float, high: float, gap: float = 0.045) -> list[float]:
    """Heights of the labels in axes units: nearest to the ends of their lines, in least squares, without overlap."""
    groups: list[list[float]] = []  # labels that touch move together; each is stored less its place in the stack
    for place, (value, _, _) in enumerate(ends):
        groups.append([(value - low) / (high - low) - place * gap])
        while len(groups) > 1 and np.mean(groups[-2]) >= np.mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    base = [float(np.mean(group)) for group in groups for _ in group]
    return [height + place * gap for place, height in enumerate(base)]


def _draw_curve(panel: Axes, curve: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], colour: str) -> None:
    sizes, mean, low, high = curve
    panel.fill_between(sizes, low, high, color=colour, alpha=0.25, linewidth=0)
    panel.plot(sizes, mean, color=colour, marker="o", markersize=3, linewidth=1.5)


def _curve(rows: list[dict], column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, and mean, minimum and maximum over seeds."""
    sizes = sorted({row["size"] for row in rows})
    values = [[row[column] for row in rows if row["size"] == size] for size in sizes]
    summaries = (np.array([summary(v) for v in values]) for summary in (np.mean, np.min, np.max))
    mean, low, high = summaries
    return np.array(sizes), mean, low, high


def _bound(source: SwitchingSource, size: float) -> float:
    """What theorem 4.1 promises of some tokenizer with d tokens; NaN where it does not speak of the source or size."""
    try:
        return theorem_4_1_bound(source, size)
    except ValueError:
        return math.nan


def _rows(result: StoredResult, table: str, **values: object) -> list[dict]:
    columns = result.table(table)
    rows: Iterable[tuple] = zip(*columns.values(), strict=True)
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    return [row for row in found if all(row[name] == value for name, value in values.items())]
