"""Tables keep to 100 columns and break no id."""

import math

import numpy as np
import pytest

from experiments.plain_text import WIDTH, claims_table, interval, text_table, verdict_counts


@pytest.mark.parametrize("columns", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_tables_fit_and_lose_no_word(columns, seed):
    rng = np.random.default_rng(seed)
    rows = [
        [" ".join("w" * rng.integers(1, 12) for _ in range(rng.integers(0, 30))) for _ in range(columns)]
        for _ in range(7)
    ]
    text = text_table([f"c{index}" for index in range(columns)], rows)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert sorted(text.split())[-1] == sorted(word for row in rows for cell in row for word in cell.split())[-1]
    words = sum(len(cell.split()) for row in rows for cell in row)
    assert len(text.split()) == words + 2 * columns  # header and rule


def test_names_of_many_columns_are_wrapped_at_their_underscores():
    names = [f"symbols_per_token_{index}" for index in range(9)]
    text = text_table(names, [[0.123456] * 9])
    assert max(map(len, text.splitlines())) <= WIDTH and text.split()[:9] == ["symbols"] * 9
    assert names[0] in text_table(names[:2], [[1, 2]])


def test_an_id_is_not_broken():
    id = "tokenization/a-rather-long-name-of-a-claim-that-somebody-will-copy"
    text = text_table(["claim", "statement"], [[id, "many words " * 20]])
    assert id in text and max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize(
    ("center", "ci95", "text"),
    [
        (0.693147, (0.691947, 0.694347), "0.6931 ± 0.0012"),
        (1234.5678, (1200.0, 1269.1356), "1235 ± 35"),
        (1.0, (0.9, 1.1), "1.00 ± 0.10"),
        (3e-9, (2e-9, 4e-9), "3e-09 ± 1e-09"),
        (0.25, (0.25, 0.25), "0.25"),
        (0.25, None, "0.25"),
        (None, None, "-"),
        (math.nan, None, "not finite"),
    ],
)
def test_an_interval_shows_two_digits_of_its_half_width(center, ci95, text):
    assert interval(center, ci95) == text


def test_claims_without_measurement_are_shown():
    record = {
        "claim": "demo/a",
        "measured": None,
        "ci95": None,
        "values": [],
        "n": 0,
        "test": "within",
        "expected": 1.0,
    }
    text = claims_table([{**record, "tolerance": 0.5, "verdict": "not run"}])
    assert "demo/a" in text and "1 ± 0.5" in text and "not run" in text
    assert claims_table([]) == "no claims"


def test_verdicts_are_counted_in_words():
    assert verdict_counts(["holds"]) == "1 holds"
    counted = verdict_counts(["not run", "does not hold", "holds", "does not hold", "holds"])
    assert counted == "2 hold, 2 do not hold, 1 not run"
