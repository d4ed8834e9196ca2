"""Training from prepared rows: the claim's numbers, a folder of one's own, refusals."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.lightnet import prepared_text
from experiments.lightnet.prepared_text import PRESETS
from experiments.planning.trainings import recorded

SMOKE = PRESETS["smoke"]


def test_the_ratio_is_that_of_the_slowest_model_of_each_seed():
    config = replace(PRESETS["cpu"], seeds=(0, 1))
    speeds = {"update": [10.0, 20.0, 40.0, 5.0], "reading": [100.0, 100.0, 100.0, 100.0]}
    np.testing.assert_array_equal(prepared_text._ratios(config, speeds), [2.5, 5.0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("models", (), "models: got none"),
        ("models", ("lightnet",), "models: got 'lightnet'"),
        ("shards", 1, "shards: got 1, expected at least 2"),
        ("held_out", 0, "held_out: got 0, expected at least 1"),
        ("lanes", 0, "lanes: got 0"),
    ],
)
def test_refusals(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, **{field: value})


def test_a_plan_times_nothing(monkeypatch):
    def timed(*_, **__):
        raise AssertionError("something is timed")

    monkeypatch.setattr("experiments.scan_benchmark.measure.take_turns", timed)
    monkeypatch.setattr("experiments.records.speed.speed_in_training_order", timed)
    found = recorded(SimpleNamespace(id="lightnet/prepared_text", run=prepared_text.run), SMOKE)
    assert [training.label for training in found.trainings] == ["softmax+none-seed0"]
    assert found.stopped == ""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_smoke_run(tmp_path):
    result = prepared_text.run(SMOKE, tmp_path)
    assert np.isfinite(result.tables["losses"]["loss"]).all()
    (ratio,) = result.measured["lightnet/prepared-rows-keep-up"]
    assert ratio > 0 and len(result.data) == 1


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_folder_with_a_tokenizer_of_its_own(tmp_path):
    from experiments import language
    from experiments.language_models import load
    from experiments.records.documents import EmbeddedText
    from experiments.records.tokens import Tokenization, TokenRows
    from experiments.records.writing import write
    from experiments.sources import documentation

    tokenizer = language.vocabulary(300, documentation().head(10_000)).tokenizer
    job = TokenRows("docs", EmbeddedText("documentation"), Tokenization(tokenizer), 16, 4)
    write(tmp_path / "rows", job)
    config = replace(SMOKE, data=str(tmp_path / "rows"))
    (tmp_path / "run").mkdir()
    (tmp_path / "other").mkdir()
    result = prepared_text.run(config, tmp_path / "run")
    described = load(tmp_path / "run").language_model
    assert (described.vocab_size, described.tokenizer) == (300, tokenizer)
    assert np.isfinite(result.tables["losses"]["loss"]).all() and not (tmp_path / "run" / "data").exists()
    with pytest.raises(UserError, match="lanes: got 2, expected a divisor of 3 shards"):
        prepared_text.run(replace(config, lanes=2), tmp_path / "other")
