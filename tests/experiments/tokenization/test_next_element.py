"""One table of models: the smoke run, rows of every source, the claims of a made-up table, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.tokenization import next_element
from experiments.tokenization.next_element import BEST, HIDDEN, PRESETS, SOURCES, Config, measure, prepare
from tests.experiments.result_run import check_run

SMOKE = PRESETS["smoke"]


@pytest.mark.slow
def test_smoke_run(tmp_path):
    absent = {"N-counting-is-enough", "N-in-context", "N-text"}
    result = check_run(next_element, SMOKE, tmp_path, absent=absent)
    table = result.tables["losses"]
    assert list(dict.fromkeys(table["model"])) == [*(f"{k}-gram" for k in range(1, 7)), HIDDEN, "LSTM", BEST]
    assert result.series["LSTM on switching, order 2"]["loss"][:, 0] == pytest.approx(np.log(2), abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_rows_of_every_source(name):
    config = replace(SMOKE, length=50)
    rows = prepare(config, name)
    assert rows.fit.shape == (16, 50) and len(rows.scored) == 2
    assert all(each.shape == (4, 50) and each.max() < rows.alphabet for each in rows.scored)
    assert not np.array_equal(*rows.scored)
    if rows.best is not None:
        assert all(0.3 < loss < np.log(2) + 0.1 for loss in rows.best)
    seen = {row.tobytes() for row in rows.fit}
    assert not any(row.tobytes() in seen for each in rows.scored for row in each)


def test_a_text_too_short_for_a_row_is_refused():
    with pytest.raises(UserError, match="text_characters: got 60000, too few"):
        prepare(replace(SMOKE, text_characters=60_000, length=100_000), "text")


def test_claims_of_a_made_up_table():
    config = Config(seeds=(0, 1), orders=(1, 2))
    models = {
        "1-gram": 0.7,
        "2-gram": 0.6,
        HIDDEN: 0.55,
        "LSTM": 0.5,
        "transformer": 0.65,
        "LightNet": 0.52,
        "Mamba": 0.53,
    }
    table = [
        {"source": source, "model": model, "seed": seed, "loss": loss + 0.1 * seed}
        for source in SOURCES
        for model, loss in {**models, BEST: 0.45}.items()
        for seed in (0, 1)
    ]
    found = measure(config, table)
    assert found == {
        "tokenization/N-counting-is-enough": pytest.approx([0.15] * 2),
        "tokenization/N-hidden-markov": pytest.approx([0.1] * 2),
        "tokenization/N-in-context": pytest.approx([0.05] * 2),
        "tokenization/N-text": pytest.approx([-0.1] * 2),
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sources", ("text", "chains in context"), "sources: got .*, expected some of"),
        ("networks", ("GRU",), "networks: got .*, expected some of LSTM"),
        ("orders", (), "the smallest of orders: got 0"),
        ("states", 0, "states: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(Config(), **{field: value})
