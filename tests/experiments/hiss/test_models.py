"""The compared models: names, equal parameters, and where a flat model is read."""

import jax
import numpy as np
import pytest

from experiments.baselines.lstm import LSTM
from experiments.hiss.models import LevelSize, model_of
from experiments.hiss.names import LEVELS, Name, read_name
from experiments.hiss.preparation import low_passed, standardised, with_differences
from lightnet.mixers import SoftmaxAttention
from lightnet.positions import Rotary
from ssm import S4, Mamba

SIZE = LevelSize(width=6, layers=1, state_size=4)


def shapes(name, length=20):
    model = model_of(read_name(name), SIZE, num_targets=2, freq_ratio=5)
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, length, 3), np.float32))
    return jax.tree.map(lambda leaf: leaf.shape, params)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer over s4", Name("transformer", "s4", "chunk")),
        ("flat mamba end", Name("mamba", "mamba", "end")),
        ("flat mamba over s4 start", Name("mamba", "s4", "start")),
    ],
)
def test_names(name, expected):
    assert read_name(name) == expected


@pytest.mark.parametrize("name", ["", "mamba", "flat mamba", "mamba over", "mamba under s4", "flat mamba middle"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="models: got .*, expected such as 'mamba over s4' or 'flat mamba end'"):
        read_name(name)


def test_a_hierarchy_and_its_levels_without_chunks_have_the_same_parameters():
    assert shapes("lstm over lstm") == shapes("flat lstm end") == shapes("flat lstm start")
    assert shapes("mamba over lstm") == shapes("flat mamba over lstm end") != shapes("lstm over mamba")


def test_flat_models_see_samples_up_to_where_they_are_read_and_start_like_hierarchies():
    x = jax.random.normal(jax.random.key(0), (1, 20, 3))
    first, last = 10, 14  # samples of the third chunk of five
    started = []
    for reads, at in (("start", first), ("end", last), ("chunk", last)):
        name = "lstm over lstm" if reads == "chunk" else f"flat lstm {reads}"
        model = model_of(read_name(name), SIZE, num_targets=2, freq_ratio=5)
        params = model.init(jax.random.key(1), x)
        apply = jax.jit(model.apply)
        before = apply(params, x)
        for changed, seen in ((at, 2), (at + 1, 3)):  # chunks whose predictions are the same
            same = np.abs(before - apply(params, x.at[:, changed:].add(1.0))).max(axis=(0, 2)) == 0
            assert same.tolist() == [True] * seen + [False] * (4 - seen), (reads, changed)
        started.append(params)
    for other in started[1:]:
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), started[0], other))


@pytest.mark.parametrize("reads", ["", "flat "])
def test_levels_are_where_the_name_says_and_causal(reads):
    mixers = {"s4": S4, "mamba": Mamba, "lstm": LSTM, "transformer": SoftmaxAttention}
    for high, low in zip(LEVELS, LEVELS[1:] + LEVELS[:1], strict=True):
        model = model_of(read_name(f"{reads}{high} over {low}{' end' if reads else ''}"), SIZE, 2, 5)
        for level, kind in ((model.high, high), (model.low, low)):
            mixer = level.mixer(width=SIZE.width)
            assert type(mixer) is mixers[kind] and mixer.capabilities.causal, kind
            assert level.mlp_ratio == (1 if kind == "transformer" else 0)
            assert kind != "transformer" or level.mixer.keywords["relative"] is Rotary


def test_the_filter_keeps_slow_changes_takes_fast_ones_and_sees_no_future():
    time = np.arange(200) / 50
    slow, fast = (np.sin(2 * np.pi * f * time)[None, :, None] for f in (0.3, 15.0))
    filtered = low_passed(slow + fast, cutoff=5.0, rate=50.0)
    # Gain of the third order at f: 1 / sqrt(1 + (tan(pi f / 50) / tan(pi 5 / 50))^6), 0.013 at 15 Hz.
    assert np.abs(low_passed(fast, 5.0, 50.0)[:, 100:]).max() < 0.02
    delayed = np.interp(time - 0.064, time, slow[0, :, 0])  # a delay of 2 / (2 pi 5 Hz) where the phase is straight
    np.testing.assert_allclose(filtered[0, 100:, 0], delayed[100:], atol=0.03)
    later = (slow + fast).copy()
    later[:, 100:] += 5
    np.testing.assert_array_equal(low_passed(later, 5.0, 50.0)[:, :100], filtered[:, :100])
    assert low_passed(slow, 0.0, 50.0) is slow


def test_differences_and_standardisation():
    x = np.random.default_rng(1).normal(3.0, 2.0, (40, 10, 2)).astype(np.float32)
    both = with_differences(x)
    np.testing.assert_array_equal(both[:, 1:, 2:], x[:, 1:] - x[:, :-1])
    assert (both[:, 0, 2:] == 0).all()
    scaled = standardised(both, both)
    np.testing.assert_allclose(scaled.mean(axis=(0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=(0, 1)), 1, rtol=1e-5)
    assert np.isfinite(standardised(x * 0, x * 0)).all() and scaled.dtype == np.float32
