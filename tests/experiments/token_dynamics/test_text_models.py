"""Trained models and their kept states: which text, which parts, which values."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.token_dynamics import text_models
from experiments.token_dynamics.text_models import SizeConfig, TextConfig, recipe

SMALL = TextConfig(folds=40, length=16, analysed=4)
SIZE = SizeConfig(layers=1, width=8, states=3)


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4), np.int32))["params"]


def test_documents_are_in_one_part_and_rows_of_the_held_out_part_are_analysed():
    (train, held_out), (_, other) = (text_models.parts(SMALL, seed) for seed in (0, 3))
    assert not set(train.documents) & set(held_out.documents) and held_out.documents != other.documents
    text = text_models.read_text(SMALL, 0)
    assert text.analysed.shape == (4, 17) and text.train["tokens"].shape[1] == 17
    assert (text.held_out["tokens"] == text.analysed[2]).all(axis=1).any()
    assert list(text.data.values()) == [train.sha256, held_out.sha256]


def test_parts_are_left_out():
    bare = {"convolution": False, "gate": False, "norm": False, "skip": False}
    whole, left = (shapes(text_models.build(SIZE, 256, **options)) for options in ({}, bare))
    mixers = [params["backbone"]["blocks_0"]["mix"] for params in (whole, left)]
    assert [mixer["in_proj"]["kernel"].value.shape for mixer in mixers] == [(8, 2, 16), (8, 1, 16)]
    assert {"D", "A_log"} <= mixers[0].keys() and "D" not in mixers[1] and "A_log" in mixers[1]
    assert {"blocks_0", "final_norm"} == whole["backbone"].keys() and {"blocks_0"} == left["backbone"].keys()
    assert "mix_norm" in whole["backbone"]["blocks_0"] and list(left["backbone"]["blocks_0"]) == ["mix"]


def test_the_recipe_keeps_evenly_spaced_states_and_the_last():
    train = recipe(12, 3)
    assert (train.eval_every, train.checkpoint.permanent_every, train.steps) == (4, 4, 12)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_kept_states_are_the_first_the_ones_between_and_the_last(tmp_path):
    text, model = text_models.read_text(SMALL, 0), text_models.build(SIZE, 256)
    kept = text_models.train_kept(recipe(4, 2, batch_size=4), model, text, tmp_path / "a", seed=0)
    states = list(kept.states)
    assert kept.steps.tolist() == [0, 2, 4] and kept.losses.shape == (3,) and kept.skipped == 0
    embedding = [np.asarray(state["params"]["embedding"]) for state in states]
    assert embedding[0].std() == pytest.approx(8**-0.5, rel=0.05)
    assert not np.array_equal(embedding[0], embedding[1]) and not np.array_equal(embedding[1], embedding[2])
    # A training that ends where the second state was kept has that one as its last; the schedule is another one.
    task = text_models.language.next_token_task(model, {"held_out": text.held_out}, text.vocabulary.lengths, 16)
    for state, loss in zip(states, kept.losses, strict=True):
        assert task.evaluate(state)["held_out"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        (TextConfig, "length", 1, "text.length: got 1"),
        (TextConfig, "analysed", 1, "text.analysed: got 1"),
        (SizeConfig, "states", 65, "size.states: got 65, expected between 1 and 64"),
    ],
)
def test_values_out_of_range_are_refused_by_name(kind, field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(kind(), **{field: value})
