"""Reordering on digits: what each variant reorders, what claims are of, and what a training hands on."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.equal_size import count_parameters
from experiments.token_dynamics import reordering_digits
from experiments.token_dynamics.reordering_digits import CLAIMS, MENDED, NONE, PRESETS, RANDOM, RELEASED, VARIANTS
from experiments.training.config import TrainConfig

CPU = PRESETS["cpu"]
SMALL = replace(PRESETS["smoke"], seeds=(3, 5), variants=(RANDOM, RELEASED), train=TrainConfig(steps=3, eval_every=2))


def mixer_of(name, seed=3):
    backbone = reordering_digits.model_of(CPU, name, seed).backbone
    return backbone.mixer(width=backbone.width)


def test_variants_are_what_the_table_says_and_differ_by_the_importance_only():
    assert set(VARIANTS) == set(CPU.variants) and mixer_of(NONE).order is None
    flags = {name: (mixer_of(name).order.permute_gate, mixer_of(name).order.unsort) for name in CPU.variants[1:]}
    assert flags == {RELEASED: (False, False), MENDED: (True, True), RANDOM: (True, True)}
    assert [mixer_of(name).order.random for name in (RELEASED, MENDED, RANDOM)] == [None, None, 3]
    example = np.zeros((1, 64, 2), np.float32)
    sizes = {name: count_parameters(reordering_digits.model_of(CPU, name, 0), example) for name in VARIANTS}
    assert sizes[NONE] == sizes[RANDOM] and sizes[RELEASED] == sizes[MENDED] == sizes[NONE] + 2 * 64


@pytest.mark.slow
@pytest.mark.exhaustive
def test_each_seed_has_its_own_random_order_and_the_last_accuracy_counts(tmp_path):
    result = reordering_digits.run(SMALL, tmp_path)
    curves, table = result.series["accuracy"], result.tables["accuracy"]
    assert curves["updates"].tolist() == [0, 2, 3] and curves[RANDOM].shape == (2, 3)
    assert table["seed"] == [3, 5, 3, 5]
    assert table["accuracy"] == np.concatenate([curves[RANDOM][:, -1], curves[RELEASED][:, -1]]).tolist()
    # The scores of the places decide about the sort, and are drawn by the seed.
    scores = [np.asarray(jax.random.normal(jax.random.key(seed), (64,))) for seed in (3, 5)]
    for number, drawn in enumerate(scores):
        logits = -np.abs(drawn[None] - np.sort(drawn)[:, None])
        P = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        found = [table[name][number] for name in ("largest weight", "smallest column sum", "largest column sum")]
        sums = P.sum(axis=0)
        np.testing.assert_allclose(found, [P.max(axis=1).mean(), sums.min(), sums.max()], rtol=1e-4)
    assert set(result.measured) == {"token_dynamics/softsort-averages"}
    np.testing.assert_array_equal(result.measured["token_dynamics/softsort-averages"], table["largest weight"][2:])
    reordering_digits.plot(SimpleNamespace(series=result.series, config={"variants": list(SMALL.variants)}))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_the_gpu_preset_at_less_depth_and_width(tmp_path):
    config = PRESETS["gpu"]
    example = np.zeros((1, 64, 2), np.float32)
    assert count_parameters(reordering_digits.model_of(config, MENDED, 0), example) == 936_714
    short = replace(config.train, steps=2, batch_size=2, eval_every=2)
    config = replace(config, variants=(MENDED,), seeds=(0, 1), width=8, layers=1, test_images=20, train=short)
    assert np.isfinite(reordering_digits.run(config, tmp_path).tables["accuracy"]["accuracy"]).all()


def test_claims_are_differences_of_the_same_seed():
    accuracies = {NONE: [90.0, 91.0], RELEASED: [91.0, 90.5], MENDED: [94.0, 90.0], RANDOM: [80.0, 92.0]}
    table = {
        "variant": [name for name in accuracies for _ in range(2)],
        "accuracy": [value for values in accuracies.values() for value in values],
        "largest weight": [1.0, 1.0, 0.3, 0.2, 0.9, 0.9, 0.8, 0.8],
    }
    measured = reordering_digits._measured(table)
    assert {id.partition("/")[2]: values.tolist() for id, values in measured.items()} == {
        "abstract-reordering-helps": [1.0, -0.5],
        "reordering-digits": [1.0, -0.5],
        "reordering-digits-mended": [3.0, -0.5],
        "reordering-digits-importance": [14.0, -2.0],
        "softsort-averages": [0.3, 0.2],
    }
    assert set(measured) == {claim.id for claim in CLAIMS}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("variants", ("none", "none"), "variants: expected at least one, each of them once"),
        ("variants", ("sorted",), "variants: unknown variant 'sorted'"),
        ("tau", 0.0, "tau: got 0.0"),
        ("smoothing", 1.0, "smoothing: got 1"),
        ("train", replace(CPU.train, eval_every=0), "eval_every: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CPU, **{field: value})
