"""Generation speed: what is timed is generation, and which times a ratio is of."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.equal_size import count_parameters
from experiments.state_spaces import generation_speed
from experiments.state_spaces.generation_speed import CACHED, SOFTMAX, UNCACHED

CPU = generation_speed.PRESETS["cpu"]
SMALL = replace(generation_speed.PRESETS["smoke"], models=("s4+none", "lightnet+both"), hidden=64)
LENGTH = 8


@pytest.fixture
def strong(monkeypatch):
    """Weights with which logits depend on every token before, as those of an untrained model hardly do."""
    plain = generation_speed._with_weights

    def with_weights(model, length):
        built, params = plain(model, length)
        larger = {"kernel": 30.0, "embedding": 50.0, "table": 50.0}

        def scaled(path, leaf):
            return larger.get(path[-1].key, 1.0) * leaf

        return built, jax.tree_util.tree_map_with_path(scaled, params)

    monkeypatch.setattr(generation_speed, "_with_weights", with_weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", [SOFTMAX, "s4+none"])
def test_each_token_is_drawn_behind_all_before(strong, name):
    """Of one pass over the tokens, with the same keys."""
    model = generation_speed.described(SMALL)[name]
    built, params = generation_speed._with_weights(model, LENGTH)
    tokens = np.asarray(generation_speed.generation(model, LENGTH)())[:, 0]
    logits = jax.jit(built.apply)(params, np.concatenate([[0], tokens[:-1]])[None].astype(np.int32))[0]
    keys = jax.random.split(jax.random.key(0), LENGTH)
    assert tokens.tolist() == [int(jax.random.categorical(key, row)) for key, row in zip(keys, logits, strict=True)]
    assert len(set(tokens.tolist())) > 2


@pytest.mark.slow
def test_a_whole_pass_draws_the_token_behind_the_last(strong):
    model = generation_speed.described(SMALL)[SOFTMAX]
    _, params = generation_speed._with_weights(model, LENGTH)
    logits = jax.jit(model.build().apply)(params, jnp.zeros((1, LENGTH), jnp.int32))[0]
    drawn = [int(jax.random.categorical(jax.random.key(0), row)) for row in logits]
    assert generation_speed.whole_pass(model, LENGTH)().tolist() == [drawn[-1]] != drawn[:1]


@pytest.mark.slow
def test_models_have_equal_sizes():
    models = generation_speed.described(replace(CPU, layers=1))
    without_places = replace(models.pop(SOFTMAX), positions="none")
    tokens = np.zeros((1, 8), np.int32)
    expected = count_parameters(without_places.build(), tokens)
    assert without_places.hidden == CPU.hidden and list(models) == list(CPU.models)
    for name, model in models.items():
        assert abs(count_parameters(model.build(), tokens) - expected) < 0.01 * expected and model.hidden > 16, name


def test_times_are_per_token_of_programs_that_take_turns(monkeypatch):
    from experiments.scan_benchmark import measure

    rounds = iter([[5.0, 6.0, 1.0, 2.0, 10.0, 20.0, 1.0, 3.0], [50.0, 60.0, 1.0, 3.0, 100.0, 200.0, 2.0, 4.0]])

    def take_turns(calls, repeats):
        programs = ["a 4", "softmax 4", "pass 1", "pass 3", "a 8", "softmax 8", "pass 2", "pass 6"]
        assert repeats == 7 and [call() for call in calls] == programs
        return [measure.Timing(0.0, milliseconds, 0.0, 1) for milliseconds in next(rounds)]

    monkeypatch.setattr(measure, "take_turns", take_turns)
    monkeypatch.setattr(generation_speed, "generation", lambda model, length: lambda: f"{model} {length}")
    monkeypatch.setattr(generation_speed, "whole_pass", lambda model, length: lambda: f"pass {length}")
    config = replace(SMALL, seeds=(0, 1), passes=2, lengths=(4, 8), calls=7)
    times = generation_speed._times(config, {SOFTMAX: "softmax", "one": "a"})
    assert times == {
        ("one", 4): [1250.0, 12_500.0],
        (CACHED, 4): [1500.0, 15_000.0],
        (UNCACHED, 4): [1500.0, 2000.0],
        ("one", 8): [1250.0, 12_500.0],
        (CACHED, 8): [2500.0, 25_000.0],
        (UNCACHED, 8): [2000.0, 3000.0],
    }


def test_ratios_are_of_the_same_repetition_and_the_longest_text():
    microseconds = {
        ("s4+none", 4): (2.0, 4.0),
        ("s4+none", 8): (2.0, 5.0),
        ("lightnet+both", 4): (1.0, 10.0),
        ("lightnet+both", 8): (3.0, 10.0),
        (CACHED, 4): (6.0, 10.0),
        (CACHED, 8): (12.0, 40.0),
        (UNCACHED, 4): (1.0, 1.0),
        (UNCACHED, 8): (20.0, 100.0),
    }
    rows = [(*key, us) for key, values in microseconds.items() for us in values]
    speed = dict(zip(("model", "tokens", "us_per_token"), map(list, zip(*rows, strict=True)), strict=True))
    measured = generation_speed._measured(SMALL, speed)
    assert {id.removeprefix("long_memory/"): values.tolist() for id, values in measured.items()} == {
        "s4-generation-60x": [10.0, 20.0],
        "s4-generation-60x-cache": [6.0, 8.0],
        "generation-faster-than-cache": [4.0, 4.0],
        "generation-constant-time": [3.0, 1.25],
        "generation-cache-grows": [2.0, 4.0],
    }
    assert set(measured) == {claim.id for claim in generation_speed.CLAIMS}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lengths", (192,), "expected at least two"),
        ("lengths", (768, 192), "the shortest first"),
        ("lengths", (192, 770), "multiples of twice the passes, 4"),
        ("models", ("softmax+both",), "models: got softmax.both, which is compared with anyway"),
        ("models", ("s5-bidirectional+none",), "s5-bidirectional scans both ways"),
        ("calls", 0, "calls: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CPU, **{field: value})
