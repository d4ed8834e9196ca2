"""Statistics over seeds and the verdicts they give: mean, sd, 95 % interval, paired differences.

The interval is Student's: mean +- t(0.975, n - 1) * sd / sqrt(n) [Student08, "The probable error of a mean"]. A verdict
is computed from the interval and the threshold that the result file stated before the run; nothing else enters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.results import Claim

Verdict = Literal["holds", "does not hold", "inconclusive", "not run"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "inconclusive", "not run")


@dataclass(frozen=True)
class Summary:
    """Several measurements of one quantity in four numbers.

    Args:
        n: how many measurements.
        mean: their mean, None without any.
        sd: sample standard deviation (n - 1 in the denominator), None for fewer than two.
        ci95: 95 % interval of the mean, None where no interval exists.
    """

    n: int
    mean: float | None
    sd: float | None
    ci95: tuple[float, float] | None


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean.

    Args:
        values: at least one number.

    Returns:
        Their sum divided by their count, summed without loss.

    Raises:
        ValueError: if values is empty.

    Example:
        >>> mean([1.0, 2.0, 6.0])
        3.0
    """
    if not len(values):
        raise ValueError("values must hold at least one number, got none")
    if all(value == values[0] for value in values):
        return float(values[0])  # without this, three times 0.1 has a mean one rounding above 0.1
    return _sum(values) / len(values)


def sd(values: Sequence[float]) -> float:
    """Sample standard deviation, sqrt(sum (x - mean)^2 / (n - 1)).

    Args:
        values: at least two numbers.

    Returns:
        The standard deviation, in the unit of the values.

    Raises:
        ValueError: if values holds fewer than two numbers.

    Example:
        >>> sd([1.0, 3.0])
        1.4142135623730951
    """
    if len(values) < 2:
        raise ValueError(f"values must hold at least two numbers for a standard deviation, got {len(values)}")
    center = mean(values)
    return math.sqrt(_sum([(value - center) ** 2 for value in values]) / (len(values) - 1))


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean: mean +- t((1 + level) / 2, n - 1) * sd / sqrt(n).

    Args:
        values: at least two numbers, independent repetitions.
        level: coverage, between 0 and 1.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: if values holds fewer than two numbers, or level is not between 0 and 1.

    Example:
        >>> [round(end, 3) for end in t_interval([1.0, 2.0, 3.0])]
        [-0.484, 4.484]
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    from scipy.special import stdtrit  # a third of a second to import, so only where an interval is computed

    half = sd(values) / math.sqrt(len(values)) * float(stdtrit(len(values) - 1, (1 + level) / 2))
    center = mean(values)
    return center - half, center + half


def summarize(values: Sequence[float], deterministic: bool = False) -> Summary:
    """Mean, sd and 95 % interval of one claim's measurements.

    Args:
        values: one number per seed; may be empty.
        deterministic: a single value is exact, so that its interval has width 0.

    Returns:
        The summary; where a number is not finite there is no interval.

    Example:
        >>> summarize([0.25], deterministic=True).ci95
        (0.25, 0.25)
        >>> summarize([0.25]).ci95 is None
        True
    """
    values = [float(value) for value in values]
    if not values:
        return Summary(0, None, None, None)
    if not all(math.isfinite(value) for value in values):
        return Summary(len(values), math.nan, None, None)
    if len(values) == 1:
        return Summary(1, values[0], None, (values[0], values[0]) if deterministic else None)
    return Summary(len(values), mean(values), sd(values), t_interval(values))


def verdict(claim: Claim, values: Sequence[float], preset: str) -> Verdict:
    """Whether the measurements bear a claim out.

    "within": the interval inside [expected - tolerance, expected + tolerance] holds, wholly outside does not, crossing
    an end is inconclusive. "below": upper end at most expected holds, lower end above expected does not, else
    inconclusive; "above" is its mirror image. A claim of which one measurement is NaN or infinite, as in a run that
    diverged, does not hold: such a number supports nothing, and more seeds would not decide it.

    Args:
        claim: the test and its threshold.
        values: one number per seed; empty if nothing was measured.
        preset: "smoke" is too small to test a claim, so that its verdict is always "not run".

    Returns:
        "holds", "does not hold", "inconclusive" or "not run".

    Example:
        >>> verdict(Claim("demo/a", "a number", "below", 1.0), [0.1, 0.2, 0.15], "cpu")
        'holds'
        >>> verdict(Claim("demo/a", "a number", "below", 1.0), [0.1], "cpu")
        'inconclusive'
    """
    if preset == "smoke" or not len(values):
        return "not run"
    if not all(math.isfinite(value) for value in values):
        return "does not hold"
    interval = summarize(values, claim.deterministic).ci95
    if interval is None:
        return "inconclusive"
    lower, upper = _accepted(claim)
    if lower <= interval[0] and interval[1] <= upper:
        return "holds"
    if interval[1] < lower or interval[0] > upper:
        return "does not hold"
    return "inconclusive"


def paired_differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Differences a - b seed by seed, to test an ordering with "below" or "above".

    Args:
        a: one number per seed.
        b: one number per seed, the same seeds in the same order.

    Returns:
        One difference per seed.

    Raises:
        ValueError: if a and b are not equally long.

    Example:
        >>> paired_differences([3.0, 5.0], [1.0, 1.0])
        [2.0, 4.0]
    """
    if len(a) != len(b):
        raise ValueError(f"a and b must hold one value per seed each, got {len(a)} and {len(b)} values")
    return [float(x) - float(y) for x, y in zip(a, b, strict=True)]


def _accepted(claim: Claim) -> tuple[float, float]:
    """Range of values in which a claim is true."""
    if claim.test == "within":
        return claim.expected - claim.tolerance, claim.expected + claim.tolerance
    return (-math.inf, claim.expected) if claim.test == "below" else (claim.expected, math.inf)


def _sum(values: Sequence[float]) -> float:
    """Sum rounded once."""
    return math.fsum(float(value) for value in values)
