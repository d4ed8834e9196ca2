"""Statistics against scipy, and every way a verdict can come out."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.results import Claim
from experiments.statistics import mean, paired_differences, sd, summarize, t_interval, verdict


@pytest.mark.parametrize("n", [2, 3, 5, 17, 64])
def test_mean_sd_and_interval_are_those_of_scipy(n):
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    lower, upper = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert mean(values) == pytest.approx(values.mean(), rel=1e-13)
    assert sd(values) == pytest.approx(values.std(ddof=1), rel=1e-13)
    assert t_interval(values) == pytest.approx((lower, upper), rel=1e-11)


def test_interval_covers_the_truth_in_19_of_20_repetitions():
    repetitions = 4000
    draws = np.random.default_rng(0).normal(1.0, 5.0, (repetitions, 4))
    covered = sum(lower <= 1.0 <= upper for lower, upper in map(t_interval, draws))
    # Five standard deviations of a binomial count.
    assert abs(covered - 0.95 * repetitions) < 5 * math.sqrt(repetitions * 0.95 * 0.05)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e300, -0.7])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_equal_values_have_an_interval_of_width_zero(value, n):
    assert t_interval([value] * n) == (value, value)
    assert sd([value] * n) == 0.0


def test_summary_of_nothing_one_and_not_finite():
    assert summarize([]) == summarize([], deterministic=True)
    assert summarize([]).mean is None
    assert summarize([2.0]).ci95 is None
    assert summarize([2.0], deterministic=True).ci95 == (2.0, 2.0)
    for poison in (math.nan, math.inf, -math.inf):
        summary = summarize([1.0, poison, 2.0])
        assert summary.n == 3 and math.isnan(summary.mean) and summary.ci95 is None


# Values with mean 0 and a 95 % interval of half width about 0.4968 (three values, sd 0.2).
SPREAD = [-0.2, 0.0, 0.2]


@pytest.mark.parametrize(
    ("test", "expected", "tolerance", "wanted"),
    [
        ("within", 0.0, 0.5, "holds"),
        ("within", 0.0, 0.49, "inconclusive"),
        ("within", 0.9, 0.5, "inconclusive"),
        ("within", 1.0, 0.5, "does not hold"),
        ("within", -1.0, 0.5, "does not hold"),
        ("below", 0.5, 0.0, "holds"),
        ("below", 0.49, 0.0, "inconclusive"),
        ("below", -0.49, 0.0, "inconclusive"),
        ("below", -0.5, 0.0, "does not hold"),
        ("above", -0.5, 0.0, "holds"),
        ("above", -0.49, 0.0, "inconclusive"),
        ("above", 0.49, 0.0, "inconclusive"),
        ("above", 0.5, 0.0, "does not hold"),
    ],
)
def test_verdict_follows_the_interval(test, expected, tolerance, wanted):
    claim = Claim("demo/a", "a number", test, expected, tolerance)
    assert verdict(claim, SPREAD, "cpu") == wanted
    shifted = Claim("demo/a", "a number", test, expected + 8.0, tolerance)
    assert verdict(shifted, [8.0 + value for value in SPREAD], "cpu") == wanted


@pytest.mark.parametrize(("test", "expected"), [("within", 2.0), ("below", 2.0), ("above", 2.0)])
def test_verdict_counts_the_threshold_itself_as_inside(test, expected):
    claim = Claim("demo/a", "a number", test, expected, deterministic=True)
    assert verdict(claim, [2.0], "cpu") == "holds"


def test_verdict_without_enough_measurements():
    claim = Claim("demo/a", "a number", "below", 1.0)
    assert verdict(claim, [], "cpu") == "not run"
    assert verdict(claim, [0.0], "cpu") == "inconclusive"
    assert verdict(claim, SPREAD, "smoke") == "not run"


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("test", ["within", "below", "above"])
def test_verdict_of_a_run_that_diverged(poison, test):
    claim = Claim("demo/a", "a number", test, 0.0)
    assert verdict(claim, [0.0, poison, 0.0], "cpu") == "does not hold"
    assert verdict(claim, [poison], "paper") == "does not hold"
    exact = Claim("demo/a", "a number", test, 0.0, deterministic=True)
    assert verdict(exact, [poison], "gpu") == "does not hold"
    assert verdict(exact, [poison], "smoke") == "not run"


def test_paired_differences_keep_the_seeds_together():
    a, b = [1.0, 5.0, 3.0], [0.5, 4.0, 4.0]
    assert paired_differences(a, b) == [0.5, 1.0, -1.0]
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired_differences(a, b[:2])


def test_functions_refuse_too_few_values():
    with pytest.raises(ValueError, match="at least one"):
        mean([])
    with pytest.raises(ValueError, match="at least two"):
        t_interval([1.0])
    with pytest.raises(ValueError, match="level"):
        t_interval([1.0, 2.0], level=1.0)
