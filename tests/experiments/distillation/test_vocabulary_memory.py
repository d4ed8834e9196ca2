"""Forms of one loss: their values, their gradients and their memory, at small sizes."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.distillation import vocabulary_memory
from experiments.distillation.vocabulary_memory import DENSE, FORMS, REMAT, compared, compiled, operands, temporaries

SMOKE = replace(vocabulary_memory.PRESETS["smoke"], tokens=16, vocabularies=(300,))


@pytest.mark.slow
def test_forms_agree_and_a_wrong_one_is_seen(monkeypatch):
    arrays = operands(SMOKE, 32, 100)
    want, (dh, dW) = compiled(SMOKE, DENSE, 32, 100)(*arrays)
    value, gradients = compiled(SMOKE, REMAT, 32, 100)(*arrays)
    for x, y in zip((value, *gradients), (want, dh, dW), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8)
    error, times = compared(SMOKE)
    assert error < 1e-6 and times["form"] == list(FORMS)
    monkeypatch.setattr(vocabulary_memory, "loss", lambda config, form: lambda *x: x[0].sum() + FORMS.index(form))
    assert compared(SMOKE)[0] > 0.01


@pytest.mark.slow
def test_every_size_has_a_row():
    table = temporaries(SMOKE)
    assert table["tokens"] == [16] * 4 + [64] * 4 and min(table["bytes"]) > 0
    dense = table["bytes"][0]
    assert dense >= 16 * 300 * 4


def test_chunks_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="timed_tokens: got 30, expected a multiple of token_chunk"):
        replace(SMOKE, timed_tokens=30)
